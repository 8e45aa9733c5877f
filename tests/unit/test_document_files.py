"""Documents are read by real parsers, and broken, hostile and lying ones are refused by name. No model is needed."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.engines.rapidocr.files import open_document
from lfx_local_runtimes.runtimes.engines.rapidocr.picture import drawn
from lfx_local_runtimes.runtimes.engines.rapidocr.recognition import Recogniser, Recognition
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.formats.onnx import OnnxHeader, OnnxTensor
from lfx_local_runtimes.runtimes.formats.pp_ocr import pp_ocr_of
from lfx_local_runtimes.runtimes.media.pictures import open_picture
from lfx_local_runtimes.runtimes.tasks.documents.document import DocumentAsk, Page
from lfx_local_runtimes.runtimes.tasks.documents.file import MAX_DOCUMENT_BYTES
from lfx_local_runtimes.runtimes.tasks.documents.pages import TextLine
from lfx_local_runtimes.runtimes.tasks.media import Media, Source
from tests.documents import (
    PdfPage,
    as_file,
    drawn_page,
    encrypted,
    ocr_folder,
    save_pdf,
    slides_file,
    text_page,
    word_file,
    zip_bomb,
)

PARAGRAPH = (
    "The harbour office opens at seven in the morning and closes when",
    "the last ferry has left the quay for the night.",
)


class OneLine:
    """In place of a model: finds the same line in every picture, and counts the pictures."""

    def __init__(self) -> None:
        self.pictures: list[Any] = []

    def read(self, pixels: Any) -> Recognition:
        self.pictures.append(pixels)
        corners = ((10, 20), (310, 20), (310, 40), (10, 40))
        line = TextLine("recognised words of a page", (10, 20, 310, 40), 0.9, corners)
        return Recognition([line], pixels, turned=False)


def read(data: bytes, name: str = "file.pdf", mime: str = "application/octet-stream", **options: Any) -> list[Page]:
    ask = DocumentAsk(file=Media(mime, data), name=name)
    recogniser = options.pop("recogniser", None) or OneLine()
    document = open_document(ask, cast("Recogniser", recogniser), options.pop("draw", None))
    try:
        return [document.page(number) for number in range(1, document.page_count + 1)]
    finally:
        document.close()


# -- PDF -----------------------------------------------------------------------------------------------------------------


def test_a_page_with_text_is_read_and_not_recognised() -> None:
    model = OneLine()
    (page,) = read(save_pdf([text_page(["Fares", "", *PARAGRAPH])]), recogniser=model)
    assert page.source == "text"
    assert page.text == "\n".join(["Fares", *PARAGRAPH])
    assert page.markdown == f"Fares\n\n{' '.join(PARAGRAPH)}"
    assert (page.width, page.height, page.unit) == (595, 842, "points")
    assert model.pictures == []
    box = page.lines[0].box
    assert box is not None
    assert box[0] == pytest.approx(60, abs=1)
    assert box[1] < 842 - 780 < box[3], "the line stands on 780 points from below"


def test_a_page_without_text_is_recognised_with_boxes_in_points() -> None:
    model = OneLine()
    (page,) = read(as_file(drawn_page(), "PDF", resolution=150), recogniser=model)
    assert (page.source, page.text) == ("recognised", "recognised words of a page")
    (pixels,) = model.pictures
    assert max(pixels.shape) == 2000
    scale = 2000 / max(page.width or 0, page.height or 0)
    assert page.lines[0].box == pytest.approx((10 / scale, 20 / scale, 310 / scale, 40 / scale))
    assert page.lines[0].confidence == 0.9


def test_an_empty_page_is_empty() -> None:
    model = OneLine()
    assert read(save_pdf([PdfPage()]), recogniser=model)[0].text == ""
    assert model.pictures == []


def test_a_stamp_on_a_scan_does_not_hide_the_scan() -> None:
    from pypdf import PdfReader, PdfWriter

    scan = PdfWriter(clone_from=PdfReader(BytesIO(as_file(drawn_page(), "PDF", resolution=150))))
    scan.pages[0].merge_page(PdfReader(BytesIO(save_pdf([text_page(["Seen 3/4"])]))).pages[0])
    out = BytesIO()
    scan.write(out)
    (page,) = read(out.getvalue())
    assert page.source == "recognised"


def test_a_ruled_table_has_rows_and_cells() -> None:
    page = text_page(["Fares of this year are as follows:"])
    page.grid([60, 200, 300], [600, 630, 660])
    for text, x, y in (("Route", 65, 640), ("Price", 205, 640), ("Fenna", 65, 610), ("11", 205, 610)):
        page.text(text, x, y)
    (found,) = read(save_pdf([page]))
    (table,) = found.tables
    assert table.rows == (("Route", "Price"), ("Fenna", "11"))
    assert table.box == pytest.approx((60, 842 - 660, 300, 842 - 600), abs=3)
    assert "| Route | Price |\n| --- | --- |\n| Fenna | 11 |" in found.markdown


def test_columns_are_read_one_after_the_other() -> None:
    page = PdfPage()
    for row in range(5):
        page.text(f"The left column has its line {row}", 60, 760 - 14 * row)
        page.text(f"The right column has its line {row}", 320, 760 - 14 * row)
    (found,) = read(save_pdf([page]))
    words = [line.split()[1] for line in found.text.splitlines()]
    assert words == ["left"] * 5 + ["right"] * 5


def test_a_turned_page_is_read_as_it_is_shown() -> None:
    turned = text_page(PARAGRAPH)
    turned.rotate = 90
    (page,) = read(save_pdf([turned]))
    assert (page.width, page.height) == (842, 595)
    box = page.lines[0].box
    assert box is not None
    assert box[0] > 595, "the top of the sheet is on the right"
    assert box[3] < 595


def test_the_boxes_of_a_page_are_drawn() -> None:
    (page,) = read(save_pdf([text_page(PARAGRAPH)]), draw=drawn)
    assert page.drawing is not None
    picture = open_picture(page.drawing, "drawing")
    assert max(picture.size) == 2000
    assert any(red > 180 and blue < 100 for _, (red, _, blue) in picture.getcolors(1 << 24) or ())


# -- office files and pictures -------------------------------------------------------------------------------------------


def test_a_docx_has_headings_lists_tables_and_pages() -> None:
    first, second = read(word_file(), "lines.docx")
    assert first.markdown == (
        "# Ferry Lines\n\n# Fares\n\nA crossing costs eleven crowns.\n\n- Children pay a third.\n- Dogs travel free.\n\n"
        "| Route | Price |\n| --- | --- |\n| Fenna | 11 |"
    )
    assert first.tables[0].rows == (("Route", "Price"), ("Fenna", "11"))
    assert second.markdown == "# Luggage\n\nTwo bags | each up to fourteen kilograms."
    assert (second.number, second.width, second.lines[0].box) == (2, None, None)


def test_a_pptx_has_a_page_for_each_slide() -> None:
    first, second = read(slides_file(), "lines.pptx")
    assert first.markdown == "# Winter timetable\n\n- First ferry at six\n- Last ferry at nine"
    assert second.tables[0].rows == (("Route", "Price"), ("Fenna", "11"))
    assert first.width == 720
    assert first.lines[0].box is not None


def test_a_picture_is_one_page_in_pixels() -> None:
    (page,) = read(as_file(drawn_page()), "page.png", "image/png")
    assert (page.unit, page.source, page.width) == ("pixels", "recognised", 1240)
    assert page.lines[0].box == (10, 20, 310, 40)


# -- faults --------------------------------------------------------------------------------------------------------------

TEXT_PDF = save_pdf([text_page(PARAGRAPH)])


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        (lambda: encrypted(TEXT_PDF), "secret.pdf", "secret.pdf is encrypted and needs a password"),
        (lambda: TEXT_PDF[:200], "half.pdf", "half.pdf is damaged"),
        (lambda: b"%PDF-1.7\n" + bytes(5000), "zeros.pdf", "zeros.pdf is damaged"),
        (lambda: b"", "empty.pdf", "empty"),
        (lambda: b"hello", "note.pdf", "note.pdf is not a document"),
        (lambda: word_file()[:900], "half.docx", "half.docx is not a document"),
        (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "old.doc", "older format"),
        (lambda: TEXT_PDF, "photo.png", "photo.png says that it is a picture, and its bytes are a PDF"),
        (lambda: word_file(), "slides.pptx", "says that it is a PPTX, and its bytes are a DOCX"),
        (lambda: as_file(drawn_page())[:500], "half.png", "half.png cannot be decoded"),
        (lambda: zip_bomb(), "bomb.docx", "bomb.docx has 300 MiB unpacked; the limit is 256 MiB"),
        (lambda: zip_bomb(mebibytes=40), "bomb.docx", "bomb.docx has a text of 40 MiB; the limit is 32 MiB"),
        (lambda: zip_bomb("ppt/presentation.xml"), "bomb.pptx", "bomb.pptx has 300 MiB unpacked"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(data: Callable[[], bytes], name: str, said: str) -> None:
    with pytest.raises((InvalidInput, ValidationError), match=said):
        read(data(), name)


def test_a_type_that_lies_is_refused() -> None:
    with pytest.raises(InvalidInput, match="file says that it is a DOCX, and its bytes are a PDF"):
        read(TEXT_PDF, "file", "application/vnd.openxmlformats-officedocument.wordprocessingml.document")


def test_a_docx_without_its_parts_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"bomb\.docx is not a DOCX that can be read"):
        read(zip_bomb(mebibytes=1), "bomb.docx")


# -- the field of an ask -------------------------------------------------------------------------------------------------


def test_a_document_comes_in_every_form() -> None:
    import base64

    text = base64.b64encode(TEXT_PDF).decode()
    forms: list[Any] = [
        TEXT_PDF, text, f"data:application/pdf;base64,{text}", {"url": f"data:application/pdf;base64,{text}"},
        {"mime": "application/pdf", "data": text}, Media("application/pdf", TEXT_PDF),
    ]  # fmt: skip
    for form in forms:
        file = DocumentAsk(file=form).file
        assert isinstance(file, Media)
        assert file.data == TEXT_PDF


def test_a_document_by_its_path_has_its_name_and_its_own_limits() -> None:
    ask = DocumentAsk.model_validate({"file": {"path": "bills/may.pdf"}})
    assert ask.name == "may.pdf"
    assert isinstance(ask.file, Source)
    assert ask.file.max_bytes == MAX_DOCUMENT_BYTES
    assert "application/pdf" in ask.file.kinds
    assert DocumentAsk.model_validate({"file": {"url": "https://example.org/a/june.pdf?x=1"}}).name == "june.pdf"
    assert DocumentAsk.model_validate({"file": {"path": "a.pdf"}, "name": "b.pdf"}).name == "b.pdf"


@pytest.mark.parametrize(
    "form", [7, "", {"path": ""}, {"path": "a", "url": "b"}, "ftp://example.org/a.pdf", {"data": "AA=="}]
)
def test_what_is_no_document_is_refused(form: Any) -> None:
    with pytest.raises(ValidationError):
        DocumentAsk(file=form)


def test_a_selection_of_pages_is_checked_at_once() -> None:
    with pytest.raises(ValidationError, match="1-3, 7, 10-"):
        DocumentAsk(file=TEXT_PDF, pages="first")


# -- the model's files ---------------------------------------------------------------------------------------------------


def header(name: str, shape: tuple[int | None, ...], *keys: str) -> OnnxHeader:
    file = Path(name)
    return OnnxHeader(file, "fp32", 1, 4, (file,), (), (OnnxTensor("out", shape),), frozenset(keys))


def test_the_parts_of_a_pp_ocr_model_are_known_by_their_outlines() -> None:
    detector = header("a.onnx", (None, None, None, None))
    recogniser = header("b.onnx", (None, None, 18710), "character")
    direction = header("c.onnx", (None, 2))
    found = pp_ocr_of([direction, recogniser, detector])
    assert found is not None
    assert found.parts == (detector, recogniser)
    assert pp_ocr_of([detector, direction]) is None
    assert pp_ocr_of([recogniser, recogniser, detector]) is None


def test_the_packaged_model_is_found_to_do_ocr() -> None:
    info = read_model(ocr_folder())
    assert (info.task, info.architecture, info.problems) == ("ocr", "pp-ocr", ())
    assert len(info.files) == 2
