"""Optical character recognition: the lines of text in pictures."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from lfx_local_runtimes.runtimes.tasks.base import Ask, TaskResult, TaskRow
from lfx_local_runtimes.runtimes.tasks.documents.pages import TextLine
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES, Image, Media

MAX_PICTURES = 64

Language = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z_-]{1,31}$", to_lower=True)]


@dataclass(frozen=True)
class RecognisedPicture:
    """The text of a picture. Places are pixels from the upper left corner of the upright picture."""

    width: int
    height: int
    text: str
    """The lines in reading order, each on a line of its own."""
    lines: tuple[TextLine, ...]
    """In reading order: from top to bottom, one column after the other."""
    turned: bool = False
    """The picture was upside down, although its EXIF orientation does not say so."""
    drawing: Media | None = None
    """The upright picture with the lines' boxes, as a PNG, if it was asked for."""


@dataclass(frozen=True)
class OcrResult(TaskResult):
    """For each picture its text."""

    images: tuple[RecognisedPicture, ...]


class OcrAsk(Ask[OcrResult]):
    """Pictures to read."""

    task: ClassVar[str] = "ocr"
    images: tuple[Image, ...] = Field(min_length=1, max_length=MAX_PICTURES, description="The pictures to read.")
    languages: tuple[Language, ...] = Field(
        default=(), max_length=64,
        description="The languages of the text, as codes such as en or de. The request fails if the model does not read one.",
    )  # fmt: skip
    draw: bool = Field(default=False, description="Return each picture with the boxes of its lines, as a PNG.")


ROW = TaskRow(
    name="ocr", family="documents", ask=OcrAsk, result=OcrResult, path="ocr",
    summary="For each picture the lines of its text in reading order, with their boxes in pixels and how sure each is.",
    body_bytes=MEDIA_BODY_BYTES,
)  # fmt: skip
