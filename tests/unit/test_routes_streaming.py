"""Answers as they come: server-sent events and WebSockets, and every way to leave them."""

import asyncio
import json
import logging
from collections.abc import Awaitable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from lfx_local_runtimes.errors import ModelBusy
from lfx_local_runtimes.routes import PREFIX, delivery
from lfx_local_runtimes.routes.delivery import Delivery
from lfx_local_runtimes.routes.faults import ClientGone
from lfx_local_runtimes.routes.openai.chunks import ChatChunks
from lfx_local_runtimes.routes.openai.wire import About
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.requests import Failed, GenerationStream, Progress, Request, Run
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, TextDelta, TokenLogprob, ToolCallDelta
from tests.routes_app import KEY, MODEL, Exchange, Stage, frames_of, layers, make_app, parse_event

WAIT_S = 30.0


def ask(**fields: Any) -> dict[str, Any]:
    return {"model_name": MODEL, "prompt": "hi", **fields}


def open_stream(manager: RuntimeManager, layers: int = 0, *, window: int = 0, **fields: Any) -> Exchange:
    return Exchange(make_app(manager, layers), "/generate/stream", json.dumps(ask(**fields)).encode(), window=window)


# -- server-sent events --------------------------------------------------------------------------------------------------


def test_generate_and_inference_stream_if_asked(client: TestClient) -> None:
    def told(path: str, body: dict[str, Any]) -> list[tuple[str, str | None]]:
        response = client.post(path, json=body)
        assert response.headers["content-type"].startswith("text/event-stream")
        return [(name, data["text"]) for name, data in map(parse_event, frames_of(response.text))]

    expected = [("token", "t0 "), ("token", "t1 "), ("done", "t0 t1 ")]
    assert told("/generate", ask(max_tokens=2, stream=True)) == expected
    options = {name: value for name, value in ask(max_tokens=2).items() if name != "model_name"}
    body = {"model": ask()["model_name"], "task": "text-generation", "options": options, "stream": True}
    assert told("/inference", body) == expected
    assert client.post("/generate", json=ask(max_tokens=2, stream=False)).json()["text"] == "t0 t1 "


def test_a_stream_is_tokens_then_done(client: TestClient) -> None:
    response = client.post("/generate/stream", json=ask(max_tokens=3, request_id="mine"))

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers
    assert ": load" in response.text
    *tokens, (last, done) = map(parse_event, frames_of(response.text))
    assert tokens == [("token", {"request_id": "mine", "index": i, "text": f"t{i} "}) for i in range(3)]
    assert last == "done"
    assert done["request_id"] == "mine"
    assert (done["text"], done["tokens_generated"], done["finish_reason"]) == ("t0 t1 t2 ", 3, "length")
    assert done["metadata"]["engine"] == "puppet"
    assert done["first_token_latency_ms"] > 1000 * done["time_to_first_token"]  # it holds the load
    assert done["tokens_per_second"] == round(3 / done["execution_time"], 2)


def test_what_comes_beside_the_text_is_told(client: TestClient, stage: Stage) -> None:
    logprob = TokenLogprob(token="a", logprob=-1.0, bytes=(97,))
    stage.events = [
        TextDelta("", 1, reasoning="hm"),
        TextDelta("a", 2, logprobs=(logprob,)),
        TextDelta("", 3, tool_calls=(ToolCallDelta(0, "c1", "f", "{}"),)),
        Failed(ModelBusy("enough")),
    ]
    text = client.post("/generate/stream", json=ask(request_id="mine")).text
    *tokens, last = map(parse_event, frames_of(text))
    common = {"request_id": "mine"}
    assert [data for _, data in tokens] == [
        {**common, "index": 0, "text": "", "reasoning": "hm"},
        {**common, "index": 1, "text": "a", "logprobs": [logprob.model_dump(mode="json")]},
        {**common, "index": 2, "text": "", "tool_calls": [{"index": 0, "id": "c1", "name": "f", "arguments": "{}"}]},
    ]
    assert last[0] == "error"


@layers
async def test_a_token_arrives_while_the_next_is_being_made(manager: RuntimeManager, stage: Stage, layers: int) -> None:
    with stage.held():
        stream = open_stream(manager, layers, max_tokens=2)
        assert await stream.start() == 200
        assert (await stream.event())[1]["text"] == "t0 "
        assert stage.requests[0].state.value == "running"
    assert (await stream.event())[1]["text"] == "t1 "
    assert (await stream.event())[0] == "done"
    await stream.ended


async def test_what_is_waiting_goes_out_in_one_piece(manager: RuntimeManager, stage: Stage) -> None:
    stream = open_stream(manager, max_tokens=50, window=1)
    await stage.answered()

    await stream.start()
    pieces = await stream.pieces()

    assert "".join(pieces).count("event: token") == 50
    assert len(pieces) <= 4  # what was there when it began, the first token, the rest, and perhaps the end by itself


async def test_an_engine_that_fails_in_the_middle_ends_the_stream_with_an_error(
    manager: RuntimeManager, stage: Stage
) -> None:
    stage.serve_fault, stage.fault_after = ValueError("lost it"), 2
    stream = open_stream(manager, max_tokens=5, request_id="mine")
    await stream.start()
    events = [await stream.event() for _ in range(3)]
    assert [name for name, _ in events] == ["token", "token", "error"]
    assert events[-1][1]["request_id"] == "mine"
    assert events[-1][1]["error"]["code"] == "engine_failure"
    assert "lost it" in events[-1][1]["error"]["message"]
    assert await stream.chunk() == ""


def test_what_fails_before_the_first_token_has_its_own_status(client: TestClient, stage: Stage) -> None:
    client.post("/models/load", params={"model_name": MODEL})
    stage.serve_fault = ModelBusy("too much")
    assert client.post("/generate/stream", json=ask()).status_code == 409


@layers
async def test_leaving_after_some_tokens_ends_the_computation(
    manager: RuntimeManager, stage: Stage, layers: int
) -> None:
    with stage.held():
        stream = open_stream(manager, layers)
        await stream.start()
        await stream.event()
        stream.leave()
        await stream.ended
        stage.wait_until(lambda: stage.requests[0].state.value == "cancelled")
    assert manager.model_status(MODEL).leases == 0


@layers
async def test_leaving_before_the_first_token_ends_the_computation(
    manager: RuntimeManager, stage: Stage, layers: int
) -> None:
    with stage.held():
        first = open_stream(manager, layers)
        await first.start()
        await first.event()  # the engine is busy with it, so the next one waits
        second = open_stream(manager, layers, request_id="second")
        await asyncio.to_thread(stage.wait_until, lambda: manager.model_status(MODEL).leases == 2)
        second.leave()
        await second.ended
        assert manager.model_status(MODEL).leases == 1
        first.leave()
        await first.ended
    stage.wait_until(lambda: manager.model_status(MODEL).leases == 0)
    assert len(stage.requests) == 1


async def test_a_stream_whose_task_is_cancelled_ends_the_computation(manager: RuntimeManager, stage: Stage) -> None:
    with stage.held():
        stream = open_stream(manager)
        await stream.start()
        await stream.event()
        stream.ended.cancel()
        await asyncio.to_thread(stage.wait_until, lambda: stage.requests[0].state.value == "cancelled")


async def test_silence_is_filled_with_comments(
    manager: RuntimeManager, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "KEEP_ALIVE_S", 0.02)
    with stage.held():
        stream = open_stream(manager, max_tokens=2)
        assert await stream.start() == 200
        await stream.event()
        assert await stream.frame() == ": keep-alive"
        assert await stream.frame() == ": keep-alive"
    assert (await stream.event())[0] == "token"


async def test_between_two_sends_tokens_gather_and_neither_the_first_nor_the_end_waits(
    manager: RuntimeManager, stage: Stage
) -> None:
    manager.settings = manager.settings.model_copy(update={"stream_interval_ms": 10_000_000})
    with stage.held():
        stream = open_stream(manager, max_tokens=50)
        assert await stream.start() == 200
        assert (await stream.event())[1]["text"] == "t0 "
    pieces = await stream.pieces()
    counts = [piece.count("event: token") for piece in pieces]
    assert [count for count in counts if count] == [49], "the end may travel by itself"
    assert "event: done" in "".join(pieces)


def feed_of(*requests: Request[GenerationConfig], gone: Awaitable[None] | None = None) -> ChatChunks:
    streams = [GenerationStream(Run(request)) for request in requests]
    about = About("id", 0, MODEL)
    gone = gone or asyncio.get_running_loop().create_future()
    return ChatChunks(streams, gone, about, per_prompt=len(streams), usage=False)


def asked() -> Request[GenerationConfig]:
    request = Request(MODEL, GenerationConfig(prompt="hi"))
    request.start()
    return request


async def test_a_pause_ends_with_its_time() -> None:
    feed = feed_of(asked())
    await asyncio.wait_for(feed.pause(0.001), WAIT_S)
    feed.close()


async def test_a_pause_ends_with_an_answer() -> None:
    requests = [asked(), asked()]
    feed = feed_of(*requests)
    for left, request in enumerate(requests, 1):
        pause = asyncio.ensure_future(feed.pause(10 * WAIT_S))
        await asyncio.sleep(0)
        request.emit(TextDelta("a", 1))
        await asyncio.sleep(0)
        assert not pause.done(), "a token is no reason"
        await asyncio.to_thread(request.emit, request.empty())
        await asyncio.wait_for(pause, WAIT_S)
        assert len(await feed.take()) == 2
        assert feed.ended == (left == len(requests))
    feed.close()


async def test_there_is_no_pause_before_an_end_that_waits() -> None:
    request = asked()
    feed = feed_of(request, asked())
    request.emit(Failed(ModelBusy("enough")))
    await asyncio.wait_for(feed.pause(10 * WAIT_S), WAIT_S)
    feed.close()


async def test_a_pause_ends_with_the_client() -> None:
    left = asyncio.Event()
    feed = feed_of(asked(), gone=left.wait())
    pause = asyncio.ensure_future(feed.pause(10 * WAIT_S))
    await asyncio.sleep(0)
    left.set()
    await asyncio.wait_for(pause, WAIT_S)
    await asyncio.wait_for(feed.pause(10 * WAIT_S), WAIT_S)
    with pytest.raises(ClientGone):
        await feed.take()
    feed.close()


async def test_progress_is_told_once_per_percent() -> None:
    feed = Delivery(GenerationStream(Run(Request(MODEL, GenerationConfig(prompt="hi")))))
    events = [Progress("download", done, 1000) for done in (0, 4, 9, 10, 12, 20)] + [Progress("load"), Progress("load")]
    told = [(data["phase"], data["percent"]) for _, data in feed.messages([(0, event) for event in events])]
    assert told == [("download", 0), ("download", 1), ("download", 2), ("load", 0)]
    feed.close()


def test_a_running_request_keeps_its_id(client: TestClient, stage: Stage) -> None:
    with stage.held(), client.websocket_connect(f"{PREFIX}/generate/ws", headers=KEY) as socket:
        socket.send_json(ask(request_id="mine"))
        first_token(socket)
        response = client.post("/generate/stream", json=ask(request_id="mine"))
        assert response.status_code == 422
        assert "mine" in response.json()["error"]["message"]


# -- WebSocket -----------------------------------------------------------------------------------------------------------


def until_end(socket: Any) -> list[dict[str, Any]]:
    """Everything up to `done` or `error`, progress left out."""
    heard = []
    while not heard or heard[-1]["event"] not in ("done", "error"):
        message = socket.receive_json()
        if message["event"] != "progress":
            heard.append(message)
    return heard


def first_token(socket: Any) -> dict[str, Any]:
    while (message := socket.receive_json())["event"] == "progress":
        pass
    assert message["event"] == "token"
    return dict(message)


def test_requests_follow_one_another_on_a_socket(client: TestClient) -> None:
    with client.websocket_connect(f"{PREFIX}/generate/ws", headers=KEY) as socket:
        for index, count in enumerate((3, 1, 2)):
            socket.send_json(ask(max_tokens=count, request_id=f"r{index}"))
            *tokens, done = until_end(socket)
            assert [(token["event"], token["text"]) for token in tokens] == [("token", f"t{i} ") for i in range(count)]
            assert {message["request_id"] for message in (*tokens, done)} == {f"r{index}"}
            assert (done["event"], done["tokens_generated"]) == ("done", count)
            assert done["first_token_latency_ms"] > 0


@pytest.mark.parametrize("message", [{"type": "cancel"}, {"event": "cancel"}])
def test_a_cancel_message_cancels_and_the_socket_serves_on(
    client: TestClient, stage: Stage, message: dict[str, str]
) -> None:
    with client.websocket_connect(f"{PREFIX}/generate/ws", headers=KEY) as socket:
        with stage.held():
            socket.send_json(ask())
            first_token(socket)
            socket.send_json(message)
            assert until_end(socket)[-1]["finish_reason"] == "cancelled"
        socket.send_json(message)  # nothing runs: nothing happens
        socket.send_json(ask(max_tokens=1))
        assert until_end(socket)[-1]["finish_reason"] == "length"


def test_closing_a_socket_cancels(client: TestClient, manager: RuntimeManager, stage: Stage) -> None:
    with stage.held():
        with client.websocket_connect(f"{PREFIX}/generate/ws", headers=KEY) as socket:
            socket.send_json(ask())
            first_token(socket)
        stage.wait_until(lambda: stage.requests[0].state.value == "cancelled")
    stage.wait_until(lambda: manager.model_status(MODEL).leases == 0)


def test_a_socket_answers_faults_and_serves_on(client: TestClient, stage: Stage) -> None:
    with client.websocket_connect(f"{PREFIX}/generate/ws", headers=KEY) as socket:
        for raw, code, says in [
            ("{", "invalid_input", "not JSON"),
            ("[1]", "invalid_input", "object"),
            (json.dumps(ask(temperature=-1)), "invalid_input", "temperature: "),
            (json.dumps(ask(model_name="nobody")), "model_not_found", "nobody"),
            ("x" * (8 * 2**20 + 1), "body_too_large", "8 MiB"),
        ]:
            socket.send_text(raw)
            (error,) = until_end(socket)
            assert (error["event"], error["error"]["code"]) == ("error", code)
            assert says in error["error"]["message"]
        with stage.held():
            socket.send_json(ask())
            first_token(socket)
            socket.send_json(ask())
            assert until_end(socket)[-1]["error"]["code"] == "model_busy"
        assert until_end(socket)[-1]["event"] == "done"
        socket.send_bytes(json.dumps(ask(max_tokens=1)).encode())
        assert until_end(socket)[-1]["event"] == "done"


def test_a_socket_asks_who_is_there(client: TestClient, stage: Stage) -> None:
    with (
        pytest.raises(WebSocketDisconnect) as refused,
        client.websocket_connect(f"{PREFIX}/generate/ws", headers={"x-api-key": "no"}) as socket,
    ):
        socket.receive_json()
    assert refused.value.code == 1008
    assert not stage.requests


def test_nothing_is_logged_as_an_error(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        client.post("/generate/stream", json=ask(max_tokens=2))
    assert not caplog.records
