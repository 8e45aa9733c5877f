"""From lines and tables with their places to text: the reading order, paragraphs, headings, Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lfx_local_runtimes.runtimes.tasks.documents.pages import Box, Table, TextLine

MAX_ORDERED = 2000
"""Lines of a page whose columns are looked for. More are read from top to bottom."""

_COLUMN_LETTERS = 5
"""A column of text has lines at least so many times as long as they are high. The cells of a form are shorter."""
_SAME_PARAGRAPH = 0.7
"""The most space between two lines of a paragraph, in heights of a line."""
_RAGGED = 0.12
"""Lines of a paragraph that is not justified end so much earlier than its longest line, as a share of the column."""
_HEADINGS = ((1.8, "# "), (1.45, "## "), (1.18, "### "))
"""By how many times the letters are larger than those of the page's text."""
_LONGEST_HEADING = 120
_BULLET = re.compile(r"^[•◦▪‣·–*-]\s+")
_ITEM = re.compile(r"^(?:[•◦▪‣·–*-]|\d{1,3}[.)])\s+")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a grid of ruled lines."""

    row: int
    column: int
    box: Box


@dataclass(frozen=True, slots=True)
class Grid:
    """The ruled lines of a table."""

    box: Box
    cells: tuple[Cell, ...]

    def cell_at(self, x: float, y: float) -> Cell | None:
        """The cell around a point."""
        return next((cell for cell in self.cells if _holds(cell.box, x, y)), None)


@dataclass(frozen=True, slots=True)
class Composed:
    """A page: its lines in reading order, its text, its Markdown and its tables."""

    lines: tuple[TextLine, ...]
    text: str
    markdown: str
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class _Item:
    """What is read in one go: a line, or a table with its lines."""

    box: Box
    lines: tuple[TextLine, ...]
    table: Table | None = None


def compose(lines: Sequence[TextLine], grids: Sequence[Grid] = ()) -> Composed:
    """Put a page together. Every line needs a box."""
    items: list[_Item] = []
    left = list(lines)
    for grid in grids:
        table, inside = _fill(grid, left)
        if table is not None:
            items.append(_Item(grid.box, tuple(inside), table))
            taken = {id(line) for line in inside}
            left = [line for line in left if id(line) not in taken]
    items += [_Item(_box(line), (line,)) for line in left]
    ordered = [items[index] for index in reading_order([item.box for item in items])]
    rows = _rows(ordered)
    return Composed(
        tuple(line for item in ordered for line in item.lines),
        "\n".join(_row_text(row) for row in rows),
        _markdown(rows),
        tuple(item.table for item in ordered if item.table is not None),
    )


def table_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. The first row is its head."""
    written = [f"| {' | '.join(_cell_markdown(cell) for cell in row)} |" for row in rows]
    return "\n".join([written[0], f"|{' --- |' * len(rows[0])}", *written[1:]])


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """A table as text: a line for each row, with tabs between the cells."""
    return "\n".join("\t".join(" ".join(cell.split()) for cell in row) for row in rows)


def _cell_markdown(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


# -- the reading order ---------------------------------------------------------------------------------------------------


def reading_order(boxes: Sequence[Box]) -> list[int]:
    """The order in which people read boxes, as indexes: columns from left to right, each from top to bottom.

    A page is cut at its widest empty band, again and again (recursive XY-cut). Columns are cut first, if they look like
    columns of text.
    """
    done: list[int] = []
    waiting = [list(range(len(boxes)))]
    while waiting:
        group = waiting.pop()
        halves = None
        if 1 < len(group) <= MAX_ORDERED:
            halves = _columns(boxes, group) or _split(boxes, group, 1, 0.0)
        if halves is None:
            done += _by_rows(boxes, group)
        else:
            waiting += [halves[1], halves[0]]
    return done


def _columns(boxes: Sequence[Box], group: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """The two sides of the widest vertical band between columns of text."""
    height = median(boxes[index][3] - boxes[index][1] for index in group)
    halves = _split(boxes, group, 0, height)
    if halves is None or any(len(half) < 2 for half in halves):
        return None
    widths = [median(boxes[index][2] - boxes[index][0] for index in half) for half in halves]
    return halves if min(widths) >= _COLUMN_LETTERS * height else None


def _split(
    boxes: Sequence[Box], group: Sequence[int], axis: int, least: float
) -> tuple[list[int], list[int]] | None:  # fmt: skip
    """The two sides of the widest empty band across an axis (0: between left and right). None if none is wider than `least`."""
    ordered = sorted(group, key=lambda index: boxes[index][axis])
    widest, cut, end = least, 0, boxes[ordered[0]][axis + 2]
    for place, index in enumerate(ordered[1:], 1):
        gap = boxes[index][axis] - end
        if gap > widest:
            widest, cut = gap, place
        end = max(end, boxes[index][axis + 2])
    return (ordered[:cut], ordered[cut:]) if cut else None


def _by_rows(boxes: Sequence[Box], group: Sequence[int]) -> list[int]:
    """From top to bottom. Boxes whose middles are in one row go from left to right."""
    rows: list[list[int]] = []
    bottom = float("-inf")
    for index in sorted(group, key=lambda index: boxes[index][1] + boxes[index][3]):
        if (boxes[index][1] + boxes[index][3]) / 2 > bottom:
            rows.append([])
            bottom = boxes[index][3]
        rows[-1].append(index)
    return [index for row in rows for index in sorted(row, key=lambda index: boxes[index][0])]


# -- tables --------------------------------------------------------------------------------------------------------------


def _fill(grid: Grid, lines: Sequence[TextLine]) -> tuple[Table | None, list[TextLine]]:
    """The table in a grid with the lines that are in its cells. None if most cells are empty: it is a drawing."""
    inside: dict[tuple[int, int], list[TextLine]] = {}
    for line in lines:
        x0, y0, x1, y1 = _box(line)
        middle, center = (x0 + x1) / 2, (y0 + y1) / 2
        cell = grid.cell_at(middle, center) if _holds(grid.box, middle, center) else None
        if cell is not None:
            inside.setdefault((cell.row, cell.column), []).append(line)
    if 2 * len(inside) < len(grid.cells):
        return None, []
    rows = [
        [""] * (1 + max(cell.column for cell in grid.cells)) for _ in range(1 + max(cell.row for cell in grid.cells))
    ]
    ordered: list[TextLine] = []
    for (row, column), mixed in sorted(inside.items()):
        found = [mixed[index] for index in _by_rows([_box(line) for line in mixed], range(len(mixed)))]
        rows[row][column] = " ".join(line.text.strip() for line in found)
        ordered += found
    return Table(tuple(tuple(row) for row in rows), grid.box), ordered


# -- paragraphs ----------------------------------------------------------------------------------------------------------


def _rows(items: Sequence[_Item]) -> list[list[_Item]]:
    """Items that follow each other on one row together; a table has a row of its own."""
    rows: list[list[_Item]] = []
    for item in items:
        before = rows[-1][-1] if rows else None
        beside = before is not None and item.table is None and before.table is None and _is_beside(before.box, item.box)
        if beside:
            rows[-1].append(item)
        else:
            rows.append([item])
    return rows


def _is_beside(one: Box, other: Box) -> bool:
    overlap = min(one[3], other[3]) - max(one[1], other[1])
    return other[0] >= one[2] - 1 and 2 * overlap > min(one[3] - one[1], other[3] - other[1])


def _row_text(row: Sequence[_Item]) -> str:
    table = row[0].table
    return "\t".join(_line_text(item) for item in row) if table is None else table_text(table.rows)


def _line_text(item: _Item) -> str:
    return item.lines[0].text.strip()


def _markdown(rows: Sequence[Sequence[_Item]]) -> str:
    """Blocks with an empty line between them."""
    singles = [item for row in rows for item in row if item.table is None]
    sizes = sorted(size for item in singles for size in [_height(item.box)] * len(_line_text(item)))
    usual = sizes[len(sizes) // 2] if sizes else 0.0
    plain = [item for item in singles if _height(item.box) < _HEADINGS[-1][0] * usual]
    blocks: list[str] = []
    before: Sequence[_Item] = ()
    head = ""
    for row in rows:
        table, text = row[0].table, " ".join(_line_text(item) for item in row)
        if table is not None:
            blocks.append(table_markdown(table.rows))
            before, head = (), ""
            continue
        mark = _heading(row, text, usual)
        if before and mark == head and not _ITEM.match(text) and _continues(before, row):
            blocks[-1] += ("\n" if not mark and _was_ended(before, row, text, plain) else " ") + text
        elif before and not mark and not head and _ITEM.match(text) and _continues(before, row):
            blocks[-1] += "\n" + _BULLET.sub("- ", text)
        else:
            blocks.append(mark + _BULLET.sub("- ", text))
        before, head = row, mark
    return "\n\n".join(blocks)


def _heading(row: Sequence[_Item], text: str, usual: float) -> str:
    if len(row) > 1 or len(text) > _LONGEST_HEADING or not usual:
        return ""
    return next((mark for ratio, mark in _HEADINGS if _height(row[0].box) >= ratio * usual), "")


def _continues(before: Sequence[_Item], row: Sequence[_Item]) -> bool:
    """Whether a row belongs to the paragraph of the row before it."""
    one, other = before[0].box, row[0].box
    height = max(_height(one), _height(other))
    across = min(before[-1].box[2], row[-1].box[2]) - max(one[0], other[0])
    return across > 0 and -height / 2 <= other[1] - one[3] <= _SAME_PARAGRAPH * height


def _was_ended(before: Sequence[_Item], row: Sequence[_Item], text: str, plain: Sequence[_Item]) -> bool:
    """Whether a row ended on purpose: the next word would have fitted on it, with room to spare."""
    last, left = before[-1].box, row[0].box[0]
    letters = max(1, len(_line_text(before[-1])))
    first = text.partition(" ")[0]
    word = (1 + len(first)) * (last[2] - last[0]) / letters
    right = max((item.box[2] for item in plain if abs(item.box[0] - left) <= _height(row[0].box)), default=last[2])
    return right - last[2] > word + _RAGGED * (right - left)


def _box(line: TextLine) -> Box:
    assert line.box is not None
    return line.box


def _height(box: Box) -> float:
    return box[3] - box[1]


def _holds(box: Box, x: float, y: float) -> bool:
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]
