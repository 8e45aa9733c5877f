"""What every task has: what callers ask (`Ask`), what may stream (`Delta`), what they get, and a row in the registry.

A task knows nothing of engines. An engine names the tasks that it serves, by the tasks' `family`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import Self

from lfx_local_runtimes.runtimes.config import Defaults, KeepAlive, Prompts

ResultT = TypeVar("ResultT")


TokenId = Annotated[int, Field(ge=0, strict=True)]
"""A number in a model's vocabulary. A boolean is none, though Python counts it as an integer."""


def _whole(value: object) -> object:
    """JSON may write 69.0. A list may be long, so it is looked through only if a number is written in this way."""
    if not isinstance(value, list | tuple) or float not in map(type, value):
        return value
    return [int(one) if isinstance(one, float) and one.is_integer() else one for one in value]


TokenIds = Annotated[tuple[TokenId, ...], Field(min_length=1), BeforeValidator(_whole)]
"""A text as its tokens."""


def _with_int_keys(metadata: dict[str, Any]) -> dict[str, Any]:
    """JSON has made texts of the inputs' numbers."""
    if isinstance(cut := metadata.get("truncated"), dict):
        metadata = {**metadata, "truncated": {int(place): count for place, count in cut.items()}}
    return metadata


@dataclass(frozen=True)
class TaskResult:
    """What every result says. `metadata`: engine, device, dtype, tokens, warnings; `truncated`: tokens cut, by input."""

    model_name: str
    metadata: Annotated[dict[str, Any], AfterValidator(_with_int_keys)]

    @property
    def cancelled(self) -> bool:
        """It was ended before it was complete."""
        return False


class Ask(BaseModel, Generic[ResultT]):
    """What a caller asks of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    task: ClassVar[str]
    keep_alive: KeepAlive | None = Field(
        default=None, description="Overrides the model's idle time after this request."
    )

    def completed(self, defaults: Defaults, prompts: Prompts) -> Self:
        """The same with a model's defaults for the fields that were left unset."""
        del prompts
        known, given = type(self).model_fields, self.model_fields_set
        missing = {name: value for name, value in defaults if value is not None and name in known and name not in given}
        return self.model_copy(update=missing) if missing else self

    def cancelled_result(self, model_name: str, request_id: str) -> ResultT | None:
        """The result of a request that was cancelled before it began; None if that is an error for this task."""
        del model_name, request_id
        return None


class Delta:
    """A part of a result, delivered while the rest is computed. Each task that streams has a kind of its own."""

    __slots__ = ()

    def merged(self, later: "Delta") -> "Delta | None":
        """This delta and the next one as one; None if they must stay apart."""
        del later
        return None


@dataclass(frozen=True)
class TaskRow:
    """One task in the registry.

    Args:
        name: as a `ModelConfig.model_type` says it.
        family: which kind of runtime serves it. An engine has one runtime per family: `text` writes, `reading` reads.
        ask: what callers ask.
        result: what they get: a pydantic model, or a dataclass that pydantic can write and read.
        delta: what streams; None if nothing does.
        chunk: what may be fed to a running request; None if nothing may.
        work: the part between ask and model, for the families that have one (`reading`: a `Reading`).
        path: of the route under `/api/v1/runtime`, and under `v1` for OpenAI's form. Empty if the task's routes are
            written by hand.
        needed: of several tasks with one path, this one is meant if the body has this field.
        summary: the route's description.
        body_bytes: the most bytes of a route's body.
    """

    name: str
    family: str
    ask: type[Ask[Any]]
    result: type[Any]
    delta: type[Delta] | None = None
    chunk: type[Any] | None = None
    work: Any = None
    path: str = ""
    needed: str | None = None
    summary: str = ""
    body_bytes: int = 8 * 2**20
