"""Several answers of one request, in one body: they end together, and quietly."""

import asyncio
import gc
import json
import logging
from typing import Any

import pytest

from lfx_local_runtimes.errors import EngineFailure, RequestCancelled
from lfx_local_runtimes.routes.delivery import wait_for_all
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.requests import Failed, Finished, GenerationStream, Request, Run
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig
from tests.routes_app import MODEL, Exchange, Stage, a_result, layers, make_app

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "n": 3},
    COMPLETIONS: {"prompt": ["one", "two", "three"]},
}


def started(count: int) -> list[GenerationStream]:
    """Requests that an engine has taken up and does not answer."""
    requests = [Request("m", GenerationConfig(prompt="hi"), f"mine.{index}") for index in range(count)]
    assert all(request.start() for request in requests)
    return [GenerationStream(Run(request)) for request in requests]


async def never() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("index", [0, 1])
async def test_cancelling_one_ends_all(path: str, index: int, manager: RuntimeManager, stage: Stage) -> None:
    body = json.dumps({"model": MODEL, **BODIES[path]}).encode()
    with stage.held():
        exchange = Exchange(make_app(manager), path, body, headers={"x-request-id": "mine"})
        await stage.serving()
        manager.cancel("mine" if index == 0 else f"mine.{index}")
        assert await exchange.start() == 499
        assert (await exchange.json())["error"]["code"] == "cancelled"
        await exchange.ended
        await asyncio.to_thread(stage.wait_until, lambda: manager.stats()["running_requests"] == 0)


async def test_a_failure_is_told_before_the_others_have_ended() -> None:
    first, second = started(2)
    second.request.emit(Failed(EngineFailure("broken")))
    with pytest.raises(EngineFailure, match="broken"):
        await asyncio.wait_for(wait_for_all([first, second], never()), 20)
    assert first.request.cancelled


async def test_an_answer_that_was_cancelled_alone_is_returned() -> None:
    (stream,) = started(1)
    stream.request.emit(Finished(a_result(finish_reason="cancelled")))
    (result,) = await wait_for_all([stream], never())
    assert result.cancelled


async def test_of_several_a_cancelled_one_is_told_at_once() -> None:
    first, second = started(2)
    second.request.emit(Finished(a_result(finish_reason="cancelled")))
    with pytest.raises(RequestCancelled, match=r"mine\.1"):
        await asyncio.wait_for(wait_for_all([first, second], never()), 20)
    assert first.request.cancelled


@layers
async def test_a_client_that_leaves_leaves_no_traceback(
    layers: int, manager: RuntimeManager, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), stage.held():
        exchange = Exchange(make_app(manager, layers), CHAT, json.dumps({"model": MODEL, **BODIES[CHAT]}).encode())
        await stage.serving()
        exchange.leave()
        await exchange.ended
        await asyncio.to_thread(stage.wait_until, lambda: manager.stats()["running_requests"] == 0)
        gc.collect()
    assert not caplog.records


async def test_an_answer_that_fails_as_the_client_leaves_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    streams, gone = started(2), asyncio.Event()
    waiting = asyncio.ensure_future(wait_for_all(streams, gone.wait()))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    gone.set()
    for stream in streams:
        stream.request.on_cancel(lambda stream=stream: stream.request.emit(Failed(EngineFailure("died"))))  # type: ignore[misc]
    await asyncio.wait([waiting])
    assert type(waiting.exception()).__name__ == "ClientGone"
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    assert not caplog.records
