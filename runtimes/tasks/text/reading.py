"""Tasks of models that read: they turn pieces of text into vectors, scores, labels or spans. Tasks of models that see share this.

A reading knows no engine. It divides a request into pieces of text, and turns the model's output for each piece into a
result. An engine knows no reading. It tokenizes pieces and computes batches of them.
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
"""What happens if a text is longer than the model can read. truncate: the end is cut, and the result says so. error: the
request fails. chunk: the text is read in parts, if the task can join them."""


class ReadingAsk(Ask[ResultT]):
    """A request to a model that reads."""

    can_chunk: ClassVar[bool] = False
    overflow: Overflow = Field(
        default="truncate",
        description="If a text is too long. truncate: its end is not read, and the metadata says so. error: the request "
        "fails. chunk, for embeddings only: the text is read in parts, and the vector is their mean.",
    )

    @field_validator("overflow")
    @classmethod
    def _can_be_done(cls, value: Overflow) -> Overflow:
        if value == "chunk" and not cls.can_chunk:
            raise ValueError("chunk is for embeddings; use truncate or error")
        return value


@dataclass(frozen=True, slots=True)
class Piece:
    """What a model reads at once: a text, token ids, or a pair of texts."""

    text: str | tuple[int, ...]
    pair: str | None = None


@dataclass(slots=True)
class Tokens:
    """The tokens of a piece, special ones included; or of one part, if the piece is too long."""

    ids: list[int]
    types: list[int]
    """0 for the first text of a pair, 1 for the second."""
    offsets: list[tuple[int, int]] = field(default_factory=list)
    """For each token its start and end in the text, in characters."""
    special: list[int] = field(default_factory=list)
    """1 for tokens that are not in the text."""
    cut: int = 0
    """Tokens of the piece that are in no part."""

    unit: ClassVar[str] = "tokens"
    shape: ClassVar[str] = "text"
    """All texts can be in one batch: shorter ones are padded."""

    @property
    def cost(self) -> int:
        """How much of a batch it takes."""
        return len(self.ids)

    @property
    def amount(self) -> int:
        """How many of its units it has."""
        return len(self.ids)


@dataclass(frozen=True)
class Spec:
    """How to read a model's output, as its files say."""

    task: str
    max_length: int
    """The most tokens of one piece."""
    labels: tuple[str, ...] = ()
    pooling: str = "mean"
    """How one vector is made of the tokens' states: mean, cls, max, lasttoken, mean_sqrt_len or weightedmean; none if the model
    gives one vector."""
    dense: tuple["Dense", ...] = ()
    normalize: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    """By name: texts to put before a text."""
    default_prompt: str | None = None
    shortens: bool = False
    """The model's files say that its vectors may be shortened (Matryoshka)."""
    activation: str = "softmax"
    """How scores are made of logits: softmax, sigmoid or identity."""
    scale: float = 1.0
    """By what a model of pictures and texts multiplies their cosines,"""
    bias: float = 0.0
    """and what it adds to them."""
    most: int = 0
    """How many objects a detector finds in a picture at most; 0 is one for each of its queries."""


@dataclass(frozen=True)
class Dense:
    """A linear layer over the pooled vector, of shape (out, in), and whether tanh follows."""

    weight: "np.ndarray[Any, Any]"
    bias: "np.ndarray[Any, Any] | None"
    tanh: bool


AskT = TypeVar("AskT", bound=Ask[Any])


class Reading(ABC, Generic[AskT, ResultT]):
    """The part of a task between the request and the model."""

    @abstractmethod
    def pieces(self, ask: AskT, spec: Spec) -> Sequence[Any]:
        """The pieces that the model has to read or see, in order.

        Raises:
            InvalidInput: the model cannot do this.
        """

    @abstractmethod
    def values(self, output: Any, batch: Sequence[Any], spec: Spec) -> Sequence[Any]:
        """One value for each row of a batch.

        Args:
            output: float32; states or logits per token (rows, tokens, width) or logits per row (rows, labels). For some
                tasks of pictures: a list with something for each row.
            batch: the rows. Output behind a row's tokens has no meaning.
            spec: the model's.
        """

    @abstractmethod
    def result(self, ask: AskT, values: Sequence[Any], spec: Spec, about: TaskResult) -> ResultT:
        """Make the result. `values` has one value for each piece, in order."""

    def keep(self, ask: AskT, value: Any, row: Any, spec: Spec) -> Any:
        """What is kept of a value until the result is made, for values that are large. `row` is what was computed."""
        del ask, row, spec
        return value

    def join(self, values: Sequence[Any], lengths: Sequence[int]) -> Any:
        """Join the values of a piece's parts; `lengths` are their tokens. Most pieces have one part."""
        del lengths
        return values[0]
