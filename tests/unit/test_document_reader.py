"""Document Reader, the routes of documents, and how requests take turns; over a scripted model."""

import contextlib
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from lfx.components.processing.split_text import SplitTextComponent
from lfx.graph.graph.base import Graph
from lfx.graph.vertex import param_handler
from lfx.schema.data import Data
from lfx.schema.message import Message

from lfx_local_runtimes.components.local_runtimes.document_reader import DocumentReaderComponent
from lfx_local_runtimes.errors import InvalidInput, NotAllowed, PathNotAllowed, RequestCancelled, RuntimeFault
from lfx_local_runtimes.flows.build import FOLDER
from lfx_local_runtimes.nodes.waiting import Pace
from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager, ScriptedRuntime, register_engine
from lfx_local_runtimes.runtimes.engines.rapidocr.runtime import Turns
from lfx_local_runtimes.runtimes.requests import Failed, Finished, Progress, Request
from lfx_local_runtimes.runtimes.tasks.documents.document import DocumentAsk, DocumentResult, Page, PageDelta
from lfx_local_runtimes.runtimes.tasks.documents.pages import Table, TextLine
from lfx_local_runtimes.runtimes.tasks.media import Media
from lfx_local_runtimes.settings import Settings
from tests.documents import WORDS, save_pdf, text_page
from tests.routes_app import KEY, frames_of, make_app, parse_event, write_model

PDF = save_pdf([text_page(WORDS)])
FARES = Table((("Route", "Price"), ("Fenna", "11"), ("Ostrey", "12")))


def page(number: int) -> Page:
    return Page(
        number,
        "text",
        f"page {number}",
        f"# Page {number}",
        (TextLine(f"page {number}"),),
        (FARES,) if number == 1 else (),
    )


class Reader(ScriptedRuntime):
    """Reads two pages of every document."""

    asks: list[DocumentAsk] = []  # noqa: RUF012 - one list for the test, which empties it

    @property
    def tasks(self) -> frozenset[str]:
        return frozenset({"ocr", "document"})

    def _serve(self, request: Request[Any]) -> None:
        ask = request.ask
        self.asks.append(ask)
        if ask.name == "broken.pdf":
            raise InvalidInput("broken.pdf is damaged.")
        for number in (1, 2):
            request.emit(Progress("read", number - 1, 2))
            request.emit(PageDelta((page(number),), 2))
        about = {"engine": self.engine, "device": "cpu"}
        request.emit(Finished(DocumentResult(self.config.model_name, about, ask.name, "pdf", 2, (page(1), page(2)))))


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeManager]:
    write_model(tmp_path / "models" / "reader")
    register_engine("scripted", lambda config, plan: Reader(config, plan))  # a lambda: it stays in this process
    settings = Settings(home=tmp_path / "home", model_dirs=(tmp_path / "models",), media_dirs=(tmp_path,), offline=True)
    made = RuntimeManager(settings)
    model = str(tmp_path / "models" / "reader")
    made.register_model(ModelConfig(model_id=model, model_name="reader", model_type="ocr", runtime_type="scripted"))
    monkeypatch.setattr("lfx_local_runtimes.runtimes.manager._shared", made)
    monkeypatch.setattr("lfx_local_runtimes.nodes.documents.get_settings", lambda: settings)
    (tmp_path / "may.pdf").write_bytes(PDF)
    Reader.asks.clear()
    yield made
    made.close()


def node(**options: Any) -> Any:
    return DocumentReaderComponent(**{"model_name": "reader", **options})


# -- the node ------------------------------------------------------------------------------------------------------------


async def test_a_file_becomes_markdown_pages_and_tables_in_one_run(manager: RuntimeManager) -> None:
    made = node(path="may.pdf", pages="1-2", languages=["en"])
    assert (await made.document()).text == "# Page 1\n\n# Page 2"
    first, second = await made.page_data()
    assert first.text == "# Page 1"
    assert (first.data["file"], first.data["page"], first.data["pages"]) == ("may.pdf", 1, 2)
    assert second.data["page"] == 2
    rows = (await made.tables()).to_dict(orient="records")
    assert rows[0] == {"file": "may.pdf", "page": 1, "table": 1, "Route": "Fenna", "Price": "11"}
    assert made.status == "2 pages"
    (ask,) = Reader.asks
    assert (ask.name, ask.pages, ask.languages) == ("may.pdf", "1-2", ("en",))
    assert isinstance(ask.file, Media)
    assert ask.file.data == PDF


async def test_the_pages_feed_split_text(manager: RuntimeManager) -> None:
    pages = await node(path="may.pdf").page_data()
    chunks = SplitTextComponent(data_inputs=pages, separator="\n\n", chunk_size=50, chunk_overlap=0).split_text()
    assert list(chunks["text"]) == ["# Page 1", "# Page 2"]
    assert list(chunks["page"]) == [1, 2]


async def test_the_files_of_a_message_come_before_the_path(
    manager: RuntimeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfx_local_runtimes.nodes.files.enforce_local_file_access", lambda path, scope_ids: path)
    monkeypatch.setattr("lfx_local_runtimes.nodes.files.get_file_size", lambda path: Path(path).stat().st_size)
    message = Message(text="read", files=[str(tmp_path / "may.pdf")])
    data = Data(data={"file_path": str(tmp_path / "may.pdf")})
    assert len(await node(path="june.pdf", message=[message, data]).read()) == 2
    assert [ask.name for ask in Reader.asks] == ["may.pdf", "may.pdf"]


async def test_a_file_that_langflow_protects_is_not_read(manager: RuntimeManager, tmp_path: Path) -> None:
    with pytest.raises(NotAllowed, match=r"may\.pdf.*LOCAL_RUNTIMES_MEDIA_DIRS"):
        await node(files=[str(tmp_path / "may.pdf")]).document()
    assert Reader.asks == []


def test_langflow_takes_several_files_where_it_does_not_know_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `lfx run`, with its protection of local files."""
    flow = json.loads((FOLDER / "invoice_to_json.json").read_text(encoding="utf-8"))
    (reader,) = [node for node in flow["data"]["nodes"] if node["id"] == "DocumentReader-invoice"]
    reader["data"]["node"]["template"]["files"]["file_path"] = ["flow/a.pdf", "flow/b.pdf"]
    monkeypatch.setattr(param_handler, "is_local_file_access_restricted", lambda: True)
    monkeypatch.setattr(param_handler, "enforce_local_file_access", lambda path, scope_ids: path)
    graph = Graph.from_payload(flow["data"])
    assert graph.get_vertex("DocumentReader-invoice").params["files"] == ["flow/a.pdf", "flow/b.pdf"]


async def test_a_path_outside_the_folders_is_refused(manager: RuntimeManager) -> None:
    with pytest.raises(PathNotAllowed, match="Path: /etc/hostname"):
        await node(path="/etc/hostname").document()


async def test_no_file_says_what_to_do(manager: RuntimeManager) -> None:
    with pytest.raises(InvalidInput, match="Upload one"):
        await node().document()


async def test_a_fault_names_the_file(manager: RuntimeManager, tmp_path: Path) -> None:
    (tmp_path / "broken.pdf").write_bytes(PDF)
    with pytest.raises(InvalidInput, match=r"broken\.pdf"):
        await node(path="broken.pdf").document()


def test_the_playground_shows_the_page() -> None:
    assert Pace().describe(Progress("read", 2, 12), "reader") == "Reading page 3 of 12"


# -- the routes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(manager: RuntimeManager) -> Iterator[TestClient]:
    with TestClient(make_app(manager), base_url="http://test" + PREFIX, headers=KEY) as client:
        yield client


@pytest.mark.parametrize(("path", "name"), [("/documents/read", "model_name"), ("/v1/documents/read", "model")])
def test_a_document_is_read_over_rest(client: TestClient, path: str, name: str) -> None:
    answer = client.post(path, json={name: "reader", "file": {"path": "may.pdf"}})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["name"], found["kind"], found["page_count"]) == ("may.pdf", "pdf", 2)
    assert [one["markdown"] for one in found["pages"]] == ["# Page 1", "# Page 2"]
    assert found["pages"][0]["tables"][0]["rows"][1] == ["Fenna", "11"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/documents/read", {"model_name": "reader", "file": {"path": "may.pdf"}, "stream": True}),
        ("/v1/documents/read", {"model": "reader", "file": {"path": "may.pdf"}, "stream": True}),
        (
            "/inference",
            {"model": "reader", "task": "document", "options": {"file": {"path": "may.pdf"}}, "stream": True},
        ),
    ],
)
def test_pages_are_streamed(client: TestClient, path: str, body: dict[str, Any]) -> None:
    answer = client.post(path, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [parse_event(frame) for frame in frames_of(answer.text) if not frame.startswith(":")]
    names = [name for name, _ in events]
    assert set(names[:-1]) == {"delta"}
    assert names[-1] == "done"
    pages = [one for name, data in events[:-1] for one in data["pages"]]
    assert [one["number"] for one in pages] == [1, 2]
    assert all(data["total"] == 2 and data["request_id"] for _, data in events[:-1])
    assert events[-1][1]["pages"] == pages


def test_a_fault_before_the_first_page_has_its_status(client: TestClient) -> None:
    body = {"model_name": "reader", "file": "aGVsbG8=", "name": "broken.pdf", "stream": True}
    client.post("/models/load?model_name=reader")
    answer = client.post("/documents/read", json=body)
    assert answer.status_code == 422
    assert "broken.pdf" in json.dumps(answer.json())


def test_a_task_without_deltas_does_not_stream(client: TestClient) -> None:
    body = {"model": "reader", "task": "ocr", "options": {"images": ["aGVsbG8="]}, "stream": True}
    answer = client.post("/inference", json=body)
    assert answer.status_code == 422
    assert "one piece" in answer.text


# -- turns ---------------------------------------------------------------------------------------------------------------


class Steps:
    """Requests of so many steps each, and the order in which the steps were done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.turns = Turns(self._serve, self._answering)

    def add(self, name: str, count: int) -> Request[Any]:
        request: Request[Any] = Request("reader", DocumentAsk(file=PDF, name=f"{count} {name}"))
        self.turns.add(request)
        return request

    def _serve(self, request: Request[Any]) -> Generator[None, None, None]:
        count, _, name = request.ask.name.partition(" ")
        try:
            for _ in range(int(count)):
                self.done.append(name)
                yield
            if name == "bad":
                raise InvalidInput("bad is bad.")
            request.emit(Finished(DocumentResult("reader", {}, name, "pdf", 0, ())))
        finally:
            self.done.append(f"{name} closed")

    @contextlib.contextmanager
    def _answering(self, *requests: Request[Any]) -> Iterator[None]:
        try:
            yield
        except RuntimeFault as fault:
            for request in requests:
                request.emit(Failed(fault))

    def run(self) -> None:
        while self.turns.busy:
            self.turns.step()


def test_a_short_document_does_not_wait_for_a_long_one() -> None:
    steps = Steps()
    steps.add("long", 3)
    short = steps.add("short", 1)
    steps.run()
    assert steps.done == ["long", "short", "long", "short closed", "long", "long closed"]
    assert short.ended


def test_a_fault_ends_only_its_own_request() -> None:
    steps = Steps()
    bad, good = steps.add("bad", 1), steps.add("good", 2)
    steps.run()
    assert isinstance(bad.channel.get(), Failed)
    assert isinstance(good.channel.get(), Finished)


def test_a_cancel_ends_between_two_pages_and_closes_the_file() -> None:
    steps = Steps()
    request, other = steps.add("long", 100), steps.add("other", 2)
    steps.turns.step()
    request.cancel()
    steps.run()
    assert steps.done == ["long", "other", "long closed", "other", "other closed"]
    event = request.channel.get()
    assert isinstance(event, Failed)
    assert isinstance(event.error, RequestCancelled)
    assert other.ended


def test_deltas_are_joined_in_order() -> None:
    joined = PageDelta((page(1),), 3).merged(PageDelta((page(2),), 3))
    assert joined == PageDelta((page(1), page(2)), 3)
