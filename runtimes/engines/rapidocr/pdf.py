"""PDF files by PDFium: the text of a page with its places, or a picture of a page that has none.

PDFium must not be called by two threads at once. Here the model's thread calls it, and no other.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.engines.rapidocr.layout import Composed, Grid, compose
from lfx_local_runtimes.runtimes.engines.rapidocr.recognition import LONGEST_SIDE, Recogniser, Recognition, box_of
from lfx_local_runtimes.runtimes.engines.rapidocr.tables import find_grids
from lfx_local_runtimes.runtimes.tasks.documents.document import Kind, Page
from lfx_local_runtimes.runtimes.tasks.documents.pages import Box, Point, TextLine
from lfx_local_runtimes.runtimes.tasks.media import Media

_EXTRA = "documents"
MAX_GLYPHS = 200_000
"""Letters of one page."""

_ENOUGH = 16
"""A page with fewer letters of its own is a picture of text, perhaps with a stamp."""
_UNREADABLE = 0.2
"""If more of its letters stand for no character, the text of a page is of no use."""
_WIDE_GAP = 1.5
"""Heights of a line: so much space between two letters divides a line, as between columns."""
_PASSWORD, _SECURITY = 4, 5
"""PDFium's errors for a file that is encrypted."""
_HYPHEN = 2
"""PDFium's code for a hyphen at the end of a line."""
_PRECISION = 1000
"""PDFium gives whole pixels, so it is asked for a page of so many for a point."""

Draw = Callable[[Any, Composed, float], Media]
"""A picture of a page with its boxes, from its pixels, what was read, and pixels for a unit of its boxes."""


@dataclass(frozen=True, slots=True)
class _Glyph:
    character: str
    box: Box


class PdfFile:
    """A PDF in memory. A page is parsed when it is asked for.

    Args:
        data: the file.
        name: for messages.
        recogniser: reads pages without text.
        draw: marks a page's boxes; None if nobody wants to see them.

    Raises:
        InvalidInput: it is encrypted, or no PDF.
    """

    kind: Kind = "pdf"

    def __init__(self, data: bytes, name: str, recogniser: Recogniser, draw: Draw | None) -> None:
        pdfium = require("pypdfium2", _EXTRA)
        self._raw = require("pypdfium2.raw", _EXTRA)
        self._name, self._recogniser, self._draw = name, recogniser, draw
        try:
            self._pdf = pdfium.PdfDocument(data)
        except pdfium.PdfiumError as error:
            raise _refusal(name, error.err_code) from error
        self._error = pdfium.PdfiumError
        self.page_count = len(self._pdf)

    def close(self) -> None:
        """Give the file back."""
        self._pdf.close()

    def page(self, number: int) -> Page:
        """A page.

        Raises:
            InvalidInput: the page is damaged, or has too many letters.
        """
        try:
            with closing(self._pdf[number - 1]) as page:
                return self._page(page, number)
        except self._error as error:
            raise InvalidInput(
                f"Page {number:,} of {self._name} cannot be read: {error}", hint="Leave it out with pages."
            ) from error

    def _page(self, page: Any, number: int) -> Page:
        width, height = page.get_size()
        scale = LONGEST_SIDE / max(width, height, 1)
        glyphs = self._glyphs(page, number)
        kinds = {one.type for one in page.get_objects(max_depth=3)}
        is_text = _is_text(glyphs)
        pixels = found = None
        if self._draw is not None or (kinds and (not is_text or self._raw.FPDF_PAGEOBJ_PATH in kinds)):
            with closing(page.render(scale=scale)) as bitmap:
                pixels = bitmap.to_numpy().copy()
        if pixels is not None and not is_text:
            found = self._recognised(pixels, glyphs)
            pixels = pixels if found is None else found.pixels
        grids = [] if pixels is None else find_grids(pixels, scale)
        lines = list(_lines(glyphs, grids)) if found is None else [_scaled(line, scale) for line in found.lines]
        composed = compose(lines, grids)
        return Page(
            number, "text" if found is None else "recognised", composed.text, composed.markdown, composed.lines,
            composed.tables, width, height, "points", found is not None and found.turned,
            None if self._draw is None else self._draw(pixels, composed, scale),
        )  # fmt: skip

    def _recognised(self, pixels: Any, glyphs: Sequence[_Glyph]) -> Recognition | None:
        """What a model reads; None if the page has more letters of its own."""
        found = self._recogniser.read(pixels)
        letters = sum(not glyph.character.isspace() for glyph in glyphs)
        return found if sum(len(line.text) for line in found.lines) >= letters else None

    def _glyphs(self, page: Any, number: int) -> list[_Glyph]:
        """The letters of a page in PDFium's order, with places as they are seen: turned and cut as the page says."""
        raw = self._raw
        with closing(page.get_textpage()) as text:
            count = text.count_chars()
            if count > MAX_GLYPHS:
                raise InvalidInput(
                    f"Page {number:,} of {self._name} has {count:,} letters; the limit is {MAX_GLYPHS:,}.",
                    hint="Leave it out with pages.",
                )
            seen = _view(raw, page)
            rectangle = raw.FS_RECTF()
            found = []
            for index in range(count):
                code = raw.FPDFText_GetUnicode(text, index)
                raw.FPDFText_GetLooseCharBox(text, index, rectangle)
                corners = (seen(rectangle.left, rectangle.top), seen(rectangle.right, rectangle.bottom))
                found.append(_Glyph(_character(code), box_of(corners)))
            return found


def _view(raw: Any, page: Any) -> Callable[[float, float], Point]:
    """From PDF's coordinates to points from the upper left corner of the page as it is shown."""
    width, height = page.get_size()
    across, down = ctypes.c_int(), ctypes.c_int()

    def place(x: float, y: float) -> Point:
        size = (int(width * _PRECISION), int(height * _PRECISION))
        raw.FPDF_PageToDevice(page, 0, 0, *size, 0, x, y, across, down)
        return across.value / _PRECISION, down.value / _PRECISION

    x0, y0 = place(0, 0)
    xx, xy = ((end - start) / 1000 for end, start in zip(place(1000, 0), (x0, y0), strict=True))
    yx, yy = ((end - start) / 1000 for end, start in zip(place(0, 1000), (x0, y0), strict=True))
    return lambda x, y: (x0 + xx * x + yx * y, y0 + xy * x + yy * y)


def _character(code: int) -> str:
    if code == _HYPHEN:
        return "-\n"
    return chr(code) if 0 < code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF else "\ufffd"


def _is_text(glyphs: Sequence[_Glyph]) -> bool:
    """Whether the letters of a page are its text."""
    seen = [glyph.character for glyph in glyphs if not glyph.character.isspace()]
    unknown = sum(letter in "\ufffd\ufffe" or "\ue000" <= letter <= "\uf8ff" for letter in seen)
    return len(seen) >= _ENOUGH and unknown <= _UNREADABLE * len(seen)


def _lines(glyphs: Sequence[_Glyph], grids: Sequence[Grid]) -> Iterator[TextLine]:
    """Lines of letters. Besides a line's end, a wide gap and the edge of a table's cell divide them."""
    letters: list[str] = []
    boxes: list[Box] = []
    cell: Any = None

    def line() -> Iterator[TextLine]:
        if boxes:
            yield TextLine("".join(letters).strip(), _around(boxes))
        letters.clear()
        boxes.clear()

    for glyph in glyphs:
        if glyph.character in "\r\n":
            yield from line()
        elif glyph.character.isspace():
            letters += [" "] if boxes else []
        else:
            here = _cell(grids, glyph.box)
            if boxes and (here is not cell or _is_far(boxes[-1], glyph.box)):
                yield from line()
            cell = here
            letters.append(glyph.character.rstrip("\n"))
            boxes.append(glyph.box)
            if glyph.character.endswith("\n"):
                yield from line()
    yield from line()


def _cell(grids: Sequence[Grid], box: Box) -> Any:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    around = (grid for grid in grids if grid.box[0] <= x <= grid.box[2] and grid.box[1] <= y <= grid.box[3])
    return next((cell for grid in around if (cell := grid.cell_at(x, y)) is not None), None)


def _is_far(before: Box, box: Box) -> bool:
    gap = max(box[0] - before[2], before[0] - box[2])
    return gap > _WIDE_GAP * max(box[3] - box[1], before[3] - before[1])


def _around(boxes: Sequence[Box]) -> Box:
    return (
        min(box[0] for box in boxes), min(box[1] for box in boxes), max(box[2] for box in boxes), max(box[3] for box in boxes),
    )  # fmt: skip


def _scaled(line: TextLine, scale: float) -> TextLine:
    assert line.corners is not None
    one, two, three, four = ((x / scale, y / scale) for x, y in line.corners)
    return TextLine(line.text, box_of((one, two, three, four)), line.confidence, (one, two, three, four))


def _refusal(name: str, code: int | None) -> InvalidInput:
    if code in (_PASSWORD, _SECURITY):
        return InvalidInput(f"{name} is encrypted and needs a password.", hint="Save it without a password first.")
    return InvalidInput(f"{name} is damaged: PDFium cannot open it.", hint="Save the PDF again and send the new one.")
