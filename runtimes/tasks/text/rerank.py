"""Rerank: how well each document answers a query, by a cross-encoder."""

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
class Ranked:
    """A document's place in the request, and its score."""

    index: int
    score: float


@dataclass(frozen=True)
class RerankResult(TaskResult):
    """Documents, best first."""

    ranking: tuple[Ranked, ...]


class RerankAsk(ReadingAsk[RerankResult]):
    """A query, and documents to sort."""

    task: ClassVar[str] = "rerank"
    query: Text = Field(description="What the documents should answer.")
    documents: tuple[Text, ...] = Field(min_length=1, max_length=MAX_TEXTS, description="The texts to sort.")
    top_n: int | None = Field(default=None, ge=1, description="Return only this many of the best documents.")


class Rerank(Reading[RerankAsk, RerankResult]):
    """The model reads query and document together. Its one logit is the score."""

    def pieces(self, ask: RerankAsk, spec: Spec) -> Sequence[Piece]:
        return [Piece(ask.query, document) for document in ask.documents]

    def values(self, output: "np.ndarray[Any, Any]", batch: Sequence[Tokens], spec: Spec) -> Sequence[Any]:
        return [float(row[0]) for row in scores(output, spec.activation)]

    def result(self, ask: RerankAsk, values: Sequence[Any], spec: Spec, about: TaskResult) -> RerankResult:
        ranking = sorted((Ranked(index, score) for index, score in enumerate(values)), key=lambda one: -one.score)
        return RerankResult(about.model_name, about.metadata, tuple(ranking[: ask.top_n]))


ROW = TaskRow(
    name="rerank", family="reading", ask=RerankAsk, result=RerankResult, work=Rerank(), path="rerank",
    summary="How well each document answers the query: its place in the request and its score, best first.",
)  # fmt: skip
