"""Events from one producer to one reader, who may be a thread or a coroutine.

Callers live on any thread and any event loop. A channel belongs to no loop: an async reader leaves a wake-up call for
one event at a time.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable

from lfx_local_runtimes.runtimes.requests.events import Event, Progress
from lfx_local_runtimes.runtimes.tasks.base import Delta

MERGE_AFTER = 64
"""Unread events. From here on a new delta joins the last unread one, so that a slow reader costs little memory. New
progress replaces older progress."""


class Channel:
    """A queue of events. It never blocks the producer.

    A reader who falls behind gets fewer and larger deltas. So the memory that waits for it is bounded by the answer
    itself, and not by the number of its events.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._lock = threading.Lock()
        self._wake: Callable[[], object] | None = None

    def put(self, event: Event) -> None:
        """Add an event and wake the reader."""
        with self._lock:
            if not self._merge(event):
                self._events.append(event)
            wake, self._wake = self._wake, None
        if wake is not None:
            with contextlib.suppress(RuntimeError):  # the reader's loop is closed: nobody is left to read
                wake()

    def _merge(self, event: Event) -> bool:
        if len(self._events) < MERGE_AFTER:
            return False
        last = self._events[-1]
        joined: Event | None = None
        if isinstance(event, Progress) and isinstance(last, Progress):
            joined = event  # the last word counts
        elif isinstance(event, Delta) and isinstance(last, Delta):
            joined = last.merged(event)
        if joined is None:
            return False
        self._events[-1] = joined
        return True

    def _take(self, wake: Callable[[], object]) -> Event | None:
        with self._lock:
            if self._events:
                return self._events.popleft()
            self._wake = wake
            return None

    def get(self) -> Event:
        """The next event; blocks the calling thread."""
        while True:
            ready = threading.Event()
            event = self._take(ready.set)
            if event is not None:
                return event
            ready.wait()

    def listen(self, wake: Callable[[], object]) -> bool:
        """Call `wake` once, on the producer's thread, when an event is there. True, and no call, if one is already."""
        with self._lock:
            self._wake = None if self._events else wake
            return bool(self._events)

    def drain(self) -> list[Event]:
        """All events that are there; never waits."""
        with self._lock:
            events = list(self._events)
            self._events.clear()
            return events

    async def aget(self) -> Event:
        """The next event; suspends the calling coroutine."""
        loop = asyncio.get_running_loop()
        while True:
            future: asyncio.Future[None] = loop.create_future()
            event = self._take(lambda future=future: loop.call_soon_threadsafe(_resolve, future))  # type: ignore[misc]
            if event is not None:
                return event
            await future


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
