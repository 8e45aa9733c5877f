"""Draw on pictures what a model found: boxes, areas, depths. The result is a PNG for people, at most `MAX_SIDE` wide and high."""

import zlib
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.tasks.media import Media

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MAX_SIDE = 1600
"""Pixels."""

_EXTRA = "vision"
_COLOURS = (
    (230, 25, 75), (60, 180, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180), (0, 160, 160), (240, 50, 230),
    (128, 128, 0), (170, 110, 40), (128, 0, 0), (0, 0, 128), (220, 160, 0),
)  # fmt: skip
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""From far (dark) to near (bright): five colours of matplotlib's inferno."""
_AREA_OPACITY = 0.55


def colour_of(label: str) -> tuple[int, int, int]:
    """The colour of a label, the same in every picture."""
    return _COLOURS[zlib.crc32(label.encode()) % len(_COLOURS)]


def png(picture: "Image.Image") -> Media:
    """The picture as a file."""
    file = BytesIO()
    picture.save(file, "PNG", compress_level=3)
    return Media("image/png", file.getvalue())


def fitted(picture: "Image.Image") -> "Image.Image":
    """A copy that is at most `MAX_SIDE` wide and high."""
    small = picture.copy()
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    return small


def boxed(picture: "Image.Image", size: tuple[int, int], boxes: Iterable[tuple[str, float, Sequence[float]]]) -> Media:
    """The picture with a frame for each box, and its label and score.

    Args:
        picture: in RGB.
        size: width and height in the pixels of the boxes. The picture may be smaller.
        boxes: label, score, and left, top, right, bottom.
    """
    drawer, fonts = require("PIL.ImageDraw", _EXTRA), require("PIL.ImageFont", _EXTRA)
    small = fitted(picture)
    across, down = small.width / size[0], small.height / size[1]
    line = max(1, round(min(small.size) / 150))
    font = fonts.load_default(size=max(10, round(min(small.size) / 30)))
    draw = drawer.Draw(small)
    for label, score, (left, top, right, bottom) in boxes:
        colour = colour_of(label)
        frame = (left * across, top * down, max(left, right) * across, max(top, bottom) * down)
        draw.rectangle(frame, outline=colour, width=line)
        text = f"{label} {score:.2f}"
        place = (frame[0] + line, max(0, frame[1] + line))
        draw.rectangle(draw.textbbox(place, text, font=font), fill=colour)
        draw.text(place, text, fill="white", font=font)
    return png(small)


def heated(values: "np.ndarray[Any, Any]") -> Media:
    """Numbers (float32) of shape (height, width) as colours, the smallest dark and the largest bright."""
    import numpy as np

    pillow = require("PIL.Image", _EXTRA)
    small = np.asarray(fitted(pillow.fromarray(values)))
    low, high = float(small.min()), float(small.max())
    grey = ((small - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
    steps = np.linspace(0, 255, len(_HEAT))
    table = np.stack([np.interp(np.arange(256), steps, channel) for channel in zip(*_HEAT, strict=True)], axis=1)
    return png(pillow.fromarray(table.round().astype(np.uint8)[grey]))


def tinted(picture: "Image.Image", areas: Iterable[tuple[str, "np.ndarray[Any, Any]"]]) -> Media:
    """The picture with each area in the colour of its label.

    Args:
        picture: in RGB.
        areas: label, and true where it is, of shape (height, width). The picture may be smaller.
    """
    pillow = require("PIL.Image", _EXTRA)
    small = fitted(picture)
    over = small.copy()
    for label, area in areas:
        mask = pillow.fromarray(area).resize(small.size)
        over.paste(colour_of(label), mask=mask)
    return png(pillow.blend(small, over, _AREA_OPACITY))


def class_map(classes: "np.ndarray[Any, Any]") -> Media:
    """Class numbers of shape (height, width) as a grey PNG of 8 bits, or of 16 if there are more than 256 classes."""
    import numpy as np

    wide = int(classes.max()) > 255
    return png(require("PIL.Image", _EXTRA).fromarray(classes.astype(np.uint16 if wide else np.uint8)))
