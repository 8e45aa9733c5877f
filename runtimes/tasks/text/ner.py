"""Named entities: parts of a text, each with a label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lfx_local_runtimes.runtimes.tasks.base import TaskResult, TaskRow
from lfx_local_runtimes.runtimes.tasks.text.classification import scores
from lfx_local_runtimes.runtimes.tasks.text.reading import MAX_TEXTS, Piece, Reading, ReadingAsk, Spec, Text, Tokens

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Entity:
    """A span of the text: characters `start` to `end`, its label, and the mean score of its tokens."""

    label: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class NerResult(TaskResult):
    """For each text its entities, in the order of the text."""

    entities: tuple[tuple[Entity, ...], ...]


class NerAsk(ReadingAsk[NerResult]):
    """Texts to search."""

    task: ClassVar[str] = "ner"
    texts: tuple[Text, ...] = Field(min_length=1, max_length=MAX_TEXTS, description="The texts to search for entities.")
    min_score: float = Field(default=0.0, ge=0, le=1, description="Leave out entities with a lower score.")


_Span = tuple[str, int, int, float]


class Ner(Reading[NerAsk, NerResult]):
    """One logit per token and label. Neighbouring tokens of one entity become a span, by the tags B- and I-.

    The rule is that of Transformers' token-classification pipeline with `aggregation_strategy="simple"`.
    """

    def pieces(self, ask: NerAsk, spec: Spec) -> Sequence[Piece]:
        return [Piece(text) for text in ask.texts]

    def values(self, output: "np.ndarray[Any, Any]", batch: Sequence[Tokens], spec: Spec) -> Sequence[Any]:
        return [
            _spans(scores(output[row, : len(tokens.ids)], "softmax"), tokens, spec) for row, tokens in enumerate(batch)
        ]

    def result(self, ask: NerAsk, values: Sequence[Any], spec: Spec, about: TaskResult) -> NerResult:
        found = tuple(
            tuple(
                Entity(label, text[start:end], start, end, score)
                for label, start, end, score in spans
                if score >= ask.min_score
            )
            for text, spans in zip(ask.texts, values, strict=True)
        )
        return NerResult(about.model_name, about.metadata, found)


def _spans(shares: "np.ndarray[Any, Any]", tokens: Tokens, spec: Spec) -> list[_Span]:
    """The entities of one text. `shares` are the labels' scores for each token."""
    found: list[_Span] = []
    group: list[tuple[str, int, int, float]] = []

    def close() -> None:
        if group and group[0][0] != "O":
            found.append((group[0][0], group[0][1], group[-1][2], sum(one[3] for one in group) / len(group)))
        group.clear()

    for index, (start, end) in enumerate(tokens.offsets):
        if tokens.special[index]:
            continue
        best = int(shares[index].argmax())
        prefix, label = _tag(spec.labels[best])
        if group and (label != group[0][0] or prefix == "B"):
            close()
        group.append((label, start, end, float(shares[index, best])))
    close()
    return found


def _tag(label: str) -> tuple[str, str]:
    """A tag's prefix (B or I; where there is none it counts as I) and its label."""
    prefix, dash, rest = label.partition("-")
    return (prefix, rest) if dash and prefix in ("B", "I") else ("I", label)


ROW = TaskRow(
    name="ner", family="reading", ask=NerAsk, result=NerResult, work=Ner(), path="ner",
    summary="For each text, its entities: label, text, start and end in characters, score.",
)  # fmt: skip
