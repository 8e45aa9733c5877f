"""What a process of its own costs a model, and what it gives: load time, embeddings, death, memory, two models at once.

Each side runs in a process of its own: `python -m benchmarks.processes SIDE ISOLATION`.
"""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import models
from benchmarks.device import device
from benchmarks.report import Row, failed, print_table, row, verdict

ROUNDS = 5
TURNS = 3
"""How often the sides take turns."""


def side(name: str, isolation: str = "process") -> Any:
    """What one side measured, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.processes", name]
    environment = {**os.environ, "LOCAL_RUNTIMES_ISOLATION": isolation}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def in_turns(name: str) -> tuple[list[Any], list[Any]]:
    """What a side measured inline and in a process, the two in turns."""
    inline, isolated = [], []
    for _ in range(TURNS):
        inline.append(side(name, "inline"))
        isolated.append(side(name))
    return inline, isolated


def main() -> None:
    """Print the table."""
    models.gguf(), models.safetensors(), models.minilm()
    rows = [
        *load_rows("load_llama_cpp", "load of the Gemma GGUF, process over inline", 0.35),
        *load_rows("load_transformers", "load in Transformers with a process that waits, over inline", 0.3),
        row("512 embeddings, process against inline", embedding_cells),
        row("two models at once, one thread each, against each alone", pair_cells),
        row("SIGKILL of an engine to the error at the caller, worst of 10", death_cells),
        *memory_rows(),
        row("Langflow's /health while eight streams run, p99", health_cells),
    ]
    print_table("A model in a process", ("what", "result", "target"), rows, f"Medians of {TURNS} turns of both sides.")


def load_rows(name: str, title: str, target: float) -> list[Row]:
    """Seconds that a load takes longer in a process."""
    try:
        inline, isolated = in_turns(name)
    except subprocess.CalledProcessError as error:
        return [failed(title, error)]
    rows: list[Row] = []
    for index, which in enumerate(("first", "later")):
        if name == "load_transformers" and not index:
            continue  # both import the library then
        more = statistics.median(one[index] for one in isolated) - statistics.median(one[index] for one in inline)
        rows.append([f"{title}, {which}", f"{more:+.2f} s {verdict(more, at_most=target)}", f"≤ +{target} s"])
    return rows


def embedding_cells() -> list[str]:
    """Throughput of 512 texts."""
    inline, isolated = in_turns("embeddings")
    ratio = statistics.median(inline) / statistics.median(isolated)
    return [f"{ratio:.2f}× {verdict(ratio, at_least=0.97)}", "≥ 0.97"]


def pair_cells() -> list[str]:
    """Two models at once against each alone, one thread each."""
    ours, raw = [], []
    for _ in range(TURNS):
        ours.append(side("pair"))
        raw.append(side("raw_pair"))
    ratio = statistics.median(ours)
    return [
        f"{ratio:.2f}× {verdict(ratio, at_least=0.95)}, raw llama-cpp-python {statistics.median(raw):.2f}×",
        "≥ 0.95",
    ]


def death_cells() -> list[str]:
    """From SIGKILL to the error."""
    worst = max(side("death"))
    return [f"{worst:.0f} ms {verdict(worst, at_most=50)}", "≤ 50 ms"]


def memory_rows() -> list[Row]:
    """Growth of the parent, and processes left."""
    title = "growth over 50 rounds of load, answer, unload"
    try:
        found = side("growth")
    except subprocess.CalledProcessError as error:
        return [failed(title, error)]
    growth, left = found["growth_mib"], found["left"]
    return [
        [title, f"{growth:+.1f} MiB {verdict(growth, at_most=10)}", "≤ 10 MiB"],
        ["processes left after the unloads", f"{left} {verdict(left, at_most=0)}", "0"],
    ]


def health_cells() -> list[str]:
    """Langflow's own health route while eight streams run."""
    from benchmarks.text import CONTEXT, langflow_server
    from lfx_local_runtimes.runtimes import ModelConfig

    config = ModelConfig(model_id=str(models.gguf()), model_name="gemma", context_length=CONTEXT)
    with langflow_server(config) as (server, stream):
        list(stream("Hello", 4))
        ended = threading.Event()

        def go_on(number: int) -> None:
            while not ended.is_set():
                list(stream(f"{number}. A long story begins with a word and", 64))

        threads = [threading.Thread(target=go_on, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        times = []
        try:
            with httpx.Client(base_url=server.base_url) as client:
                for _ in range(300):
                    begin = time.perf_counter()
                    client.get("/health").raise_for_status()
                    times.append((time.perf_counter() - begin) * 1000)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    late = sorted(times)[int(len(times) * 0.99)]
    return [f"{late:.0f} ms {verdict(late, at_most=25)}", "≤ 25 ms"]


# -- the sides -----------------------------------------------------------------------------------------------------------


async def load(path: Path, engine: str) -> list[float]:
    """Seconds of the first load, and the median of later ones."""
    manager = _manager(path, engine)
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        await manager.load_model("measured")
        found.append(time.perf_counter() - begin)
        await asyncio.to_thread(_wait_for_spare, manager, engine)
        await manager.unload_model("measured")
    manager.close()
    return [found[0], statistics.median(found[1:])]


def _wait_for_spare(manager: Any, engine: str) -> None:
    if manager.settings.isolation == "inline":
        return
    held = f"spare process {engine}"
    deadline = time.monotonic() + 60
    while held not in manager.stats()["memory"]["cpu"]["models"] and time.monotonic() < deadline:
        time.sleep(0.05)


async def embeddings() -> float:
    """Median seconds of 512 texts."""
    from benchmarks.encoders import mixed
    from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk

    manager = _manager(models.minilm(), "transformers", context_length=None)
    times = []
    for number in range(ROUNDS + 1):
        begin = time.perf_counter()
        await manager.run("measured", EmbeddingAsk(texts=tuple(mixed(number))))
        times.append(time.perf_counter() - begin)
    manager.close()
    return statistics.median(times[1:])


async def pair() -> float:
    """Tokens per second of two models at once over those of each alone."""
    manager = _manager(models.gguf(), "llama_cpp", threads=1)
    manager.catalog.remove("other")
    from lfx_local_runtimes.runtimes import ModelConfig

    manager.register_model(ModelConfig(model_id=str(models.gguf()), model_name="other", threads=1, context_length=2048))

    async def speed(name: str) -> float:
        result = await manager.generate(name, _ask(96))
        return result.tokens_generated / result.execution_time

    for name in ("measured", "other"):
        await speed(name)
    ratios = []
    for _ in range(ROUNDS):
        alone = [await speed(name) for name in ("measured", "other")]
        together = await asyncio.gather(*(speed(name) for name in ("measured", "other")))
        ratios.append(sum(together) / sum(alone))
    manager.close()
    return statistics.median(ratios)


async def raw_pair() -> float:
    """The same for two processes with llama-cpp-python alone."""
    from benchmarks.text import alone, raw_answer

    path, tokens = models.gguf(), 96
    with alone() as one, alone() as other:

        def speeds(*processes: Any) -> float:
            """Tokens per second, all together."""
            answers = [process.submit(raw_answer, path, tokens, "Once upon a time", 1) for process in processes]
            return sum(tokens / answer.result().total for answer in answers)

        speeds(one, other)
        return statistics.median(speeds(one, other) / (speeds(one) + speeds(other)) for _ in range(ROUNDS))


async def death() -> list[float]:
    """Milliseconds from a SIGKILL to the error at the caller."""
    from lfx_local_runtimes.errors import EngineDied

    found = []
    for _ in range(10):
        manager = _manager(models.gguf(), "llama_cpp")
        async with manager.lease("measured") as runtime:
            run = manager.start("measured", _ask(2000, ignore_eos=True))
            deltas = aiter(run)
            await anext(deltas)
            begin = time.perf_counter()
            os.kill(runtime.pid, signal.SIGKILL)
            with contextlib.suppress(EngineDied):
                async for _ in deltas:
                    pass
            found.append((time.perf_counter() - begin) * 1000)
        manager.close()
    return found


async def growth() -> dict[str, float]:
    """MiB that this process grows by over 50 rounds, and engine processes that are left."""
    manager = _manager(models.gguf(), "llama_cpp")
    sizes = []
    for number in range(55):
        await manager.generate("measured", _ask(8))
        await manager.unload_model("measured")
        if number in (4, 54):
            sizes.append(psutil.Process().memory_info().rss / 2**20)
    manager._residency._spares.drop()
    left = [one for one in psutil.Process().children(recursive=True) if "template" not in " ".join(one.cmdline())]
    manager.close()
    return {"growth_mib": sizes[1] - sizes[0], "left": len(left)}


def _ask(tokens: int, **options: Any) -> Any:
    from lfx_local_runtimes.runtimes import GenerationConfig

    return GenerationConfig(prompt="Once upon a time", raw=True, max_tokens=tokens, temperature=0, **options)


def _manager(path: Path, engine: str, context_length: int | None = 2048, **options: Any) -> Any:
    from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager, RuntimeType

    manager = RuntimeManager(models.settings())
    manager.catalog.remove("measured")
    manager.register_model(
        ModelConfig(
            model_id=str(path), model_name="measured", runtime_type=RuntimeType(engine), device_type=device().type,
            context_length=context_length, **options,
        )
    )  # fmt: skip
    return manager


SIDES: dict[str, Callable[[], Awaitable[Any]]] = {
    "load_llama_cpp": lambda: load(models.gguf(), "llama_cpp"),
    "load_transformers": lambda: load(models.safetensors(), "transformers"),
    "embeddings": embeddings,
    "pair": pair,
    "raw_pair": raw_pair,
    "death": death,
    "growth": growth,
}


async def _measured(name: str) -> Any:
    return await SIDES[name]()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_measured(sys.argv[1]))))
