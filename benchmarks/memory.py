"""Load time, and resident memory before a load, loaded, and after the unload; each engine in a process of its own."""

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks import models
from benchmarks.report import print_table, verdict

SHARE_BACK = 95.0


def main() -> None:
    """Print the table."""
    rows = []
    for name, path, engine in (
        ("llama.cpp, GGUF Q4_K_M", models.gguf(), "llama_cpp"),
        ("Transformers, safetensors", models.safetensors(), "transformers"),
    ):
        command = [sys.executable, "-m", "benchmarks.memory", str(path), engine]
        first, *later = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        again = {key: statistics.median(cycle[key] for cycle in later) for key in first}
        rows.append([name, "first, imports the library", *shown(first), ""])
        rows.append(["", f"again, median of {len(later)}", *shown(again), verdict(again["back"], at_least=SHARE_BACK)])
    header = ("", "load", "seconds", "before", "loaded", "after unload", "ledger", "back", f"≥ {SHARE_BACK:.0f} %")
    print_table(
        "Load time, and resident memory in MiB",
        header,
        rows,
        "Loaded: after 16 tokens. What the first load leaves behind is the library. Ledger: what we account for the model.",
    )


def shown(cycle: dict[str, float]) -> list[str]:
    """One load as table cells."""
    sizes = [f"{cycle[key]:,.0f}" for key in ("before", "loaded", "after", "accounted")]
    return [f"{cycle['seconds']:.2f}", *sizes, f"{cycle['back']:.1f} %"]


async def cycles(path: Path, engine: str, times: int = 6) -> list[dict[str, float]]:
    """Load, generate and unload some times over, in this process. Sizes are MiB."""
    from lfx_local_runtimes.runtimes import DeviceType, GenerationConfig, ModelConfig, RuntimeManager, RuntimeType

    manager = RuntimeManager(models.settings())
    manager.catalog.remove("measured")
    manager.register_model(
        ModelConfig(
            model_id=str(path), model_name="measured", runtime_type=RuntimeType(engine), device_type=DeviceType.CPU
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
