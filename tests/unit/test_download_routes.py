"""Downloads over REST."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lfx_local_runtimes.errors import DownloadFailed
from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from tests.fake_hub import FakeHub
from tests.hub_models import LLAMA, REPO, gguf, hub_manager, put_tensors
from tests.routes_app import KEY, Exchange, make_app

GGUF = "tiny-Q8_0.gguf"
CONTENT = gguf()
PATIENCE_S = 30.0

Pair = tuple[FakeHub, RuntimeManager]


@pytest.fixture
def settings() -> dict[str, Any]:
    return {}


@pytest.fixture
def pair(tmp_path: Path, settings: dict[str, Any]) -> Iterator[Pair]:
    with hub_manager(tmp_path, {REPO: {GGUF: CONTENT}}, **settings) as running:
        yield running


@pytest.fixture
def hub(pair: Pair) -> FakeHub:
    return pair[0]


@pytest.fixture
def client(pair: Pair) -> Iterator[TestClient]:
    with TestClient(make_app(pair[1]), base_url="http://test" + PREFIX, headers=KEY) as client:
        yield client


def until(client: TestClient, download_id: str, state: str) -> dict[str, Any]:
    waited = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        row: dict[str, Any] = client.get(f"/downloads/{download_id}").json()
        if row["state"] == state:
            return row
        waited.wait(0.01)
    raise AssertionError(row)


def test_the_life_of_a_download(client: TestClient, hub: FakeHub) -> None:
    hub.hold = threading.Event()
    started = client.post("/downloads", json={"model_name": REPO})
    row = started.json()
    assert started.status_code == 202
    assert (row["model_name"], row["total_bytes"], row["error"]) == (REPO, len(CONTENT), None)
    assert row["state"] in ("checking", "downloading")
    assert (row["engine"], row["device"]) == ("llama_cpp", "cpu")
    assert row["memory_bytes"] < row["memory_budget_bytes"]
    assert row["disk_free_bytes"] > row["total_bytes"]
    assert hub.half_sent.wait(PATIENCE_S)
    place = f"/downloads/{row['id']}"
    assert client.post(f"{place}/pause").json()["state"] == "paused"
    assert [one["state"] for one in client.get("/downloads").json()["downloads"]] == ["paused"]
    hub.hold.set()
    hub.hold = None
    assert client.post(f"{place}/resume").status_code == 200
    ended = until(client, row["id"], "done")
    assert ended["done_bytes"] == len(CONTENT)
    assert client.get(f"/models/{REPO}:Q8_0").json()["source"] == "hub cache"
    assert client.post("/downloads", json={"model_name": REPO}).status_code == 200
    assert client.post(f"{place}/pause").status_code == 422
    assert client.delete(place).json()["state"] == "done"
    assert client.get(place).json()["error"]["code"] == "download_not_found"
    assert Path(ended["path"]).is_file()


def test_a_cancel_frees_the_disk(client: TestClient, hub: FakeHub, tmp_path: Path) -> None:
    hub.hold = threading.Event()
    row = client.post("/downloads", json={"model_name": REPO, "revision": "v2"}).json()
    assert row["revision"] == "v2"
    assert hub.half_sent.wait(PATIENCE_S)
    client.post(f"/downloads/{row['id']}/pause")
    hub.hold.set()
    assert client.delete(f"/downloads/{row['id']}").json()["state"] == "cancelled"
    assert not list(tmp_path.rglob("*.incomplete"))
    assert client.get("/downloads").json() == {"downloads": []}


@pytest.mark.parametrize(
    ("settings", "config", "status", "code"),
    [
        ({"memory_budget_gb": 1}, LLAMA, 507, "does_not_fit"),
        ({}, LLAMA | {"model_type": "martian"}, 422, "invalid_input"),
        ({}, LLAMA | {"model_type": "martian", "auto_map": {"A": "b.C"}}, 403, "remote_code_refused"),
        ({"max_download_gb": 1}, LLAMA, 403, "download_too_large"),
        ({"downloads": "off"}, LLAMA, 404, "offline"),
    ],
)
def test_what_is_refused_is_refused_before_the_first_byte(
    client: TestClient, hub: FakeHub, config: dict[str, Any], status: int, code: str
) -> None:
    put_tensors(hub, config, billions=1)
    response = client.post("/downloads", json={"model_name": REPO})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert error["hint"]
    assert not [where for where in hub.downloads("model.safetensors") if str(where).endswith("-")]


@pytest.mark.parametrize("settings", [{"enable_large_models": True}])
def test_a_disk_that_is_too_small(client: TestClient, hub: FakeHub) -> None:
    put_tensors(hub, LLAMA, billions=10_000_000)
    response = client.post("/downloads", json={"model_name": REPO})
    assert (response.status_code, response.json()["error"]["code"]) == (507, "disk_full")
    assert "GB are free" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("settings", "status", "code"),
    [
        ({"downloads": "ask"}, 404, "not_downloaded"),
        ({"max_download_gb": 0.0001}, 403, "download_too_large"),
        ({"downloads": "off"}, 404, "offline"),
    ],
)
def test_a_first_use_over_rest_is_bound_too(client: TestClient, hub: FakeHub, status: int, code: str) -> None:
    response = client.post("/generate", json={"model_name": REPO, "prompt": "hi"})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert not [where for where in hub.downloads(GGUF) if str(where).endswith("-")]
    openai = client.post("/v1/chat/completions", json={"model": REPO, "messages": [{"role": "user", "content": "hi"}]})
    assert (openai.status_code, openai.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume")])
def test_an_unknown_download_is_404(client: TestClient, method: str, path: str) -> None:
    response = client.request(method, f"/downloads/0123abcd{path}")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "download_not_found")


@pytest.mark.parametrize("body", [{}, {"model_name": ""}, {"model_name": REPO, "revision": "a b"}])
def test_a_body_that_is_wrong_is_422(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post("/downloads", json=body).status_code == 422


def test_a_caller_without_a_key_downloads_nothing(client: TestClient, hub: FakeHub) -> None:
    client.headers.pop("x-api-key")
    for method, path in (("POST", ""), ("GET", ""), ("DELETE", "/a"), ("POST", "/a/pause"), ("POST", "/a/resume")):
        assert client.request(method, f"/downloads{path}", json={"model_name": REPO}).status_code == 403
    assert not hub.log


async def test_a_hub_that_does_not_answer_leaves_the_other_routes_their_threads(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def wait_for_the_hub(*args: Any, **options: Any) -> None:
        answered.wait(PATIENCE_S)
        raise DownloadFailed("The hub does not answer.")

    monkeypatch.setattr(pair[1], "download_model", wait_for_the_hub)
    app = make_app(pair[1])
    starts = [Exchange(app, "/downloads", b'{"model_name": "a/b"}') for _ in range(50)]
    try:
        assert await Exchange(app, "/models", b"", method="GET").start() == 200
    finally:
        answered.set()
    assert {await start.start() for start in starts} == {502}
