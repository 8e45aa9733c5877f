"""`Request`: something asked of a model, whatever the task."""

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Generic, TypeVar

from lfx_local_runtimes.errors import InvalidInput, RequestCancelled
from lfx_local_runtimes.runtimes.requests.channel import Channel
from lfx_local_runtimes.runtimes.requests.events import Event, Failed, Finished
from lfx_local_runtimes.runtimes.requests.timeline import Timeline
from lfx_local_runtimes.runtimes.tasks.base import Ask, Delta
from lfx_local_runtimes.runtimes.tasks.registry import task_row

AskT = TypeVar("AskT", bound=Ask[Any])


class RequestState(str, Enum):
    """The states of a request."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


_OPEN = (RequestState.QUEUED, RequestState.RUNNING)


class Request(Generic[AskT]):
    """Made by a caller, served by an engine, cancelled by anyone.

    `emit` is the engine's side, `channel` the caller's.

    Args:
        model_name: the model.
        ask: what is asked of it; it names the task.
        request_id: to cancel the request by; one is made up if there is none.
    """

    def __init__(self, model_name: str, ask: AskT, request_id: str | None = None) -> None:
        self.id = request_id or uuid.uuid4().hex
        self.model_name = model_name
        self.ask = ask
        self.job: Any = None
        """For the engine: how far it has come with this request."""
        self.timeline = Timeline()
        self.about: dict[str, Any] = {}
        """For the metadata of the result: how the model was loaded that serves it."""
        self.channel = Channel()
        self._state = RequestState.QUEUED
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._on_end: list[Callable[[], None]] = []
        self._on_cancel: list[Callable[[], None]] = []
        self._fed: deque[Any] = deque()
        self._on_feed: Callable[[], None] = lambda: None

    @property
    def task(self) -> str:
        """The task that is asked for."""
        return self.ask.task

    @property
    def state(self) -> RequestState:
        """The state that the request is in."""
        return self._state

    @property
    def ended(self) -> bool:
        """The last event was emitted."""
        return self._state not in _OPEN

    @property
    def cancelled(self) -> bool:
        """True once somebody asked for the end; engines look at it at every step."""
        return self._cancelled.is_set()

    def feed(self, chunk: Any) -> None:
        """Give a task more input after its start: a `chunk` of the kind that its row names.

        Raises:
            InvalidInput: the task takes no input after its start, or not this kind.
        """
        kind = task_row(self.task).chunk
        if kind is None or not isinstance(chunk, kind):
            takes = "no input after its start" if kind is None else kind.__name__
            raise InvalidInput(
                f"The task {self.task} takes {takes}, not {type(chunk).__name__}.", model_name=self.model_name
            )
        self._fed.append(chunk)
        self._on_feed()

    def fed(self) -> list[Any]:
        """For the engine: the chunks that were fed since the last call, in order. Never waits."""
        return [self._fed.popleft() for _ in range(len(self._fed))]

    def on_feed(self, callback: Callable[[], None]) -> None:
        """For the engine: call this on the caller's thread whenever a chunk is there, and now if one is."""
        self._on_feed = callback
        if self._fed:
            callback()

    def empty(self) -> Event:
        """The last event of a request that was cancelled before it had anything to show."""
        result = self.ask.cancelled_result(self.model_name, self.id)
        return Failed(RequestCancelled.of(self.id)) if result is None else Finished(result)

    def cancel(self) -> RequestState:
        """Ask for the end. Returns the state the request was in; a waiting request ends at once."""
        with self._lock:
            before = self._state
            callbacks: list[Callable[[], None]] = []
            if before in _OPEN and not self._cancelled.is_set():
                self._cancelled.set()
                callbacks, self._on_cancel = self._on_cancel, []
        for callback in callbacks:
            callback()
        if before is RequestState.QUEUED:
            self.emit(self.empty())
        return before

    def start(self) -> bool:
        """The engine takes the request up. False if it has ended already: skip it."""
        with self._lock:
            if self._state is not RequestState.QUEUED or self._cancelled.is_set():
                return False
            self._state = RequestState.RUNNING
            self.timeline.started = time.monotonic()
            return True

    def withdraw(self) -> bool:
        """Take the request back from an engine that has failed. False if it has ended, was cancelled, or has shown something.

        What was fed to it is gone, so a task that takes input after its start cannot be taken back.
        """
        with self._lock:
            shown = self.timeline.first is not None or task_row(self.task).chunk is not None
            if self.ended or shown or self._cancelled.is_set():
                return False
            self._state, self.job = RequestState.QUEUED, None
            return True

    def emit(self, event: Event) -> None:
        """Deliver an event. The first `Finished` or `Failed` ends the request; later events are dropped."""
        callbacks: list[Callable[[], None]] = []
        with self._lock:
            if self._state not in _OPEN:
                return
            if isinstance(event, Failed):
                cancelled = isinstance(event.error, RequestCancelled)
                self._state = RequestState.CANCELLED if cancelled else RequestState.FAILED
            elif isinstance(event, Finished):
                self._state = RequestState.CANCELLED if event.cancelled else RequestState.FINISHED
            elif isinstance(event, Delta) and self.timeline.first is None:
                self.timeline.first = time.monotonic()
            if self.ended:
                self.timeline.ended = time.monotonic()
                callbacks, self._on_end = self._on_end, []
                self._on_cancel = []
        if isinstance(event, Finished):
            event.result.metadata.update(self.about, timeline_ms=self.timeline.milliseconds())
        for callback in callbacks:  # before the reader gets the event: the lease is back when the answer is there
            callback()
        self.channel.put(event)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call once when the request has ended, at once if it has."""
        with self._lock:
            if not self.ended:
                self._on_end.append(callback)
                return
        callback()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call once if somebody cancels the request while it is queued or running, at once if somebody has."""
        with self._lock:
            if self.ended:
                return
            if not self._cancelled.is_set():
                self._on_cancel.append(callback)
                return
        callback()
