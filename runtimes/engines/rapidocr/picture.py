"""Pictures: as requests of their own, and as documents with one page."""

from typing import Any

from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.engines.rapidocr.layout import Composed, compose
from lfx_local_runtimes.runtimes.engines.rapidocr.pdf import Draw
from lfx_local_runtimes.runtimes.engines.rapidocr.recognition import Recogniser
from lfx_local_runtimes.runtimes.engines.rapidocr.tables import find_grids
from lfx_local_runtimes.runtimes.media.pictures import open_picture
from lfx_local_runtimes.runtimes.tasks.documents.document import Kind, Page
from lfx_local_runtimes.runtimes.tasks.documents.ocr import RecognisedPicture
from lfx_local_runtimes.runtimes.tasks.media import Media, Source


def pixels_of(media: Media | Source, place: str) -> Any:
    """A picture as RapidOCR wants it: uint8 of shape (height, width, 3), blue first.

    Raises:
        InvalidInput: it cannot be decoded, or is over a limit.
    """
    import numpy as np

    return np.ascontiguousarray(np.asarray(open_picture(media, place))[:, :, ::-1])


def recognised_picture(pixels: Any, recogniser: Recogniser, *, draw: bool) -> RecognisedPicture:
    """The lines of a picture."""
    height, width = pixels.shape[:2]
    found = recogniser.read(pixels)
    composed = compose(found.lines)
    text = "\n".join(line.text for line in composed.lines)
    drawing = drawn(found.pixels, composed, 1.0) if draw else None
    return RecognisedPicture(width, height, text, composed.lines, found.turned, drawing)


class PictureFile:
    """A picture as a document.

    Raises:
        InvalidInput: it cannot be decoded, or is over a limit.
    """

    kind: Kind = "picture"
    page_count = 1

    def __init__(self, media: Media, name: str, recogniser: Recogniser, draw: Draw | None) -> None:
        self._pixels, self._recogniser, self._draw = pixels_of(media, name), recogniser, draw

    def page(self, number: int) -> Page:
        """The picture."""
        height, width = self._pixels.shape[:2]
        found = self._recogniser.read(self._pixels)
        composed = compose(found.lines, find_grids(found.pixels))
        return Page(
            number, "recognised", composed.text, composed.markdown, composed.lines, composed.tables, width, height, "pixels",
            found.turned, None if self._draw is None else self._draw(found.pixels, composed, 1.0),
        )  # fmt: skip

    def close(self) -> None:
        """Forget the picture."""
        self._pixels = None


_EXTRA = "documents"
_INK = {"line": (64, 64, 220), "table": (200, 120, 0)}
"""Blue, green, red."""


def drawn(pixels: Any, composed: Composed, scale: float) -> Media:
    """The picture as a PNG with the boxes of its lines, numbered in reading order, and of its tables.

    Args:
        pixels: as for `Recogniser.read`.
        composed: what was read.
        scale: pixels for a unit of the boxes.
    """
    import numpy as np

    cv2 = require("cv2", _EXTRA)
    marked = pixels.copy()
    for table in composed.tables:
        if table.box is not None:
            corner, opposite = (
                tuple(round(value * scale) for value in half) for half in (table.box[:2], table.box[2:])
            )
            cv2.rectangle(marked, corner, opposite, _INK["table"], 3)
    for number, line in enumerate(composed.lines, 1):
        if line.box is None:
            continue
        left, top, right, bottom = (value * scale for value in line.box)
        plain = ((left, top), (right, top), (right, bottom), (left, bottom))
        corners = plain if line.corners is None else [(x * scale, y * scale) for x, y in line.corners]
        cv2.polylines(marked, [np.asarray(corners).round().astype(np.int32)], True, _INK["line"], 2)
        place = (max(0, round(corners[0][0]) - 22), max(12, round(corners[0][1]) + 12))
        cv2.putText(marked, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK["line"], 1, cv2.LINE_AA)
    return Media("image/png", cv2.imencode(".png", marked)[1].tobytes())
