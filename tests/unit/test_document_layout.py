"""Lines and tables with their places become text: selections of pages, the reading order, Markdown."""

import pytest

from lfx_local_runtimes.runtimes.engines.rapidocr.layout import Cell, Grid, compose, reading_order, table_markdown
from lfx_local_runtimes.runtimes.tasks.documents.pages import Box, TextLine, selected_pages


def line(text: str, left: float, top: float, *, height: float = 10, width: float | None = None) -> TextLine:
    wide = 5 * len(text) if width is None else width
    return TextLine(text, (left, top, left + wide, top + height))


# -- selections ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        (None, [1, 2, 3, 4, 5]),
        ("2", [2]),
        ("1-3", [1, 2, 3]),
        ("4-", [4, 5]),
        ("-2", [1, 2]),
        (" 5, 1 - 2 ,2", [1, 2, 5]),
    ],
)
def test_a_selection_names_pages(text: str | None, pages: list[int]) -> None:
    assert selected_pages(text, 5) == pages


@pytest.mark.parametrize("text", ["", "a", "0", "3-2", "1,,2", "-", "1.5", "1-2-3"])
def test_what_is_no_selection_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not name pages"):
        selected_pages(text, 5)


@pytest.mark.parametrize(("text", "page"), [("6", "6"), ("4-6", "6"), ("7-", "7"), ("9999999", "9,999,999")])
def test_a_page_that_is_not_there_is_named(text: str, page: str) -> None:
    with pytest.raises(ValueError, match=f"names page {page}"):
        selected_pages(text, 5)


# -- the reading order ---------------------------------------------------------------------------------------------------


def test_columns_are_read_one_after_the_other_below_their_title() -> None:
    title: Box = (50, 20, 550, 40)
    left: list[Box] = [(50, 60 + 14 * row, 270, 70 + 14 * row) for row in range(4)]
    right: list[Box] = [(320, 60 + 14 * row, 540, 70 + 14 * row) for row in range(4)]
    mixed = [title, *(box for pair in zip(left, right, strict=True) for box in pair)]
    assert [mixed[index] for index in reading_order(mixed)] == [title, *left, *right]


def test_the_cells_of_a_form_are_read_row_by_row() -> None:
    form: list[Box] = [
        (50 + 300 * column, 20 * row, 90 + 300 * column, 20 * row + 10) for row in range(3) for column in (0, 1)
    ]
    assert reading_order(form) == [0, 1, 2, 3, 4, 5]


def test_a_tilted_row_stays_a_row() -> None:
    tilted: list[Box] = [(0, 10, 100, 22), (110, 7, 200, 19), (210, 4, 300, 16), (0, 30, 100, 42), (110, 27, 200, 39)]
    assert reading_order(tilted) == [0, 1, 2, 3, 4]


def test_a_page_with_very_many_lines_is_read_from_top_to_bottom() -> None:
    boxes: list[Box] = [(0, float(10 * row), 100, 10.0 * row + 8) for row in range(5000)]
    assert reading_order(boxes[::-1]) == list(range(5000))[::-1]


def test_nothing_has_an_order() -> None:
    assert reading_order([]) == []
    assert compose([]).markdown == ""


# -- Markdown ------------------------------------------------------------------------------------------------------------


def test_a_paragraph_is_joined_and_a_line_that_ended_early_is_kept() -> None:
    page = compose([
        line("A long line of a paragraph that", 50, 100), line("goes on here and ends early.", 50, 112),
        line("New", 50, 124), line("The next paragraph stands apart.", 50, 160),
    ])  # fmt: skip
    assert page.markdown == (
        "A long line of a paragraph that goes on here and ends early. New\n\nThe next paragraph stands apart."
    )
    assert page.text.splitlines()[2:] == ["New", "The next paragraph stands apart."]
    address = compose(
        [line("Ada Lovelace, Countess of Lovelace", 50, 10), line("London", 50, 22), line("England", 50, 34)]
    )
    assert address.markdown == "Ada Lovelace, Countess of Lovelace London\nEngland"


def test_large_lines_are_headings_and_bullets_are_lists() -> None:
    page = compose([
        line("The Title", 50, 10, height=22), line("A Section", 50, 60, height=15),
        line("Some words of the text.", 50, 90), line("• one", 50, 110), line("• two", 50, 122),
    ])  # fmt: skip
    assert page.markdown == "# The Title\n\n## A Section\n\nSome words of the text.\n\n- one\n- two"


def test_what_stands_side_by_side_is_one_row() -> None:
    page = compose([line("Total:", 50, 10), line("11 crowns", 400, 10)])
    assert page.text == "Total:\t11 crowns"
    assert page.markdown == "Total: 11 crowns"


def test_lines_in_a_grid_are_a_table() -> None:
    cells = tuple(
        Cell(row, column, (100 * column, 20 * row, 100 * column + 98, 20 * row + 18))
        for row in (0, 1)
        for column in (0, 1)
    )
    words = [line("Route", 5, 4), line("Price", 105, 4), line("Fenna", 5, 24), line("11 | 12", 105, 24)]
    page = compose([line("Fares of this year", 0, -40), *words[::-1]], [Grid((0, 0, 200, 40), cells)])
    assert page.tables[0].rows == (("Route", "Price"), ("Fenna", "11 | 12"))
    assert page.markdown == "Fares of this year\n\n| Route | Price |\n| --- | --- |\n| Fenna | 11 \\| 12 |"
    assert page.text == "Fares of this year\nRoute\tPrice\nFenna\t11 | 12"
    assert [one.text for one in page.lines] == ["Fares of this year", "Route", "Price", "Fenna", "11 | 12"]


def test_a_grid_without_text_is_a_drawing() -> None:
    cells = tuple(Cell(row, column, (0, 0, 1, 1)) for row in (0, 1) for column in (0, 1))
    page = compose([line("A chart below", 50, 100)], [Grid((0, 0, 40, 40), cells)])
    assert page.tables == ()
    assert page.markdown == "A chart below"


def test_a_table_keeps_to_its_lines_in_markdown() -> None:
    assert table_markdown([["a\nb", "c"], ["", "d|e"]]) == "| a b | c |\n| --- | --- |\n|  | d\\|e |"
