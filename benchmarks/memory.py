"""Load time, and resident memory before a load, loaded, and after the unload; each engine in a process of its own."""

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks import models
from benchmarks.device import device
from benchmarks.report import Row, print_table, row, verdict

SHARE_BACK = 95.0


def main() -> None:
    """Print the table."""
    rows: list[Row] = []
    for name, make, engine in (
        ("llama.cpp, GGUF Q4_K_M", models.gguf, "llama_cpp"),
        ("Transformers, safetensors", models.safetensors, "transformers"),
    ):
        later: list[dict[str, float]] = []
        rows.append(row(name, first_load, make, engine, later))
        if later:
            again = {key: statistics.median(cycle[key] for cycle in later) for key in later[0]}
            reached = verdict(again["back"], at_least=SHARE_BACK)
            rows.append(["", f"again, median of {len(later)}", *shown(again), reached])
    header = ("", "load", "seconds", "before", "loaded", "after unload", "ledger", "back", f"≥ {SHARE_BACK:.0f} %")
    print_table(
        "Load time, and resident memory in MiB",
        header,
        rows,
        "Loaded: after 16 tokens. What the first load leaves behind is the library. Ledger: what we account for the model.",
    )


def first_load(make: Callable[[], Path], engine: str, later: list[dict[str, float]]) -> list[str]:
    """The cells of the first load. The others go into `later`."""
    command = [sys.executable, "-m", "benchmarks.memory", str(make()), engine]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    first, *others = json.loads(done.stdout.splitlines()[-1])
    later += others
    return ["first, imports the library", *shown(first)]


def shown(cycle: dict[str, float]) -> list[str]:
    """One load as table cells."""
    sizes = [f"{cycle[key]:,.0f}" for key in ("before", "loaded", "after", "accounted")]
    return [f"{cycle['seconds']:.2f}", *sizes, f"{cycle['back']:.1f} %"]


async def cycles(path: Path, engine: str, times: int = 6) -> list[dict[str, float]]:
    """Load, generate and unload some times over, in this process. Sizes are MiB."""
    from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, RuntimeManager, RuntimeType

    manager = RuntimeManager(models.settings())
    manager.catalog.remove("measured")
    manager.register_model(
        ModelConfig(
            model_id=str(path), model_name="measured", runtime_type=RuntimeType(engine), device_type=device().type
        )
    )
    found = []
    for _ in range(times):
        before, begin = resident(), time.perf_counter()
        await manager.load_model("measured")
        seconds = time.perf_counter() - begin
        await manager.generate("measured", GenerationConfig(prompt="What is the capital of France?", max_tokens=16))
        loaded, accounted = resident(), manager.model_status("measured").memory_used_mb or 0
        await manager.unload_model("measured")
        after = resident()
        found.append({
            "before": before, "loaded": loaded, "after": after, "seconds": seconds, "accounted": accounted,
            "back": 100 * (loaded - after) / (loaded - before),
        })  # fmt: skip
    manager.close()
    return found


def resident() -> float:
    """Resident memory of this process in MiB."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


if __name__ == "__main__":
    print(json.dumps(asyncio.run(cycles(Path(sys.argv[1]), sys.argv[2]))))
