"""What the pack adds at both ends: header inspection, import time, Langflow's start; how soon a program ends."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from benchmarks import models
from benchmarks.report import print_all, print_table, row, verdict
from benchmarks.servers import our_process
from lfx_local_runtimes.flows.build import FOLDER
from lfx_local_runtimes.runtimes import inspect_model
from tests.environments import build_wheel, environment_without_us, install
from tests.langflow_server import run_langflow

FRESH_INTERPRETERS = 7
LANGFLOW_STARTS = 3
ENDS = 3

_IMPORTS = {
    "`lfx`, then the package": ("import lfx", "import lfx_local_runtimes, lfx_local_runtimes.runtimes", 0.3),
    "`lfx`, then `RuntimeManager`, with pydantic, pydantic-settings and asyncio": (
        "import lfx",
        "from lfx_local_runtimes.runtimes import RuntimeManager, ModelConfig",
        0.3,
    ),
    "Langflow's model base class, then nodes, chat model, provider and API": (
        "import lfx.base.models.model, lfx.io",
        "import lfx_local_runtimes.nodes.text, lfx_local_runtimes.nodes.reading, lfx_local_runtimes.langchain.chat, lfx_local_runtimes.nodes.provider, lfx_local_runtimes.runtimes.manager;"
        "import lfx_local_runtimes.components.local_runtimes.local_model",
        0.3,
    ),
    "FastAPI and Langflow's services, then our routes in an application": (
        "import fastapi, langflow.services.auth.utils, langflow.services.deps; app = fastapi.FastAPI()",
        "from lfx_local_runtimes.routes import register; register(app)",
        0.5,
    ),
}
"""What is imported before, what is measured, and the most seconds for it."""


def main() -> None:
    """Print the tables."""
    print_all(inspection, imports, langflow, ends)


def inspection() -> None:
    """Header inspection of the Gemma file."""
    path = models.gguf()

    def measured(thorough: bool) -> list[str]:
        times = []
        for _ in range(21):
            begin = time.perf_counter()
            inspect_model(path, thorough=thorough)
            times.append(1000 * (time.perf_counter() - begin))
        middle = statistics.median(times[1:])
        target = "" if thorough else f"< 30 {verdict(middle, at_most=30)}"
        return [f"{middle:.1f}", f"{min(times):.1f}", target]

    ways = {"to list a model": False, "before a load, the vocabulary checked too": True}
    rows = [row(name, measured, thorough) for name, thorough in ways.items()]
    print_table("Header inspection, 262,144-token GGUF", ["", "median, ms", "best, ms", "target"], rows)


def imports() -> None:
    """Import time over what is imported without us, in fresh interpreters."""

    def measured(first: str, ours: str, target: float) -> list[str]:
        code = f"import time; {first}; begin = time.perf_counter(); {ours}; print(time.perf_counter() - begin)"
        command, folder = [sys.executable, "-c", code], tempfile.gettempdir()
        run = [
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
            for _ in range(FRESH_INTERPRETERS + 1)
        ]
        middle = statistics.median(float(done.stdout) for done in run[1:])
        return [f"{middle:.3f}", f"< {target} {verdict(middle, at_most=target)}"]

    rows = [row(name, measured, *about) for name, about in _IMPORTS.items()]
    print_table("Import time", ["", "median, s", "target"], rows, f"{FRESH_INTERPRETERS} fresh interpreters each.")


def langflow() -> None:
    """Seconds until Langflow is healthy, with the pack and without, in turns."""
    seconds: dict[str, list[float]] = {"without the pack": [], "with the pack": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pythons = {side: environment_without_us(folder / side.replace(" ", "-")) for side in seconds}
        install(pythons["with the pack"], build_wheel(folder))
        for number in range(LANGFLOW_STARTS + 1):
            for side, python in pythons.items():
                data = folder / f"{number} {side}"
                data.mkdir()
                with run_langflow(data, python=python) as server:
                    if number:  # the first start compiles and fills caches
                        seconds[side].append(server.start_s)
    without, ours = (statistics.median(times) for times in seconds.values())
    rows = [
        [side, f"{statistics.median(times):.2f}", f"{min(times):.2f}–{max(times):.2f}", ""]
        for side, times in seconds.items()
    ]
    rows.append(["more", f"{ours - without:+.2f}", "", f"≤ +0.5 {verdict(ours - without, at_most=0.5)}"])
    print_table(
        "`langflow run` until it is healthy",
        ["", "median, s", "range, s", "target"],
        rows,
        f"{LANGFLOW_STARTS} starts each, in turns.",
    )


def ends() -> None:
    """Seconds that a process takes to end with a model loaded: after its work, and when it is told to."""

    def measured(end: Callable[[], float]) -> list[str]:
        middle = statistics.median(end() for _ in range(ENDS))
        return [f"{middle:.2f}", f"≤ 3 {verdict(middle, at_most=3)}"]

    ways = {
        "`lfx run`, after the answer of `local_chat.json`": _end_of_lfx_run,
        "`lfx-local-runtimes serve`, Ctrl-C while an answer is streamed": _end_of_serve,
    }
    rows = [row(name, measured, end) for name, end in ways.items()]
    print_table("The end of a process", ["", "median, s", "target"], rows, f"{ENDS} processes each.")


def _end_of_lfx_run() -> float:
    command = [str(Path(sys.executable).with_name("lfx")), "run", str(FOLDER / "local_chat.json"), "Hello"]
    with tempfile.TemporaryDirectory() as home, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True,
        env=os.environ | {"LOCAL_RUNTIMES_HOME": home, "LOCAL_RUNTIMES_OFFLINE": "true", "DO_NOT_TRACK": "true"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith("{"):
            if not line:
                raise RuntimeError("lfx run ended without an answer")
        begin = time.perf_counter()
        process.wait()
        return time.perf_counter() - begin


def _end_of_serve() -> float:
    models.gguf()
    body = {"model": "gemma-3-270m", "prompt": "1, 2, 3,", "max_tokens": 1500, "stream": True, "ignore_eos": True}
    with (
        our_process() as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        next(answer.raise_for_status().iter_lines())
        begin = time.perf_counter()
        server.process.send_signal(signal.SIGINT)
        server.process.wait()
        return time.perf_counter() - begin
