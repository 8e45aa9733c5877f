"""Zero-shot classification: the caller chooses the labels. The model is one for natural language inference or embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, StringConstraints, field_validator

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.tasks.base import TaskResult, TaskRow
from lfx_local_runtimes.runtimes.tasks.text.classification import Label, best, scores
from lfx_local_runtimes.runtimes.tasks.text.embedding import Embedding, EmbeddingAsk
from lfx_local_runtimes.runtimes.tasks.text.reading import MAX_TEXTS, Piece, Reading, ReadingAsk, Spec, Text, Tokens

if TYPE_CHECKING:
    import numpy as np

MAX_LABELS = 1000

HYPOTHESES = {"entailment": "This example is {}.", "similarity": "{}"}
"""The defaults, by method: the sentence of Transformers' pipeline, and the label itself. With MiniLM a sentence around the
label improves nothing, and makes the labels' vectors more alike."""

TEMPERATURE = 0.05
"""The temperature of the softmax over cosines: 1 / 20, the scale of sentence-transformers' contrastive losses."""

_EMBEDDING = Embedding()


CandidateLabel = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000, pattern=r"\S")]


@dataclass(frozen=True)
class ZeroShotResult(TaskResult):
    """For each text the caller's labels, best score first. `metadata` also has the `method`."""

    labels: tuple[tuple[Label, ...], ...]


class ZeroShotAsk(ReadingAsk[ZeroShotResult]):
    """Texts, and labels to choose from."""

    task: ClassVar[str] = "zero_shot"
    texts: tuple[Text, ...] = Field(min_length=1, max_length=MAX_TEXTS, description="The texts to label.")
    labels: tuple[CandidateLabel, ...] = Field(
        min_length=1, max_length=MAX_LABELS, description="The labels to choose from.",
        json_schema_extra={"uniqueItems": True},
    )  # fmt: skip
    hypothesis: Annotated[str, StringConstraints(max_length=1000)] | None = Field(
        default=None,
        description="The sentence that stands for a label; {} is replaced by the label. "
        f"Unset: {HYPOTHESES['entailment']} for an NLI model, the label itself for an embedding model.",
        json_schema_extra={"pattern": r"\{\}"},
    )
    multi_label: bool = Field(default=False, description="Score each label on its own, so that several can be true.")

    @field_validator("hypothesis")
    @classmethod
    def _has_a_place(cls, value: str | None) -> str | None:
        if value is not None and "{}" not in value:
            raise ValueError("must contain {}, which is replaced by the label")
        return value

    @field_validator("labels")
    @classmethod
    def _no_label_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a label appears twice")
        return value


class ZeroShot(Reading[ZeroShotAsk, ZeroShotResult]):
    """One of two methods, by the kind of the model.

    entailment (Yin et al. 2019), for NLI models: the model reads every text with every label's hypothesis. The score comes
    from the logit of entailment. One of several labels: softmax over their entailments. Each label on its own: entailment
    against contradiction.

    similarity (Sappadla et al. 2016), for embedding models: each text and each hypothesis is embedded once. The score comes
    from their cosine. One of several labels: softmax over cosine / `TEMPERATURE`. Each label on its own: the cosine, or 0 if
    it is negative.
    """

    def pieces(self, ask: ZeroShotAsk, spec: Spec) -> Sequence[Piece]:
        if _method(spec) == "similarity":
            return _EMBEDDING.pieces(_embedding(ask), spec)
        if entailment(spec.labels) is None:
            raise InvalidInput(
                f"The model's labels ({', '.join(spec.labels[:5])}) name no entailment.",
                hint="Zero-shot classification needs a model trained on natural language inference (NLI), or one for embeddings.",
            )
        return [Piece(text, sentence) for text in ask.texts for sentence in _sentences(ask, "entailment")]

    def values(self, output: "np.ndarray[Any, Any]", batch: Sequence[Tokens], spec: Spec) -> Sequence[Any]:
        if _method(spec) == "similarity":
            return _EMBEDDING.values(output, batch, spec)
        return [row.copy() for row in output]

    def result(self, ask: ZeroShotAsk, values: Sequence[Any], spec: Spec, about: TaskResult) -> ZeroShotResult:
        method = _method(spec)
        if method == "similarity":
            shares = _similarities(ask, _EMBEDDING.result(_embedding(ask), values, spec, about).vectors)
        else:
            shares = _entailments(ask, values, spec)
        found = tuple(best(ask.labels, row) for row in shares)
        return ZeroShotResult(about.model_name, {**about.metadata, "method": method}, found)


def _method(spec: Spec) -> str:
    return "similarity" if spec.task == "embedding" else "entailment"


def _sentences(ask: ZeroShotAsk, method: str) -> tuple[str, ...]:
    """One sentence for each label."""
    hypothesis = HYPOTHESES[method] if ask.hypothesis is None else ask.hypothesis
    return tuple(hypothesis.replace("{}", label) for label in ask.labels)


def _each_on_its_own(ask: ZeroShotAsk) -> bool:
    """Each label is scored on its own. A single label always is: it has no others to share with."""
    return ask.multi_label or len(ask.labels) == 1


def _embedding(ask: ZeroShotAsk) -> EmbeddingAsk:
    """The texts, then the labels' sentences. They are not checked again: they may be too many for one ask."""
    return EmbeddingAsk.model_construct(texts=(*ask.texts, *_sentences(ask, "similarity")), normalize=True)


def _similarities(ask: ZeroShotAsk, vectors: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Scores of shape (texts, labels) from vectors of length 1."""
    import numpy as np

    cosines = vectors[: len(ask.texts)] @ vectors[len(ask.texts) :].T
    return np.clip(cosines, 0, 1) if _each_on_its_own(ask) else scores(cosines / TEMPERATURE, "softmax")


def _entailments(ask: ZeroShotAsk, values: Sequence[Any], spec: Spec) -> "np.ndarray[Any, Any]":
    """Scores of shape (texts, labels) from the logits of every pair."""
    import numpy as np

    logits = np.stack(values).reshape(len(ask.texts), len(ask.labels), -1)
    yes = entailment(spec.labels)
    assert yes is not None  # `pieces` has refused the others
    no = -1 if yes == 0 else 0
    if _each_on_its_own(ask):
        return scores(logits[..., [no, yes]], "softmax")[..., 1]
    return scores(logits[..., yes], "softmax")


def entailment(labels: Sequence[str]) -> int | None:
    """Which of a model's labels says that the second text follows from the first."""
    return next((index for index, label in enumerate(labels) if label.lower().startswith("entail")), None)


ROW = TaskRow(
    name="zero_shot", family="reading", ask=ZeroShotAsk, result=ZeroShotResult, work=ZeroShot(), path="classify",
    needed="labels", summary="For each text, the labels of the request with scores, best first, by an NLI or an embedding model.",
)  # fmt: skip
