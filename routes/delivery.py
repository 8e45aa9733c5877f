"""A request's events on their way to one client: in batches, as plain messages, cancelled when the client leaves."""

import asyncio
import time
from collections.abc import Awaitable, Iterator
from typing import Any

from starlette.types import Receive

from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.routes.faults import ClientGone, envelope
from lfx_local_runtimes.runtimes.config import GenerationResult
from lfx_local_runtimes.runtimes.requests import Event, Failed, Finished, GenerationStream, Progress, TextDelta

Payload = tuple[str, dict[str, Any]]
"""The name of a message (token, done, error, progress) and what it says."""


async def disconnected(receive: Receive) -> None:
    """Return when the client has left. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def whole(stream: GenerationStream, gone: Awaitable[None]) -> GenerationResult:
    """The finished answer.

    Raises:
        ClientGone: the client left; the computation is cancelled.
        RuntimeFault: the request failed.
    """
    answer, left = asyncio.ensure_future(stream.wait_async()), asyncio.ensure_future(gone)
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientGone
        return answer.result()
    finally:
        stream.cancel()  # if it still runs
        answer.cancel()
        left.cancel()


class Delivery:
    """The events of one stream. `close` must be called at the end; it cancels what still runs."""

    def __init__(self, stream: GenerationStream, gone: Awaitable[None] | None = None) -> None:
        self.request = stream.request
        self.ended = False
        self._gone = asyncio.ensure_future(gone) if gone is not None else None
        self._next: asyncio.Future[Event] | None = None
        self._tokens = 0
        self._first_token: float | None = None
        self._reported: tuple[str, int] | None = None

    async def take(self, timeout: float | None = None) -> list[Event]:
        """All events that have come since the last call; waits for one. Empty after `timeout` seconds without.

        Raises:
            ClientGone: the client left.
        """
        if self._next is None:
            self._next = asyncio.ensure_future(self.request.channel.aget())
        waiting: set[asyncio.Future[Any]] = {future for future in (self._next, self._gone) if future is not None}
        await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._gone is not None and self._gone.done():
            raise ClientGone
        if not self._next.done():
            return []
        first, self._next = self._next.result(), None
        return [first, *self.request.channel.drain()]

    async def take_first(self, timeout: float) -> list[Event]:
        """The same, but a request that failed before it did anything raises.

        Raises:
            ClientGone: the client left.
            RuntimeFault: the request failed.
        """
        events = await self.take(timeout)
        if events and isinstance(events[-1], Failed) and not any(isinstance(event, TextDelta) for event in events):
            raise events[-1].error
        return events

    def messages(self, events: list[Event]) -> Iterator[Payload]:
        """What to tell the client. Progress is told once per percent."""
        for event in events:
            if isinstance(event, TextDelta):
                if self._first_token is None:
                    self._first_token = time.monotonic()
                yield "token", {"request_id": self.request.id, "index": self._tokens, "text": event.text}
                self._tokens += 1
            elif isinstance(event, Progress):
                percent = event.done * 100 // event.total if event.total else 0
                if self._reported != (event.phase, percent):
                    self._reported = (event.phase, percent)
                    yield "progress", {"request_id": self.request.id, "phase": event.phase, "percent": percent}
            elif isinstance(event, Finished):
                self.ended = True
                yield "done", self._done(event.result)
            else:
                self.ended = True
                yield "error", self.failure(event.error)

    def failure(self, fault: RuntimeFault) -> dict[str, Any]:
        """An `error` message."""
        return {"request_id": self.request.id, **envelope(fault)}

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

    def close(self) -> None:
        """End the computation, if it still runs, and stop listening."""
        self.request.cancel()
        for task in (self._next, self._gone):
            if task is not None:
                task.cancel()
