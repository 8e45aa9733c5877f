"""Sends the events of requests to one client, in batches, as server-sent events.

If the client leaves, the requests are cancelled.
"""

import asyncio
import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol, TypeVar

from fastapi import Response
from starlette.types import Receive, Scope, Send

from lfx_local_runtimes.errors import RequestCancelled
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
from lfx_local_runtimes.runtimes.tasks.base import Delta
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult, TextDelta
from lfx_local_runtimes.settings import Settings

KEEP_ALIVE_S = 10.0
"""After this many seconds without an event a comment is sent, so that proxies do not close the stream."""

KEEP_ALIVE = ": keep-alive\n\n"

Tagged = tuple[int, Event]
"""An event and the number of the stream it came from."""

Payload = tuple[str, dict[str, Any]]
"""The name of a message (token, done, error, progress) and its data."""


ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Pending(Protocol[ResultT_co]):
    """A request that was started: a stream of text, or a task."""

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
    """A function that resolves the future from any thread. It does no harm after the loop was closed."""
    return _threadsafe(loop, partial(_resolve, future))


def _threadsafe(loop: asyncio.AbstractEventLoop, action: Callable[[], object]) -> Callable[[], None]:
    """A function that has the loop do something, from any thread. It does no harm after the loop was closed."""

    def act() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(action)

    return act


_RUNNING = frozenset({RequestState.QUEUED, RequestState.RUNNING})
_BROKEN = frozenset({RequestState.FAILED, RequestState.CANCELLED})


async def wait_for_all(requests: Sequence[Pending[ResultT]], gone: Awaitable[None]) -> list[ResultT]:
    """The finished results, in the order of the requests.

    A single request that was cancelled has a result too. No request is read before its end, so no token wakes the event loop.

    Raises:
        ClientGone: the client left. The computations are cancelled.
        RequestCancelled: one of several requests was cancelled. The others are cancelled too.
        RuntimeFault: a request failed. The others are cancelled.
    """
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    left = asyncio.ensure_future(gone)

    def notice(_: object = None) -> None:
        states = [pending.request.state for pending in requests]
        if left.done() or not _RUNNING.intersection(states) or _BROKEN.intersection(states):
            _resolve(over)

    left.add_done_callback(notice)
    for pending in requests:
        pending.request.on_end(_threadsafe(loop, notice))
    try:
        await over
        broken = [pending for pending in requests if pending.request.state in _BROKEN]
        for pending in broken:
            await pending.wait_async()  # raises if it failed
        if broken and len(requests) > 1:
            raise RequestCancelled.of(broken[0].request.id)
        if any(pending.request.state in _RUNNING for pending in requests):
            raise ClientGone
        return [await pending.wait_async() for pending in requests]
    finally:
        for pending in requests:
            pending.cancel()  # if it still runs
        left.cancel()


class Feed(ABC):
    """The events of one or several streams. `close` must be called at the end. It cancels what still runs.

    Args:
        streams: started already.
        gone: completes when the client has left.
    """

    def __init__(self, streams: Sequence[Pending[Any]], gone: Awaitable[None] | None = None) -> None:
        self.requests = [stream.request for stream in streams]
        self.ended = False
        """The last events were taken: the end of every stream, or the failure of one."""
        self._running = len(streams)
        self._woken: asyncio.Future[None] | None = None
        self._hears_of_ends = False
        self._gone = asyncio.ensure_future(gone) if gone is not None else None
        if self._gone is not None:
            self._gone.add_done_callback(self._left)

    def _left(self, _: object = None) -> None:
        if self._woken is not None:
            _resolve(self._woken)

    async def take(self, timeout: float | None = None) -> list[Tagged]:
        """All events since the last call; waits for one. Empty if none comes within `timeout` seconds.

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
        """Return when there is an event, the client has left, or the time is over.

        This runs for every token, so it makes no task and no set.
        """
        loop = asyncio.get_running_loop()
        woken = self._woken = loop.create_future()
        wake = _waker(loop, woken)
        if not any(request.channel.listen(wake) for request in self.requests):
            await self._woken_within(timeout)

    async def pause(self, seconds: float) -> None:
        """Let events gather. Return after so many seconds, or once a request has ended or the client has left."""
        loop = asyncio.get_running_loop()
        self._woken = loop.create_future()
        if not self._hears_of_ends:
            self._hears_of_ends = True
            for request in self.requests:
                request.on_end(_threadsafe(loop, self._left))
        if sum(not request.ended for request in self.requests) == self._running:  # else the end of one waits to be sent
            await self._woken_within(seconds)

    async def _woken_within(self, seconds: float | None) -> None:
        assert self._woken is not None
        if self._gone is not None and self._gone.done():
            return
        timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, _resolve, self._woken)
        try:
            await self._woken
        finally:
            if timer is not None:
                timer.cancel()

    async def take_first(self, timeout: float) -> list[Tagged]:
        """Like `take`, but raises if a request failed before its first delta.

        Raises:
            ClientGone: the client left.
            RuntimeFault: the request failed.
        """
        events = await self.take(timeout)
        if not any(isinstance(event, Delta) for _, event in events):
            for _, event in events:
                if isinstance(event, Failed):
                    raise event.error
        return events

    @abstractmethod
    def write(self, events: list[Tagged]) -> str:
        """Server-sent events for these events."""

    def close(self) -> None:
        """Cancel what still runs, and stop listening."""
        for request in self.requests:
            request.cancel()
        if self._gone is not None:
            self._gone.cancel()


class ProgressComments:
    """Progress as comments of an event stream, once per percent."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def changed(self, event: Progress) -> tuple[str, int] | None:
        """The phase and its percent, if they have changed."""
        percent = event.done * 100 // event.total if event.total else 0
        if self._last == (event.phase, percent):
            return None
        self._last = (event.phase, percent)
        return self._last

    def comment(self, event: Progress) -> str:
        """The comment; empty if the percent has not changed."""
        step = self.changed(event)
        return f": {step[0]} {step[1]}%\n\n" if step else ""


class Delivery(Feed):
    """One stream in the native form."""

    def __init__(self, stream: GenerationStream, gone: Awaitable[None] | None = None) -> None:
        super().__init__([stream], gone)
        self.request = stream.request
        self._tokens = 0
        self._progress = ProgressComments()

    def messages(self, events: list[Tagged]) -> Iterator[Payload]:
        """The messages for the client. Progress is reported once per percent."""
        for _, event in events:
            if isinstance(event, TextDelta):
                yield (
                    "token",
                    {"request_id": self.request.id, "index": self._tokens, "text": event.text, **_other_fields(event)},
                )
                self._tokens += 1
            elif isinstance(event, Progress):
                if (step := self._progress.changed(event)) is not None:
                    yield "progress", {"request_id": self.request.id, "phase": step[0], "percent": step[1]}
            elif isinstance(event, Finished):
                yield "done", self._done(event.result)
            elif isinstance(event, Failed):
                yield "error", {"request_id": self.request.id, **envelope(event.error)}

    def write(self, events: list[Tagged]) -> str:
        """Messages as named events, progress as comments."""
        return "".join(_frame(name, data) for name, data in self.messages(events))

    def _done(self, result: GenerationResult) -> dict[str, Any]:
        """The result and its metrics. The latency is the client's and includes a load; the speed is that of the computation."""
        speed = result.tokens_generated / result.execution_time if result.execution_time > 0 else 0.0
        return {
            "request_id": self.request.id,
            **result.model_dump(mode="json"),
            "first_token_latency_ms": self.request.timeline.milliseconds().get("first"),
            "tokens_per_second": round(speed, 2),
        }


def _other_fields(delta: TextDelta) -> dict[str, Any]:
    """The fields of a delta other than its text."""
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
    """Answers as server-sent events. Events that wait are sent in one piece. If the client leaves, the computation ends.

    Every send costs: Langflow hands it through six layers of middleware, which takes 1.4 ms of a core that the model computes on. So
    there is a time between two sends.

    This class watches for the client's disconnect itself: Starlette's streaming response does so only for some ASGI versions.
    """

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, feed: Feed, first: list[Tagged], interval: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._feed = feed
        self._first = first
        self._interval = interval
        """Seconds."""

    @classmethod
    async def begin(cls, feed: Feed, settings: Settings) -> "EventStream":
        """Wait for the first events.

        Raises:
            ClientGone: the client left.
            RuntimeFault: the request failed before its first token. Nothing was sent.
        """
        try:
            return cls(feed, await feed.take_first(KEEP_ALIVE_S), settings.stream_interval_ms / 1000)
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
                if self._interval and any(isinstance(event, Delta) for _, event in events):
                    await feed.pause(self._interval)
                events = await feed.take(KEEP_ALIVE_S)
        except ClientGone:
            pass
        finally:
            feed.close()
