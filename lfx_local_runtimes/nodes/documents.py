"""The work behind Document Reader: files become text, Markdown and tables."""

import asyncio
import mimetypes
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, ClassVar

import lfx.custom  # noqa: F401 - before lfx.io, which cannot be imported first
from lfx.io import FileInput, Output
from lfx.schema.data import Data
from lfx.schema.dataframe import DataFrame
from lfx.schema.image import get_file_paths
from lfx.schema.message import Message

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.langchain.task_model import TaskModel
from lfx_local_runtimes.nodes.files import listed, read_stored
from lfx_local_runtimes.nodes.inputs import labels_of, value_of
from lfx_local_runtimes.nodes.reading import TaskBaseComponent
from lfx_local_runtimes.nodes.reports import Reporter
from lfx_local_runtimes.runtimes.media.sources import fetched
from lfx_local_runtimes.runtimes.tasks.documents.document import DocumentAsk, DocumentResult, Page
from lfx_local_runtimes.runtimes.tasks.documents.file import MAX_DOCUMENT_BYTES, document_source
from lfx_local_runtimes.runtimes.tasks.media import Media, Source
from lfx_local_runtimes.settings import get_settings

_ENDINGS = ("pdf", "docx", "pptx", "png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff")


def document_files_input() -> FileInput:
    """Files to read.

    It is not written in the node's own source: Langflow reads that source for file inputs if it does not know the node, as in
    `lfx run`, and then takes one file only.
    """
    return FileInput(
        name="files", display_name="Files", file_types=list(_ENDINGS), is_list=True,
        info="The documents to read: PDF, DOCX, PPTX or pictures.",
    )  # fmt: skip


class DocumentReaderBaseComponent(TaskBaseComponent):
    """The pages of documents. A run reads them once, for any number of connected outputs."""

    model_type = "ocr"
    outputs: ClassVar[list[Output]] = [
        Output(display_name="Document", name="document", method="document", group_outputs=True),
        Output(display_name="Pages", name="page_data", method="page_data", group_outputs=True),
        Output(display_name="Tables", name="tables", method="tables", group_outputs=True),
    ]

    async def document(self) -> Message:
        """The text of all files as Markdown."""
        results = await self.read()
        return Message(text="\n\n".join(result.markdown for result in results if result.markdown))

    async def page_data(self) -> list[Data]:
        """One Data per page: its Markdown as `text`, and where it is from."""
        return [_page_data(result, page) for result in await self.read() for page in result.pages]

    async def tables(self) -> DataFrame:
        """The rows of all tables. The first row of a table names the columns; `file`, `page` and `table` come first."""
        return DataFrame(
            [row for result in await self.read() for page in result.pages for row in _table_rows(result, page)]
        )

    async def read(self) -> list[DocumentResult]:
        """The documents of this run."""
        if self._result is None:
            files = await self._files()
            if not files:
                raise InvalidInput(
                    "There is no file to read.",
                    hint="Upload one to the node, name one in Path, or connect a message with files.",
                )
            model = self.task_model(TaskModel)
            languages = tuple(labels_of(self.languages))
            with Reporter(self, model.model) as model.observer:
                self._result = [
                    await model.ask_async(
                        DocumentAsk, file=media, name=name, pages=value_of(self.pages), languages=languages or None
                    )
                    for name, media in files
                ]
            read = sum(len(result.pages) for result in self._result)
            self.status = f"{read} page{'' if read == 1 else 's'}"
        found: list[DocumentResult] = self._result
        return found

    async def _files(self) -> list[tuple[str, Media | Source]]:
        """Names and contents: of the files of the node and of the message, or else of its path."""
        path = str(self.path or "").strip()
        if stored := [*listed(self.files), *_attached(self.message)]:
            return [await self._stored(path) for path in stored]
        if not path:
            return []
        source: Media | Source = document_source(path=path)
        return [(PurePath(path).name, await asyncio.to_thread(fetched, source, get_settings(), "Path"))]

    async def _stored(self, path: str) -> tuple[str, Media]:
        name = PurePath(path).name
        data = await read_stored(self, path, MAX_DOCUMENT_BYTES, "Divide the document.")
        return name, Media(mimetypes.guess_type(name)[0] or "application/octet-stream", data)


def _attached(value: Any) -> Iterable[str]:
    """The paths of the files of messages, and of data that has a `file_path`."""
    for item in listed(value):
        if isinstance(item, Message):
            yield from (str(path) for path in get_file_paths(item.files or []))
        elif isinstance(item, Data):
            if (path := item.data.get("file_path")) is not None:
                yield str(path)
        else:
            raise InvalidInput(f"{type(item).__name__} is neither a message nor data.", hint="Connect one of those.")


def _page_data(result: DocumentResult, page: Page) -> Data:
    about = {"file": result.name, "page": page.number, "pages": result.page_count, "source": page.source}
    tables = [[list(row) for row in table.rows] for table in page.tables]
    return Data(text=page.markdown, data={**about, **({"tables": tables} if tables else {})})


def _table_rows(result: DocumentResult, page: Page) -> Iterable[dict[str, Any]]:
    for number, table in enumerate(page.tables, 1):
        head, *rows = table.rows
        names = [name or f"column {index}" for index, name in enumerate(head, 1)]
        for row in rows:
            yield {"file": result.name, "page": page.number, "table": number, **dict(zip(names, row, strict=True))}
