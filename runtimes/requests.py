"""A request on its way through the engine room, and the channel its events come back on.

Callers live on any thread and any event loop; an engine works on the model's own thread. Nothing here belongs to one
loop: an async reader leaves a wake-up call behind for one event at a time.
"""

import asyncio
import contextlib
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic

from lfx_local_runtimes.errors import RequestCancelled, RuntimeFault
from lfx_local_runtimes.runtimes.config import GenerationConfig, GenerationResult, TokenLogprob
from lfx_local_runtimes.runtimes.tasks.base import Ask, ResultT


@dataclass(frozen=True, slots=True)
class Progress:
    """Long work before the first token: `done` of `total` bytes (0 when unknown) of a phase such as download or load."""

    phase: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of the answer's tool call number `index`: `id` and `name` come first and once, `arguments` in pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer: of its text, of the reasoning before it, of its tool calls. `tokens` have been generated."""

    text: str
    tokens: int
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens since the last delta, where they were asked for."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request that ended well, or was cancelled and has something to show."""

    result: Any

    @property
    def cancelled(self) -> bool:
        """Somebody ended it."""
        return getattr(self.result, "finish_reason", None) == "cancelled"


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that failed, or was cancelled with nothing to show."""

    error: RuntimeFault


Event = Progress | TextDelta | Finished | Failed


class RequestState(str, Enum):
    """Where a request stands."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Channel:
    """Events from one producer to one reader, who may be a thread or a coroutine."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._lock = threading.Lock()
        self._wake: Callable[[], object] | None = None

    def put(self, event: Event) -> None:
        """Add an event and wake the reader. Never blocks."""
        with self._lock:
            self._events.append(event)
            wake, self._wake = self._wake, None
        if wake is not None:
            with contextlib.suppress(RuntimeError):  # the reader's loop is closed: nobody is left to read
                wake()

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
        """Call `wake` once, on the producer's thread, when an event is there. True, and no call, when one is already."""
        with self._lock:
            self._wake = None if self._events else wake
            return bool(self._events)

    def drain(self) -> list[Event]:
        """What is there already; never waits."""
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


class Work(ABC):
    """Something asked of a model. Made by a caller, served by an engine, cancelled by anyone.

    `emit` is the engine's side, `channel` the caller's.
    """

    def __init__(self, model_name: str, task: str, keep_alive: float | None, request_id: str | None) -> None:
        self.id = request_id or uuid.uuid4().hex
        self.model_name = model_name
        self.task = task
        self.keep_alive = keep_alive
        """Idle seconds the model stays afterwards; None leaves them as they are."""
        self.created = time.monotonic()
        self.channel = Channel()
        self._state = RequestState.QUEUED
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._on_end: list[Callable[[], None]] = []

    @abstractmethod
    def nothing(self) -> Event:
        """The last event of one that was cancelled with nothing to show."""

    @property
    def state(self) -> RequestState:
        """Where the request stands."""
        return self._state

    @property
    def cancelled(self) -> bool:
        """True once somebody asked for the end; engines look at it at every step."""
        return self._cancelled.is_set()

    def cancel(self) -> RequestState:
        """Ask for the end. Returns the state the request was in; a waiting request ends at once."""
        with self._lock:
            before = self._state
            self._cancelled.set()
        if before is RequestState.QUEUED:
            self.emit(self.nothing())
        return before

    def start(self) -> bool:
        """The engine takes the request up. False when it has ended already: skip it."""
        with self._lock:
            if self._state is not RequestState.QUEUED or self._cancelled.is_set():
                return False
            self._state = RequestState.RUNNING
            return True

    def emit(self, event: Event) -> None:
        """Deliver an event. The first `Finished` or `Failed` ends the request; what comes later is dropped."""
        ended: list[Callable[[], None]] = []
        with self._lock:
            if self._state not in (RequestState.QUEUED, RequestState.RUNNING):
                return
            if isinstance(event, Failed):
                cancelled = isinstance(event.error, RequestCancelled)
                self._state = RequestState.CANCELLED if cancelled else RequestState.FAILED
            elif isinstance(event, Finished):
                self._state = RequestState.CANCELLED if event.cancelled else RequestState.FINISHED
            if isinstance(event, Finished | Failed):
                ended, self._on_end = self._on_end, []
        for callback in ended:  # before the reader hears of it: the lease is back when the answer is there
            callback()
        self.channel.put(event)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call once when the request has ended, at once if it has."""
        with self._lock:
            if self._state in (RequestState.QUEUED, RequestState.RUNNING):
                self._on_end.append(callback)
                return
        callback()


class Request(Work):
    """A request for text."""

    def __init__(self, model_name: str, config: GenerationConfig, request_id: str | None = None) -> None:
        super().__init__(model_name, "llm", config.keep_alive, request_id)
        self.config = config

    def nothing(self) -> Event:
        """An empty answer."""
        return Finished(
            GenerationResult(
                text="", model_name=self.model_name, tokens_generated=0, prompt_tokens=0, finish_reason="cancelled",
                execution_time=0.0, time_to_first_token=None, metadata={"request_id": self.id},
            )
        )  # fmt: skip


class TaskRequest(Work, Generic[ResultT]):
    """A request for anything else: what is asked names its task, and the task its result."""

    def __init__(self, model_name: str, ask: Ask[ResultT], request_id: str | None = None) -> None:
        super().__init__(model_name, ask.task, ask.keep_alive, request_id)
        self.ask = ask
        self.job: Any = None
        """How far its engine has come with it."""

    def nothing(self) -> Event:
        """The fault that says so."""
        return Failed(RequestCancelled.of(self.id))


class TaskRun(Generic[ResultT]):
    """A task under way: wait for its result on a thread or in a coroutine. Leaving early cancels it."""

    def __init__(self, request: TaskRequest[ResultT], progress: Callable[[Progress], Any] | None = None) -> None:
        self.request = request
        self._progress = progress

    def cancel(self) -> RequestState:
        """End it. Returns the state it was in."""
        return self.request.cancel()

    def wait(self) -> ResultT:
        """The result, on this thread.

        Raises:
            RuntimeFault: the request failed or was cancelled.
        """
        try:
            while not self._is_last(event := self.request.channel.get()):
                pass
        finally:
            self.request.cancel()
        return self._result(event)

    async def wait_async(self) -> ResultT:
        """The result; cancelling the task cancels the computation.

        Raises:
            RuntimeFault: the request failed or was cancelled.
        """
        try:
            while not self._is_last(event := await self.request.channel.aget()):
                pass
        finally:
            self.request.cancel()
        return self._result(event)

    def _is_last(self, event: Event) -> bool:
        if isinstance(event, Progress) and self._progress is not None:
            self._progress(event)
        return isinstance(event, Finished | Failed)

    @staticmethod
    def _result(event: Event) -> ResultT:
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, Finished)
        result: ResultT = event.result
        return result


class GenerationStream:
    """The answer as it comes: iterate it with `for` or `async for` to get text, or `deltas` to get everything.

    Leaving early (a break, a closed generator, a cancelled task) cancels the computation. `result` is there at the end.
    `progress`, if given, hears of downloads and loads on the way.
    """

    def __init__(self, request: Request, progress: Callable[[Progress], Any] | None = None) -> None:
        self.request = request
        self.result: GenerationResult | None = None
        self._progress = progress

    @property
    def request_id(self) -> str:
        """The id to cancel it by."""
        return self.request.id

    def cancel(self) -> RequestState:
        """End the computation; the stream then closes with what there is."""
        return self.request.cancel()

    def _handle(self, event: Event) -> TextDelta | None:
        if isinstance(event, TextDelta):
            return event
        if isinstance(event, Finished):
            self.result = event.result
        elif isinstance(event, Failed):
            raise event.error
        elif self._progress is not None:
            self._progress(event)
        return None

    def deltas(self) -> Iterator[TextDelta]:
        """Text, reasoning, tool calls and logprobs, on this thread."""
        try:
            while self.result is None:
                delta = self._handle(self.request.channel.get())
                if delta is not None:
                    yield delta
        finally:
            self.request.cancel()

    async def adeltas(self) -> AsyncIterator[TextDelta]:
        """Text, reasoning, tool calls and logprobs, on this event loop."""
        try:
            while self.result is None:
                delta = self._handle(await self.request.channel.aget())
                if delta is not None:
                    yield delta
        finally:
            self.request.cancel()

    def __iter__(self) -> Iterator[str]:
        with contextlib.closing(self.deltas()) as deltas:  # type: ignore[type-var]
            for delta in deltas:
                if delta.text:
                    yield delta.text

    async def __aiter__(self) -> AsyncIterator[str]:
        async with contextlib.aclosing(self.adeltas()) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                if delta.text:
                    yield delta.text

    def wait(self) -> GenerationResult:
        """Run to the end on this thread.

        Raises:
            RuntimeFault: the request failed.
        """
        for _ in self:
            pass
        return self._ended()

    async def wait_async(self) -> GenerationResult:
        """Run to the end; cancelling the task cancels the computation.

        Raises:
            RuntimeFault: the request failed.
        """
        async for _ in self:
            pass
        return self._ended()

    def _ended(self) -> GenerationResult:
        assert self.result is not None  # iteration ends with a result or raises
        return self.result
