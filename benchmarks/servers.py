"""Servers as child processes."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import models
from benchmarks.device import device, gpu_layers


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A running one."""

    url: str
    process: subprocess.Popen[bytes]
    output: Path

    def log(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")


@contextlib.contextmanager
def started(command: list[str], ready: str, **environment: str) -> Iterator[Server]:
    """A server as a child process, once `ready` answers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile(suffix=".log") as log, subprocess.Popen(
        [*command, "--port", str(port)], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        env=os.environ | environment,
    ) as process:  # fmt: skip
        server = Server(url, process, Path(log.name))
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(url + ready, timeout=5).is_success:
                        break
                time.sleep(0.2)
            else:
                raise RuntimeError(f"{command[:4]} did not start: {server.log()[-2000:]}")
            yield server
        finally:
            process.terminate()
            process.wait(20)


@contextlib.contextmanager
def served(command: list[str], ready: str, **environment: str) -> Iterator[str]:
    """The same; yields its URL."""
    with started(command, ready, **environment) as server:
        yield server.url


def our_process(**environment: str) -> contextlib.AbstractContextManager[Server]:
    """`lfx-local-runtimes serve`."""
    command = [sys.executable, "-m", "lfx_local_runtimes.cli", "serve"]
    ours = {
        "LOCAL_RUNTIMES_MODEL_DIRS": str(models.CACHE),
        "LOCAL_RUNTIMES_OFFLINE": "true",
        "LOCAL_RUNTIMES_HOME": str(models.CACHE.with_name("benchmarks")),
        "LOCAL_RUNTIMES_FORCE_DEVICE": device().type.value,
    }
    return started(command, "/health", **ours | environment)


@contextlib.contextmanager
def our_server() -> Iterator[str]:
    """The same; yields its URL."""
    with our_process() as server:
        yield server.url


def llama_cpp_server(path: Path, name: str, context: int, threads: int) -> contextlib.AbstractContextManager[str]:
    """The server that comes with llama-cpp-python."""
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(path), "--model_alias", name]
    options = ["--n_ctx", str(context), "--n_threads", str(threads), "--n_gpu_layers", str(gpu_layers())]
    return served([*command, *options], "/v1/models")
