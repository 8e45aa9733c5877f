"""Every row of the REST contract that is not about streaming, and every fault as its status and envelope."""

import asyncio
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lfx_local_runtimes import errors
from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.routes.faults import STATUS, status_of
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES
from tests.routes_app import KEY, Exchange, Stage, make_app, make_manager, write_model

TIMING = ("execution_time", "time_to_first_token")


@pytest.fixture
def manager(stage: Stage, models: Path) -> Iterator[RuntimeManager]:
    """It knows no model yet."""
    manager = make_manager(stage, models)
    yield manager
    manager.close()


@pytest.fixture
def app(manager: RuntimeManager) -> FastAPI:
    return make_app(manager)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://test" + PREFIX, headers=KEY, raise_server_exceptions=False) as client:
        yield client


def body_of(models: Path, name: str = "tiny", **fields: Any) -> dict[str, Any]:
    return {"model_id": str(models / "tiny"), "model_name": name, "runtime_type": "puppet", **fields}


@pytest.fixture
def registered(client: TestClient, models: Path) -> str:
    assert client.post("/models/register", json=body_of(models, "org/tiny, the first")).status_code == 201
    return "org/tiny, the first"


def error_of(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "model_name", "hint"}
    assert body["error"]["code"] == code
    return body["error"]


# -- registering ---------------------------------------------------------------------------------------------------------


def test_register_is_created_then_there_then_in_conflict(client: TestClient, models: Path) -> None:
    first = client.post("/models/register", json=body_of(models))
    again = client.post("/models/register", json=body_of(models))
    other = client.post("/models/register", json=body_of(models, context_length=64))

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["state"] == "registered"
    assert first.json()["format"] == "safetensors"
    assert error_of(other, 409, "model_conflict")["model_name"] == "tiny"


def test_a_registration_is_replaced(client: TestClient, models: Path) -> None:
    client.post("/models/register", json=body_of(models))
    conflict = client.post("/models/register", json=body_of(models, context_length=64))
    assert "PUT models/tiny" in error_of(conflict, 409, "model_conflict")["hint"]

    replaced = client.put("/models/tiny", json=body_of(models, context_length=64))
    assert (replaced.status_code, replaced.json()["context_length"]) == (200, 64)
    new = client.put("/models/org/new", json=body_of(models, "org/new"))
    assert (new.status_code, new.json()["model_name"]) == (201, "org/new")
    nameless = {"model_id": str(models / "tiny"), "context_length": 32}
    assert client.put("/models/tiny", json=nameless).json()["context_length"] == 32
    client.put("/models/tiny", json={**nameless, "context_length": 64})

    other_name = client.put("/models/tiny", json=body_of(models, "org/new"))
    assert "org/new in the body" in error_of(other_name, 422, "invalid_input")["message"]
    outside = {"model_id": "/etc", "model_name": "tiny"}
    error_of(client.put("/models/tiny", json=outside), 403, "path_not_allowed")
    assert client.get("/models/tiny").json()["context_length"] == 64


def test_a_registration_is_removed(client: TestClient, registered: str, models: Path) -> None:
    client.post("/models/load", params={"model_name": registered})
    removed = client.delete(f"/models/{registered}")
    assert removed.json() == {"model_name": registered, "unregistered": True, "freed_mb": 0.0}
    assert client.get("/status").json()["models"] == []
    error_of(client.get(f"/models/{registered}"), 404, "model_not_found")
    error_of(client.delete(f"/models/{registered}"), 404, "model_not_found")
    assert (models / "tiny" / "model.safetensors").is_file()


def test_a_model_in_use_is_changed_by_force_only(
    client: TestClient, registered: str, stage: Stage, models: Path
) -> None:
    body = body_of(models, registered, context_length=64)
    with stage.held(), client.websocket_connect(f"{PREFIX}/generate/ws", headers=KEY) as socket:
        socket.send_json({"model_name": registered, "prompt": "hi", "max_tokens": 5})
        assert socket.receive_json()["event"] in ("progress", "token")
        for busy in (client.put(f"/models/{registered}", json=body), client.delete(f"/models/{registered}")):
            assert "force" in error_of(busy, 409, "model_busy")["hint"]
        assert client.put(f"/models/{registered}?force=true", json=body).status_code == 200
        while (last := socket.receive_json())["event"] not in ("done", "error"):
            pass
        assert last["finish_reason"] == "cancelled"


@pytest.mark.parametrize("place", ["/etc", "{root}/../outside", "{root}/escape"])
def test_a_path_outside_the_model_roots_is_refused(client: TestClient, models: Path, place: str) -> None:
    outside = models.parent / "outside"
    write_model(outside)
    (models / "escape").symlink_to(outside)

    response = client.post("/models/register", json={"model_id": place.format(root=models), "model_name": "x"})

    error_of(response, 403, "path_not_allowed")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_name", "n" * 201), ("model_name", "nul\x00"), ("model_name", ""), ("model_id", "i" * 1025),
        ("context_length", 3), ("device_type", "abacus"), ("quantization", "int3"), ("surprise", 1),
    ],
)  # fmt: skip
def test_invalid_input_names_the_field(client: TestClient, models: Path, field: str, value: object) -> None:
    error = error_of(client.post("/models/register", json=body_of(models) | {field: value}), 422, "invalid_input")
    assert error["message"].startswith(f"{field}: ")


def test_an_unknown_engine_is_invalid_input(client: TestClient, models: Path) -> None:
    error = error_of(client.post("/models/register", json=body_of(models, runtime_type="abacus")), 422, "invalid_input")
    assert "abacus" in error["message"]
    assert "puppet" in error["message"]


# -- loading and unloading -----------------------------------------------------------------------------------------------


def test_load_and_unload_wait_for_the_state(client: TestClient, registered: str) -> None:
    loaded = client.post("/models/load", params={"model_name": registered})
    assert loaded.status_code == 200
    assert (loaded.json()["state"], loaded.json()["engine"], loaded.json()["pid"]) == ("ready", "puppet", os.getpid())

    unloaded = client.post("/models/unload", params={"model_name": registered})
    assert unloaded.json()["state"] == "registered"


def test_a_name_that_a_middleware_split_at_its_comma_is_whole_again(client: TestClient, registered: str) -> None:
    first, _, second = registered.partition(",")
    assert client.post("/models/load", params={"model_name": [first, second]}).json()["model_name"] == registered


def test_unload_of_a_model_in_use_needs_force(client: TestClient, registered: str, stage: Stage) -> None:
    with stage.held(), client.websocket_connect(f"{PREFIX}/generate/ws", headers=KEY) as socket:
        socket.send_json({"model_name": registered, "prompt": "hi", "max_tokens": 5})
        assert socket.receive_json()["event"] in ("progress", "token")
        error_of(client.post("/models/unload", params={"model_name": registered}), 409, "model_busy")

        forced = client.post("/models/unload", params={"model_name": registered, "force": "true"})

        assert forced.json()["state"] == "registered"
        while (last := socket.receive_json())["event"] not in ("done", "error"):
            pass
        assert last["finish_reason"] == "cancelled"


def test_unload_all_answers_at_once_and_spares_what_is_in_use(
    client: TestClient, registered: str, models: Path, stage: Stage
) -> None:
    client.post("/models/register", json=body_of(models, "idle"))
    client.post("/models/load", params={"model_name": "idle"})
    with stage.held(), client.websocket_connect(f"{PREFIX}/generate/ws", headers=KEY) as socket:
        socket.send_json({"model_name": registered, "prompt": "hi"})
        while socket.receive_json()["event"] != "token":
            pass
        response = client.post("/unload-all")
        assert response.status_code == 202
        assert response.json() == {"unloading": ["idle"], "in_use": [registered]}
        stage.wait_until(lambda: [row["model_name"] for row in client.get("/status").json()["models"]] == [registered])

        assert client.post("/unload-all?force=true").json() == {"unloading": [registered], "in_use": []}
        stage.wait_until(lambda: client.get("/status").json()["models"] == [])


def test_loads_that_fail_say_why(client: TestClient, registered: str, stage: Stage) -> None:
    stage.load_fault = OSError("the disk is on fire")
    error = error_of(client.post("/models/load", params={"model_name": registered}), 500, "load_failed")
    assert "the disk is on fire" in error["message"]
    assert client.get(f"/models/{registered}").json()["state"] == "failed"


# -- looking -------------------------------------------------------------------------------------------------------------


def test_models_and_one_model(client: TestClient, registered: str) -> None:
    rows = {row["model_name"]: row for row in client.get("/models").json()["models"]}
    assert rows["tiny"]["source"] == "folder"
    assert rows[registered]["source"] == "registered"
    assert client.get(f"/models/{registered}").json() == rows[registered]
    error_of(client.get("/models/nobody"), 404, "model_not_found")


def test_validate_reports_on_the_files(client: TestClient, registered: str, models: Path) -> None:
    report = client.get(f"/models/{registered}/validate").json()
    assert report["valid"], report["problems"]
    assert (report["format"], report["files"]) == ("safetensors", ["model.safetensors"])

    assert (report["task"], report["unsupported"]) == ("llm", None)

    (models / "tiny" / "config.json").write_text('{"architectures": ["WhisperModel"]}')
    other = client.get(f"/models/{registered}/validate").json()
    assert (other["task"], other["engine"]) == ("unsupported", None)
    assert other["unsupported"] == "nothing here serves WhisperModel"

    (models / "tiny" / "model.safetensors").write_bytes(b"\xff" * 64)
    broken = client.get(f"/models/{registered}/validate").json()
    assert not broken["valid"]
    assert broken["problems"]
    assert report["message"] == f"{registered} can be loaded: safetensors, by transformers."
    assert broken["message"] == f"{registered} cannot be loaded: {'; '.join(broken['problems'])}."


def test_the_name_may_be_in_the_path(client: TestClient, registered: str) -> None:
    client.post("/models/load", params={"model_name": registered})
    assert client.get(f"/models/status/{registered}").json()["state"] == "ready"
    assert client.post(f"/models/unload/{registered}").json()["state"] == "registered"
    error_of(client.get("/models/status/nobody"), 404, "model_not_found")
    error_of(client.post("/models/unload/nobody"), 404, "model_not_found")


def test_threads_count_until_the_model_leaves(client: TestClient, registered: str, manager: RuntimeManager) -> None:
    def threads() -> int | None:
        slot = manager._residency.find(registered)
        assert slot is not None
        assert slot.runtime is not None
        return slot.runtime.config.threads

    load = {"model_name": registered.upper(), "threads": 3}
    assert client.post("/models/load", params=load).json()["model_name"] == registered
    assert threads() == 3
    assert client.post("/models/load", params=load).status_code == 200
    conflict = error_of(client.post("/models/load", params={**load, "threads": 2}), 409, "model_conflict")
    assert "Unload it first" in conflict["hint"]
    client.post("/models/unload", params={"model_name": registered})
    client.post("/models/load", params={"model_name": registered})
    assert threads() is None
    assert (
        "threads"
        in error_of(client.post("/models/load", params={**load, "threads": 0}), 422, "invalid_input")["message"]
    )


def test_inference_takes_the_models_own_task(client: TestClient, registered: str) -> None:
    body = {"model": registered, "options": {"prompt": "hi", "max_tokens": 2}}
    answer = client.post("/inference", json=body).json()
    assert answer["result"]["text"] == "t0 t1 "
    assert (answer["meta"]["task"], answer["meta"]["engine"]) == ("llm", "puppet")
    error_of(client.post("/inference", json={**body, "model": "nobody"}), 404, "model_not_found")


@pytest.mark.parametrize("name", ["..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "nul%00", "n" * 1100, "%20", "a%0Ab"])
@pytest.mark.parametrize("suffix", ["", "/validate"])
def test_hostile_names_are_refused(client: TestClient, name: str, suffix: str) -> None:
    response = client.get(f"/models/{name}{suffix}")
    assert response.status_code in (403, 404, 422), response.text
    assert response.json()["error"]["code"]
    assert "root:" not in response.text


def test_validate_says_why_nothing_serves_a_model(client: TestClient, manager: RuntimeManager) -> None:
    folder = manager.settings.model_roots[0] / "painter"
    write_model(folder)
    (folder / "config.json").write_text('{"architectures": ["ViTMAEModel"], "model_type": "vit_mae"}')
    report = client.get("/models/painter/validate").json()
    assert report["message"] == "painter cannot be loaded: nothing here serves ViTMAEModel."
    assert (report["task"], report["engine"]) == ("unsupported", None)


def test_health_stats_and_status(client: TestClient, registered: str) -> None:
    client.post("/models/load", params={"model_name": registered})

    health = client.get("/health").json()
    assert health["status"] == "healthy"
    assert health["loaded_models"] == 1
    assert health["models"][registered]["status"] == "ready"
    assert set(health["models"][registered]) == {
        "status", "device", "memory_used_mb", "pid", "uptime_s", "restarts",
    }  # fmt: skip

    stats = client.get("/stats").json()
    assert (stats["counters"]["loads"], stats["pid"]) == (1, os.getpid())
    assert stats["uptime_s"] >= 0

    (row,) = client.get("/status").json()["models"]
    assert (row["engine"], row["format"], row["state"]) == ("puppet", "safetensors", "ready")


def test_health_leaves_out_a_model_that_goes_while_it_is_asked(
    client: TestClient, manager: RuntimeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "loaded_models", lambda: ["org/gone", "/etc/passwd"])
    for path in ("/health", "/status"):
        assert client.get(path).status_code == 200
    assert client.get("/health").json()["models"] == {}


# -- generating ----------------------------------------------------------------------------------------------------------


def test_generate_returns_the_result(client: TestClient, registered: str) -> None:
    result = client.post(
        "/generate", json={"model_name": registered, "prompt": "one two", "raw": True, "max_tokens": 3}
    ).json()
    assert (result["metadata"]["engine"], result["metadata"]["device"]) == ("puppet", "cpu")
    assert {key: value for key, value in result.items() if key not in (*TIMING, "metadata")} == {
        "text": "t0 t1 t2 ", "model_name": registered, "tokens_generated": 3, "prompt_tokens": 2, "finish_reason": "length",
        "reasoning": None, "tool_calls": [], "logprobs": None,
    }  # fmt: skip


def test_generate_takes_messages(client: TestClient, registered: str, stage: Stage) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hé\u2028"}]
    client.post("/generate", json={"model_name": registered, "messages": messages, "max_tokens": 1, "temperature": 0})
    config = stage.requests[-1].ask
    assert [turn.model_dump(exclude_unset=True) for turn in config.messages or ()] == messages
    assert config.temperature == 0
    assert type(config).__name__ == "GenerationConfig"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "give exactly one of prompt, prompt_ids and messages"),
        ({"prompt": "hi", "temperature": -1}, "temperature: "),
        ({"prompt": "hi", "temprature": 1}, "temprature: "),
        ({"prompt": "hi", "request_id": "no/slash"}, "request_id: "),
        ({"prompt": "\ud800"}, "prompt: "),
        ({"prompt": "hi", "\ud800": 1}, "unicode"),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/generate/stream"])
def test_invalid_requests_name_the_field(
    client: TestClient, registered: str, path: str, fields: dict[str, Any], says: str
) -> None:
    content = json.dumps({"model_name": registered, **fields})
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    assert says in error_of(response, 422, "invalid_input")["message"]


@pytest.mark.parametrize("content", [b"{", b"[" * 200_000, b"\xff", b"", b"[]", b"null"])
def test_what_is_not_a_json_object_is_invalid_input(client: TestClient, content: bytes) -> None:
    response = client.post("/generate", content=content, headers={"content-type": "application/json"})
    error_of(response, 422, "invalid_input")


@pytest.mark.parametrize("path", ["/generate", "/generate/stream"])
def test_an_unknown_model_is_404_before_any_stream(client: TestClient, path: str) -> None:
    error_of(client.post(path, json={"model_name": "nobody", "prompt": "hi"}), 404, "model_not_found")


def test_an_engine_that_fails_is_500_with_the_reason(client: TestClient, registered: str, stage: Stage) -> None:
    stage.serve_fault = ZeroDivisionError("by zero")
    response = client.post("/generate", json={"model_name": registered, "prompt": "hi"})
    assert "by zero" in error_of(response, 500, "engine_failure")["message"]


async def test_a_client_that_leaves_ends_the_computation(manager: RuntimeManager, models: Path, stage: Stage) -> None:
    manager.register_model(ModelConfig.model_validate(body_of(models, "held")))
    app = make_app(manager, layers=3)
    with stage.held():
        exchange = Exchange(app, "/generate", json.dumps({"model_name": "held", "prompt": "hi"}).encode())
        request = await stage.serving()
        exchange.leave()
        await exchange.ended
        await asyncio.to_thread(stage.wait_until, lambda: request.state.value == "cancelled")


def test_cancel_says_what_state_it_was_in(client: TestClient, registered: str, stage: Stage) -> None:
    with stage.held(), client.websocket_connect(f"{PREFIX}/generate/ws", headers=KEY) as socket:
        socket.send_json({"model_name": registered, "prompt": "hi", "request_id": "mine"})
        while socket.receive_json()["event"] != "token":
            pass
        assert client.post("/requests/mine/cancel").json() == {"request_id": "mine", "state": "running"}
        assert socket.receive_json()["finish_reason"] == "cancelled"
    error_of(client.post("/requests/mine/cancel"), 404, "request_not_found")


# -- bodies --------------------------------------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_refused(client: TestClient) -> None:
    response = client.post("/generate", json={"model_name": "tiny", "prompt": "x" * MEDIA_BODY_BYTES})
    error_of(response, 413, "body_too_large")


async def test_a_chunked_body_over_the_limit_is_refused_while_it_comes(app: FastAPI) -> None:
    exchange = Exchange(app, "/generate", *[b"x" * 2**23] * 20)
    assert await exchange.start() == 413
    assert (await exchange.json())["error"]["code"] == "body_too_large"
    await exchange.ended
    assert exchange.unread > 5


# -- faults --------------------------------------------------------------------------------------------------------------

EXPECTED = {
    errors.InvalidInput: 422, errors.ContextOverflow: 422, errors.TemplateFault: 422, errors.InvalidModelFile: 422,
    errors.WrongTask: 422, errors.RequestCancelled: 499,
    errors.ModelNotFound: 404, errors.RequestNotFound: 404, errors.ModelConflict: 409, errors.ModelBusy: 409,
    errors.QueueFull: 429, errors.DoesNotFit: 507, errors.NotAllowed: 403, errors.PathNotAllowed: 403, errors.PickleRefused: 403,
    errors.RemoteCodeRefused: 403, errors.MissingExtra: 501, errors.DeviceUnavailable: 422, errors.DownloadFailed: 502,
    errors.Offline: 404, errors.NotDownloaded: 404, errors.DownloadNotFound: 404, errors.DiskFull: 507,
    errors.DownloadTooLarge: 403, errors.EngineFailure: 500, errors.LoadFailed: 500, errors.EngineDied: 503, errors.DeviceFailed: 503, errors.SettingsFault: 500, RuntimeFault: 500,
}  # fmt: skip


def all_faults(kind: type[RuntimeFault] = RuntimeFault) -> Iterator[type[RuntimeFault]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from all_faults(child)


@pytest.mark.parametrize("kind", all_faults(), ids=lambda kind: kind.__name__)
def test_every_fault_has_its_status_and_envelope(
    client: TestClient, registered: str, stage: Stage, kind: type[RuntimeFault]
) -> None:
    stage.serve_fault = kind("It went wrong.", hint="Try this.")
    response = client.post("/generate", json={"model_name": registered, "prompt": "hi"})
    error = error_of(response, EXPECTED[kind], kind.code)
    assert error == {"code": kind.code, "message": "It went wrong.", "model_name": registered, "hint": "Try this."}


def test_a_fault_of_somebody_elses_engine_has_its_bases_status() -> None:
    class Overheated(errors.ModelBusy):
        code = "overheated"

    assert status_of(Overheated("too hot")) == STATUS[errors.ModelBusy]


def test_what_nobody_foresaw_is_500_with_its_reason_and_a_log(
    client: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: RuntimeManager) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(RuntimeManager, "list_models", broken)
    assert "a bug" in error_of(client.get("/models"), 500, "engine_failure")["message"]
    assert "a bug" in caplog.text


# -- the application -----------------------------------------------------------------------------------------------------

CONTRACT = {
    ("POST", "/models/register"), ("POST", "/models/load"), ("POST", "/models/unload"), ("GET", "/models"),
    ("GET", "/models/{model_name}"), ("GET", "/models/{model_name}/validate"), ("POST", "/generate"),
    ("POST", "/generate/stream"), ("POST", "/requests/{request_id}/cancel"), ("GET", "/health"), ("GET", "/stats"),
    ("POST", "/models/unload/{model_name}"), ("GET", "/models/status/{model_name}"), ("POST", "/inference"),
    ("GET", "/status"), ("POST", "/unload-all"), ("POST", "/embed"), ("POST", "/rerank"), ("POST", "/classify"), ("POST", "/ner"),
    ("POST", "/ocr"), ("POST", "/documents/read"),
    ("POST", "/vision/classify"), ("POST", "/vision/clip"), ("POST", "/vision/detect"), ("POST", "/vision/depth"),
    ("POST", "/vision/segment"), ("POST", "/multimodal/caption"), ("POST", "/multimodal/vqa"),
    ("GET", "/models/{model_name}/code"), ("POST", "/models/{model_name}/trust"), ("DELETE", "/models/{model_name}/trust"),
    ("PUT", "/models/{model_name}"), ("DELETE", "/models/{model_name}"), ("DELETE", "/models/{model_name}/files"),
    ("POST", "/downloads"), ("GET", "/downloads"), ("GET", "/downloads/{download_id}"), ("DELETE", "/downloads/{download_id}"),
    ("POST", "/downloads/{download_id}/pause"), ("POST", "/downloads/{download_id}/resume"),
}  # fmt: skip


def test_openapi_describes_the_contract(app: FastAPI) -> None:
    schema = app.openapi()
    described = {
        (method.upper(), path.removeprefix(PREFIX)): operation
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
        if not path.startswith(f"{PREFIX}/v1/")  # test_openai_routes.py
    }
    assert set(described) == CONTRACT
    for operation in described.values():
        assert operation["tags"] == ["Local Runtimes"]
        assert operation["description"]
        assert operation["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorEnvelope")
    generate = schema["components"]["schemas"]["GenerateBody"]["properties"]
    assert {"model_name", "prompt", "messages", "max_tokens", "min_p", "request_id"} <= set(generate)
    stream = described["POST", "/generate/stream"]
    assert list(stream["responses"]["200"]["content"]) == ["text/event-stream"]
    load = described["POST", "/models/load"]
    assert [parameter["name"] for parameter in load["parameters"]] == ["threads", "model_name", "x-api-key"]


@pytest.mark.parametrize(("method", "path"), sorted(CONTRACT))
def test_every_route_asks_who_is_there(client: TestClient, stage: Stage, method: str, path: str) -> None:
    body = {"model_name": "tiny", "prompt": "hi", "model_id": "x", "model": "tiny"}
    response = client.request(
        method,
        path.replace("{", "").replace("}", ""),
        json=body,
        params={"model_name": "tiny"},
        headers={"x-api-key": "no"},
    )
    assert response.status_code == 403
    assert response.json() == {"detail": "no key"}
    assert not stage.requests


REPORTS = ("ModelStatus", "ModelReport", "DownloadStatus")


def test_every_field_that_a_client_sends_is_described(app: FastAPI) -> None:
    api = app.openapi()
    schemas = api["components"]["schemas"]
    bodies = [
        body for operations in api["paths"].values() for one in operations.values() if (body := one.get("requestBody"))
    ]
    found: set[str] = set()
    waiting = [*map(json.dumps, bodies), *(json.dumps({"$ref": f"#/components/schemas/{name}"}) for name in REPORTS)]
    while waiting:
        for name in set(re.findall(r'"#/components/schemas/(\w+)"', waiting.pop())) - found:
            found.add(name)
            waiting.append(json.dumps(schemas[name]))
    assert len(found) > 30
    silent = [
        f"{name}.{field}"
        for name in found
        for field, about in schemas[name].get("properties", {}).items()
        if "description" not in about
    ]
    assert silent == []
    for path, operations in api["paths"].items():
        for one in operations.values():
            fields = [
                field for field in one.get("parameters", ()) if field["in"] != "header"
            ]  # that is the key of these tests
            assert all("description" in field for field in fields), path
