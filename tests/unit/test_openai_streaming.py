"""OpenAI's API as it comes: chunks and events, and every way a stream can end."""

import asyncio
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from lfx_local_runtimes.errors import ModelBusy
from lfx_local_runtimes.routes import delivery
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.requests import Event, Finished, Progress
from lfx_local_runtimes.runtimes.tasks.generation import TextDelta, ToolCallDelta
from tests.routes_app import LOGPROBS, MODEL, Exchange, Stage, a_result, frames_of, layers, make_app

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
INPUTS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"prompt": "hi"},
    RESPONSES: {"input": "hi"},
}
every_path = pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])


def ask(path: str, **fields: Any) -> dict[str, Any]:
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    fields = {limit if name == "limit" else name: value for name, value in fields.items()}
    return {"model": MODEL, "stream": True, **INPUTS[path], **fields}


def open_stream(manager: RuntimeManager, path: str, layers: int = 0, *, window: int = 0, **fields: Any) -> Exchange:
    content = json.dumps(ask(path, **fields)).encode()
    return Exchange(make_app(manager, layers), path, content, window=window, headers={"x-request-id": "mine"})


def frames(client: TestClient, path: str, **fields: Any) -> list[Any]:
    """The data of every event; comments are left out."""
    response = client.post(path, json=ask(path, **fields))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text.endswith("\n\n")
    return [data_of(frame) for frame in frames_of(response.text)]


def data_of(frame: str) -> Any:
    """A frame's data; the event's name, if there is one, is the data's type."""
    name, _, data = frame.rpartition("data: ")
    read = data if data == "[DONE]" else json.loads(data)
    assert name in ("", f"event: {read['type']}\n" if isinstance(read, dict) and "type" in read else "")
    return read


async def next_data(stream: Exchange) -> Any:
    while (frame := await stream.frame()).startswith(":"):
        pass
    return data_of(frame) if frame else None


EVERYTHING: list[Event] = [
    Progress("load"),
    TextDelta("", 1, reasoning="h"),
    TextDelta("", 2, reasoning="m"),
    TextDelta("Hel", 3),
    TextDelta("lo \u2028😀", 4),
    TextDelta("", 5, tool_calls=(ToolCallDelta(0, "call_1", "weather"),)),
    TextDelta("", 6, tool_calls=(ToolCallDelta(0, arguments='{"a"'),)),
    TextDelta("", 7, tool_calls=(ToolCallDelta(0, arguments=": 1}"), ToolCallDelta(1, "call_2", "time", "{}"))),
    Finished(a_result(finish_reason="tool_calls")),
]


# -- chat/completions ----------------------------------------------------------------------------------------------------


def test_a_chat_stream(client: TestClient) -> None:
    *chunks, done = frames(client, CHAT, limit=3)
    assert done == "[DONE]"
    for chunk in chunks:
        read = ChatCompletionChunk.model_validate(chunk, strict=True)
        assert (read.object, read.model, read.id) == ("chat.completion.chunk", MODEL, chunks[0]["id"])
        assert "usage" not in chunk
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "t0 "}, {"content": "t1 "}, {"content": "t2 "},
        {},
    ]  # fmt: skip
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]


def test_usage_is_the_last_chunk_if_it_is_wanted(client: TestClient) -> None:
    *chunks, last, done = frames(client, CHAT, limit=2, n=2, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert {chunk["usage"] for chunk in chunks} == {None}
    ChatCompletionChunk.model_validate(last, strict=True)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 4


def test_a_token_chunk_is_what_the_type_would_write(client: TestClient, stage: Stage) -> None:
    text = 'a "quote", a \\ and \u2028\x00é😀'
    stage.events = [TextDelta(text, 1), Finished(a_result())]
    _, token, _, _ = frames(client, CHAT)
    read = ChatCompletionChunk.model_validate(token, strict=True)
    assert read.choices[0].delta.content == text
    assert read.model_dump(mode="json", exclude_unset=True) == token


def test_a_chat_stream_with_everything(client: TestClient, stage: Stage) -> None:
    stage.events = EVERYTHING
    *chunks, _ = frames(client, CHAT)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[1:3] == [{"reasoning_content": "h"}, {"reasoning_content": "m"}]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hello \u2028😀"
    assert deltas[5:8] == [
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {
            "tool_calls": [
                {"index": 0, "function": {"arguments": ": 1}"}},
                {"index": 1, "id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
            ]
        },
    ]  # fmt: skip
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_chat_logprobs_come_with_their_text(client: TestClient, stage: Stage) -> None:
    stage.events = [TextDelta("Hello", 2, logprobs=LOGPROBS), Finished(a_result())]
    chunk = frames(client, CHAT, logprobs=True)[1]
    ChatCompletionChunk.model_validate(chunk, strict=True)
    assert [row["token"] for row in chunk["choices"][0]["logprobs"]["content"]] == ["He", "llo"]


def test_each_of_n_answers_streams_by_itself(client: TestClient) -> None:
    *chunks, done = frames(client, CHAT, limit=3, n=3)
    assert done == "[DONE]"
    for index in range(3):
        choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert choices[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in choices) == "t0 t1 t2 "
        assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["length"]


# -- completions ---------------------------------------------------------------------------------------------------------


def test_a_completion_stream(client: TestClient) -> None:
    *chunks, usage, done = frames(client, COMPLETIONS, limit=2, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": "t0 ", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "t1 ", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}],
    ]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 2)


def test_completion_logprobs_tell_their_place_in_the_text(client: TestClient, stage: Stage) -> None:
    stage.events = [
        TextDelta("He", 1, logprobs=LOGPROBS[:1]),
        TextDelta("llo", 2, logprobs=LOGPROBS[1:]),
        Finished(a_result()),
    ]
    first, second, *_ = (chunk["choices"][0]["logprobs"] for chunk in frames(client, COMPLETIONS, logprobs=1)[:2])
    assert (first["tokens"], first["text_offset"], first["top_logprobs"]) == (["He"], [0], [{"Ho": -1.5, "He": -0.5}])
    assert (second["tokens"], second["text_offset"], second["token_logprobs"]) == (["llo"], [2], [-0.25])


# -- responses -----------------------------------------------------------------------------------------------------------

STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def test_a_response_stream(client: TestClient) -> None:
    events = frames(client, RESPONSES, limit=2)
    for number, event in enumerate(events):
        assert STREAM_EVENT.validate_python(event).type == event["type"]
        assert event["sequence_number"] == number
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    assert [event["delta"] for event in events[4:6]] == ["t0 ", "t1 "]
    assert events[6]["text"] == "t0 t1 "
    response = Response.model_validate(events[-1]["response"])
    assert (response.status, response.output_text) == ("incomplete", "t0 t1 ")
    assert response.usage is not None
    assert response.usage.output_tokens == 2


def test_a_response_stream_with_everything(client: TestClient, stage: Stage) -> None:
    stage.events = EVERYTHING
    events = frames(client, RESPONSES)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        STREAM_EVENT.validate_python(event)
    final = events[-1]["response"]
    assert (events[-1]["type"], final["status"]) == ("response.completed", "completed")
    added = [event for event in events if event["type"] == "response.output_item.added"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["item"]["type"] for event in added] == ["reasoning", "message", "function_call", "function_call"]
    assert [event["output_index"] for event in added] == [event["output_index"] for event in done] == [0, 1, 2, 3]
    assert [event["item"] for event in done] == final["output"]
    for item in final["output"]:
        pieces = [event["delta"] for event in events if event.get("item_id") == item["id"] and "delta" in event]
        whole = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert "".join(pieces) == whole
    assert [item.get("call_id") for item in final["output"]] == [None, None, "call_1", "call_2"]
    assert final["output"][2]["arguments"] == '{"a": 1}'


def test_response_logprobs_come_with_their_text(client: TestClient, stage: Stage) -> None:
    stage.events = [TextDelta("Hello", 2, logprobs=LOGPROBS), Finished(a_result())]
    events = frames(client, RESPONSES, top_logprobs=1)
    (delta,) = (event for event in events if event["type"] == "response.output_text.delta")
    assert STREAM_EVENT.validate_python(delta).logprobs[0].top_logprobs[0].token == "Ho"
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"][1]["token"] == "llo"


# -- what all of them do -------------------------------------------------------------------------------------------------


@every_path
async def test_a_token_arrives_while_the_next_is_being_made(manager: RuntimeManager, stage: Stage, path: str) -> None:
    with stage.held():
        stream = open_stream(manager, path, limit=2)
        assert await stream.start() == 200
        assert stream.headers["x-request-id"] == "mine"
        while "t0 " not in json.dumps(await next_data(stream)):
            pass
        assert stage.requests[0].state.value == "running"
    assert "t1 " in json.dumps(await next_data(stream))
    await stream.ended


async def test_what_is_waiting_goes_out_in_one_piece(manager: RuntimeManager, stage: Stage) -> None:
    stream = open_stream(manager, CHAT, limit=50, window=1)
    await stage.answered()
    await stream.start()
    pieces = await stream.pieces()
    assert "".join(pieces).count('{"content":"t') == 50
    assert len(pieces) <= 4  # perhaps the load, what was there when it began, the rest, and perhaps the end by itself


@every_path
async def test_an_engine_that_fails_in_the_middle_ends_the_stream_with_an_error(
    manager: RuntimeManager, stage: Stage, path: str
) -> None:
    stage.serve_fault, stage.fault_after = ValueError("lost it"), 2
    stream = open_stream(manager, path, limit=5)
    await stream.start()
    seen = []
    while (data := await next_data(stream)) is not None:
        seen.append(data)
    assert seen[-1]["error"]["code"] == "engine_failure"
    assert seen[-1]["error"]["type"] == "server_error"
    assert "lost it" in seen[-1]["error"]["message"]
    assert "t1 " in json.dumps(seen[-2])


@every_path
def test_what_fails_before_anything_was_said_has_its_own_status(client: TestClient, stage: Stage, path: str) -> None:
    assert client.post("/models/load", params={"model_name": MODEL}).status_code == 200
    stage.serve_fault = ModelBusy("too much")
    response = client.post(path, json=ask(path))
    assert (response.status_code, response.json()["error"]["code"]) == (409, "model_busy")
    response = client.post(path, json=ask(path, model="nobody"))
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_failure_of_one_answer_ends_the_others(manager: RuntimeManager, stage: Stage) -> None:
    with stage.held():
        stream = open_stream(manager, CHAT, n=3)
        await stream.start()
        while "t0 " not in json.dumps(await next_data(stream)):
            pass
        manager.cancel("mine.1")  # it waits for the first
        assert (await next_data(stream))["error"]["code"] == "cancelled"
        assert await next_data(stream) is None
        await stream.ended
        await asyncio.to_thread(stage.wait_until, lambda: manager.stats()["running_requests"] == 0)


@every_path
async def test_a_request_cancelled_by_its_id_ends_with_an_error(
    manager: RuntimeManager, stage: Stage, path: str
) -> None:
    with stage.held():
        stream = open_stream(manager, path)
        await stream.start()
        while "t0 " not in json.dumps(await next_data(stream)):
            pass
        manager.cancel("mine")
        last = await next_data(stream)
        assert last["error"]["code"] == "cancelled"
        assert "mine" in last["error"]["message"]
        assert await next_data(stream) is None


@layers
@every_path
async def test_leaving_ends_the_computation(manager: RuntimeManager, stage: Stage, path: str, layers: int) -> None:
    fields = {} if path == RESPONSES else {"n": 2}
    with stage.held():
        stream = open_stream(manager, path, layers, **fields)
        await stream.start()
        while "t0 " not in json.dumps(await next_data(stream)):
            pass
        stream.leave()
        await stream.ended
        await asyncio.to_thread(stage.wait_until, lambda: manager.model_status(MODEL).leases == 0)
    assert len(stage.requests) == 1
    assert manager.stats()["running_requests"] == 0


async def test_silence_is_filled_with_comments(
    manager: RuntimeManager, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "KEEP_ALIVE_S", 0.02)
    with stage.held():
        stream = open_stream(manager, CHAT, limit=2)
        assert await stream.start() == 200
        while "t0 " not in await stream.frame():
            pass
        assert await stream.frame() == ": keep-alive"
        assert await stream.frame() == ": keep-alive"
    assert "t1 " in json.dumps(await next_data(stream))


def test_a_load_is_told_in_comments(client: TestClient) -> None:
    text = client.post(CHAT, json=ask(CHAT, limit=1)).text
    assert text.startswith(": load")
