"""OpenAI's API at its edges: unknown routes, other content types, full queues, values that other servers' clients send."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lfx_local_runtimes import errors, server
from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.routes.openai.bodies import UNLIMITED
from lfx_local_runtimes.routes.openai.task_bodies import EmbeddingsBody, RerankBody
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.settings import Settings
from tests.routes_app import KEY, MODEL, Stage, make_app

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"model": MODEL, "messages": MESSAGES, "max_tokens": 1},
    "/completions": {"model": MODEL, "prompt": "hi"},
    "/responses": {"model": MODEL, "input": "hi", "max_output_tokens": 1},
    "/embeddings": {"model": MODEL, "input": "hi"},
}
every_path = pytest.mark.parametrize("path", BODIES)


@pytest.fixture
def client(manager: RuntimeManager) -> Iterator[TestClient]:
    app = make_app(manager)
    with TestClient(app, base_url=f"http://test{PREFIX}/v1", headers=KEY, raise_server_exceptions=False) as client:
        yield client


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


def test_the_description_says_what_embeddings_and_rerank_refuse() -> None:
    documents = RerankBody.model_json_schema()
    field = documents["properties"]["documents"]
    assert (field["minItems"], field["maxItems"]) == (1, 2048)
    assert documents["$defs"]["Document"]["required"] == ["text"]
    text, texts, ids, lists = EmbeddingsBody.model_json_schema()["properties"]["input"]["anyOf"]
    assert (text["minLength"], texts["items"]["minLength"]) == (1, 1)
    assert (texts["minItems"], ids["minItems"], lists["minItems"]) == (1, 1, 1)


# -- routes, methods, content types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [("GET", "/nowhere"), ("POST", "/audio/speech"), ("DELETE", "/files/a")])
def test_an_unknown_route_is_told_in_openais_form(client: TestClient, method: str, path: str) -> None:
    error = error_of(client.request(method, path), 404)
    assert (error["type"], error["code"]) == ("invalid_request_error", "unknown_url")
    assert f"{method} /v1{path}" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", "/completions", "POST"), ("DELETE", f"/models/{MODEL}", "GET")]
)
def test_a_wrong_method_is_told_in_openais_form(client: TestClient, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == allowed


def test_a_line_break_in_a_path_is_told_in_openais_form(client: TestClient) -> None:
    """Starlette's own convertor does not match one, and the framework would answer."""
    assert "model_name" in error_of(client.get("/models/a%0Ab"), 400)["message"]
    assert error_of(client.get("/nowhere%0A"), 404)["code"] == "unknown_url"


def test_an_unknown_route_asks_for_the_key_too(client: TestClient) -> None:
    assert error_of(client.get("/nowhere", headers={"x-api-key": "no"}), 403)["code"] == "invalid_api_key"


@every_path
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream"])
def test_a_body_of_another_type_is_told_so(client: TestClient, path: str, kind: str) -> None:
    response = client.post(path, content=json.dumps(BODIES[path]), headers={"content-type": kind})
    error = error_of(response, 400)
    assert kind in error["message"]
    assert "content-type: application/json" in error["message"]


def test_a_native_body_of_another_type_is_told_so(manager: RuntimeManager) -> None:
    with TestClient(make_app(manager), base_url=f"http://test{PREFIX}", headers=KEY) as client:
        response = client.post("/generate", content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code == 422
    assert "application/json" in response.json()["error"]["hint"]


@pytest.mark.parametrize("prefix", [f"{PREFIX}/v1/chat/completions", f"{PREFIX}/generate"])
def test_a_full_queue_says_when_to_come_back(manager: RuntimeManager, stage: Stage, prefix: str) -> None:
    stage.serve_fault = errors.QueueFull("Too many wait.")
    body = {"model": MODEL, "model_name": MODEL, "messages": MESSAGES}
    if prefix.endswith("generate"):
        del body["model"]
    with TestClient(make_app(manager), headers=KEY) as client:
        response = client.post(
            prefix, json={k: v for k, v in body.items() if "v1/chat" not in prefix or k != "model_name"}
        )
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1


# -- values ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields", "name", "value"),
    [
        ("/chat/completions", {"top_k": -1}, "top_k", 0),
        ("/completions", {"top_k": -1}, "top_k", 0),
        ("/responses", {"top_k": -1}, "top_k", 0),
        ("/chat/completions", {"max_tokens": -1}, "max_tokens", UNLIMITED),
        ("/chat/completions", {"max_tokens": None, "max_completion_tokens": -1}, "max_tokens", UNLIMITED),
        ("/completions", {"max_tokens": -1}, "max_tokens", UNLIMITED),
        ("/responses", {"max_output_tokens": -1}, "max_tokens", UNLIMITED),
    ],
)
def test_minus_one_is_no_limit(
    manager: RuntimeManager, stage: Stage, path: str, fields: dict[str, Any], name: str, value: int
) -> None:
    from lfx_local_runtimes.runtimes.requests import Finished
    from tests.routes_app import a_result

    stage.events = [Finished(a_result())]
    with TestClient(make_app(manager), base_url=f"http://test{PREFIX}/v1", headers=KEY) as client:
        response = client.post(path, json=BODIES[path] | fields)
    assert response.status_code == 200, response.text
    assert getattr(stage.requests[-1].ask, name) == value


@pytest.mark.parametrize("fields", [{"max_tokens": 0}, {"max_tokens": -2}, {"top_k": -2}])
def test_other_numbers_below_one_are_refused(client: TestClient, fields: dict[str, Any]) -> None:
    assert error_of(client.post("/completions", json=BODIES["/completions"] | fields), 400)["param"] == next(
        iter(fields)
    )


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/completions", {"prompt": [True, False]}),
        ("/completions", {"prompt": [[1, 2], [3, True]]}),
        ("/embeddings", {"input": [True, False]}),
        ("/embeddings", {"input": [[1, True]]}),
    ],
)
def test_booleans_are_no_token_ids(client: TestClient, stage: Stage, path: str, fields: dict[str, Any]) -> None:
    error_of(client.post(path, json=BODIES[path] | fields), 400)
    assert not stage.requests


# -- the standalone server: hosts and origins ------------------------------------------------------------------------------


def standalone(manager: RuntimeManager, key: str | None = None, **settings: Any) -> TestClient:
    read = Settings(home=manager.settings.home, **settings)
    app = server.create_app(manager, key, allowed_hosts=read.allowed_hosts, cors_origins=read.cors_origins)
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.mark.parametrize("headers", [{"host": "[::1"}, {"host": "a[b]"}, {"origin": "http://[::1"}, {"origin": "null"}])
def test_a_broken_host_or_origin_is_refused(manager: RuntimeManager, headers: dict[str, str]) -> None:
    error = error_of(standalone(manager).get("/v1/models", headers=headers), 403)
    assert error["code"] == "invalid_api_key"


def test_another_host_is_let_in_by_the_setting(manager: RuntimeManager) -> None:
    container = {"host": "host.docker.internal:11540"}
    refused = standalone(manager).get("/v1/models", headers=container)
    assert "LOCAL_RUNTIMES_ALLOWED_HOSTS" in error_of(refused, 403)["message"]
    client = standalone(manager, allowed_hosts="host.docker.internal, other")
    assert client.get("/v1/models", headers=container).status_code == 200
    assert client.get("/v1/models", headers={"host": "HOST.docker.internal"}).status_code == 200
    assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403


PAGE = "https://app.example"


def test_pages_of_other_origins_are_let_in_by_the_setting(manager: RuntimeManager) -> None:
    asks = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    closed = standalone(manager)
    assert closed.options("/v1/chat/completions", headers=asks).status_code >= 400
    assert closed.get("/v1/models", headers={"origin": PAGE}).status_code == 403

    opened = standalone(manager, cors_origins=PAGE)
    preflight = opened.options("/v1/chat/completions", headers=asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    answer = opened.get("/v1/models", headers={"origin": PAGE})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    assert opened.get("/v1/models", headers={"origin": "https://evil.example"}).status_code == 403


def test_every_origin_needs_a_key(manager: RuntimeManager) -> None:
    keyless = standalone(manager, cors_origins="*")
    assert keyless.get("/v1/models", headers={"origin": PAGE}).status_code == 403
    keyed = standalone(manager, "secret", cors_origins="*")
    answer = keyed.get("/v1/models", headers={"origin": PAGE, "authorization": "Bearer secret"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
