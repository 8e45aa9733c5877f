"""`TaskModel`: a local model that is asked for something other than text."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.langchain.messages import first_problem
from lfx_local_runtimes.langchain.variants import LOADING, variant
from lfx_local_runtimes.runtimes import get_runtime_manager
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.tasks.base import Ask, ResultT, TaskResult


class TaskModel(BaseModel):
    """A model of the process-wide `RuntimeManager`: how it is loaded, and a way to ask it.

    Making one costs nothing: the weights live in the manager. Options left at None are the model's own.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model: str = Field(min_length=1, description="A name the manager knows, a path inside a model folder, or a hub id.")
    keep_alive: float | None = Field(
        default=None, description="Idle seconds the model stays in memory afterwards; -1 is for good."
    )
    runtime_type: str | None = Field(
        default=None, description="Engine; another than the model's own makes a second copy of it."
    )
    device_type: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    observer: Callable[[Progress | TaskResult], object] | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description="Hears of downloads and loads on the way, and of the result.",
    )

    def ask(self, kind: type[Ask[ResultT]], **options: Any) -> ResultT:
        """The result of a task, on this thread; options that are None are left to the task.

        Raises:
            InvalidInput: an option out of range.
            RuntimeFault: the model cannot be found, loaded or run, or does something else, with the reason.
        """
        asked = self._asked(kind, options)
        run = get_runtime_manager().start(variant(self.model, self._loading()), asked, progress=self.observer)
        return self._heard(run.wait())

    async def aask(self, kind: type[Ask[ResultT]], **options: Any) -> ResultT:
        """As `ask`, on this event loop; cancelling the caller cancels the computation."""
        asked = self._asked(kind, options)
        run = get_runtime_manager().start(variant(self.model, self._loading()), asked, progress=self.observer)
        return self._heard(await run.wait_async())

    def _loading(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in LOADING}

    def _asked(self, kind: type[Ask[ResultT]], options: dict[str, Any]) -> Ask[ResultT]:
        given = {"keep_alive": self.keep_alive, **options}
        try:
            return kind.model_validate({name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise InvalidInput(first_problem(error), model_name=self.model) from error

    def _heard(self, result: ResultT) -> ResultT:
        if self.observer is not None and isinstance(result, TaskResult):
            self.observer(result)
        return result
