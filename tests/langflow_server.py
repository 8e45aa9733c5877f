"""A running Langflow with this package installed, for tests that need the real thing."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

START_DEADLINE_S = 180.0
_STOP_DEADLINE_S = 15.0
_POLL_S = 0.05


@dataclass(frozen=True)
class LangflowServer:
    """Where Langflow answers and how to get in. The UI at `base_url` logs in by itself."""

    base_url: str
    api_key: str
    log_path: Path
    home: Path
    """The data folder of the runtimes (LOCAL_RUNTIMES_HOME)."""
    start_s: float
    """Seconds from the start of the process until it was healthy."""

    @property
    def headers(self) -> dict[str, str]:
        """What authenticates a request."""
        return {"x-api-key": self.api_key}

    @property
    def runtime_url(self) -> str:
        """The prefix of our routes."""
        return f"{self.base_url}/api/v1/runtime"

    @property
    def socket_url(self) -> str:
        """The same for WebSockets."""
        return self.runtime_url.replace("http://", "ws://")

    def log(self) -> str:
        """Everything the server has said so far."""
        return self.log_path.read_text(errors="replace")


@pytest.fixture(scope="session")
def langflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LangflowServer]:
    """One Langflow for the whole session, in folders of its own, without the network."""
    folder = tmp_path_factory.mktemp("langflow")
    with run_langflow(folder) as server:
        yield server


@contextlib.contextmanager
def run_langflow(folder: Path, *, python: str | Path = sys.executable, **environment: str) -> Iterator[LangflowServer]:
    """Start Langflow with its data in `folder`, wait until it is healthy, and end it afterwards.

    `python` is the interpreter of the environment to run it from.
    """
    port, home, log_path = _free_port(), folder / "local-runtimes", folder / "langflow.log"
    base_url = f"http://127.0.0.1:{port}"
    command = [
        str(python),
        "-m",
        "langflow",
        "run",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-open-browser",
    ]
    started = time.monotonic()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder, start_new_session=True,
            env=_environment(folder, home) | environment,
        )  # fmt: skip
    try:
        _wait_until_healthy(base_url, process, log_path)
        start_s = time.monotonic() - started
        yield LangflowServer(base_url, _make_api_key(base_url), log_path, home, start_s)
    finally:
        _stop(process)


def _environment(folder: Path, home: Path) -> dict[str, str]:
    ours = ("LANGFLOW_", "LOCAL_RUNTIMES_", "LFX_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    user, config = folder / "user", folder / "config"
    for path in (user, config):
        path.mkdir(exist_ok=True)
    return inherited | {
        "HOME": str(user),
        "XDG_CACHE_HOME": str(user / "cache"),
        "HF_HOME": str(user / "huggingface"),
        "DO_NOT_TRACK": "true",
        "LANGFLOW_CONFIG_DIR": str(config),
        "LANGFLOW_DATABASE_URL": f"sqlite:///{config / 'langflow.db'}",
        "LANGFLOW_AUTO_LOGIN": "true",
        "LANGFLOW_SUPERUSER_PASSWORD": "only for this test run",
        "LANGFLOW_LOG_LEVEL": "info",
        "LANGFLOW_AUTO_SAVING_INTERVAL": "300",  # milliseconds; the default of 5,000 is waited for after every change
        "LOCAL_RUNTIMES_HOME": str(home),
        "LOCAL_RUNTIMES_OFFLINE": "true",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(base_url: str, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{base_url}/health", timeout=5).is_success:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
            break
    tail = log_path.read_text(errors="replace")[-4000:]
    raise RuntimeError(
        f"Langflow did not become healthy within {START_DEADLINE_S:.0f} s (exit code {process.poll()}):\n{tail}"
    )


def _make_api_key(base_url: str) -> str:
    with httpx.Client(base_url=base_url, timeout=30) as client:
        token = client.get("/api/v1/auto_login").raise_for_status().json()["access_token"]
        made = client.post("/api/v1/api_key/", json={"name": "tests"}, headers={"Authorization": f"Bearer {token}"})
        return str(made.raise_for_status().json()["api_key"])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for ending in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, ending)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_DEADLINE_S)
            break
    with contextlib.suppress(ProcessLookupError):  # workers of a leader that has ended
        os.killpg(process.pid, signal.SIGKILL)
