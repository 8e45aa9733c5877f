"""The routes in a running Langflow, on the packaged Gemma."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import websockets
from websockets.asyncio.client import connect

from tests.langflow_server import LangflowServer
from tests.routes_app import parse_event
from tests.trusted_models import write_code

pytestmark = pytest.mark.integration

GEMMA = "gemma-3-270m"
PATIENCE_S = 60.0
PATHS, ROUTES = 54, 59
# Many times what a test reads of it: where it counts as cancelled, it did not run to its end.
LONG: dict[str, Any] = {
    "model_name": GEMMA,
    "prompt": "Once upon a time",
    "raw": True,
    "max_tokens": 2000,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def api(langflow_server: LangflowServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=langflow_server.runtime_url, headers=langflow_server.headers, timeout=120) as client:
        client.post("/unload-all").raise_for_status()  # what other files' tests have left
        wait_until(lambda: in_memory(client) == [])
        client.post("/models/load", params={"model_name": GEMMA}).raise_for_status()
        yield client


def wait_until(condition: Callable[[], bool]) -> None:
    """What happens in the server can only be asked for."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def leases(api: httpx.Client) -> int:
    return int(api.get(f"/models/{GEMMA}").raise_for_status().json()["leases"])


def in_memory(api: httpx.Client) -> list[str]:
    """The status also lists models whose load failed, with the reason."""
    rows = api.get("/status").raise_for_status().json()["models"]
    return [row["model_name"] for row in rows if row["state"] != "failed"]


def counters(api: httpx.Client) -> dict[str, int]:
    return dict(api.get("/stats").raise_for_status().json()["counters"])


LOOK = """
import json, sys
import fastapi, langflow.services.auth.utils, langflow.services.deps
before = set(sys.modules)
from lfx_local_runtimes.routes import register
app = fastapi.FastAPI()
register(app)
import lfx_local_runtimes.runtimes.manager as manager
print(json.dumps({
    "made_a_manager": manager._shared is not None, "paths": len(app.openapi()["paths"]),
    "imported": sorted({name.partition(".")[0] for name in set(sys.modules) - before}),
}))
"""


def test_register_starts_nothing_and_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=120, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["paths"] == PATHS
    assert not seen["made_a_manager"]
    assert not {"torch", "transformers", "llama_cpp", "accelerate", "gguf", "tokenizers"} & set(seen["imported"])


def test_without_a_key_every_route_is_closed(langflow_server: LangflowServer) -> None:
    with httpx.Client(base_url=langflow_server.base_url, timeout=60) as anyone:
        paths = anyone.get("/openapi.json").raise_for_status().json()["paths"]
        ours = [(method, path) for path in paths if "/v1/runtime/" in path for method in paths[path]]
        assert len(ours) == ROUTES
        body = LONG | {"model_id": "x"}
        for method, path in ours:
            answer = anyone.request(
                method, path.replace("{", "").replace("}", ""), json=body, params={"model_name": GEMMA}
            )
            assert answer.status_code in (401, 403), f"{method} {path}: {answer.status_code}"


async def test_without_a_key_the_socket_is_closed(langflow_server: LangflowServer) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with connect(f"{langflow_server.socket_url}/generate/ws"):
            pass
    assert refused.value.response.status_code == 403


def test_the_gemma_is_listed_and_valid(api: httpx.Client) -> None:
    rows = {row["model_name"]: row for row in api.get("/models").json()["models"]}
    assert rows[GEMMA]["source"] == "package"
    assert rows[GEMMA]["format"] == "gguf"
    assert rows[GEMMA]["memory_estimate_mb"] > 100
    report = api.get(f"/models/{GEMMA}/validate").json()
    assert report["valid"], report["problems"]
    assert (report["engine"], report["architecture"]) == ("llama_cpp", "gemma3")


def test_register_load_generate_unload(api: httpx.Client) -> None:
    path = api.get(f"/models/{GEMMA}/validate").json()["path"]
    refused = api.post("/models/register", json={"model_id": path, "model_name": "mine"})
    assert refused.json()["error"]["code"] == "path_not_allowed"  # it lies in the package, not in a model root

    body = {"model_id": "nobody/nothing", "model_name": "org/never here"}
    assert [api.post("/models/register", json=body).status_code for _ in range(2)] == [201, 200]
    conflict = api.post("/models/register", json=body | {"context_length": 64})
    assert (conflict.status_code, conflict.json()["error"]["model_name"]) == (409, "org/never here")
    missing = api.post("/models/load", params={"model_name": "org/never here"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "offline")

    loaded = api.post("/models/load", params={"model_name": GEMMA}).json()
    assert (loaded["state"], loaded["engine"], loaded["leases"]) == ("ready", "llama_cpp", 0)
    question = {"model_name": GEMMA, "prompt": "What is the capital of France?", "max_tokens": 16, "temperature": 0}
    answer = api.post("/generate", json=question).raise_for_status().json()
    assert "Paris" in answer["text"]
    assert answer["metadata"]["engine"] == "llama_cpp"
    assert 0 < answer["tokens_generated"] <= 16
    health = api.get("/health").json()
    assert (health["status"], health["models"][GEMMA]["status"]) == ("healthy", "ready")
    assert in_memory(api) == [GEMMA]

    assert api.post("/models/unload", params={"model_name": GEMMA}).json()["state"] == "registered"
    assert in_memory(api) == []


def test_a_stream_loads_the_model_and_says_so(api: httpx.Client) -> None:
    api.post("/models/unload", params={"model_name": GEMMA})
    body = {"model_name": GEMMA, "prompt": "What is the capital of France?", "max_tokens": 16, "temperature": 0}
    with api.stream("POST", "/generate/stream", json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in response.headers
        frames = [frame for frame in response.read().decode().split("\n\n") if frame]
    assert any(frame.startswith(": load") for frame in frames)
    *tokens, (last, done) = [parse_event(frame) for frame in frames if not frame.startswith(":")]
    assert last == "done"
    assert "".join(data["text"] for _, data in tokens) == done["text"]
    assert "Paris" in done["text"]
    assert done["tokens_per_second"] > 0
    assert done["first_token_latency_ms"] > 0


def test_unknown_models_and_bad_input_are_answered_before_the_stream(api: httpx.Client) -> None:
    for path in ("/generate", "/generate/stream"):
        assert (
            api.post(path, json={"model_name": "nobody", "prompt": "hi"}).json()["error"]["code"] == "model_not_found"
        )
        bad = api.post(path, json={"model_name": GEMMA, "prompt": "hi", "top_p": 7})
        assert bad.status_code == 422
        assert bad.json()["error"]["message"].startswith("top_p: ")
    large = {"model_name": "nobody", "query": "x", "documents": ["x" * 9_000_000]}
    assert api.post("/rerank", json=large).status_code == 413


def test_closing_a_stream_ends_the_generation(api: httpx.Client) -> None:
    before = counters(api).get("requests_cancelled", 0)
    with api.stream("POST", "/generate/stream", json=LONG) as response:
        seen = 0
        for line in response.iter_lines():
            seen += line.startswith("event: token")
            if seen == 2:
                break
    wait_until(lambda: leases(api) == 0)
    assert counters(api)["requests_cancelled"] == before + 1


async def test_closing_before_the_first_token_frees_the_model(
    langflow_server: LangflowServer, api: httpx.Client
) -> None:
    prompt = LONG | {"prompt": "word " * 3500}  # seconds of prefill
    before = counters(api).get("requests_cancelled", 0)
    async with httpx.AsyncClient(base_url=langflow_server.runtime_url, headers=langflow_server.headers) as client:
        for path in ("/generate/stream", "/generate"):
            asking = asyncio.create_task(client.post(path, json=prompt, timeout=60))
            await asyncio.to_thread(wait_until, lambda: leases(api) == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await asyncio.to_thread(wait_until, lambda: leases(api) == 0)
    assert counters(api)["requests_cancelled"] == before + 2


def test_cancel_by_id_and_unload_while_in_use(api: httpx.Client) -> None:
    with api.stream("POST", "/generate/stream", json=LONG | {"request_id": "the-long-one"}) as response:
        lines = response.iter_lines()
        while not next(lines).startswith("event: token"):
            pass
        busy = api.post("/models/unload", params={"model_name": GEMMA})
        assert (busy.status_code, busy.json()["error"]["code"]) == (409, "model_busy")
        assert api.post("/requests/the-long-one/cancel").json() == {"request_id": "the-long-one", "state": "running"}
        rest = [line for line in lines if line]
    assert rest[-2] == "event: done"
    assert json.loads(rest[-1].removeprefix("data: "))["finish_reason"] == "cancelled"
    assert api.post("/requests/the-long-one/cancel").status_code == 404


async def test_a_socket_answers_cancels_and_answers_again(langflow_server: LangflowServer, api: httpx.Client) -> None:
    before = counters(api).get("requests_cancelled", 0)
    async with connect(
        f"{langflow_server.socket_url}/generate/ws", additional_headers=langflow_server.headers
    ) as socket:

        async def until(*names: str) -> dict[str, Any]:
            while (message := json.loads(await socket.recv()))["event"] not in names:
                pass
            return dict(message)

        await socket.send(json.dumps(LONG))
        await until("token")
        await socket.send('{"type": "cancel"}')
        assert (await until("done", "error"))["finish_reason"] == "cancelled"
        await socket.send(json.dumps(LONG | {"max_tokens": 3}))
        assert (await until("done", "error"))["tokens_generated"] == 3
        await socket.send(json.dumps(LONG))
        await until("token")
    await asyncio.to_thread(wait_until, lambda: leases(api) == 0)
    assert counters(api)["requests_cancelled"] == before + 2


def test_a_long_generation_does_not_lock_langflows_database(langflow_server: LangflowServer, api: httpx.Client) -> None:
    """An API key's use is written down; holding that write for the whole answer would lock out everybody else."""
    langflow = httpx.Client(base_url=langflow_server.base_url, headers=langflow_server.headers, timeout=20)
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(api.post("/generate", json=LONG | {"request_id": "writer"}))
    )
    asking.start()
    try:
        wait_until(lambda: leases(api) == 1)
        flow = {"name": "written meanwhile", "data": {"nodes": [], "edges": []}}
        with langflow:
            assert langflow.post("/api/v1/flows/", json=flow).status_code == 201
        assert leases(api) == 1
    finally:
        api.post("/requests/writer/cancel")
        asking.join(PATIENCE_S)
    assert answers[0].json()["finish_reason"] == "cancelled"


def test_unload_all_in_the_background(api: httpx.Client) -> None:
    api.post("/models/load", params={"model_name": GEMMA}).raise_for_status()
    response = api.post("/unload-all")
    assert (response.status_code, response.json()) == (202, {"unloading": [GEMMA], "in_use": []})
    wait_until(lambda: in_memory(api) == [])
    assert api.get("/stats").json()["pid"] > 0


def test_the_server_had_nothing_to_complain_about(langflow_server: LangflowServer) -> None:
    log = langflow_server.log()
    assert "Loaded plugin: lfx-local-runtimes" in log
    assert "lfx_local_runtimes" not in "".join(
        line for line in log.splitlines() if "Traceback" in line or "ERROR" in line
    )
    assert "Exception in ASGI application" not in log


@pytest.fixture
def ordinary_user(langflow_server: LangflowServer) -> Iterator[httpx.Client]:
    """Somebody who may log in and is no superuser."""
    account = {"username": "bob", "password": "only for this test run"}
    with httpx.Client(base_url=langflow_server.base_url, timeout=60) as langflow:
        made = langflow.post("/api/v1/users/", json=account, headers=langflow_server.headers).raise_for_status().json()
        user = f"/api/v1/users/{made['id']}"
        langflow.patch(user, json={"is_active": True}, headers=langflow_server.headers).raise_for_status()
        token = langflow.post("/api/v1/login", data=account).raise_for_status().json()["access_token"]
    with httpx.Client(
        base_url=langflow_server.runtime_url, headers={"Authorization": f"Bearer {token}"}, timeout=60
    ) as client:
        yield client


def test_only_a_superuser_approves_the_code_of_a_model(
    langflow_server: LangflowServer, api: httpx.Client, ordinary_user: httpx.Client
) -> None:
    write_code(langflow_server.home / "models" / "strange")
    (code,) = ordinary_user.get("/models/strange/code").raise_for_status().json()["code"]
    body = {"sha256": code["sha256"]}
    refused = ordinary_user.post("/models/strange/trust", json=body)
    assert (refused.status_code, refused.json()["error"]["hint"]) == (403, "In Langflow only superusers may.")
    assert api.post("/models/strange/trust", json=body).json()["code"][0]["approved"]
    assert ordinary_user.delete("/models/strange/trust").status_code == 403
    assert api.delete("/models/strange/trust").json()["revoked"] == 1
    log = [json.loads(line) for line in (langflow_server.home / "audit.jsonl").read_text().splitlines()]
    assert [(line["event"], line["who"].partition(" ")[0]) for line in log] == [
        ("refused", "bob"), ("approved", "langflow"), ("refused", "bob"), ("revoked", "langflow"),
    ]  # fmt: skip
