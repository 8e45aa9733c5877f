"""`TaskModel`: a local model for a task other than text generation."""

import asyncio
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.langchain.messages import first_problem
from lfx_local_runtimes.langchain.variants import LOADING, variant
from lfx_local_runtimes.runtimes import get_runtime_manager
from lfx_local_runtimes.runtimes.media.sources import fetched, has_sources
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.tasks.base import Ask, ResultT, TaskResult
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult


class TaskModel(BaseModel):
    """A model of the process-wide `RuntimeManager`, with options for its load.

    Making one costs nothing: the manager holds the weights. Options left at None are the model's own.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model: str = Field(min_length=1, description="A name the manager knows, a path inside a model folder, or a hub id.")
    keep_alive: float | None = Field(
        default=None, description="Seconds the model stays in memory afterwards when idle; -1 keeps it forever."
    )
    runtime_type: str | None = Field(
        default=None, description="Engine. If it is not the model's own, a second copy of the model is loaded."
    )
    device_type: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    observer: Callable[[Progress | TaskResult | GenerationResult], object] | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description="Called with the progress of downloads and loads, and with the result.",
    )

    def ask(self, kind: type[Ask[ResultT]], **options: Any) -> ResultT:
        """The result of a task, on this thread. Options that are None take the task's defaults.

        Raises:
            InvalidInput: an option out of range.
            RuntimeFault: the model cannot be found, loaded or run, or cannot do the task, with the reason; or a picture that
                is named by a path or a URL cannot be read.
        """
        ask = _at_hand(self._make_ask(kind, options))
        run = get_runtime_manager().start(variant(self.model, self._loading()), ask, progress=self.observer)
        return self._report(run.wait())

    async def ask_async(self, kind: type[Ask[ResultT]], **options: Any) -> ResultT:
        """Like `ask`, on this event loop. Cancelling the caller cancels the computation."""
        ask = self._make_ask(kind, options)
        if has_sources(ask):
            ask = await asyncio.to_thread(_at_hand, ask)
        run = get_runtime_manager().start(variant(self.model, self._loading()), ask, progress=self.observer)
        return self._report(await run.wait_async())

    def _loading(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in LOADING}

    def _make_ask(self, kind: type[Ask[ResultT]], options: dict[str, Any]) -> Ask[ResultT]:
        values = {"keep_alive": self.keep_alive, **options}
        try:
            return kind.model_validate({name: value for name, value in values.items() if value is not None})
        except ValidationError as error:
            raise InvalidInput(first_problem(error), model_name=self.model) from error

    def _report(self, result: ResultT) -> ResultT:
        if self.observer is not None and isinstance(result, TaskResult | GenerationResult):
            self.observer(result)
        return result


def _at_hand(ask: Ask[ResultT]) -> Ask[ResultT]:
    """The ask with the pictures that it names by a path or a URL. Blocks."""
    return fetched(ask, get_runtime_manager().settings) if has_sources(ask) else ask
