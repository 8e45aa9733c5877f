"""What models that read do: tasks that turn pieces of text into vectors, scores, labels or spans.

A reading knows nothing of engines: it cuts what is asked into pieces of text, and turns a model's output for each piece
into a result. An engine knows nothing of readings: it tokenizes pieces and computes batches of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, StringConstraints, field_validator

from lfx_local_runtimes.runtimes.config import MAX_PROMPT_CHARS
from lfx_local_runtimes.runtimes.tasks.base import Ask, ResultT, TaskResult

if TYPE_CHECKING:
    import numpy as np

MAX_TEXTS = 1_000_000

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARS)]
Overflow = Literal["truncate", "error", "chunk"]
"""What happens to a text that is longer than the model reads: its end is cut, and the result says so; it is refused; or
it is read in parts, if the task can put them together."""


class ReadingAsk(Ask[ResultT]):
    """What a caller asks of a model that reads."""

    can_chunk: ClassVar[bool] = False
    overflow: Overflow = Field(default="truncate", description="truncate a text that is too long, or error.")

    @field_validator("overflow")
    @classmethod
    def _can_be_done(cls, value: Overflow) -> Overflow:
        if value == "chunk" and not cls.can_chunk:
            raise ValueError("chunk is for embeddings; use truncate or error")
        return value


@dataclass(frozen=True, slots=True)
class Piece:
    """What a model reads at once: a text or token ids, or a pair of texts."""

    text: str | tuple[int, ...]
    pair: str | None = None


@dataclass(slots=True)
class Tokens:
    """A piece as tokens, special ones included, or a part of a piece that is too long for one."""

    ids: list[int]
    types: list[int]
    """0 for the first text of a pair, 1 for the second."""
    offsets: list[tuple[int, int]] = field(default_factory=list)
    """Where each token stands in the text, in characters."""
    special: list[int] = field(default_factory=list)
    """1 for tokens that do not stand in the text."""
    cut: int = 0
    """Tokens of the piece that no part holds."""


@dataclass(frozen=True)
class Spec:
    """What a model's files say about how its output is to be read."""

    task: str
    max_length: int
    """Tokens of a piece at most."""
    labels: tuple[str, ...] = ()
    pooling: str = "mean"
    """mean, cls, max, lasttoken, mean_sqrt_len or weightedmean: from token states to one vector."""
    dense: tuple["Dense", ...] = ()
    normalize: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    """By name, put before a text."""
    default_prompt: str | None = None
    activation: str = "softmax"
    """softmax, sigmoid or identity: from logits to scores."""


@dataclass(frozen=True)
class Dense:
    """A linear layer over the pooled vector, of shape (out, in), and whether tanh follows."""

    weight: "np.ndarray[Any, Any]"
    bias: "np.ndarray[Any, Any] | None"
    tanh: bool


AskT = TypeVar("AskT", bound=ReadingAsk[Any])


class Reading(ABC, Generic[AskT, ResultT]):
    """The part of a task between what is asked and the model."""

    @abstractmethod
    def pieces(self, ask: AskT, spec: Spec) -> Sequence[Piece]:
        """What the model has to read, in order.

        Raises:
            InvalidInput: the model cannot do what is asked.
        """

    @abstractmethod
    def values(self, output: "np.ndarray[Any, Any]", batch: Sequence[Tokens], spec: Spec) -> Sequence[Any]:
        """One value for each row of a batch.

        Args:
            output: float32; states or logits per token (rows, tokens, width) or logits per row (rows, labels).
            batch: the rows; output beyond a row's tokens means nothing.
            spec: the model's.
        """

    @abstractmethod
    def result(self, ask: AskT, values: Sequence[Any], spec: Spec, about: TaskResult) -> ResultT:
        """Put together what was asked: `values` has one for each piece, in order."""

    def join(self, values: Sequence[Any], lengths: Sequence[int]) -> Any:
        """One value for a piece that was read in parts of so many tokens. Most pieces have one part."""
        del lengths
        return values[0]
