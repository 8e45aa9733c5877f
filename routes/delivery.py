"""Requests' events on their way to one client: in batches, as server-sent events, cancelled when the client leaves."""

import asyncio
import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

from fastapi import Response
from starlette.types import Receive, Scope, Send

from lfx_local_runtimes.routes.faults import ClientGone, envelope
from lfx_local_runtimes.runtimes.requests import (
    Event,
    Failed,
    Finished,
    GenerationStream,
    Progress,
    Request,
    RequestState,
)
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult, TextDelta

KEEP_ALIVE_S = 10.0
"""Seconds of silence after which a comment keeps proxies from closing a stream."""

KEEP_ALIVE = ": keep-alive\n\n"

Tagged = tuple[int, Event]
"""An event and the number of the stream it came from."""

Payload = tuple[str, dict[str, Any]]
"""The name of a message (token, done, error, progress) and what it says."""


ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Pending(Protocol[ResultT_co]):
    """Something that was asked of a model and is on its way: a stream of text, or a task."""

    @property
    def request(self) -> Request[Any]: ...

    def cancel(self) -> RequestState: ...

    async def wait_async(self) -> ResultT_co: ...


async def disconnected(receive: Receive) -> None:
    """Return when the client has left. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _waker(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[None]") -> Callable[[], None]:
    """What resolves the future from any thread, also after its loop was closed."""

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear
            loop.call_soon_threadsafe(_resolve, future)

    return wake


async def _result(pending: Pending[ResultT]) -> ResultT:
    """The finished answer. Its pieces stay where they are until the end: nobody is woken for a token."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    pending.request.on_end(_waker(loop, ended))
    await ended
    return await pending.wait_async()


async def whole(asked: Sequence[Pending[ResultT]], gone: Awaitable[None]) -> list[ResultT]:
    """The finished answers, in the order they were asked for.

    Raises:
        ClientGone: the client left; the computations are cancelled.
        RuntimeFault: a request failed; the others are cancelled.
    """
    answers = asyncio.ensure_future(asyncio.gather(*map(_result, asked)))
    left = asyncio.ensure_future(gone)
    try:
        waiting: set[asyncio.Future[Any]] = {answers, left}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise ClientGone
        return answers.result()
    finally:
        for pending in asked:
            pending.cancel()  # if it still runs
        answers.cancel()
        left.cancel()


class Feed(ABC):
    """The events of one or several streams. `close` must be called at the end; it cancels what still runs.

    Args:
        streams: started already.
        gone: completes when the client has left.
    """

    def __init__(self, streams: Sequence[GenerationStream], gone: Awaitable[None] | None = None) -> None:
        self.requests = [stream.request for stream in streams]
        self.ended = False
        """The last events were taken: every stream's end, or the failure of one."""
        self._running = len(streams)
        self._woken: asyncio.Future[None] | None = None
        self._gone = asyncio.ensure_future(gone) if gone is not None else None
        if self._gone is not None:
            self._gone.add_done_callback(self._left)

    def _left(self, _: object) -> None:
        if self._woken is not None:
            _resolve(self._woken)

    async def take(self, timeout: float | None = None) -> list[Tagged]:
        """All events that have come since the last call; waits for one. Empty after `timeout` seconds without.

        Raises:
            ClientGone: the client left.
        """
        if not (events := self._drain()):
            await self._wait(timeout)
            if self._gone is not None and self._gone.done():
                raise ClientGone
            events = self._drain()
        for _, event in events:
            self._running -= isinstance(event, Finished | Failed)
            self.ended = self.ended or not self._running or isinstance(event, Failed)
        return events

    def _drain(self) -> list[Tagged]:
        return [(index, event) for index, request in enumerate(self.requests) for event in request.channel.drain()]

    async def _wait(self, timeout: float | None) -> None:
        """Return when an event is there, the client has left, or the time is over. Called for every token: no task, no set."""
        loop = asyncio.get_running_loop()
        woken = self._woken = loop.create_future()
        wake = _waker(loop, woken)
        if any(request.channel.listen(wake) for request in self.requests) or (self._gone and self._gone.done()):
            return
        timer = None if timeout is None else loop.call_later(timeout, _resolve, woken)
        try:
            await woken
        finally:
            if timer is not None:
                timer.cancel()

    async def take_first(self, timeout: float) -> list[Tagged]:
        """The same, but a request that failed before it did anything raises.

        Raises:
            ClientGone: the client left.
            RuntimeFault: the request failed.
        """
        events = await self.take(timeout)
        if not any(isinstance(event, TextDelta) for _, event in events):
            for _, event in events:
                if isinstance(event, Failed):
                    raise event.error
        return events

    @abstractmethod
    def write(self, events: list[Tagged]) -> str:
        """The events as server-sent ones."""

    def close(self) -> None:
        """End the computations, if they still run, and stop listening."""
        for request in self.requests:
            request.cancel()
        if self._gone is not None:
            self._gone.cancel()


class Told:
    """Progress as comments, once per percent."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def news(self, event: Progress) -> tuple[str, int] | None:
        """The phase and its percent, if they have changed."""
        percent = event.done * 100 // event.total if event.total else 0
        if self._last == (event.phase, percent):
            return None
        self._last = (event.phase, percent)
        return self._last

    def comment(self, event: Progress) -> str:
        """The same as a comment of an event stream."""
        news = self.news(event)
        return f": {news[0]} {news[1]}%\n\n" if news else ""


class Delivery(Feed):
    """One stream in the native form."""

    def __init__(self, stream: GenerationStream, gone: Awaitable[None] | None = None) -> None:
        super().__init__([stream], gone)
        self.request = stream.request
        self._tokens = 0
        self._first_token: float | None = None
        self._told = Told()

    def messages(self, events: list[Tagged]) -> Iterator[Payload]:
        """What to tell the client. Progress is told once per percent."""
        for _, event in events:
            if isinstance(event, TextDelta):
                if self._first_token is None:
                    self._first_token = time.monotonic()
                yield (
                    "token",
                    {"request_id": self.request.id, "index": self._tokens, "text": event.text, **_besides(event)},
                )
                self._tokens += 1
            elif isinstance(event, Progress):
                if (news := self._told.news(event)) is not None:
                    yield "progress", {"request_id": self.request.id, "phase": news[0], "percent": news[1]}
            elif isinstance(event, Finished):
                yield "done", self._done(event.result)
            elif isinstance(event, Failed):
                yield "error", {"request_id": self.request.id, **envelope(event.error)}

    def write(self, events: list[Tagged]) -> str:
        """Messages as named events, progress as comments."""
        return "".join(_frame(name, data) for name, data in self.messages(events))

    def _done(self, result: GenerationResult) -> dict[str, Any]:
        """The result and its metrics: latency as this client saw it, with any load; speed of the computation alone."""
        latency = None if self._first_token is None else self._first_token - self.request.created
        speed = result.tokens_generated / result.execution_time if result.execution_time > 0 else 0.0
        return {
            "request_id": self.request.id,
            **result.model_dump(mode="json"),
            "first_token_latency_ms": None if latency is None else round(latency * 1000, 2),
            "tokens_per_second": round(speed, 2),
        }


def _besides(delta: TextDelta) -> dict[str, Any]:
    """What a delta holds beside its text."""
    found: dict[str, Any] = {"reasoning": delta.reasoning} if delta.reasoning else {}
    if delta.tool_calls:
        found["tool_calls"] = [asdict(call) for call in delta.tool_calls]
    if delta.logprobs:
        found["logprobs"] = [one.model_dump(mode="json") for one in delta.logprobs]
    return found


def _frame(name: str, data: dict[str, Any]) -> str:
    if name == "progress":
        return f": {data['phase']} {data['percent']}%\n\n"
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


class EventStream(Response):
    """Answers as server-sent events. Sends what is waiting in one piece; ends the computation when the client leaves.

    It listens for the client's leave itself: Starlette's streaming response does so only for some ASGI versions.
    """

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, feed: Feed, first: list[Tagged]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._feed = feed
        self._first = first

    @classmethod
    async def begin(cls, feed: Feed) -> "EventStream":
        """Wait for the first events.

        Raises:
            ClientGone: the client left.
            RuntimeFault: the request failed before it did anything; the answer is not begun.
        """
        try:
            return cls(feed, await feed.take_first(KEEP_ALIVE_S))
        except BaseException:
            feed.close()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream to the end."""
        feed, events = self._feed, self._first
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while True:
                text = feed.write(events) if events else KEEP_ALIVE
                if text or feed.ended:
                    body = text.encode("utf-8", "replace")
                    await send({"type": "http.response.body", "body": body, "more_body": not feed.ended})
                if feed.ended:
                    return
                events = await feed.take(KEEP_ALIVE_S)
        except ClientGone:
            pass
        finally:
            feed.close()
