"""The routes about a model's code, and who may approve it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection

from lfx_local_runtimes.routes import PREFIX, build_router
from lfx_local_runtimes.routes.access import Caller, set_caller
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.server import create_app
from lfx_local_runtimes.settings import Settings
from tests.routes_app import ws_auth
from tests.trusted_models import code_of, scan_here, write_code

NAME = "org/mine, the first"
ONLY = "In Langflow only superusers may."
CALLERS = {"root": Caller("ada (1)"), "user": Caller("bob (2)", ONLY, ONLY), "unnamed": None}

AsUser = Callable[..., TestClient]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeManager]:
    scan_here(monkeypatch)
    folder = write_code(tmp_path / "models" / "mine", "import socket\n")
    manager = RuntimeManager(Settings(home=tmp_path / "home", model_dirs=(tmp_path / "models",), offline=True))
    manager.register_model(ModelConfig(model_id=str(folder), model_name=NAME))
    yield manager
    manager.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "mine"


@pytest.fixture
def as_user(manager: RuntimeManager) -> AsUser:
    def authenticate(connection: HTTPConnection) -> None:
        caller = CALLERS.get(connection.headers.get("x-user", ""), "nobody")
        if caller == "nobody":
            raise HTTPException(401, "who are you?")
        if isinstance(caller, Caller):
            set_caller(connection, caller)

    app = FastAPI()
    app.include_router(build_router(lambda: manager, authenticate, ws_auth))
    return lambda name: TestClient(app, base_url="http://test" + PREFIX, headers={"x-user": name})


def log(tmp_path: Path) -> list[tuple[str, str, str]]:
    path = tmp_path / "home" / "audit.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["event"], line["model"], line["who"]) for line in lines]


def test_the_report_is_for_everybody_who_may_log_in(as_user: AsUser, folder: Path) -> None:
    report = code_of(folder)
    for name in CALLERS:
        response = as_user(name).get(f"/models/{NAME}/code")
        assert response.status_code == 200
        assert response.json() == {
            "model_name": NAME, "revision": str(folder),
            "code": [{
                "kind": "remote_code", "sha256": report.sha256, "approved": False, "files": ["modeling.py"],
                "imports": ["socket"], "problems": [],
                "findings": [{"group": "network", "what": "import socket", "file": "modeling.py", "lines": [1]}],
            }],
        }  # fmt: skip
    assert as_user("stranger").get(f"/models/{NAME}/code").status_code == 401


def test_a_superuser_approves_and_revokes(as_user: AsUser, folder: Path, tmp_path: Path) -> None:
    client = as_user("root")
    sha256 = code_of(folder).sha256
    approved = client.post(f"/models/{NAME}/trust", json={"sha256": sha256})
    assert approved.status_code == 200
    assert approved.json()["code"][0]["approved"]
    assert client.get(f"/models/{NAME}/code").json() == approved.json()
    assert client.delete(f"/models/{NAME}/trust").json() == {"model_name": NAME, "revoked": 1}
    assert not client.get(f"/models/{NAME}/code").json()["code"][0]["approved"]
    assert client.delete(f"/models/{NAME}/trust").json()["revoked"] == 0
    assert log(tmp_path) == [("approved", NAME, "ada (1)"), ("revoked", NAME, "ada (1)")]


@pytest.mark.parametrize(("name", "who"), [("user", "bob (2)"), ("unnamed", "unknown")])
def test_others_are_refused_with_the_reason(
    as_user: AsUser, folder: Path, tmp_path: Path, manager: RuntimeManager, name: str, who: str
) -> None:
    body = {"sha256": code_of(folder).sha256}
    as_user("root").post(f"/models/{NAME}/trust", json=body)
    for method, options in (("POST", {"json": body}), ("DELETE", {})):
        response = as_user(name).request(method, f"/models/{NAME}/trust", **options)
        assert response.status_code == 403
        error = response.json()["error"]
        assert error["code"] == "not_allowed"
        assert error["hint"]
    assert as_user("root").get(f"/models/{NAME}/code").json()["code"][0]["approved"]
    assert log(tmp_path)[1:] == [("refused", NAME, who)] * 2


def test_the_sha256_has_to_be_that_of_the_code_now(as_user: AsUser, folder: Path, tmp_path: Path) -> None:
    client, seen = as_user("root"), code_of(folder).sha256
    (folder / "modeling.py").write_text("import ctypes\n")
    response = client.post(f"/models/{NAME}/trust", json={"sha256": seen})
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "code_changed"
    assert log(tmp_path) == []


@pytest.mark.parametrize(
    "body", [{}, {"sha256": ""}, {"sha256": "a" * 63}, {"sha256": "A" * 64}, {"sha256": "a" * 64 + "\n"}]
)
def test_a_body_without_a_sha256_is_invalid(as_user: AsUser, body: dict[str, Any]) -> None:
    assert as_user("root").post(f"/models/{NAME}/trust", json=body).status_code == 422


def test_code_that_cannot_be_checked_is_reported_and_not_approved(as_user: AsUser, folder: Path) -> None:
    (folder / "modeling.py").write_text("def (")
    client = as_user("root")
    (part,) = client.get(f"/models/{NAME}/code").json()["code"]
    assert (part["sha256"], part["approved"]) == ("", False)
    assert part["problems"]
    response = client.post(f"/models/{NAME}/trust", json={"sha256": "0" * 64})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "code_unchecked")


def test_an_unknown_model_is_404(as_user: AsUser) -> None:
    assert as_user("root").get("/models/nobody/code").status_code == 404
    assert as_user("root").post("/models/nobody/trust", json={"sha256": "0" * 64}).status_code == 404


@pytest.mark.parametrize(("key", "status"), [("let me in", 200), (None, 403)])
def test_the_standalone_server_wants_its_key(
    manager: RuntimeManager, folder: Path, tmp_path: Path, key: str | None, status: int
) -> None:
    client = TestClient(create_app(manager, key), base_url="http://127.0.0.1" + PREFIX)
    headers = {"x-api-key": key} if key else {}
    body = {"sha256": code_of(folder).sha256}
    response = client.post(f"/models/{NAME}/trust", json=body, headers=headers)
    assert response.status_code == status
    if key:
        assert client.post(f"/models/{NAME}/trust", json=body).status_code == 401
        assert log(tmp_path) == [("approved", NAME, "API key")]
    else:
        assert "--api-key" in response.json()["error"]["hint"]


# -- files, which the same callers may delete ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["user", "unnamed"])
def test_who_may_not_delete_files(as_user: AsUser, folder: Path, name: str) -> None:
    answer = as_user(name).delete(f"/models/{NAME}/files")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_allowed")
    assert "may" in answer.json()["error"]["hint"]
    assert folder.is_dir()
    assert as_user(name).get(f"/models/{NAME}").status_code == 200


def test_an_address_that_may_mean_two_models_deletes_nothing(
    as_user: AsUser, manager: RuntimeManager, folder: Path
) -> None:
    manager.register_model(ModelConfig(model_id=str(folder), model_name=f"{NAME}/files"))
    answer = as_user("root").delete(f"/models/{NAME}/files")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "model_conflict"
    assert {NAME, f"{NAME}/files"} <= set(manager.catalog.registered())


def test_who_may_delete_files(as_user: AsUser, manager: RuntimeManager, folder: Path, tmp_path: Path) -> None:
    elsewhere = as_user("root").delete(f"/models/{NAME}/files")
    assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (403, "not_allowed")
    assert "neither in the data folder" in elsewhere.json()["error"]["message"]
    inside = write_code(tmp_path / "home" / "mine", "import socket\n")
    manager.register_model(ModelConfig(model_id=str(inside), model_name="inside"))
    answer = as_user("root").delete("/models/inside/files")
    assert (answer.status_code, answer.json()["unregistered"]) == (200, True)
    assert not inside.exists()
    assert folder.is_dir()


def test_a_server_without_a_key_deletes_for_programs_of_this_machine(manager: RuntimeManager, tmp_path: Path) -> None:
    inside = write_code(tmp_path / "home" / "mine", "import socket\n")
    manager.register_model(ModelConfig(model_id=str(inside), model_name="inside"))
    client = TestClient(create_app(manager), base_url=f"http://localhost{PREFIX}")
    assert client.delete("/models/inside/files", headers={"origin": "https://evil.example"}).status_code == 403
    assert client.delete("/models/inside/files").status_code == 200
    assert not inside.exists()
