"""Opens a document by what its bytes are. What it says it is has to agree."""

import zipfile
from io import BytesIO
from pathlib import PurePath
from typing import Protocol

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.engines.rapidocr.office import SlidesFile, WordFile
from lfx_local_runtimes.runtimes.engines.rapidocr.pdf import Draw, PdfFile
from lfx_local_runtimes.runtimes.engines.rapidocr.picture import PictureFile
from lfx_local_runtimes.runtimes.engines.rapidocr.recognition import Recogniser
from lfx_local_runtimes.runtimes.tasks.documents.document import DocumentAsk, Kind, Page
from lfx_local_runtimes.runtimes.tasks.media import Source, image_mime

_OFFICE = "application/vnd.openxmlformats-officedocument."
_MIMES: dict[str, Kind] = {
    "application/pdf": "pdf",
    f"{_OFFICE}wordprocessingml.document": "docx",
    f"{_OFFICE}presentationml.presentation": "pptx",
}
_ENDINGS: dict[str, Kind] = {
    ".pdf": "pdf", ".docx": "docx", ".pptx": "pptx",
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"), "picture"),
}  # fmt: skip
_WORDS: dict[Kind, str] = {"pdf": "a PDF", "docx": "a DOCX", "pptx": "a PPTX", "picture": "a picture"}
_PDF_HEAD = 1024
"""A PDF may begin with some bytes of something else."""
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


class OpenDocument(Protocol):
    """An open document."""

    kind: Kind

    @property
    def page_count(self) -> int:
        """The document's pages."""

    def page(self, number: int) -> Page:
        """Read a page, counted from 1.

        Raises:
            InvalidInput: it cannot be read.
        """

    def close(self) -> None:
        """Give the file back."""


def open_document(ask: DocumentAsk, recogniser: Recogniser, draw: Draw | None) -> OpenDocument:
    """Open the document of a request.

    Raises:
        InvalidInput: it is none of the kinds that are read, is not what it says, is encrypted, damaged or too large.
    """
    name = ask.name
    if isinstance(ask.file, Source):
        raise InvalidInput(
            f"{name} names a file or a URL, and a model's process can open neither.",
            hint="Read it first, with `fetched` of lfx_local_runtimes.runtimes.media.sources.",
        )
    data = ask.file.data
    kind = kind_of(data, name)
    for said in (_MIMES.get(ask.file.mime, "picture" if ask.file.mime.startswith("image/") else None), _ending(name)):
        if said not in (None, kind):
            raise InvalidInput(
                f"{name} says that it is {_WORDS[said]}, and its bytes are {_WORDS[kind]}.",
                hint="Send it under its own name and with its own type.",
            )
    if kind == "pdf":
        return PdfFile(data, name, recogniser, draw)
    if kind == "picture":
        return PictureFile(ask.file, name, recogniser, draw)
    return WordFile(data, name) if kind == "docx" else SlidesFile(data, name)


def kind_of(data: bytes, name: str) -> Kind:
    """What a file is, by its bytes.

    Raises:
        InvalidInput: it is nothing that is read.
    """
    if b"%PDF-" in data[:_PDF_HEAD]:
        return "pdf"
    if image_mime(data).startswith("image/"):
        return "picture"
    if data.startswith(b"PK\x03\x04"):
        entries = _entries(data)
        if "word/document.xml" in entries:
            return "docx"
        if "ppt/presentation.xml" in entries:
            return "pptx"
    if data.startswith(_OLD_OFFICE):
        raise InvalidInput(
            f"{name} is an encrypted Office file, or one of an older format.",
            hint="Save it as DOCX or PPTX without a password.",
        )
    raise InvalidInput(
        f"{name} is not a document that can be read.",
        hint="Send a PDF, a DOCX, a PPTX or a picture, and the whole file.",
    )


def _entries(data: bytes) -> set[str]:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            return set(archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError):
        return set()


def _ending(name: str) -> Kind | None:
    return _ENDINGS.get(PurePath(name).suffix.lower())
