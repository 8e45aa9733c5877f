"""Zero-shot classification: labels of the caller's own, by a model that tells whether one text follows from another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, StringConstraints, field_validator

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.tasks.base import MAX_TEXTS, Ask, Piece, Spec, Task, TaskResult, Text, Tokens
from lfx_local_runtimes.runtimes.tasks.classification import Label, best, scores

if TYPE_CHECKING:
    import numpy as np

MAX_LABELS = 1000


@dataclass(frozen=True)
class ZeroShotResult(TaskResult):
    """For each text the labels that were given, likeliest first."""

    labels: tuple[tuple[Label, ...], ...]


class ZeroShotAsk(Ask[ZeroShotResult]):
    """Texts, and labels to choose from."""

    task: ClassVar[str] = "zero_shot"
    texts: tuple[Text, ...] = Field(min_length=1, max_length=MAX_TEXTS)
    labels: tuple[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)], ...] = Field(
        min_length=1, max_length=MAX_LABELS
    )
    hypothesis: Annotated[str, StringConstraints(max_length=1000)] = Field(
        default="This example is {}.", description="What the model is asked about each label, which stands for {}."
    )
    multi_label: bool = Field(default=False, description="Several labels may be true at once.")

    @field_validator("hypothesis")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if "{}" not in value:
            raise ValueError("must contain {} where the label goes")
        return value

    @field_validator("labels")
    @classmethod
    def _no_label_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a label is given twice")
        return value


class ZeroShot(Task[ZeroShotAsk, ZeroShotResult]):
    """Every text is read with every label's hypothesis (Yin et al. 2019); what counts is the logit of entailment.

    One label of several: softmax over their entailments. Each for itself: entailment against contradiction.
    """

    def pieces(self, ask: ZeroShotAsk, spec: Spec) -> Sequence[Piece]:
        if entailment(spec.labels) is None:
            raise InvalidInput(
                f"The model's labels ({', '.join(spec.labels[:5])}) name no entailment.",
                hint="Zero-shot classification needs a model trained on natural language inference (NLI).",
            )
        return [Piece(text, ask.hypothesis.replace("{}", label)) for text in ask.texts for label in ask.labels]

    def values(self, output: "np.ndarray[Any, Any]", batch: Sequence[Tokens], spec: Spec) -> Sequence[Any]:
        return [row.copy() for row in output]

    def result(self, ask: ZeroShotAsk, values: Sequence[Any], spec: Spec, about: TaskResult) -> ZeroShotResult:
        import numpy as np

        logits = np.stack(values).reshape(len(ask.texts), len(ask.labels), -1)
        yes = entailment(spec.labels)
        assert yes is not None  # `pieces` has refused the others
        no = -1 if yes == 0 else 0
        if ask.multi_label or len(ask.labels) == 1:
            shares = scores(logits[..., [no, yes]], "softmax")[..., 1]
        else:
            shares = scores(logits[..., yes], "softmax")
        found = tuple(best(ask.labels, row) for row in shares)
        return ZeroShotResult(about.model_name, about.metadata, found)


def entailment(labels: Sequence[str]) -> int | None:
    """Which of a model's labels says that the second text follows from the first."""
    return next((index for index, label in enumerate(labels) if label.lower().startswith("entail")), None)
