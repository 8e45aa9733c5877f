"""`Run`: the caller's handle on a request."""

import contextlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar, cast

from lfx_local_runtimes.runtimes.requests.events import Event, Failed, Finished, Progress
from lfx_local_runtimes.runtimes.requests.request import Request, RequestState
from lfx_local_runtimes.runtimes.tasks.base import Delta, ResultT
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult, TextDelta

DeltaT = TypeVar("DeltaT", bound=Delta)


class Run(Generic[DeltaT, ResultT]):
    """A request under way. Iterate its deltas, wait for its result, or both; on a thread or in a coroutine.

    Leaving early (a break, a closed generator, a cancelled task) cancels the computation. `result` is there at the end.

        for delta in run: …          async for delta in run: …
        result = run.wait()          result = await run

    Args:
        request: what was asked.
        progress: hears of downloads and loads on the way.
    """

    def __init__(self, request: Request[Any], progress: Callable[[Progress], Any] | None = None) -> None:
        self.request = request
        self.result: ResultT | None = None
        self._progress = progress

    @property
    def request_id(self) -> str:
        """The id to cancel it by."""
        return self.request.id

    def cancel(self) -> RequestState:
        """End the computation. Returns the state it was in."""
        return self.request.cancel()

    def feed(self, chunk: Any) -> None:
        """Give the task more input. Raises as `Request.feed`."""
        self.request.feed(chunk)

    def _handle(self, event: Event) -> DeltaT | None:
        if isinstance(event, Finished):
            self.result = event.result
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Progress):
            if self._progress is not None:
                self._progress(event)
        else:
            return cast("DeltaT", event)
        return None

    def deltas(self) -> Generator[DeltaT, None, None]:
        """Everything the task streams, on this thread.

        Raises:
            RuntimeFault: the request failed.
        """
        try:
            while self.result is None:
                delta = self._handle(self.request.channel.get())
                if delta is not None:
                    yield delta
        finally:
            self.request.cancel()

    async def adeltas(self) -> AsyncIterator[DeltaT]:
        """Everything the task streams, on this event loop.

        Raises:
            RuntimeFault: the request failed.
        """
        try:
            while self.result is None:
                delta = self._handle(await self.request.channel.aget())
                if delta is not None:
                    yield delta
        finally:
            self.request.cancel()

    def __iter__(self) -> Iterator[DeltaT]:
        return self.deltas()

    def __aiter__(self) -> AsyncIterator[DeltaT]:
        return self.adeltas()

    def __await__(self) -> Generator[Any, None, ResultT]:
        return self.wait_async().__await__()

    def wait(self) -> ResultT:
        """The result, on this thread.

        Raises:
            RuntimeFault: the request failed, or was cancelled with nothing to show.
        """
        for _ in self.deltas():
            pass
        return self._ended()

    async def wait_async(self) -> ResultT:
        """The result; cancelling the task cancels the computation.

        Raises:
            RuntimeFault: the request failed, or was cancelled with nothing to show.
        """
        async with contextlib.aclosing(self.adeltas()) as deltas:  # type: ignore[type-var]
            async for _ in deltas:
                pass
        return self._ended()

    def _ended(self) -> ResultT:
        assert self.result is not None  # iteration ends with a result or raises
        return self.result


class GenerationStream:
    """A run of the text task, for callers who want the text alone: iterate it with `for` or `async for`.

    Leaving early cancels the computation, as with the `run` itself. `result` is there at the end.
    """

    def __init__(self, run: Run[TextDelta, GenerationResult]) -> None:
        self.run = run
        self.request = run.request
        self.request_id = run.request_id
        self.cancel = run.cancel
        self.deltas = run.deltas
        self.adeltas = run.adeltas
        self.wait = run.wait
        self.wait_async = run.wait_async

    @property
    def result(self) -> GenerationResult | None:
        """The result, once there is one."""
        return self.run.result

    def __iter__(self) -> Iterator[str]:
        with contextlib.closing(self.run.deltas()) as deltas:
            for delta in deltas:
                if delta.text:
                    yield delta.text

    async def __aiter__(self) -> AsyncIterator[str]:
        async with contextlib.aclosing(self.run.adeltas()) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                if delta.text:
                    yield delta.text
