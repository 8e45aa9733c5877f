"""What people see of a model's process: in the routes, the command line and the nodes; and of one that dies."""

import json
import os
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from lfx_local_runtimes import cli
from lfx_local_runtimes.components.local_runtimes.model_manager import ModelManagerComponent
from lfx_local_runtimes.components.local_runtimes.runtime_status import RuntimeStatusComponent
from lfx_local_runtimes.errors import EngineDied
from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.runtimes.base import Inbox
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.processes.confinement import Confinement
from lfx_local_runtimes.settings import get_settings
from lfx_local_runtimes.terminal import duration
from tests.routes_app import KEY, MODEL, Puppet, Stage, frames_of, parse_event

PID = 4_194_304
"""Above what Linux gives out."""
WHY = "this kernel has no Landlock"
HOW = f"The process of {MODEL} (puppet, {PID}) was killed by SIGSEGV. It said last: GGML_ASSERT failed."


@pytest.fixture
def lodger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The puppet seems to live in a process of its own, which the prompt `die` ends after a token."""

    def work(self: Puppet, inbox: Inbox) -> None:
        while (request := inbox.get()) is not None:
            with self._answering(request):
                if request.start():
                    self._serve(request)
            if self._stage.serve_fault is not None:
                raise EngineDied(HOW, hint="The next request loads it again.")

    monkeypatch.setattr(Puppet, "_work", work)
    monkeypatch.setattr(Puppet, "pid", PID)
    monkeypatch.setattr(Puppet, "isolation", "process")
    monkeypatch.setattr(Puppet, "confinement", Confinement("partial", missing=(WHY,)))


def load(client: TestClient) -> dict[str, Any]:
    status: dict[str, Any] = client.post("/models/load", params={"model_name": MODEL}).json()
    return status


def die(client: TestClient, stage: Stage) -> None:
    """A request that ends the process, before it says anything."""
    stage.serve_fault = EngineDied(HOW)
    response = client.post("/generate", json={"model_name": MODEL, "prompt": "hi"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_died")
    stage.wait_until(lambda: client.get(f"/models/{MODEL}").json()["state"] == "failed")
    stage.serve_fault = None


def test_a_model_that_is_not_loaded_has_no_process(client: TestClient) -> None:
    status = client.get(f"/models/{MODEL}").json()
    assert [status[key] for key in ("isolation", "pid", "uptime_s", "last_exit", "confined", "confined_why")] == [
        None
    ] * 6
    assert (status["restarts"], status["server_pid"]) == (0, os.getpid())


def test_a_model_inside_the_server_says_so(client: TestClient) -> None:
    status = load(client)
    assert (status["isolation"], status["pid"], status["confined"]) == ("inline", os.getpid(), "none")
    assert "inside this program" in status["confined_why"]


def test_a_loaded_model_shows_its_process(client: TestClient, lodger: None) -> None:
    status = load(client)
    assert (status["isolation"], status["pid"], status["confined"]) == ("process", PID, "partial")
    assert status["confined_why"] == WHY
    assert status["uptime_s"] >= 0
    assert client.get("/status").json()["models"][0]["pid"] == PID
    health = client.get("/health").json()["models"][MODEL]
    assert (health["pid"], health["restarts"]) == (PID, 0)


def test_a_death_is_counted_and_told(client: TestClient, stage: Stage, lodger: None) -> None:
    load(client)
    die(client, stage)
    (status,) = client.get("/status").json()["models"]
    assert (status["state"], status["restarts"], status["last_exit"], status["pid"]) == ("failed", 1, HOW, None)
    assert client.get("/stats").json()["counters"]["deaths"] == 1
    again = load(client)
    assert (again["state"], again["restarts"], again["last_exit"], again["pid"]) == ("ready", 1, HOW, PID)


def test_no_death_is_a_count_too(client: TestClient) -> None:
    assert client.get("/stats").json()["counters"]["deaths"] == 0


@pytest.mark.parametrize("path", ["/generate/stream", "/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("after", [0, 2])
def test_a_stream_ends_with_the_death(client: TestClient, stage: Stage, lodger: None, path: str, after: int) -> None:
    load(client)
    stage.serve_fault, stage.fault_after = EngineDied(HOW), after
    openai = path.startswith("/v1")
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}
    said = {"input": "hi"} if "responses" in path else said
    body = (
        {("model" if openai else "model_name"): MODEL, "stream": True, **said}
        if openai
        else {"model_name": MODEL, **said}
    )
    response = client.post(path, json=body)
    if after == 0:
        assert response.status_code == 503
        assert response.headers.get("x-should-retry") == ("false" if openai else None)
        error = response.json()["error"]
    else:
        assert response.status_code == 200
        last = frames_of(response.text)[-1]
        data = parse_event(last)[1] if not openai else json.loads(last.partition("data: ")[2])
        error = data["error"]
        assert "[DONE]" not in response.text
    assert error["code"] == "engine_died"
    assert "SIGSEGV" in error["message"]


def test_a_socket_hears_of_the_death_and_serves_on(client: TestClient, stage: Stage, lodger: None) -> None:
    load(client)
    with client.websocket_connect(f"{PREFIX}/generate/ws", headers=KEY) as socket:

        def answer() -> list[dict[str, Any]]:
            socket.send_json({"model_name": MODEL, "prompt": "hi", "max_tokens": 3})
            heard = [socket.receive_json()]
            while heard[-1]["event"] not in ("done", "error"):
                heard.append(socket.receive_json())
            return [message for message in heard if message["event"] != "progress"]

        stage.serve_fault, stage.fault_after = EngineDied(HOW), 2
        *tokens, error = answer()
        assert [token["text"] for token in tokens] == ["t0 ", "t1 "]
        assert (error["event"], error["error"]["code"]) == ("error", "engine_died")
        stage.wait_until(lambda: client.get(f"/models/{MODEL}").json()["state"] == "failed")
        stage.serve_fault = None
        assert answer()[-1]["event"] == "done"


def test_ps_shows_processes(client: TestClient, stage: Stage, lodger: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(method: str, url: str, **options: Any) -> httpx.Response:
        return client.request(method, httpx.URL(url).path.removeprefix("/api/v1/runtime"), params=options["params"])

    monkeypatch.setattr("httpx.request", ask)
    get_settings.cache_clear()
    load(client)
    header, row = CliRunner().invoke(cli.app, ["ps"]).stdout.splitlines()
    assert header.split() == [
        "NAME", "ENGINE", "DEVICE", "MEMORY", "STATE", "USE", "PID", "UPTIME", "RESTARTS", "CONFINED",
    ]  # fmt: skip
    pid, uptime, *others = row.split()[-4:]
    assert (pid, others) == (str(PID), ["0", "partial"])
    assert uptime.endswith("s")
    assert max(len(header), len(row)) <= 100
    die(client, stage)
    gone = CliRunner().invoke(cli.app, ["ps"])
    assert " failed " in gone.stdout
    assert gone.stderr == f"{MODEL}, last exit: {HOW}\n"


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "-"), (0.4, "0s"), (59.0, "59s"), (61.0, "1m"), (7200.0, "2h"), (200_000.0, "2d")]
)
def test_a_time_is_short(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


async def test_the_nodes_show_it_too(
    client: TestClient, manager: RuntimeManager, stage: Stage, lodger: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfx_local_runtimes.runtimes.manager._shared", manager)
    state = (await ModelManagerComponent(model_name=MODEL, action="Load").manage()).data
    assert (state["pid"], state["confined"]) == (PID, "partial")
    (row,) = (await RuntimeStatusComponent(loaded_only=True).models()).to_dict(orient="records")
    assert (row["model_name"], row["state"]) == (MODEL, "ready")
