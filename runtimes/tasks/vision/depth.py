"""Depth estimation: how far away each pixel of a picture is, as the model measures it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from lfx_local_runtimes.runtimes.media.drawing import heated
from lfx_local_runtimes.runtimes.tasks.base import TaskResult, TaskRow
from lfx_local_runtimes.runtimes.tasks.binary import Array
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES, Media
from lfx_local_runtimes.runtimes.tasks.text.reading import Spec
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Pixels, Seeing, SeeingAsk


@dataclass(frozen=True)
class DepthMap:
    """The depths of a picture, in the model's unit. Most models give larger numbers to what is near, some give metres.

    `values`: float32 of shape (height, width), if the request wants them. `drawing`: dark for the smallest number, bright for
    the largest, if the request wants it.
    """

    width: int
    height: int
    min: float
    max: float
    mean: float
    median: float
    values: Array | None = None
    drawing: Media | None = None


@dataclass(frozen=True)
class DepthResult(TaskResult):
    """For each picture its depths."""

    depths: tuple[DepthMap, ...]


class DepthAsk(SeeingAsk[DepthResult]):
    """Pictures whose depth is estimated."""

    task: ClassVar[str] = "depth_estimation"
    raw: bool = Field(default=False, description="Also return the depth of each pixel.")
    draw: bool = Field(default=False, description="Also return the depths as colours, as PNG.")


class Depth(Seeing[DepthAsk, DepthResult]):
    """A number for each pixel of the picture."""

    def keep(self, ask: DepthAsk, value: Any, row: Pixels, spec: Spec) -> DepthMap:
        import numpy as np

        height, width = value.shape
        facts = (float(value.min()), float(value.max()), float(value.mean(dtype=np.float64)), float(np.median(value)))
        return DepthMap(width, height, *facts, value if ask.raw else None, heated(value) if ask.draw else None)

    def result(self, ask: DepthAsk, values: Sequence[Any], spec: Spec, about: TaskResult) -> DepthResult:
        return DepthResult(about.model_name, about.metadata, tuple(values))


ROW = TaskRow(
    name="depth_estimation", family="seeing", ask=DepthAsk, result=DepthResult, work=Depth(), path="vision/depth",
    body_bytes=MEDIA_BODY_BYTES,
    summary="For each picture, the smallest, largest, mean and median depth; on request that of each pixel, and a picture.",
)  # fmt: skip
