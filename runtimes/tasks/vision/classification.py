"""Image classification: which of the model's own labels a picture has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from lfx_local_runtimes.runtimes.tasks.base import TaskResult, TaskRow
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES
from lfx_local_runtimes.runtimes.tasks.text.classification import Label, best, scores
from lfx_local_runtimes.runtimes.tasks.text.reading import Spec
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Seeing, SeeingAsk


@dataclass(frozen=True)
class ImageClassificationResult(TaskResult):
    """For each picture its labels, best score first."""

    labels: tuple[tuple[Label, ...], ...]


class ImageClassificationAsk(SeeingAsk[ImageClassificationResult]):
    """Pictures to label."""

    task: ClassVar[str] = "image_classification"
    top_k: int | None = Field(default=5, ge=1, description="Return only this many of the best labels. null: all.")
    multi_label: bool | None = Field(
        default=None,
        description="Score each label on its own, so that several can be true. Unset: as the model's configuration says.",
    )


class ImageClassification(Seeing[ImageClassificationAsk, ImageClassificationResult]):
    """One logit per label."""

    def result(
        self, ask: ImageClassificationAsk, values: Sequence[Any], spec: Spec, about: TaskResult
    ) -> ImageClassificationResult:
        import numpy as np

        chosen = spec.activation if ask.multi_label is None else "sigmoid" if ask.multi_label else "softmax"
        found = [best(spec.labels, row)[: ask.top_k] for row in scores(np.stack(values), chosen)]
        return ImageClassificationResult(about.model_name, about.metadata, tuple(found))


ROW = TaskRow(
    name="image_classification", family="seeing", ask=ImageClassificationAsk, result=ImageClassificationResult,
    work=ImageClassification(), path="vision/classify", body_bytes=MEDIA_BODY_BYTES,
    summary="For each picture, the labels that the model was trained for, with scores, best first.",
)  # fmt: skip
