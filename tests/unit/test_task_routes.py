"""Embed, rerank, classify and ner, native and OpenAI's, over a manager that answers what the test says."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fastapi.testclient import TestClient

from lfx_local_runtimes import errors
from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.routes.faults import MAX_BODY_BYTES
from lfx_local_runtimes.routes.tasks.bodies import MAX_INPUTS
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.requests import Failed, Finished, Request, RequestState, Run
from lfx_local_runtimes.runtimes.tasks.base import Ask
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES
from lfx_local_runtimes.runtimes.tasks.text.classification import ClassificationAsk, ClassificationResult, Label
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk, EmbeddingResult
from lfx_local_runtimes.runtimes.tasks.text.ner import Entity, NerAsk, NerResult
from lfx_local_runtimes.runtimes.tasks.text.rerank import Ranked, RerankAsk, RerankResult
from lfx_local_runtimes.runtimes.tasks.text.zero_shot import ZeroShotAsk, ZeroShotResult
from tests.routes_app import (
    KEY,
    MODEL,
    PATIENCE_S,
    Exchange,
    Stage,
    layers,
    make_app,
    make_manager,
    register_puppet,
)

ABOUT = {"engine": "fake", "device": "cpu", "dtype": "fp32", "tokens": 7, "truncated": {1: 3}}
TOLD = ABOUT | {"truncated": {"1": 3}}
VECTORS = np.array([[0.5, -0.25], [1.0, 0.1]], np.float32)
LABELS = ((Label("good", 0.75), Label("bad", 0.25)),)
RESULTS: dict[str, Any] = {
    "embedding": EmbeddingResult(MODEL, ABOUT, VECTORS),
    "rerank": RerankResult(MODEL, ABOUT, (Ranked(1, 0.9), Ranked(0, 0.1))),
    "classification": ClassificationResult(MODEL, ABOUT, LABELS),
    "zero_shot": ZeroShotResult(MODEL, ABOUT, LABELS),
    "ner": NerResult(MODEL, ABOUT, ((Entity("LOC", "Paris", 3, 8, 0.5),),)),
}

NATIVE: dict[str, dict[str, Any]] = {
    "/embed": {"model_name": MODEL, "texts": ["a", "b"]},
    "/rerank": {"model_name": MODEL, "query": "q", "documents": ["a", "b"]},
    "/classify": {"model_name": MODEL, "texts": ["a"]},
    "/ner": {"model_name": MODEL, "texts": ["In Paris"]},
}
OPENAI: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"model": MODEL, "input": ["a", "b"]},
    "/v1/rerank": {"model": MODEL, "query": "q", "documents": ["a", "b"]},
    "/v1/classify": {"model": MODEL, "texts": ["a"]},
    "/v1/ner": {"model": MODEL, "texts": ["In Paris"]},
}
BODIES = NATIVE | OPENAI
INPUTS = {path: "documents" if "rerank" in path else "texts" for path in BODIES} | {"/v1/embeddings": "input"}
every_route = pytest.mark.parametrize("path", BODIES)
every_native_route = pytest.mark.parametrize("path", NATIVE)
every_openai_route = pytest.mark.parametrize("path", OPENAI)


class FakeManager:
    """Answers every task with its result, with a fault, or not at all."""

    def __init__(self) -> None:
        self.fault: RuntimeFault | None = None
        self.silent = False
        self.requests: list[Request[Any]] = []
        self.started = threading.Event()

    def start(self, model_name: str, ask: Ask[Any], *, request_id: str | None = None) -> Run[Any, Any]:
        request = Request(model_name, ask, request_id)
        self.requests.append(request)
        if self.fault is not None:
            request.emit(Failed(self.fault))
        elif not self.silent:
            request.emit(Finished(RESULTS[ask.task]))
        self.started.set()
        return Run(request)

    def cancel(self, request_id: str) -> RequestState:
        (request,) = (request for request in self.requests if request.id == request_id)
        return request.cancel()

    @property
    def ask(self) -> Any:
        """What the last request asked."""
        return self.requests[-1].ask


@pytest.fixture
def fake() -> FakeManager:
    return FakeManager()


@pytest.fixture
def manager(fake: FakeManager) -> RuntimeManager:
    return cast("RuntimeManager", fake)


@pytest.fixture
def client(manager: RuntimeManager) -> Iterator[TestClient]:
    """It answers with a 500 what nobody foresaw."""
    app = make_app(manager)
    with TestClient(app, base_url="http://test" + PREFIX, headers=KEY, raise_server_exceptions=False) as client:
        yield client


def native_error(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"code", "message", "model_name", "hint"}
    assert error["code"] == code
    return error


def openai_error(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


def told(response: Any) -> dict[str, Any]:
    """The answer without the times, which differ."""
    answer: dict[str, Any] = response.json()
    assert answer["metadata"].pop("timeline_ms")["ended"] >= 0
    return answer


# -- native answers ------------------------------------------------------------------------------------------------------


def test_embed(client: TestClient, fake: FakeManager) -> None:
    fields = {"prompt": "query", "dimensions": 2, "normalize": False, "overflow": "chunk", "keep_alive": 5}
    body = NATIVE["/embed"] | {"texts": ["a", [1, 2]], "request_id": "mine", **fields}
    response = client.post("/embed", json=body)

    assert told(response) == {"model_name": MODEL, "vectors": VECTORS.tolist(), "metadata": TOLD}
    assert isinstance(fake.ask, EmbeddingAsk)
    assert fake.ask.texts == ("a", (1, 2))
    assert {name: getattr(fake.ask, name) for name in fields} == fields
    assert (fake.requests[0].id, fake.requests[0].task, fake.requests[0].ask.keep_alive) == ("mine", "embedding", 5)


def test_rerank(client: TestClient, fake: FakeManager) -> None:
    response = client.post("/rerank", json=NATIVE["/rerank"] | {"top_n": 2})

    ranking = [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.1}]
    assert told(response) == {"model_name": MODEL, "metadata": TOLD, "ranking": ranking}
    assert isinstance(fake.ask, RerankAsk)
    assert (fake.ask.query, fake.ask.documents, fake.ask.top_n) == ("q", ("a", "b"), 2)


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_classify_by_the_models_labels_or_by_those_given(client: TestClient, fake: FakeManager, path: str) -> None:
    answer = {
        "model_name": MODEL,
        "metadata": TOLD,
        "labels": [[{"label": "good", "score": 0.75}, {"label": "bad", "score": 0.25}]],
    }

    assert told(client.post(path, json=BODIES[path] | {"top_k": 2, "multi_label": True})) == answer
    assert isinstance(fake.ask, ClassificationAsk)
    assert (fake.ask.top_k, fake.ask.multi_label) == (2, True)

    given = {"labels": ["good", "bad"], "hypothesis": "It is {}.", "multi_label": True}
    assert told(client.post(path, json=BODIES[path] | given)) == answer
    assert isinstance(fake.ask, ZeroShotAsk)
    assert (fake.ask.labels, fake.ask.hypothesis, fake.ask.multi_label) == (("good", "bad"), "It is {}.", True)
    assert fake.requests[-1].task == "zero_shot"


@pytest.mark.parametrize("path", ["/ner", "/v1/ner"])
def test_ner(client: TestClient, fake: FakeManager, path: str) -> None:
    response = client.post(path, json=BODIES[path] | {"min_score": 0.5})

    entity = {"label": "LOC", "text": "Paris", "start": 3, "end": 8, "score": 0.5}
    assert told(response) == {"model_name": MODEL, "metadata": TOLD, "entities": [[entity]]}
    assert isinstance(fake.ask, NerAsk)
    assert (fake.ask.texts, fake.ask.min_score) == (("In Paris",), 0.5)


# -- OpenAI's answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "texts"),
    [("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1, 2], [3]], ((1, 2), (3,)))],
)
def test_embeddings_take_text_and_token_ids_alone_and_in_lists(
    client: TestClient, fake: FakeManager, given: object, texts: object
) -> None:
    response = client.post("/v1/embeddings", json={"model": MODEL, "input": given, "who_knows": 1})

    assert response.json() == {
        "object": "list",
        "model": MODEL,
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(VECTORS.tolist())
        ],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
        "truncated": {"1": 3},
    }
    assert fake.ask.texts == texts


def test_embeddings_in_base64_are_little_endian_floats(client: TestClient) -> None:
    response = client.post("/v1/embeddings", json=OPENAI["/v1/embeddings"] | {"encoding_format": "base64"})

    rows = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in response.json()["data"]]
    assert np.array_equal(rows, VECTORS)


def test_embeddings_take_our_own_options_too(client: TestClient, fake: FakeManager) -> None:
    fields = {"dimensions": 2, "prompt": "query: ", "normalize": True, "overflow": "error", "keep_alive": 0}
    client.post("/v1/embeddings", json=OPENAI["/v1/embeddings"] | fields)

    assert {name: getattr(fake.ask, name) for name in fields} == fields
    assert fake.requests[-1].ask.keep_alive == 0


def test_nothing_is_said_of_cuts_where_there_are_none(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = EmbeddingResult(MODEL, ABOUT | {"truncated": {}}, VECTORS)
    monkeypatch.setitem(RESULTS, "embedding", whole)

    assert "truncated" not in client.post("/v1/embeddings", json=OPENAI["/v1/embeddings"]).json()


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
def test_openai_refuses_what_is_too_long_unless_told_not_to(client: TestClient, fake: FakeManager, path: str) -> None:
    assert client.post(path, json=OPENAI[path]).status_code == 200
    assert fake.ask.overflow == "error"
    client.post(path, json=OPENAI[path] | {"overflow": "truncate"})
    assert fake.ask.overflow == "truncate"


def test_the_native_routes_cut_what_is_too_long(client: TestClient, fake: FakeManager) -> None:
    assert client.post("/embed", json=NATIVE["/embed"]).status_code == 200
    assert fake.ask.overflow == "truncate"


def test_warnings_are_told_in_openais_answers_too(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESULTS, "embedding", EmbeddingResult(MODEL, ABOUT | {"warnings": ["beware"]}, VECTORS))
    assert client.post("/v1/embeddings", json=OPENAI["/v1/embeddings"]).json()["warnings"] == ["beware"]


def test_openai_rerank_repeats_the_documents_unless_told_not_to(client: TestClient, fake: FakeManager) -> None:
    body = OPENAI["/v1/rerank"] | {"documents": ["a", {"text": "b"}], "top_n": 2, "max_chunks_per_doc": 1}
    response = client.post("/v1/rerank", json=body, headers={"x-request-id": "mine"})
    bare = client.post("/v1/rerank", json=body | {"return_documents": False})

    assert response.json() == {
        "id": "rerank-mine",
        "object": "list",
        "model": MODEL,
        "results": [
            {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}},
            {"index": 0, "relevance_score": 0.1, "document": {"text": "a"}},
        ],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
        "truncated": {"1": 3},
    }
    assert bare.json()["results"] == [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]
    assert (fake.ask.documents, fake.ask.top_n) == (("a", "b"), 2)


@every_openai_route
def test_an_openai_request_has_the_id_of_its_header(client: TestClient, fake: FakeManager, path: str) -> None:
    response = client.post(path, json=OPENAI[path], headers={"x-request-id": "mine"})

    assert response.headers["x-request-id"] == fake.requests[-1].id == "mine"


# -- limits --------------------------------------------------------------------------------------------------------------


@every_route
def test_so_many_inputs_and_no_more(client: TestClient, path: str) -> None:
    field = INPUTS[path]
    assert client.post(path, json=BODIES[path] | {field: ["a"] * MAX_INPUTS}).status_code == 200

    response = client.post(path, json=BODIES[path] | {field: ["a"] * (MAX_INPUTS + 1)})

    assert response.json()["error"]["message"].startswith(f"{field}: 2,049 inputs; the limit of one request is 2,048")


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_every_text_with_every_label_counts(client: TestClient, path: str) -> None:
    few, many = ({"texts": ["a"] * 64, "labels": [f"l{index}" for index in range(count)]} for count in (32, 33))
    assert client.post(path, json=BODIES[path] | few).status_code == 200

    response = client.post(path, json=BODIES[path] | many)

    assert response.json()["error"]["message"].startswith("labels: 2,112 text–label pairs")


WRONG = [
    ("/embed", "texts", []), ("/embed", "texts", [""]), ("/embed", "texts", [[]]), ("/embed", "texts", ["a", 5]),
    ("/embed", "texts", None), ("/embed", "texts", "a"), ("/embed", "dimensions", 0), ("/embed", "prompt", 5),
    ("/embed", "overflow", "explode"), ("/embed", "keep_alive", -2), ("/embed", "surprise", 1),
    ("/embed", "model_name", ""), ("/embed", "request_id", "a b"),
    ("/rerank", "query", ""), ("/rerank", "documents", []), ("/rerank", "documents", ["a", ""]),
    ("/rerank", "top_n", 0), ("/rerank", "overflow", "chunk"), ("/rerank", "surprise", 1),
    ("/classify", "texts", []), ("/classify", "top_k", 0), ("/classify", "hypothesis", "It is {}."),
    ("/classify", "labels", []), ("/classify", "labels", ["a", "a"]), ("/classify", "labels", "good"),
    ("/ner", "texts", [""]), ("/ner", "min_score", 2), ("/ner", "labels", ["LOC"]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "field", "value"), WRONG)
def test_invalid_input_names_the_field(
    client: TestClient, fake: FakeManager, path: str, field: str, value: object
) -> None:
    error = native_error(client.post(path, json=NATIVE[path] | {field: value}), 422, "invalid_input")

    assert error["message"].startswith(field)
    assert not fake.requests


OPENAI_WRONG = [
    ("/v1/embeddings", "input", []), ("/v1/embeddings", "input", ""), ("/v1/embeddings", "input", ["a", ""]),
    ("/v1/embeddings", "input", [[]]), ("/v1/embeddings", "input", [1, "a"]), ("/v1/embeddings", "input", None),
    ("/v1/embeddings", "input", {"text": "a"}), ("/v1/embeddings", "encoding_format", "hex"),
    ("/v1/embeddings", "dimensions", 0), ("/v1/embeddings", "model", ""),
    ("/v1/rerank", "documents", [{"image": "a"}]), ("/v1/rerank", "documents", "a"), ("/v1/rerank", "query", ""),
    ("/v1/rerank", "top_n", 0), ("/v1/classify", "texts", []), ("/v1/classify", "labels", []),
    ("/v1/ner", "texts", [5]), ("/v1/ner", "model", None),
]  # fmt: skip


@pytest.mark.parametrize(("path", "field", "value"), OPENAI_WRONG)
def test_openai_invalid_input_names_the_field(
    client: TestClient, fake: FakeManager, path: str, field: str, value: object
) -> None:
    error = openai_error(client.post(path, json=OPENAI[path] | {field: value}), 400, "invalid_input")

    assert error["param"].partition(".")[0] == field
    assert error["type"] == "invalid_request_error"
    assert not fake.requests


@every_route
def test_a_missing_model_is_named(client: TestClient, path: str) -> None:
    field = "model_name" if path in NATIVE else "model"
    body = {name: value for name, value in BODIES[path].items() if name != field}

    assert client.post(path, json=body).json()["error"]["message"].startswith(f"{field}: ")


@every_route
def test_a_body_that_is_too_large_is_refused(client: TestClient, path: str) -> None:
    limit = MEDIA_BODY_BYTES if "embed" in path else MAX_BODY_BYTES  # pictures have vectors too
    response = client.post(path, content=b" " * (limit + 1), headers={"content-type": "application/json"})

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


@every_route
@pytest.mark.parametrize("content", [b"{", b"[]", b"5", b"null"])
def test_what_is_no_object_is_refused(client: TestClient, path: str, content: bytes) -> None:
    response = client.post(path, content=content, headers={"content-type": "application/json"})

    assert response.status_code == (422 if path in NATIVE else 400)
    assert response.json()["error"]["code"] == "invalid_input"


@every_route
def test_a_caller_without_a_key_is_refused(client: TestClient, fake: FakeManager, path: str) -> None:
    assert client.post(path, json=BODIES[path], headers={"x-api-key": "wrong"}).status_code == 403
    assert not fake.requests


# -- faults --------------------------------------------------------------------------------------------------------------

FAULTS = [
    (errors.WrongTask(f"{MODEL} does llm, not ner.", model_name=MODEL, hint="Use another model."), 422, 400),
    (errors.InvalidInput("dimensions 9 is more than the 2 the model has."), 422, 400),
    (errors.ContextOverflow("Input 0 has 9 tokens, the model reads 5."), 422, 400),
    (errors.RequestCancelled.of("mine"), 499, 499),
    (errors.ModelNotFound("nobody"), 404, 404),
    (errors.QueueFull("too many"), 429, 429),
    (errors.DoesNotFit("too large"), 507, 507),
    (errors.EngineFailure("not numbers"), 500, 500),
]


@every_native_route
@pytest.mark.parametrize(("fault", "status", "_"), FAULTS)
def test_a_fault_has_its_status(
    client: TestClient, fake: FakeManager, path: str, fault: RuntimeFault, status: int, _: int
) -> None:
    fake.fault = fault

    error = native_error(client.post(path, json=NATIVE[path]), status, fault.code)

    assert error["message"] == fault.message


@every_openai_route
@pytest.mark.parametrize(("fault", "_", "status"), FAULTS)
def test_a_fault_has_its_status_for_openai(
    client: TestClient, fake: FakeManager, path: str, fault: RuntimeFault, _: int, status: int
) -> None:
    fake.fault = fault
    code = {"context_overflow": "context_length_exceeded"}.get(fault.code, fault.code)

    error = openai_error(client.post(path, json=OPENAI[path]), status, code)

    assert fault.message in error["message"]


@every_route
def test_a_model_that_writes_text_does_nothing_else(path: str, stage: Stage, models: Path) -> None:
    manager = make_manager(stage, models)
    register_puppet(manager, models / "tiny")
    try:
        with TestClient(make_app(manager), base_url="http://test" + PREFIX, headers=KEY) as client:
            response = client.post(path, json=BODIES[path])
    finally:
        manager.close()

    assert response.status_code == (422 if path in NATIVE else 400)
    assert response.json()["error"]["code"] == "wrong_task"


# -- leaving and cancelling ----------------------------------------------------------------------------------------------


@every_route
@layers
async def test_a_client_that_leaves_ends_the_computation(
    fake: FakeManager, manager: RuntimeManager, path: str, layers: int
) -> None:
    fake.silent = True
    exchange = Exchange(make_app(manager, layers), path, json.dumps(BODIES[path]).encode())
    assert await asyncio.to_thread(fake.started.wait, PATIENCE_S)
    ended = threading.Event()
    fake.requests[0].on_end(ended.set)

    exchange.leave()

    assert await asyncio.to_thread(ended.wait, PATIENCE_S)
    assert fake.requests[0].state is RequestState.CANCELLED
    await asyncio.wait([exchange.ended], timeout=PATIENCE_S)
    assert exchange.ended.done()


@every_route
async def test_a_request_is_cancelled_by_its_id(fake: FakeManager, manager: RuntimeManager, path: str) -> None:
    fake.silent = True
    app, body = make_app(manager), BODIES[path]
    if path in NATIVE:
        exchange = Exchange(app, path, json.dumps(body | {"request_id": "mine"}).encode())
    else:
        exchange = Exchange(app, path, json.dumps(body).encode(), headers={"x-request-id": "mine"})
    assert await asyncio.to_thread(fake.started.wait, PATIENCE_S)

    cancelled = Exchange(app, "/requests/mine/cancel", b"")

    assert await cancelled.start() == 200
    assert await cancelled.json() == {"request_id": "mine", "state": "queued"}
    assert await exchange.start() == 499
    assert (await exchange.json())["error"]["code"] == "cancelled"


def test_the_description_has_both_bodies_of_classify_and_what_input_may_be(manager: RuntimeManager) -> None:
    schema = make_app(manager).openapi()
    classify = schema["paths"][f"{PREFIX}/classify"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    given = schema["components"]["schemas"]["EmbeddingsBody"]["properties"]["input"]["anyOf"]

    assert [one["$ref"].rpartition("/")[2] for one in classify["anyOf"]] == ["ClassificationBody", "ZeroShotBody"]
    assert [one["type"] for one in given] == ["string", "array", "array", "array"]


# -- inference -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "options", "row"),
    [
        ("embedding", {"texts": ["a", "b"]}, "embedding"),
        ("embed", {"texts": ["a", "b"]}, "embedding"),
        ("feature-extraction", {"texts": ["a", "b"]}, "embedding"),
        ("rerank", {"query": "q", "documents": ["a", "b"]}, "rerank"),
        ("text-classification", {"texts": ["a"]}, "classification"),
        ("classify", {"texts": ["a"], "labels": ["x", "y"]}, "zero_shot"),
        ("Zero-Shot", {"texts": ["a"], "labels": ["x", "y"]}, "zero_shot"),
        ("token-classification", {"texts": ["In Paris"]}, "ner"),
    ],
)
def test_inference_serves_every_task(
    client: TestClient, fake: FakeManager, task: str, options: dict[str, Any], row: str
) -> None:
    answer = client.post("/inference", json={"model": MODEL, "task": task, "options": options, "request_id": "mine"})
    assert answer.status_code == 200, answer.text
    assert fake.ask.task == row
    path = {"embedding": "/embed", "rerank": "/rerank", "ner": "/ner"}.get(row, "/classify")
    own = client.post(path, json={"model_name": MODEL, **options}).json()
    about = own.pop("metadata")
    about["timeline_ms"] = answer.json()["meta"]["timeline_ms"]
    assert answer.json()["meta"] == {"model": own.pop("model_name"), "task": row, "request_id": "mine", **about}
    assert answer.json()["result"] == own


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"task": "juggling"}, "wrong_task", "juggling"),
        ({"task": "embedding"}, "invalid_input", "options.texts: Field required"),
        ({"task": "ner", "options": {"texts": ["a"], "surprise": 1}}, "invalid_input", "options.surprise: "),
        ({"task": "embed", "options": {"texts": ["a"] * (MAX_INPUTS + 1)}}, "invalid_input", "options.texts: 2,049"),
        ({"task": "ner", "options": {"texts": ["a"]}, "stream": True}, "unsupported_parameter", "stream"),
        ({"task": "ner", "surprise": 1}, "invalid_input", "surprise: "),
    ],
)
def test_inference_says_what_is_wrong(
    client: TestClient, fake: FakeManager, fields: dict[str, Any], code: str, says: str
) -> None:
    error = native_error(client.post("/inference", json={"model": MODEL, **fields}), 422, code)
    assert says in error["message"]
    assert not fake.requests


def test_an_unknown_task_is_refused_with_the_list(client: TestClient) -> None:
    error = native_error(client.post("/inference", json={"model": MODEL, "task": "juggling"}), 422, "wrong_task")
    assert all(name in error["hint"] for name in ("llm", "embedding", "rerank", "classification", "zero_shot", "ner"))
