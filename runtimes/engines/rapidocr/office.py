"""DOCX and PPTX files as pages: by python-docx and python-pptx."""

import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.engines.rapidocr.layout import table_markdown, table_text
from lfx_local_runtimes.runtimes.tasks.documents.document import Kind, Page
from lfx_local_runtimes.runtimes.tasks.documents.pages import Box, Table, TextLine

_EXTRA = "documents"
MAX_ENTRIES = 10_000
MAX_UNPACKED = 256 * 2**20
MAX_XML = 32 * 2**20
"""Bytes of one XML file. As a tree in memory it takes about ten times as much."""
_MIB = 2**20
_EMU_PER_POINT = 12_700
_MAX_DEPTH = 20
"""Groups of shapes inside each other."""


def check_archive(data: bytes, name: str) -> None:
    """Return if an office file can be unpacked safely. Nothing is unpacked.

    Python's zipfile unpacks no more of a file than the archive says.

    Raises:
        InvalidInput: it is no archive, or a part is too large unpacked.
    """
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        raise InvalidInput(f"{name} is damaged: {error}.", hint=_AGAIN) from error
    unpacked = sum(entry.file_size for entry in entries)
    longest = max((entry.file_size for entry in entries if entry.filename.endswith((".xml", ".rels"))), default=0)
    if len(entries) > MAX_ENTRIES:
        raise InvalidInput(f"{name} has {len(entries):,} parts; the limit is {MAX_ENTRIES:,}.", hint=_SMALLER)
    if unpacked > MAX_UNPACKED:
        raise InvalidInput(
            f"{name} has {unpacked / _MIB:,.0f} MiB unpacked; the limit is {MAX_UNPACKED // _MIB} MiB.", hint=_SMALLER
        )
    if longest > MAX_XML:
        raise InvalidInput(
            f"{name} has a text of {longest / _MIB:,.0f} MiB; the limit is {MAX_XML // _MIB} MiB.", hint=_SMALLER
        )


_SMALLER = "Divide the document, or remove its pictures."
_AGAIN = "Save the file again and send the new one."


def _broken(name: str, kind: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{name} is not a {kind} that can be read: {str(error)[:200] or type(error).__name__}.", hint=_AGAIN
    )


class OfficeFile:
    """An office file in memory. It has a list of pages."""

    kind: Kind

    def __init__(self, pages: Sequence[Page]) -> None:
        self._pages = pages

    @property
    def page_count(self) -> int:
        """The document's pages."""
        return len(self._pages)

    def page(self, number: int) -> Page:
        """A page."""
        return self._pages[number - 1]

    def close(self) -> None:
        """Nothing is open."""


class WordFile(OfficeFile):
    """A DOCX. Its page breaks divide it; one without any is one page. It has no places on a page.

    Raises:
        InvalidInput: the file is damaged or too large.
    """

    kind: Kind = "docx"

    def __init__(self, data: bytes, name: str) -> None:
        check_archive(data, name)
        docx = require("docx", _EXTRA)
        try:
            document = docx.Document(BytesIO(data))
            rendered = bool(document.element.body.xpath(".//w:lastRenderedPageBreak"))
            super().__init__(
                [_flow_page(number, blocks) for number, blocks in enumerate(_divided(document, rendered), 1)]
            )
        except Exception as error:  # python-docx raises KeyError, ValueError, lxml's own …
            raise _broken(name, "DOCX", error) from error


class SlidesFile(OfficeFile):
    """A PPTX: a page for each slide.

    Raises:
        InvalidInput: the file is damaged or too large.
    """

    kind: Kind = "pptx"

    def __init__(self, data: bytes, name: str) -> None:
        check_archive(data, name)
        pptx = require("pptx", _EXTRA)
        try:
            presentation = pptx.Presentation(BytesIO(data))
            size = (presentation.slide_width / _EMU_PER_POINT, presentation.slide_height / _EMU_PER_POINT)
            super().__init__([_slide(number, slide, size) for number, slide in enumerate(presentation.slides, 1)])
        except Exception as error:
            raise _broken(name, "PPTX", error) from error


# -- DOCX ----------------------------------------------------------------------------------------------------------------


def _divided(document: Any, rendered: bool) -> Iterator[list[Any]]:
    """The paragraphs and tables of each page. The breaks are those that the last program drew, else those in the text."""
    page: list[Any] = []
    for block in document.iter_inner_content():
        if page and _begins_page(block, rendered):
            yield page
            page = []
        page.append(block)
        if not rendered and _ends_page(block):
            yield page
            page = []
    if page:
        yield page


def _begins_page(block: Any, rendered: bool) -> bool:
    """Whether a page begins with this block. One that a break divides stays whole, on the earlier page."""
    if not hasattr(block, "runs"):
        return False
    if not rendered:
        return bool(block.paragraph_format.page_break_before)
    return bool(block._p.xpath("./w:r[1]/*[not(self::w:rPr)][1][self::w:lastRenderedPageBreak]"))


def _ends_page(block: Any) -> bool:
    return hasattr(block, "runs") and bool(block._p.xpath('.//w:br[@w:type="page"]'))


def _flow_page(number: int, blocks: Sequence[Any]) -> Page:
    texts: list[str] = []
    marks: list[str] = []
    lines: list[TextLine] = []
    tables: list[Table] = []
    for block in blocks:
        if hasattr(block, "runs"):
            if not (text := block.text.strip()):
                continue
            texts.append(text)
            mark = _paragraph_mark(block)
            # The items of a list are lines of one block.
            joined = mark in _ITEM_MARKS and bool(marks) and marks[-1].startswith(_ITEM_MARKS)
            marks[-1:] = [f"{marks[-1]}\n{mark}{text}"] if joined else [*marks[-1:], mark + text]
            lines += [TextLine(line.strip()) for line in text.splitlines() if line.strip()]
        else:
            rows = _table_rows(block)
            if rows:
                tables.append(Table(rows))
                texts.append(table_text(rows))
                marks.append(table_markdown(rows))
                lines += [TextLine(cell) for row in rows for cell in row if cell]
    return Page(number, "text", "\n".join(texts), "\n\n".join(marks), tuple(lines), tuple(tables))


_ITEM_MARKS = ("- ", "1. ")


def _paragraph_mark(paragraph: Any) -> str:
    """What Markdown puts before a paragraph, by the name of its style."""
    style = (paragraph.style.name or "") if paragraph.style is not None else ""
    if style == "Title":
        return "# "
    if style.startswith("Heading ") and style[8:].isdecimal():
        return "#" * min(int(style[8:]), 6) + " "
    if style.startswith("List Number"):
        return "1. "
    return "- " if style.startswith("List") else ""


def _table_rows(table: Any) -> tuple[tuple[str, ...], ...]:
    """The cells' texts. A cell that spans several is empty but for its first place."""
    seen: set[Any] = set()
    rows = []
    for row in table.rows:
        cells = []
        for cell in row.cells:
            element = getattr(cell, "_tc", None)
            cells.append("" if element in seen else cell.text.strip())
            seen.add(element)
        rows.append(cells)
    width = max(map(len, rows), default=0)
    return tuple((*cells, *[""] * (width - len(cells))) for cells in rows) if width else ()


# -- PPTX ----------------------------------------------------------------------------------------------------------------


def _slide(number: int, slide: Any, size: tuple[float, float]) -> Page:
    title = slide.shapes.title
    found = list(_shapes(slide.shapes, 0))
    found.sort(key=lambda shape: (title is None or shape.shape_id != title.shape_id, shape.top or 0, shape.left or 0))
    texts: list[str] = []
    marks: list[str] = []
    lines: list[TextLine] = []
    tables: list[Table] = []
    for shape in found:
        box = _shape_box(shape)
        if getattr(shape, "has_table", False):
            rows = _table_rows(shape.table)
            tables.append(Table(rows, box))
            texts.append(table_text(rows))
            marks.append(table_markdown(rows))
            lines += [TextLine(cell, box) for row in rows for cell in row if cell]
        elif shape.has_text_frame and (paragraphs := _paragraphs(shape)):
            is_title = title is not None and shape.shape_id == title.shape_id
            texts += [text for _, text in paragraphs]
            items = len(paragraphs) > 1
            marks.append(
                "# " + " ".join(text for _, text in paragraphs) if is_title
                else "\n".join(f"{'  ' * level}{'- ' if items else ''}{text}" for level, text in paragraphs)
            )  # fmt: skip
            lines += [TextLine(text, box) for _, text in paragraphs]
    width, height = size
    return Page(number, "text", "\n".join(texts), "\n\n".join(marks), tuple(lines), tuple(tables), width, height)


def _shapes(shapes: Any, depth: int) -> Iterator[Any]:
    for shape in shapes:
        if hasattr(shape, "shapes"):
            if depth < _MAX_DEPTH:
                yield from _shapes(shape.shapes, depth + 1)
        elif shape.has_text_frame or getattr(shape, "has_table", False):
            yield shape


def _paragraphs(shape: Any) -> list[tuple[int, str]]:
    """The paragraphs of a shape with their levels of indentation."""
    rows = ((paragraph.level, " ".join(paragraph.text.split())) for paragraph in shape.text_frame.paragraphs)
    return [(level, text) for level, text in rows if text]


def _shape_box(shape: Any) -> Box | None:
    if None in (shape.left, shape.top, shape.width, shape.height):
        return None
    left, top, width, height = (value / _EMU_PER_POINT for value in (shape.left, shape.top, shape.width, shape.height))
    return left, top, left + width, top + height
