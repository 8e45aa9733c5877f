"""The packaged PP-OCR model in its confined process: equal to its library, true to known text, and hard to disturb."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lfx.components.processing.split_text import SplitTextComponent
from lfx.schema.message import Message
from rapidfuzz.distance import Levenshtein

from lfx_local_runtimes.errors import InvalidInput, RequestCancelled, RuntimeFault
from lfx_local_runtimes.flows.documents import REQUEST
from lfx_local_runtimes.flows.retrieval import SPLIT, handbook
from lfx_local_runtimes.runtimes import RuntimeManager
from lfx_local_runtimes.runtimes.media.pictures import open_picture
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.tasks.documents.document import DocumentAsk, DocumentResult, Page, PageDelta
from lfx_local_runtimes.runtimes.tasks.documents.ocr import OcrAsk
from lfx_local_runtimes.settings import PREFIX, Settings
from tests.documents import (
    INVOICE,
    WORDS,
    as_file,
    book_pdf,
    drawn_page,
    encrypted,
    invoice_pdf,
    save_pdf,
    slides_file,
    text_page,
    word_file,
    zip_bomb,
)
from tests.integration.test_lfx_run import lfx_run

pytestmark = pytest.mark.integration

MODEL = "pp-ocrv6-small"
TRUE_ENOUGH = 0.01
"""Wrong letters of known text at most, as a share."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documents that requests may name."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "handbook.pdf").write_bytes(book_pdf(handbook()))
    (folder / "invoice.pdf").write_bytes(invoice_pdf())
    return folder


@pytest.fixture(scope="module")
def manager(packaged_models: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeManager]:
    """One manager for the file. A model that cannot be confined in full is not loaded."""
    home = tmp_path_factory.mktemp("home")
    (home / "packages").symlink_to(packaged_models, target_is_directory=True)
    settings = Settings(home=home, offline=True, spare_processes=0, confine="require", media_dirs=(folder,))
    manager = RuntimeManager(settings)
    asyncio.run(manager.load_model(MODEL))
    yield manager
    manager.close()


def read(manager: RuntimeManager, file: bytes, **options: Any) -> DocumentResult:
    return asyncio.run(manager.run(MODEL, DocumentAsk(file=file, **options)))


def error_rate(found: str, true: str) -> float:
    """Wrong letters, as a share. Spaces and line breaks count once."""
    one, other = " ".join(found.split()), " ".join(true.split())
    return Levenshtein.distance(one, other) / len(other)


def rendered(pdf: bytes, scale: float = 2.5) -> bytes:
    """The pages of a PDF as a scanner gives them."""
    import pypdfium2

    document = pypdfium2.PdfDocument(pdf)
    pages = [page.render(scale=scale).to_pil() for page in document]
    document.close()
    return as_file(pages[0], "PDF", save_all=True, append_images=pages[1:], resolution=72 * scale)


# -- truth ---------------------------------------------------------------------------------------------------------------


async def test_ocr_is_the_library_word_for_word(manager: RuntimeManager) -> None:
    """Also the boxes and the scores. The library's third file, which turns some long lines, is not used."""
    import numpy as np
    from rapidocr import RapidOCR

    pictures = [
        drawn_page(WORDS[:2], width=900),
        drawn_page(WORDS[:1], width=900, tilt=4),
        drawn_page(WORDS[:1], size=18),
    ]
    result = await manager.run(MODEL, OcrAsk(images=tuple(pictures), languages=("en", "de")))
    one_thread = {"EngineConfig.onnxruntime.intra_op_num_threads": 1}
    library = RapidOCR(params={"Global.log_level": "error", "Global.use_cls": False, **one_thread})
    for picture, ours in zip(pictures, result.images, strict=True):
        theirs = library(np.asarray(picture)[:, :, ::-1])
        assert ((ours.width, ours.height), ours.turned) == (picture.size, False)
        assert [line.text for line in ours.lines] == list(theirs.txts or ())
        assert ours.text == "\n".join(theirs.txts or ())
        boxes = () if theirs.boxes is None else theirs.boxes
        for line, corners, score in zip(ours.lines, boxes, theirs.scores or (), strict=True):
            assert np.allclose(line.corners, corners, atol=1)
            assert line.confidence == pytest.approx(score, abs=1e-3)


def test_a_page_that_is_upside_down_is_turned(manager: RuntimeManager) -> None:
    sheet = drawn_page(WORDS[:2], width=900)
    turned = read(manager, as_file(sheet.rotate(180), "PDF", resolution=150)).pages[0]
    upright = read(manager, as_file(sheet, "PDF", resolution=150)).pages[0]
    assert (turned.turned, upright.turned) == (True, False)
    assert turned.text == upright.text == "\n".join(WORDS[:2])
    assert turned.lines[0].box == pytest.approx(upright.lines[0].box, abs=2)


def test_a_document_with_text_is_read_letter_by_letter(manager: RuntimeManager, folder: Path) -> None:
    """The pages of the handbook, and what the flow makes of them: a chunk for each passage."""
    own = read(manager, (folder / "handbook.pdf").read_bytes(), name="handbook.pdf")
    assert {page.source for page in own.pages} == {"text"}
    assert own.markdown == handbook()
    chunks = SplitTextComponent(data_inputs=Message(text=own.markdown), **SPLIT, clean_output=True).split_text()
    assert list(chunks["text"]) == handbook().split("\n\n")


def test_a_scan_of_known_text_has_few_wrong_letters(manager: RuntimeManager) -> None:
    """Some passages as a picture. The same page with its text layer says where each line is."""
    text = "\n\n".join(handbook().split("\n\n")[:4])
    book = book_pdf(text)
    (true,) = read(manager, book).pages
    (page,) = read(manager, rendered(book), name="scan.pdf").pages
    assert page.source == "recognised"
    assert error_rate(page.text, text) <= TRUE_ENOUGH
    assert error_rate(page.markdown, text) <= TRUE_ENOUGH
    assert all(line.confidence is not None and line.confidence > 0.8 for line in page.lines)
    places = {line.text: line.box for line in true.lines}
    shared = [(line.box, places[line.text]) for line in page.lines if line.text in places]
    assert len(shared) > len(page.lines) // 2
    assert all(abs(a - b) < 8 for one, other in shared for a, b in zip(one or (), other or (), strict=True)), shared[:3]


def test_the_table_of_a_scan_is_that_of_the_text(manager: RuntimeManager, folder: Path) -> None:
    bill = (folder / "invoice.pdf").read_bytes()
    (own,) = read(manager, bill, draw=True).pages
    (scan,) = read(manager, rendered(bill)).pages
    assert (own.source, scan.source) == ("text", "recognised")
    assert own.tables[0].rows == (("Position", "Price"), ("Car, Fenna to Ostrey", "31.00"), ("Two bicycles", "18.50"))
    assert scan.tables[0].rows == own.tables[0].rows
    assert own.drawing is not None
    assert max(open_picture(own.drawing, "drawing").size) == 2000


def test_office_files_are_read_in_the_same_process(manager: RuntimeManager) -> None:
    assert [page.number for page in read(manager, word_file(), name="a.docx").pages] == [1, 2]
    assert read(manager, slides_file(), name="a.pptx").pages[0].markdown.startswith("# Winter timetable")


def test_a_photo_is_a_document_of_one_page(manager: RuntimeManager) -> None:
    """Turned by its EXIF orientation."""
    turned = drawn_page().rotate(90, expand=True)
    exif = turned.getexif()
    exif[0x0112] = 6
    found = read(manager, as_file(turned, "JPEG", quality=92, exif=exif), name="photo.jpg")
    assert (found.kind, found.pages[0].unit) == ("picture", "pixels")
    assert error_rate(found.pages[0].text, " ".join(WORDS)) <= TRUE_ENOUGH


# -- streaming, turns, cancelling ------------------------------------------------------------------------------------------


async def test_pages_come_one_by_one_with_progress(manager: RuntimeManager, folder: Path) -> None:
    told: list[Progress] = []
    pages: list[Page] = []
    book = (folder / "handbook.pdf").read_bytes()
    run = manager.start(MODEL, DocumentAsk(file=book, pages="2-4"), progress=told.append)
    async for delta in run:
        assert isinstance(delta, PageDelta)
        assert delta.total == 3
        pages += delta.pages
    assert [page.number for page in pages] == [2, 3, 4]
    result = await run
    assert result.pages == tuple(pages)
    assert (result.page_count, result.name) == (4, "document")
    assert [(one.done, one.total) for one in told if one.phase == "read"][-1] == (2, 3)


async def test_a_cancel_ends_between_pages_and_others_go_on(manager: RuntimeManager) -> None:
    sheet = drawn_page(["one"], width=300)
    page = as_file(sheet, "PDF", save_all=True, append_images=[sheet] * 200, resolution=150)
    long = manager.start(MODEL, DocumentAsk(file=page, name="long.pdf"))
    other = manager.start(MODEL, DocumentAsk(file=save_pdf([text_page(WORDS)]), name="short.pdf"))
    result = await other
    assert result.pages[0].text == "\n".join(WORDS), "a short document does not wait for a long one"
    async for delta in long:
        assert delta.pages
        long.cancel()
        break
    with pytest.raises(RequestCancelled):
        await long
    assert (await manager.run(MODEL, DocumentAsk(file=word_file(), name="a.docx"))).page_count == 2


# -- faults ----------------------------------------------------------------------------------------------------------------


async def test_hostile_files_are_refused_and_the_model_goes_on(manager: RuntimeManager) -> None:
    plain = save_pdf([text_page(WORDS)])
    bad: list[tuple[str, bytes, str]] = [
        ("secret.pdf", encrypted(plain), "encrypted"),
        ("half.pdf", plain[: len(plain) // 3], "damaged"),
        ("bomb.docx", zip_bomb(), "300 MiB unpacked"),
        ("empty.docx", zip_bomb(mebibytes=1), "not a DOCX"),
        ("photo.png", plain, "says that it is a picture"),
        ("half.png", as_file(drawn_page())[:900], "cannot be decoded"),
        ("note.txt", b"a note", "not a document"),
        ("long.pdf", save_pdf([text_page(["x"])] * 5000), "5,000 pages"),
    ]
    before = manager.model_status(MODEL)
    asks = [DocumentAsk(file=data, name=name) for name, data, _ in bad]
    good = [manager.run(MODEL, DocumentAsk(file=plain, name="good.pdf")) for _ in range(3)]
    found = await asyncio.gather(*(manager.run(MODEL, ask) for ask in asks), *good, return_exceptions=True)
    for (name, _, said), fault in zip(bad, found, strict=False):
        assert isinstance(fault, InvalidInput), (name, fault)
        assert name in str(fault)
        assert said in str(fault)
        assert fault.hint, name
    assert all(isinstance(one, DocumentResult) for one in found[len(bad) :])
    after = manager.model_status(MODEL)
    assert (after.pid, after.restarts, after.confined) == (before.pid, 0, "full")


def test_many_pages_do_not_fill_the_memory(manager: RuntimeManager) -> None:
    """The process takes no more than what the lists say when a page has been read."""
    found = read(manager, save_pdf([text_page(WORDS[:1])] * 1500), name="long.pdf", pages="501-")
    assert [page.number for page in found.pages][::999] == [501, 1500]
    manager.stats()  # measures again
    status = manager.model_status(MODEL)
    assert status.memory_used_mb is not None
    assert status.memory_used_mb == pytest.approx(status.memory_estimate_mb, rel=0.15)


@pytest.mark.parametrize("language", ["ar", "ko"])
async def test_a_language_that_the_model_does_not_read_is_named(manager: RuntimeManager, language: str) -> None:
    with pytest.raises(RuntimeFault, match=f"does not read {language}.*It reads .*en"):
        await manager.run(MODEL, OcrAsk(images=(drawn_page(),), languages=("en", language)))


# -- the flow --------------------------------------------------------------------------------------------------------------


def test_an_invoice_becomes_json(folder: Path) -> None:
    answer = lfx_run("invoice_to_json", REQUEST, **{f"{PREFIX}MEDIA_DIRS": str(folder)})
    assert json.loads(answer.strip().removeprefix("```json").removesuffix("```")) == INVOICE
