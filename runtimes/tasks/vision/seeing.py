"""What the tasks of models that see share: the pictures of an ask, and what a model computes of each.

They are readings (`tasks.text.reading`) whose pieces are pictures. The engine decodes a picture and makes pixels of it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field

from lfx_local_runtimes.runtimes.tasks.base import Ask, ResultT
from lfx_local_runtimes.runtimes.tasks.media import Image, Media, Source
from lfx_local_runtimes.runtimes.tasks.text.reading import Reading, Spec

if TYPE_CHECKING:
    import numpy as np

MAX_IMAGES = 1024

_PIXELS_OF_A_TOKEN = 256
"""A vision transformer makes a token of 16 × 16 pixels. By this a picture's cost is comparable with a text's."""


class SeeingAsk(Ask[ResultT]):
    """A request about pictures."""

    images: tuple[Image, ...] = Field(min_length=1, max_length=MAX_IMAGES, description="The pictures.")


@dataclass(frozen=True, slots=True)
class Look:
    """What a model sees at once: a picture."""

    image: Media | Source
    place: str
    """How errors call it."""
    keeps: bool = False
    """The picture is needed for the result, because marks are drawn on it."""


@dataclass(slots=True)
class Pixels:
    """A picture as the model takes it: float32 of shape (channels, height, width)."""

    values: "np.ndarray[Any, Any]"
    size: tuple[int, int]
    """Width and height of the picture before it was scaled, in pixels."""
    picture: Any = None
    """The picture itself, if marks are to be drawn on it, no larger than a drawing is."""

    unit: ClassVar[str] = "pixels"
    cut: ClassVar[int] = 0

    @property
    def amount(self) -> int:
        """How many pixels are computed."""
        height, width = self.values.shape[-2:]
        return int(height * width)

    @property
    def cost(self) -> int:
        """How much of a batch it takes."""
        return ceil(self.amount / _PIXELS_OF_A_TOKEN)

    @property
    def shape(self) -> Hashable:
        """Pictures of one size can be in one batch."""
        return tuple(self.values.shape)


AskT = TypeVar("AskT", bound=SeeingAsk[Any])


class Seeing(Reading[AskT, ResultT]):
    """A reading of pictures."""

    def pieces(self, ask: AskT, spec: Spec) -> Sequence[Any]:
        keeps = bool(getattr(ask, "draw", False))
        return [Look(image, f"images.{index}", keeps) for index, image in enumerate(ask.images)]

    def values(self, output: Any, batch: Sequence[Any], spec: Spec) -> Sequence[Any]:
        return [row.copy() for row in output]  # a view would keep the whole batch in memory
