"""Image segmentation: which class each pixel of a picture belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lfx_local_runtimes.runtimes.media.drawing import class_map, tinted
from lfx_local_runtimes.runtimes.tasks.base import TaskResult, TaskRow
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES, Media
from lfx_local_runtimes.runtimes.tasks.text.reading import Spec
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Pixels, Seeing, SeeingAsk

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Rle:
    """A mask as run lengths, in COCO's uncompressed form: column by column, numbers of pixels outside and inside in turn."""

    size: tuple[int, int]
    """Height and width."""
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """All pixels of one class: its label, its number in the class map, its pixels, and its share of the picture."""

    label: str
    class_id: int
    area: int
    share: float
    rle: Rle | None = None
    """If the request wants it."""


@dataclass(frozen=True)
class Segmentation:
    """The classes of a picture, the largest first.

    `class_map`: a grey PNG of the picture's size, whose numbers are those of the classes. `drawing`: the picture in the
    colours of its classes, if the request wants it.
    """

    segments: tuple[Segment, ...]
    class_map: Media
    drawing: Media | None = None


@dataclass(frozen=True)
class SegmentationResult(TaskResult):
    """For each picture its segmentation."""

    segmentations: tuple[Segmentation, ...]


class SegmentationAsk(SeeingAsk[SegmentationResult]):
    """Pictures to divide by class."""

    task: ClassVar[str] = "image_segmentation"
    rle: bool = Field(default=False, description="Also return the mask of each class as run lengths (COCO).")
    draw: bool = Field(default=False, description="Also return the pictures in the colours of their classes, as PNG.")


class ImageSegmentation(Seeing[SegmentationAsk, SegmentationResult]):
    """A class for each pixel of the picture."""

    def keep(self, ask: SegmentationAsk, value: Any, row: Pixels, spec: Spec) -> Segmentation:
        import numpy as np

        found, areas = np.unique(value, return_counts=True)
        segments = []
        for number, area in sorted(zip(found.tolist(), areas.tolist(), strict=True), key=lambda pair: -pair[1]):
            lengths = run_lengths(value == number) if ask.rle else None
            segments.append(Segment(spec.labels[number], number, area, area / value.size, lengths))
        drawing = None
        if ask.draw:
            drawing = tinted(row.picture, ((one.label, value == one.class_id) for one in segments))
        return Segmentation(tuple(segments), class_map(value), drawing)

    def result(self, ask: SegmentationAsk, values: Sequence[Any], spec: Spec, about: TaskResult) -> SegmentationResult:
        return SegmentationResult(about.model_name, about.metadata, tuple(values))


def run_lengths(mask: "np.ndarray[Any, Any]") -> Rle:
    """A mask of shape (height, width) as run lengths."""
    import numpy as np

    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return Rle(mask.shape, tuple([0, *counts] if flat[0] else counts))


ROW = TaskRow(
    name="image_segmentation", family="seeing", ask=SegmentationAsk, result=SegmentationResult, work=ImageSegmentation(),
    path="vision/segment", body_bytes=MEDIA_BODY_BYTES,
    summary="For each picture, a class map as PNG and the area of each class; on request run lengths, and a picture.",
)  # fmt: skip
