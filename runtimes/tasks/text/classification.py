"""Text classification: which of the model's own labels a text has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lfx_local_runtimes.runtimes.tasks.base import TaskResult, TaskRow
from lfx_local_runtimes.runtimes.tasks.text.reading import MAX_TEXTS, Piece, Reading, ReadingAsk, Spec, Text, Tokens

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Label:
    """A label and its score from 0 to 1. The score of a regression is its number."""

    label: str
    score: float


@dataclass(frozen=True)
class ClassificationResult(TaskResult):
    """For each text its labels, best score first."""

    labels: tuple[tuple[Label, ...], ...]


class ClassificationAsk(ReadingAsk[ClassificationResult]):
    """Texts to label."""

    task: ClassVar[str] = "classification"
    texts: tuple[Text, ...] = Field(min_length=1, max_length=MAX_TEXTS, description="The texts to label.")
    top_k: int | None = Field(default=None, ge=1, description="Return only this many of the best labels.")
    multi_label: bool | None = Field(
        default=None,
        description="Score each label on its own, so that several can be true. Unset: as the model's configuration says.",
    )


class Classification(Reading[ClassificationAsk, ClassificationResult]):
    """One logit per label."""

    def pieces(self, ask: ClassificationAsk, spec: Spec) -> Sequence[Piece]:
        return [Piece(text) for text in ask.texts]

    def values(self, output: "np.ndarray[Any, Any]", batch: Sequence[Tokens], spec: Spec) -> Sequence[Any]:
        return [row.copy() for row in output]

    def result(
        self, ask: ClassificationAsk, values: Sequence[Any], spec: Spec, about: TaskResult
    ) -> ClassificationResult:
        import numpy as np

        chosen = spec.activation if ask.multi_label is None else "sigmoid" if ask.multi_label else "softmax"
        found = [best(spec.labels, row)[: ask.top_k] for row in scores(np.stack(values), chosen)]
        return ClassificationResult(about.model_name, about.metadata, tuple(found))


def best(labels: Sequence[str], row: Sequence[float]) -> tuple[Label, ...]:
    """Labels and their scores, best first."""
    pairs = (Label(label, float(score)) for label, score in zip(labels, row, strict=True))
    return tuple(sorted(pairs, key=lambda one: -one.score))


def scores(logits: "np.ndarray[Any, Any]", activation: str) -> "np.ndarray[Any, Any]":
    """Scores of logits along their last axis."""
    import numpy as np

    found = logits
    if activation == "sigmoid":
        found = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
    elif activation == "softmax":
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        found = powers / powers.sum(-1, keepdims=True)
    return found


ROW = TaskRow(
    name="classification", family="reading", ask=ClassificationAsk, result=ClassificationResult, work=Classification(),
    path="classify", summary="For each text, the labels that the model was trained for, with scores, best first.",
)  # fmt: skip
