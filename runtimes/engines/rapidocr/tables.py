"""Finds tables in the picture of a page by their ruled lines. It makes no difference whether the page was scanned."""

from typing import Any

from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.engines.rapidocr.layout import Cell, Grid

_EXTRA = "documents"
_MAX_SHAPES = 20_000
"""Outlines in a picture. One with more is a photo or a pattern."""
_LONG = 40
"""Pixels: the shortest ruled line across. Letters have no straight lines so long."""
_HIGH = 24
"""Pixels: the shortest ruled line down."""
_SMALLEST = 8
"""Pixels: cells are at least so wide and high."""
_TOGETHER = 6
"""Pixels: edges that are no further apart are on one ruled line."""


def find_grids(pixels: Any, scale: float = 1.0) -> list[Grid]:
    """The grids of ruled lines with at least two rows and two columns.

    The holes in the picture of the ruled lines alone are the cells.

    Args:
        pixels: uint8 of shape (height, width, 3).
        scale: pixels for a unit of the page. The boxes are in units of the page.
    """
    import numpy as np

    cv2 = require("cv2", _EXTRA)
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    ink = cv2.adaptiveThreshold(gray, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY_INV, 15, 10)
    across = cv2.morphologyEx(ink, cv2.MORPH_OPEN, np.ones((1, _LONG), np.uint8))
    down = cv2.morphologyEx(ink, cv2.MORPH_OPEN, np.ones((_HIGH, 1), np.uint8))
    rules = cv2.dilate(cv2.bitwise_or(across, down), np.ones((3, 3), np.uint8))
    outlines, family = cv2.findContours(rules, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if family is None or len(outlines) > _MAX_SHAPES:
        return []
    holes: dict[int, list[tuple[int, int, int, int]]] = {}
    for outline, (_, _, _, around) in zip(outlines, family[0].tolist(), strict=True):
        x, y, width, height = cv2.boundingRect(outline)
        if around >= 0 and min(width, height) >= _SMALLEST:
            holes.setdefault(around, []).append((x, y, x + width, y + height))
    found = [_grid(cv2.boundingRect(outlines[around]), inside, scale) for around, inside in holes.items()]
    return [grid for grid in found if _has_rows_and_columns(grid)]


def _grid(around: tuple[int, int, int, int], holes: list[tuple[int, int, int, int]], scale: float) -> Grid:
    columns = _edges([hole[0] for hole in holes])
    rows = _edges([hole[1] for hole in holes])
    cells = tuple(
        Cell(_nearest(rows, hole[1]), _nearest(columns, hole[0]), _scaled(hole, scale)) for hole in sorted(holes)
    )
    x, y, width, height = around
    return Grid(_scaled((x, y, x + width, y + height), scale), cells)


def _has_rows_and_columns(grid: Grid) -> bool:
    return len({cell.row for cell in grid.cells}) > 1 and len({cell.column for cell in grid.cells}) > 1


def _edges(places: list[int]) -> list[int]:
    """Where ruled lines are: places that lie together count as one."""
    found: list[int] = []
    for place in sorted(places):
        if not found or place - found[-1] > _TOGETHER:
            found.append(place)
    return found


def _nearest(edges: list[int], place: int) -> int:
    return min(range(len(edges)), key=lambda index: abs(edges[index] - place))


def _scaled(box: tuple[int, int, int, int], scale: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = (value / scale for value in box)
    return left, top, right, bottom
