"""Documents made for tests: PDF files written by hand, pages as pictures, and office files."""

import textwrap
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

A4 = (595, 842)

WORDS = (
    "The harbour office opens at seven in the morning",
    "and closes when the last ferry has left the quay.",
    "Bicycles travel free in winter, but a dog needs a ticket.",
    "Please keep your receipt: it is valid for thirty days.",
    "Questions are answered by telephone on weekdays only.",
)


@dataclass
class PdfPage:
    """A page: texts with their size and lower left corner, and ruled lines, in points from the lower left corner."""

    texts: list[tuple[str, float, float, float]] = field(default_factory=list)
    rules: list[tuple[float, float, float, float]] = field(default_factory=list)
    rotate: int = 0
    size: tuple[int, int] = A4

    def text(self, text: str, x: float, y: float, size: float = 11) -> None:
        """Write a line."""
        self.texts.append((text, size, x, y))

    def grid(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        """Draw a table's ruled lines."""
        self.rules += [(x, min(ys), x, max(ys)) for x in xs] + [(min(xs), y, max(xs), y) for y in ys]

    def content(self) -> bytes:
        """The page's stream."""
        parts = ["0.8 w"]
        parts += [f"{x0} {y0} m {x1} {y1} l S" for x0, y0, x1, y1 in self.rules]
        for text, size, x, y in self.texts:
            escaped = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
            parts.append(f"BT /F1 {size} Tf {x} {y} Td ({escaped}) Tj ET")
        return "\n".join(parts).encode("latin-1")


def save_pdf(pages: Iterable[PdfPage]) -> bytes:
    """A PDF with these pages, in Helvetica."""
    objects: list[bytes] = [
        b"",
        b"",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    kids = []
    for page in pages:
        stream = zlib.compress(page.content())
        objects.append(b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        kids.append(len(objects) + 1)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Rotate %d /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % (*page.size, page.rotate, len(objects))
        )
    objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(b"%d 0 R" % kid for kid in kids))
    return _file(objects)


def _file(objects: Sequence[bytes]) -> bytes:
    out = BytesIO()
    out.write(b"%PDF-1.7\n")
    places = []
    for number, content in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, content))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start))
    return out.getvalue()


def text_page(
    lines: Sequence[str], *, top: float = 780, left: float = 60, size: float = 11, leading: float = 14
) -> PdfPage:
    """A page with lines below each other. An empty line is a space between paragraphs."""
    page = PdfPage()
    for row, line in enumerate(lines):
        if line:
            page.text(line, left, top - row * leading, size)
    return page


def drawn_page(lines: Sequence[str] = WORDS, *, width: int = 1240, size: int = 30, tilt: float = 0.0) -> Any:
    """A page of text as a PIL picture, as a scanner gives it. PP-OCR makes lower ones larger, which takes time."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (width, max(740, 120 + 60 * len(lines))), "white")
    brush, font = ImageDraw.Draw(picture), ImageFont.load_default(size=size)
    for row, line in enumerate(lines):
        brush.text((80, 60 + 60 * row), line, fill="black", font=font)
    return picture.rotate(tilt, expand=True, fillcolor="white") if tilt else picture


def as_file(picture: Any, form: str = "PNG", **options: Any) -> bytes:
    """A PIL picture as a file. As a PDF it is a scanned page."""
    out = BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def encrypted(pdf: bytes, password: str = "secret") -> bytes:
    """The same PDF, which opens with a password only."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(BytesIO(pdf)))
    writer.encrypt(password, algorithm="RC4-128")
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


def word_file() -> bytes:
    """A DOCX of two pages: headings, a list and a table."""
    from docx import Document

    document = Document()
    document.add_heading("Ferry Lines", 0)
    document.add_heading("Fares", 1)
    document.add_paragraph("A crossing costs eleven crowns.")
    for item in ("Children pay a third.", "Dogs travel free."):
        document.add_paragraph(item, style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(
        (cell for row in table.rows for cell in row.cells), ("Route", "Price", "Fenna", "11"), strict=True
    ):
        cell.text = text
    document.add_page_break()
    document.add_heading("Luggage", 1)
    document.add_paragraph("Two bags | each up to fourteen kilograms.")
    out = BytesIO()
    document.save(out)
    return out.getvalue()


def slides_file() -> bytes:
    """A PPTX of two slides: a title with bullets, and a table."""
    from pptx import Presentation
    from pptx.util import Inches

    presentation = Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[1])
    slide.shapes.title.text = "Winter timetable"
    body = slide.placeholders[1].text_frame
    body.text = "First ferry at six"
    body.add_paragraph().text = "Last ferry at nine"
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])
    slide.shapes.title.text = "Fares"
    table = slide.shapes.add_table(2, 2, Inches(1), Inches(2), Inches(6), Inches(2)).table
    for place, text in (((0, 0), "Route"), ((0, 1), "Price"), ((1, 0), "Fenna"), ((1, 1), "11")):
        table.cell(*place).text = text
    out = BytesIO()
    presentation.save(out)
    return out.getvalue()


def zip_bomb(part: str = "word/document.xml", mebibytes: int = 300) -> bytes:
    """A DOCX of some kilobytes that has so many MiB unpacked."""
    import zipfile

    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        with archive.open(part, "w", force_zip64=True) as entry:
            for _ in range(mebibytes):
                entry.write(bytes(2**20))
    return out.getvalue()


def ocr_folder() -> Path:
    """The folder of the packaged PP-OCR model."""
    from lfx_local_runtimes.runtimes.sources.packages import PP_OCR

    path = PP_OCR.ready_path(Path("unused"))
    assert path is not None, "the package is not installed: pip install 'lfx-local-runtimes[dev]'"
    return path


def book_pdf(text: str, *, width: int = 88, rows: int = 50) -> bytes:
    """A text of paragraphs as a PDF. Lines are wrapped, and no paragraph is on two pages."""
    pages: list[list[str]] = [[]]
    for paragraph in text.split("\n\n"):
        lines = textwrap.wrap(paragraph, width)
        if len(pages[-1]) + len(lines) > rows:
            pages.append([])
        pages[-1] += [*lines, ""]
    return save_pdf(text_page(lines) for lines in pages)


INVOICE = {"invoice_number": "2031", "date": "14 May 2026", "total": 49.5}


def invoice_pdf() -> bytes:
    """An invoice with a ruled table of its positions."""
    page = text_page(
        [
            "Skerry Line, Harbour Office, Fenna",
            "",
            "Invoice 2031",
            "Date: 14 May 2026",
            "",
            "For your crossing we ask for:",
        ]
    )
    xs, ys = (60, 300, 400), (560, 585, 610, 635)
    page.grid(xs, ys)
    rows = (("Position", "Price"), ("Car, Fenna to Ostrey", "31.00"), ("Two bicycles", "18.50"))
    for row, cells in enumerate(rows):
        for column, text in enumerate(cells):
            page.text(text, xs[column] + 6, 619 - 25 * row)
    page.text("Total: 49.50 crowns", 60, 520)
    return save_pdf([page])
