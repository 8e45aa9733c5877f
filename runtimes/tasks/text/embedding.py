"""Embeddings: a vector for each text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, field_validator
from typing_extensions import Self

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.config import Defaults, Prompts
from lfx_local_runtimes.runtimes.tasks.base import TaskResult, TaskRow, TokenIds
from lfx_local_runtimes.runtimes.tasks.binary import Array
from lfx_local_runtimes.runtimes.tasks.text.reading import MAX_TEXTS, Piece, Reading, ReadingAsk, Spec, Text, Tokens

if TYPE_CHECKING:
    import numpy as np

_SHORTENED = (
    "dimensions: the model's files do not say that its vectors may be shortened (matryoshka_dimensions in config.json). "
    "Shortened vectors of a model that was not trained for it compare worse."
)


EmbeddingOverflow = Literal["truncate", "error", "chunk"]
"""As `Overflow`, and chunk: the text is read in parts."""


@dataclass(frozen=True)
class EmbeddingResult(TaskResult):
    """Vectors in the order of the texts."""

    vectors: Array
    """float32, of shape (texts, dimensions)."""


class EmbeddingAsk(ReadingAsk[EmbeddingResult]):
    """Texts or token ids to embed. With `chunk`, the vector of a long text is the mean of its parts, weighted by tokens."""

    task: ClassVar[str] = "embedding"
    texts: tuple[Text | TokenIds, ...] = Field(
        min_length=1, max_length=MAX_TEXTS, description="What to embed: texts, or lists of the model's token ids."
    )
    overflow: EmbeddingOverflow = Field(  # type: ignore[assignment] # one value more than other tasks have
        default="truncate",
        description="If a text is too long. truncate: its end is not read, and the metadata says so. error: the request "
        "fails. chunk: the text is read in parts, and the vector is their mean.",
    )
    prompt: Annotated[str, StringConstraints(max_length=10_000)] | None = Field(
        default=None,
        description="Put before each text: the name of one of the model's own prompts (query, passage …), or a text.",
    )
    role: Literal["query", "document"] | None = Field(
        default=None,
        description="What the texts are. Without `prompt`, the model's own prompt for this role is put before them.",
    )
    dimensions: int | None = Field(
        default=None, ge=1, description="Keep only this many numbers from the start of each vector (Matryoshka models)."
    )
    normalize: bool | None = Field(
        default=None, description="Scale vectors to length 1. Unset: as the model's files say."
    )

    @field_validator("texts", mode="before")
    @classmethod
    def _texts_or_ids(cls, value: object) -> object:
        """One error tells of either, not one for each that it could have been."""
        for place, one in enumerate(value) if isinstance(value, list | tuple) else ():
            ids = isinstance(one, list | tuple) and {*map(type, one)} <= {int, float}
            if not one or not (ids or isinstance(one, str)):
                raise ValueError(f"input {place} must be a text or token ids, and not empty")
        return value

    def completed(self, defaults: Defaults, prompts: Prompts) -> Self:
        """Also with the operator's text for the role, if the request brings none."""
        ask = super().completed(defaults, prompts)
        own = {"query": prompts.query, "document": prompts.document, None: None}[ask.role]
        return ask if own is None or ask.prompt is not None else ask.model_copy(update={"prompt": own})


class Embedding(Reading[EmbeddingAsk, EmbeddingResult]):
    """From token states to one vector, as the model's pooling configuration says."""

    def pieces(self, ask: EmbeddingAsk, spec: Spec) -> Sequence[Piece]:
        prompt = _prompt(ask, spec)
        return [Piece(prompt + text if isinstance(text, str) else text) for text in ask.texts]

    def values(self, output: "np.ndarray[Any, Any]", batch: Sequence[Tokens], spec: Spec) -> Sequence[Any]:
        if spec.pooling == "none":
            return [vector.copy() for vector in output]
        import numpy as np

        lengths = np.array([len(row.ids) for row in batch])
        mask = np.arange(output.shape[1]) < lengths[:, None]
        vectors = pool(output, mask, spec.pooling)
        for layer in spec.dense:
            vectors = vectors @ layer.weight.T + (0 if layer.bias is None else layer.bias)
            vectors = np.tanh(vectors) if layer.tanh else vectors
        return [vector.copy() for vector in vectors]

    def join(self, values: Sequence[Any], lengths: Sequence[int]) -> Any:
        if len(values) == 1:
            return values[0]
        import numpy as np

        return np.average(np.stack(values), axis=0, weights=lengths).astype(np.float32)

    def result(self, ask: EmbeddingAsk, values: Sequence[Any], spec: Spec, about: TaskResult) -> EmbeddingResult:
        import numpy as np

        vectors = np.stack(values)
        if ask.dimensions is not None:
            if ask.dimensions > vectors.shape[1]:
                raise InvalidInput(
                    f"dimensions {ask.dimensions:,} is more than the {vectors.shape[1]:,} the model has.",
                    model_name=about.model_name, hint="Ask for less, or leave it unset.",
                )  # fmt: skip
            if ask.dimensions < vectors.shape[1] and not spec.shortens:
                about = replace(
                    about, metadata={**about.metadata, "warnings": [*about.metadata.get("warnings", ()), _SHORTENED]}
                )
            vectors = vectors[:, : ask.dimensions]
        if spec.normalize if ask.normalize is None else ask.normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return EmbeddingResult(about.model_name, about.metadata, np.ascontiguousarray(vectors, dtype=np.float32))


def _prompt(ask: EmbeddingAsk, spec: Spec) -> str:
    """What is put before the texts; a role's prompts are those that sentence-transformers looks for."""
    if ask.prompt is not None:
        return spec.prompts.get(ask.prompt, ask.prompt)
    names = {"query": ("query",), "document": ("document", "passage", "corpus"), None: ()}[ask.role]
    return next((spec.prompts[name] for name in (*names, spec.default_prompt or "") if name in spec.prompts), "")


def pool(states: "np.ndarray[Any, Any]", mask: "np.ndarray[Any, Any]", mode: str) -> "np.ndarray[Any, Any]":
    """One vector per row, of shape (rows, width), from token states (rows, tokens, width).

    The modes are those of sentence-transformers' `Pooling`: special tokens count, padding (`mask` false) does not.
    """
    import numpy as np

    vectors: np.ndarray[Any, Any]
    if mode == "cls":
        vectors = states[:, 0]
    elif mode == "lasttoken":
        vectors = states[np.arange(len(states)), mask.sum(1) - 1]
    elif mode == "max":
        vectors = np.where(mask[:, :, None], states, -np.inf).max(1)
    else:
        weights = mask.astype(np.float32)
        if mode == "weightedmean":
            weights *= np.arange(1, mask.shape[1] + 1, dtype=np.float32)
        total = weights.sum(1, keepdims=True)
        sums = np.matmul(weights[:, None, :], np.where(mask[:, :, None], states, 0))[:, 0]
        vectors = sums / (np.sqrt(total) if mode == "mean_sqrt_len" else total)
    return vectors


ROW = TaskRow(
    name="embedding", family="reading", ask=EmbeddingAsk, result=EmbeddingResult, work=Embedding(), path="embed",
    summary="A vector for each text.",
)  # fmt: skip
