"""The processes of real models: killed at every moment, left behind by a parent that is killed, ended by Ctrl-C."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient

from lfx_local_runtimes.errors import EngineDied
from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.config import ModelKey
from lfx_local_runtimes.runtimes.engines.isolated.runtime import IsolatedRuntime
from lfx_local_runtimes.runtimes.memory.slots import SlotState
from lfx_local_runtimes.runtimes.requests import Progress, Request
from lfx_local_runtimes.runtimes.sources.packages import BGE_SMALL
from lfx_local_runtimes.runtimes.tasks.base import Ask, Delta
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk
from lfx_local_runtimes.server import create_app
from lfx_local_runtimes.settings import Settings, get_settings
from tests.routes_app import frames_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]

WAIT_S = 60.0
GONE_S = 20.0
"""A process that was left over would stay for ever."""
NAME = "a model"
LONG = "one two three four five six seven. " * 10


@dataclass(frozen=True)
class Case:
    """An engine with a model, something that takes it a while, and something short."""

    engine: str
    model: str
    long: Ask[Any]
    short: Ask[Any]
    moments: tuple[str, ...]
    """When to kill it while a request waits, see `Killer`."""


def writes(prompt: str, tokens: int) -> GenerationConfig:
    return GenerationConfig(prompt=prompt, raw=True, max_tokens=tokens, ignore_eos=True, temperature=0)


CASES = [
    Case("llama_cpp", "gemma_gguf", writes(LONG, 2000), writes("one", 2), ("start", "load", "prefill", "decode")),
    Case("transformers", "tiny_llama", writes("one", 400), writes("one", 2), ("load", "prefill", "decode")),
    Case("onnx", "bge_small", EmbeddingAsk(texts=(LONG,) * 500), EmbeddingAsk(texts=("one",)), ("start", "prefill")),
]


@pytest.fixture
def bge_small() -> Path:
    path = BGE_SMALL.ready_path(get_settings().home)
    assert path is not None, "the package is not installed: pip install 'lfx-local-runtimes[dev]'"
    return path


class Killer:
    """Kills the process of the model that is loaded or asked, at a moment, as soon as the parent hears of it.

    start: before it reads the model. load: a part of it is read. prefill: a request has begun. decode: its first token
    is there. close: it was asked to end.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moment = ""
        self.pid = 0
        """Of the newest process."""
        confined, stop = IsolatedRuntime._take_confinement, IsolatedRuntime.stop
        start, emit = Request.start, Request.emit

        def take_confinement(runtime: IsolatedRuntime, *arguments: Any) -> None:
            confined(runtime, *arguments)
            self.pid = runtime.pid
            self._at("start")

        def started(request: Any) -> bool:
            self._at("prefill")
            return start(request)

        def emitted(request: Any, event: Any) -> None:
            emit(request, event)
            if isinstance(event, Delta):
                self._at("decode")
            elif isinstance(event, Progress) and event.done:
                self._at("load")

        def stopped(runtime: IsolatedRuntime) -> Any:
            thread = stop(runtime)
            self._at("close")
            return thread

        monkeypatch.setattr(IsolatedRuntime, "_take_confinement", take_confinement)
        monkeypatch.setattr(IsolatedRuntime, "stop", stopped)
        monkeypatch.setattr(Request, "start", started)
        monkeypatch.setattr(Request, "emit", emitted)
        monkeypatch.setattr("lfx_local_runtimes.runtimes.memory.slots.BACK_OFF_S", 0)  # it dies more often than most

    def _at(self, moment: str) -> None:
        if moment == self.moment:
            self.moment = ""
            self.kill()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    return Killer(monkeypatch)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[RuntimeManager]:
    """Without spare processes: they would take the processor from the models."""
    manager = RuntimeManager(Settings(home=get_settings().home, offline=True, spare_processes=0))
    yield manager
    manager.close()


def register(manager: RuntimeManager, engine: str, path: Path, **options: Any) -> None:
    config = {"model_id": str(path), "model_name": NAME, "runtime_type": engine, "device_type": "cpu", **options}
    manager.register_model(ModelConfig.model_validate(config))


def reaches(manager: RuntimeManager, state: SlotState) -> bool:
    return manager._residency.wait_for(lambda slots: slots[ModelKey(NAME)].state is state, WAIT_S)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.engine)
def test_killed_at_every_moment(
    case: Case, manager: RuntimeManager, killer: Killer, request: pytest.FixtureRequest
) -> None:
    register(manager, case.engine, request.getfixturevalue(case.model), threads=1)
    for deaths, moment in enumerate(case.moments, start=1):
        killer.moment = moment
        with pytest.raises(EngineDied, match=r"was killed from outside \(signal SIGKILL\)") as caught:
            manager.start(NAME, case.long).wait()
        check_gone(manager, killer, deaths)
        assert f"The process of {NAME} ({case.engine}, {killer.pid})" in caught.value.message
        assert killer.moment == "", "it was killed at that moment"
    assert manager.start(NAME, case.short).wait()
    killer.kill()
    assert reaches(manager, SlotState.FAILED)
    check_gone(manager, killer, len(case.moments) + 1)
    assert manager.start(NAME, case.short).wait()
    killer.moment = "close"
    assert asyncio.run(manager.unload_model(NAME)) is True
    assert manager.model_status(NAME).state == "registered"
    assert not psutil.pid_exists(killer.pid)
    assert manager._residency.ledger.accounted("cpu") == 0


def check_gone(manager: RuntimeManager, killer: Killer, deaths: int) -> None:
    """It has failed, its memory is free, and it waits for the next request."""
    status = manager.model_status(NAME)
    assert (status.state, status.pid, status.restarts) == ("failed", None, deaths)
    assert "SIGKILL" in (status.last_exit or "")
    assert manager._residency.ledger.accounted("cpu") == 0
    assert not psutil.pid_exists(killer.pid)


def test_streams_end_with_the_death(manager: RuntimeManager, killer: Killer, gemma_gguf: Path) -> None:
    register(manager, "llama_cpp", gemma_gguf, threads=1)
    limit = {"temperature": 0, "max_tokens": 2000, "ignore_eos": True}  # far longer than it takes to kill it
    asks: dict[str, dict[str, Any]] = {
        f"{PREFIX}/generate/stream": {"model_name": NAME, "prompt": "one", **limit},
        "/v1/chat/completions": {"model": NAME, "stream": True, "messages": [{"role": "user", "content": "one"}], **limit},
        "/v1/completions": {"model": NAME, "stream": True, "prompt": "one", **limit},
    }  # fmt: skip
    with TestClient(create_app(manager), base_url="http://127.0.0.1") as client:
        for path, body in asks.items():
            killer.moment = "decode"
            response = client.post(path, json=body)
            assert response.status_code == 200
            *before, last = frames_of(response.text)
            assert before, "it had begun"
            error = json.loads(last.partition("data: ")[2])["error"]
            assert error["code"] == "engine_died"
            assert "SIGKILL" in error["message"]
            assert "[DONE]" not in response.text
            assert '"finish_reason":"' not in response.text.replace(" ", "")
            status = client.get(f"{PREFIX}/models/{NAME}").json()
            assert (status["state"], status["pid"]) == ("failed", None)


# -- programs that end -------------------------------------------------------------------------------------------------


@dataclass
class Served:
    """A server in the middle of an answer."""

    process: psutil.Popen
    children: list[psutil.Process]
    """Models, spare processes, the sandbox of chat templates."""
    scratch: Path
    stream: Iterator[str]

    def check_nothing_left(self) -> None:
        _, alive = psutil.wait_procs(self.children, GONE_S)
        assert alive == []
        deadline = time.monotonic() + GONE_S
        while (left := list(self.scratch.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == []


@pytest.fixture
def served(tmp_path: Path, gemma_gguf: Path) -> Iterator[Served]:
    """`lfx-local-runtimes serve` with a model that may write a folder, and answers all the time."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    home = get_settings().home
    manager = RuntimeManager(Settings(home=home))
    register(manager, "llama_cpp", gemma_gguf, trust_remote_code=True)
    manager.close()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "TMPDIR": str(scratch), "LOCAL_RUNTIMES_TRUST_REMOTE_CODE": "true", "LOCAL_RUNTIMES_OFFLINE": "true",
        "LOCAL_RUNTIMES_SPARE_PROCESSES": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "lfx_local_runtimes.cli", "serve", "--port", str(port)]
    log = (tmp_path / "log").open("wb")
    process = psutil.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    children: list[psutil.Process] = []
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url, process, tmp_path / "log")
        body = {"model_name": NAME, "prompt": "Count: 1, 2, 3,", "raw": True, "max_tokens": 4000, "ignore_eos": True}
        with httpx.stream("POST", f"{url}{PREFIX}/generate/stream", json=body, timeout=WAIT_S) as response:
            lines = response.iter_lines()
            assert any('"text"' in line for line in lines)
            children = process.children(recursive=True)
            assert len(children) >= 2, "the model and what removes its folder"
            assert list(scratch.iterdir())
            yield Served(process, children, scratch, lines)
    finally:
        for one in (process, *children):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(WAIT_S)
        log.close()


def wait_until_healthy(url: str, process: psutil.Popen, log: Path) -> None:
    for _ in range(int(WAIT_S / 0.05)):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health").is_success:
                return
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(0.05)
            break
    raise AssertionError(log.read_text())


def test_a_parent_that_is_killed_leaves_nothing(served: Served) -> None:
    served.process.kill()
    with pytest.raises(httpx.TransportError):
        list(served.stream)
    served.check_nothing_left()


def test_ctrl_c_leaves_nothing(served: Served) -> None:
    served.process.send_signal(signal.SIGINT)
    assert '"finish_reason":"cancelled"' in "".join(served.stream).replace(" ", "")
    assert served.process.wait(WAIT_S) == 0
    served.check_nothing_left()
