"""What the pack adds before a model is wanted: header inspection, import time, Langflow's start."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import models
from benchmarks.report import print_table, verdict
from lfx_local_runtimes.runtimes import inspect_model
from tests.environments import build_wheel, environment_without_us, install
from tests.langflow_server import run_langflow

FRESH_INTERPRETERS = 7
LANGFLOW_STARTS = 3

_IMPORTS = {
    "`lfx`, then the package": ("import lfx", "import lfx_local_runtimes, lfx_local_runtimes.runtimes"),
    "`lfx`, then `RuntimeManager`, with pydantic, pydantic-settings and asyncio": (
        "import lfx",
        "from lfx_local_runtimes.runtimes import RuntimeManager, ModelConfig",
    ),
    "Langflow's model base class, then nodes, chat model, provider and API": (
        "import lfx.base.models.model, lfx.io",
        "import lfx_local_runtimes.nodes.text, lfx_local_runtimes.nodes.reading, lfx_local_runtimes.langchain.chat, lfx_local_runtimes.nodes.provider, lfx_local_runtimes.runtimes.manager;"
        "import lfx_local_runtimes.components.local_runtimes.local_model",
    ),
}


def main() -> None:
    """Print the tables."""
    inspection()
    imports()
    langflow()


def inspection() -> None:
    """Header inspection of the Gemma file."""
    path, rows = models.gguf(), []
    for name, thorough in (("to list a model", False), ("before a load, the vocabulary checked too", True)):
        times = []
        for _ in range(21):
            begin = time.perf_counter()
            inspect_model(path, thorough=thorough)
            times.append(1000 * (time.perf_counter() - begin))
        middle = statistics.median(times[1:])
        target = "" if thorough else f"< 30 {verdict(middle, at_most=30)}"
        rows.append([name, f"{middle:.1f}", f"{min(times):.1f}", target])
    print_table("Header inspection, 262,144-token GGUF", ["", "median, ms", "best, ms", "target"], rows)


def imports() -> None:
    """Import time over what is imported without us, in fresh interpreters."""
    rows = []
    for name, (first, ours) in _IMPORTS.items():
        code = f"import time; {first}; begin = time.perf_counter(); {ours}; print(time.perf_counter() - begin)"
        command, folder = [sys.executable, "-c", code], tempfile.gettempdir()
        run = [
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
            for _ in range(FRESH_INTERPRETERS + 1)
        ]
        middle = statistics.median(float(done.stdout) for done in run[1:])
        rows.append([name, f"{middle:.3f}", f"< 0.3 {verdict(middle, at_most=0.3)}"])
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
