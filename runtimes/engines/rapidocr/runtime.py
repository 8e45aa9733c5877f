"""Text in pictures and documents, in a process of its own: every parser and decoder runs here."""

from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from typing import Any

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.base import Inbox, LoadContext
from lfx_local_runtimes.runtimes.batching import BatchingRuntime
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.host import physical_cores, release_memory
from lfx_local_runtimes.runtimes.engines.rapidocr.files import OpenDocument, open_document
from lfx_local_runtimes.runtimes.engines.rapidocr.picture import drawn, pixels_of, recognised_picture
from lfx_local_runtimes.runtimes.engines.rapidocr.recognition import Recogniser
from lfx_local_runtimes.runtimes.engines.registry import engine_row
from lfx_local_runtimes.runtimes.formats.pp_ocr import pp_ocr_of
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Finished, Progress, Request
from lfx_local_runtimes.runtimes.tasks.documents.document import DocumentAsk, DocumentResult, Page, PageDelta
from lfx_local_runtimes.runtimes.tasks.documents.ocr import OcrAsk, OcrResult
from lfx_local_runtimes.runtimes.tasks.documents.pages import MAX_PAGES, selected_pages

MAX_CHARACTERS = 20_000_000
"""Of all pages of one result."""
MAX_DRAWN = 50
"""Pages of one request that are returned as pictures."""

Steps = Generator[None, None, None]


class RapidOcrRuntime(BatchingRuntime):
    """A PP-OCR model. It reads a page of each request in turn, so that a long document holds nobody up."""

    engine = "rapidocr"

    def __init__(self, config: ModelConfig, plan: LoadPlan | None = None) -> None:
        super().__init__(config, plan)
        self._recogniser: Recogniser | None = None

    @property
    def tasks(self) -> frozenset[str]:
        """Both can be asked for, whichever one the model is registered for."""
        return frozenset({"ocr", "document"})

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        model = pp_ocr_of(plan.info.onnx)
        assert model is not None  # else there would be no offer
        self._recogniser = Recogniser(model, self.config.threads or physical_cores(), self.config.model_name)

    def _close(self) -> None:
        self._recogniser = None
        release_memory()

    def _measure(self) -> dict[str, int]:
        """As estimated: most of it is taken by a page, and only while it is recognised."""
        assert self._plan is not None
        device = self._plan.device.key
        return {device: self._plan.memory[device] + engine_row(self.engine).overhead}

    def _rest(self) -> None:
        super()._rest()
        release_memory()  # else a process keeps what its largest page took

    def _work(self, inbox: Inbox) -> None:
        self._batch_work(inbox, Turns(self._read, self._answering))

    def _prepare(self, request: Request[Any]) -> Request[Any]:
        """There is nothing to prepare: a page is decoded when its turn comes, so only one is in memory."""
        return request

    def _read(self, request: Request[Any]) -> Steps:
        """Serve a request, a page at each step."""
        assert self._recogniser is not None
        self._recogniser.check_languages(request.ask.languages)
        return self._pictures(request) if request.task == OcrAsk.task else self._document(request)

    def _about(self) -> dict[str, Any]:
        assert self._plan is not None
        assert self._recogniser is not None
        return {
            "engine": self.engine, "engine_version": self._recogniser.version, "device": self._plan.device.key,
            "dtype": self._plan.dtype, "warnings": list(self.warnings),
        }  # fmt: skip

    def _pictures(self, request: Request[OcrAsk]) -> Steps:
        assert self._recogniser is not None
        found = []
        for index, image in enumerate(request.ask.images):
            pixels = pixels_of(image, f"images.{index}")
            found.append(recognised_picture(pixels, self._recogniser, draw=request.ask.draw))
            yield
        request.emit(Finished(OcrResult(self.config.model_name, self._about(), tuple(found))))

    def _document(self, request: Request[DocumentAsk]) -> Steps:
        assert self._recogniser is not None
        ask = request.ask
        with closing(open_document(ask, self._recogniser, drawn if ask.draw else None)) as document:
            numbers = _numbers(ask, document)
            found: list[Page] = []
            characters = 0
            for index, number in enumerate(numbers):
                request.emit(Progress("read", index, len(numbers)))
                yield
                page = document.page(number)
                characters += len(page.text)
                if characters > MAX_CHARACTERS:
                    raise InvalidInput(
                        f"{ask.name} has more than {MAX_CHARACTERS:,} letters up to page {number:,}.",
                        hint="Ask for fewer pages at once.",
                    )
                found.append(page)
                request.emit(PageDelta((page,), len(numbers)))
            name, kind, count = ask.name, document.kind, document.page_count
        request.emit(Finished(DocumentResult(self.config.model_name, self._about(), name, kind, count, tuple(found))))


def _numbers(ask: DocumentAsk, document: OpenDocument) -> list[int]:
    """The pages to read.

    Raises:
        InvalidInput: the document does not have one, or they are too many for one request.
    """
    count = document.page_count
    try:
        numbers = selected_pages(ask.pages, count)
    except ValueError as error:
        raise InvalidInput(
            f"{ask.name} has {count:,} pages, and {error}.", hint="Ask for pages that it has."
        ) from error
    limit = MAX_DRAWN if ask.draw else MAX_PAGES
    if len(numbers) > limit:
        pictures = " with pictures" if ask.draw else ""
        raise InvalidInput(
            f"{ask.name}: {len(numbers):,} pages are asked for; one request reads {limit:,}{pictures}.",
            hint=f"Ask for a part with pages, such as 1-{limit}.",
        )
    return numbers


class Turns:
    """Requests that are served a step at a time, in turn.

    Args:
        serve: the steps of a request; after the last one it has its result.
        answering: what goes wrong inside fails the request.
    """

    def __init__(
        self, serve: Callable[[Request[Any]], Steps],
        answering: Callable[..., AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        self._serve, self._answering = serve, answering
        self._jobs: deque[tuple[Request[Any], Steps | None]] = deque()

    @property
    def busy(self) -> bool:
        """Something is left to do."""
        return bool(self._jobs)

    def add(self, request: Request[Any]) -> None:
        """Queue a request."""
        self._jobs.append((request, None))

    def step(self) -> None:
        """One step of the request whose turn it is. A fault of the request ends only that."""
        request, steps = self._jobs.popleft()
        if request.cancelled:
            if steps is not None:
                steps.close()
            request.emit(request.empty())
            return
        with self._answering(request):
            if steps is None:
                if not request.start():
                    return
                steps = self._serve(request)
            for _ in steps:
                self._jobs.append((request, steps))
                break
