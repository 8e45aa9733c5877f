"""What a page has: lines of text with their places, and tables."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, from the upper left corner of the page."""

Point = tuple[float, float]

MAX_PAGES = 1000
"""Pages that one request reads."""

_RANGE = r"\s*(?:\d{1,7}\s*(?:-\s*(?:\d{1,7})?)?|-\s*\d{1,7})\s*"
SELECTION = f"^{_RANGE}(?:,{_RANGE})*$"
"""What a selection of pages looks like, for a JSON schema. That a range does not end before it begins is left to the code."""

_PART = re.compile(r"\s*(\d{1,7})?\s*(-)?\s*(\d{1,7})?\s*")


@dataclass(frozen=True)
class TextLine:
    """A line of text.

    Args:
        text: its words.
        box: where it is. None if the format does not say, as a DOCX does not.
        confidence: from 0 to 1, how sure the recognition is. None if the text was in the file.
        corners: of a recognised line, which may be tilted: clockwise from its upper left one.
    """

    text: str
    box: Box | None = None
    confidence: float | None = None
    corners: tuple[Point, Point, Point, Point] | None = None


@dataclass(frozen=True)
class Table:
    """A table: its rows, each with the text of its cells. All rows have as many cells."""

    rows: tuple[tuple[str, ...], ...]
    box: Box | None = None


def check_selection(text: str) -> str:
    """A selection of pages, if it is one.

    Raises:
        ValueError: it is none.
    """
    list(_ranges(text))
    return text


def selected_pages(text: str | None, count: int) -> list[int]:
    """The numbers of pages that a selection names, each once and in their order; all if there is no selection.

    Args:
        text: such as `1-3, 7, 10-`.
        count: the document's pages.

    Raises:
        ValueError: the document does not have one of the pages.
    """
    if text is None:
        return list(range(1, count + 1))
    found: set[int] = set()
    for first, last in _ranges(text):
        if first > count or (last is not None and last > count):
            raise ValueError(f"pages names page {max(first, last or 0):,}")
        found.update(range(first, (last or count) + 1))
    return sorted(found)


def _ranges(text: str) -> Iterable[tuple[int, int | None]]:
    """The parts of a selection: the first and the last page, None for the end."""
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None or (match[1] is None and match[3] is None):
            raise ValueError(f"{part.strip()[:40]!r} does not name pages; write it like 1-3, 7, 10-")
        first = int(match[1] or 1)
        last = int(match[3]) if match[3] else None if match[2] else first
        if first < 1 or (last is not None and last < first):
            raise ValueError(f"{part.strip()[:40]!r} does not name pages: they count from 1, the first one first")
        yield first, last
