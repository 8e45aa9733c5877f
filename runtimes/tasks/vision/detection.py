"""Object detection: boxes around the things in a picture that a model was trained to find."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from lfx_local_runtimes.runtimes.media.drawing import boxed
from lfx_local_runtimes.runtimes.tasks.base import TaskResult, TaskRow
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES, Media
from lfx_local_runtimes.runtimes.tasks.text.classification import scores
from lfx_local_runtimes.runtimes.tasks.text.reading import Spec
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Pixels, Seeing, SeeingAsk


@dataclass(frozen=True)
class DetectedObject:
    """A thing in a picture: its label, its score from 0 to 1, and its box in pixels from the picture's upper left corner."""

    label: str
    score: float
    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True)
class ObjectDetectionResult(TaskResult):
    """For each picture its objects, best score first. `drawings`: the pictures with the boxes, if the request wants them."""

    objects: tuple[tuple[DetectedObject, ...], ...]
    drawings: tuple[Media, ...] = ()


class ObjectDetectionAsk(SeeingAsk[ObjectDetectionResult]):
    """Pictures to search for objects."""

    task: ClassVar[str] = "object_detection"
    threshold: float = Field(default=0.5, ge=0, le=1, description="Leave out objects with a lower score.")
    draw: bool = Field(default=False, description="Also return the pictures with the boxes drawn on them, as PNG.")


class ObjectDetection(Seeing[ObjectDetectionAsk, ObjectDetectionResult]):
    """Logits and a box for each of the model's queries.

    With softmax the last label means that there is nothing, and a query has one label (DETR). With sigmoid each label of each
    query counts, and the best `spec.most` remain (RT-DETR, Deformable DETR).
    """

    def keep(self, ask: ObjectDetectionAsk, value: Any, row: Pixels, spec: Spec) -> Any:
        width, height = row.size
        found = [
            DetectedObject(spec.labels[label], score, *(box * (width, height, width, height)).tolist())
            for score, label, box in _found(value["logits"], value["boxes"], spec)
            if score > ask.threshold
        ]
        if not ask.draw:
            return found, None
        boxes = [(one.label, one.score, (one.xmin, one.ymin, one.xmax, one.ymax)) for one in reversed(found)]
        return found, boxed(row.picture, row.size, boxes)

    def result(
        self, ask: ObjectDetectionAsk, values: Sequence[Any], spec: Spec, about: TaskResult
    ) -> ObjectDetectionResult:
        drawings = tuple(drawing for _, drawing in values if drawing is not None)
        return ObjectDetectionResult(about.model_name, about.metadata, tuple(tuple(one) for one, _ in values), drawings)


def _found(logits: Any, boxes: Any, spec: Spec) -> list[tuple[float, int, Any]]:
    """Score, label and box of each query, best first. Boxes are left, top, right, bottom in shares of the picture.

    Args:
        logits: of shape (queries, labels).
        boxes: of shape (queries, 4): the centre, the width and the height, in shares of the picture.
        spec: the model's.
    """
    import numpy as np

    half = boxes[:, 2:] / 2
    corners = np.clip(np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1), 0, 1)
    shares = scores(logits, spec.activation)
    if spec.activation == "softmax":
        shares = shares[:, :-1]
        labels = shares.argmax(1)
        queries, best = np.arange(len(shares)), shares.max(1)
    else:
        flat = shares.ravel()
        places = np.argsort(-flat, kind="stable")[: spec.most or len(shares)]
        queries, labels, best = places // shares.shape[1], places % shares.shape[1], flat[places]
    order = np.argsort(-best, kind="stable")
    return [(float(best[one]), int(labels[one]), corners[queries[one]]) for one in order]


ROW = TaskRow(
    name="object_detection", family="seeing", ask=ObjectDetectionAsk, result=ObjectDetectionResult,
    work=ObjectDetection(), path="vision/detect", body_bytes=MEDIA_BODY_BYTES,
    summary="For each picture, its objects: label, score, and box in pixels. With draw also the picture with the boxes.",
)  # fmt: skip
