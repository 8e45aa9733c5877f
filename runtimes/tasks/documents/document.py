"""Documents: a file becomes text, Markdown and tables, page by page."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from lfx_local_runtimes.runtimes.tasks.base import Ask, Delta, TaskResult, TaskRow
from lfx_local_runtimes.runtimes.tasks.documents.file import DocumentFile
from lfx_local_runtimes.runtimes.tasks.documents.ocr import Language
from lfx_local_runtimes.runtimes.tasks.documents.pages import MAX_PAGES, SELECTION, Table, TextLine, check_selection
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES, Media

Kind = Literal["pdf", "docx", "pptx", "picture"]


@dataclass(frozen=True)
class Page:
    """A page of a document."""

    number: int
    """From 1."""
    source: Literal["text", "recognised"]
    """text: the page's own text. recognised: the page is a picture, and a model has read it."""
    text: str
    """The lines in reading order. The cells of a table's row are on one line, with tabs between them."""
    markdown: str
    """The same with headings, lists and tables. The lines of a paragraph are joined."""
    lines: tuple[TextLine, ...] = ()
    """In reading order."""
    tables: tuple[Table, ...] = ()
    width: float | None = None
    height: float | None = None
    unit: Literal["points", "pixels"] = "points"
    """Of the width, the height and the boxes. A point is 1/72 inch."""
    turned: bool = False
    """The page was upside down. Places are those of the upright page."""
    drawing: Media | None = None
    """The page with the boxes of its lines and tables, as a PNG, if it was asked for."""


@dataclass(frozen=True)
class PageDelta(Delta):
    """Pages that were read. `total` is the number of pages that are to be read in all."""

    pages: tuple[Page, ...]
    total: int

    def merged(self, later: Delta) -> "PageDelta | None":
        """Both as one: the pages in order."""
        return PageDelta(self.pages + later.pages, self.total) if isinstance(later, PageDelta) else None


@dataclass(frozen=True)
class DocumentResult(TaskResult):
    """The pages that were asked for, in order."""

    name: str
    kind: Kind
    page_count: int
    """Pages of the document."""
    pages: tuple[Page, ...]

    @property
    def markdown(self) -> str:
        """All pages as one text."""
        return "\n\n".join(page.markdown for page in self.pages if page.markdown)


class DocumentAsk(Ask[DocumentResult]):
    """A document to read."""

    task: ClassVar[str] = "document"
    file: DocumentFile = Field(description="A PDF, a DOCX, a PPTX or a picture.")
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255, pattern=r"\S")] = Field(
        default="document", description="The file's name, for messages. Unset: that of its path or its URL."
    )
    pages: Annotated[str, StringConstraints(max_length=1000), AfterValidator(check_selection)] | None = Field(
        default=None,
        description=f"The pages to read, such as 1-3, 7, 10-. Unset: all. One request reads {MAX_PAGES:,} pages at most.",
        json_schema_extra={"pattern": SELECTION},
    )
    languages: tuple[Language, ...] = Field(
        default=(), max_length=64,
        description="The languages of scanned pages, as codes such as en or de. The request fails if the model does not read "
        "one.",
    )  # fmt: skip
    draw: bool = Field(default=False, description="Return each page with its boxes, as a PNG. Not for office files.")

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_source(cls, fields: Any) -> Any:
        """A file that is named by its path or its URL has a name."""
        file = fields.get("file") if isinstance(fields, dict) else None
        if not isinstance(file, dict) or fields.get("name") is not None:
            return fields
        path, url = file.get("path"), file.get("url")
        named = (
            path if isinstance(path, str) else urlsplit(url).path if isinstance(url, str) and url[:4] == "http" else ""
        )
        name = PurePath(named).name.strip()[-255:]
        return {**fields, "name": name} if name else fields


ROW = TaskRow(
    name="document", family="documents", ask=DocumentAsk, result=DocumentResult, delta=PageDelta, path="documents/read",
    summary="A PDF, DOCX, PPTX or picture as text, page by page: lines with boxes in reading order, Markdown, tables. Pages "
    "with text of their own are read; scanned pages are recognised.",
    body_bytes=MEDIA_BODY_BYTES,
)  # fmt: skip
