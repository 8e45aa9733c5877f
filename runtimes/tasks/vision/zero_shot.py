"""Zero-shot image classification: the caller chooses the labels. The model is one for pictures and texts, such as CLIP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints, model_validator

from lfx_local_runtimes.runtimes.tasks.base import TaskResult, TaskRow
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES
from lfx_local_runtimes.runtimes.tasks.text.classification import Label, best, scores
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece, Spec
from lfx_local_runtimes.runtimes.tasks.text.zero_shot import MAX_LABELS, CandidateLabel
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Seeing, SeeingAsk

HYPOTHESIS = "This is a photo of {}."
"""The sentence of Transformers' pipeline."""


@dataclass(frozen=True)
class ImageZeroShotResult(TaskResult):
    """For each picture the caller's labels, best score first."""

    labels: tuple[tuple[Label, ...], ...]


class ImageZeroShotAsk(SeeingAsk[ImageZeroShotResult]):
    """Pictures, and labels to choose from."""

    task: ClassVar[str] = "zero_shot_image_classification"
    labels: tuple[CandidateLabel, ...] = Field(
        min_length=1,
        max_length=MAX_LABELS,
        description="The labels to choose from. candidate_labels is another name for it.",
    )
    hypothesis: Annotated[str, StringConstraints(max_length=1000, pattern=r"\{\}")] = Field(
        default=HYPOTHESIS, description="The sentence that stands for a label; {} is replaced by the label."
    )
    multi_label: bool | None = Field(
        default=None,
        description="Score each label on its own, so that several can be true. Unset: as the model was trained (SigLIP does, "
        "CLIP does not).",
    )

    @model_validator(mode="before")
    @classmethod
    def _other_name(cls, value: object) -> object:
        if isinstance(value, dict) and "candidate_labels" in value and "labels" not in value:
            value = {("labels" if name == "candidate_labels" else name): one for name, one in value.items()}
        return value


class ImageZeroShot(Seeing[ImageZeroShotAsk, ImageZeroShotResult]):
    """A vector for each picture and each label's sentence. The logits are their cosines, scaled as the model was trained."""

    def pieces(self, ask: ImageZeroShotAsk, spec: Spec) -> Sequence[Any]:
        sentences = [Piece(ask.hypothesis.replace("{}", label)) for label in ask.labels]
        return [*super().pieces(ask, spec), *sentences]

    def result(
        self, ask: ImageZeroShotAsk, values: Sequence[Any], spec: Spec, about: TaskResult
    ) -> ImageZeroShotResult:
        import numpy as np

        vectors = np.stack(values)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        pictures, sentences = vectors[: len(ask.images)], vectors[len(ask.images) :]
        chosen = spec.activation if ask.multi_label is None else "sigmoid" if ask.multi_label else "softmax"
        shares = scores(pictures @ sentences.T * spec.scale + spec.bias, chosen)
        found = tuple(best(ask.labels, row) for row in shares)
        return ImageZeroShotResult(about.model_name, about.metadata, found)


ROW = TaskRow(
    name="zero_shot_image_classification", family="seeing", ask=ImageZeroShotAsk, result=ImageZeroShotResult,
    work=ImageZeroShot(), path="vision/clip", body_bytes=MEDIA_BODY_BYTES,
    summary="For each picture, the labels of the request with scores, best first, by a model such as CLIP or SigLIP.",
)  # fmt: skip
