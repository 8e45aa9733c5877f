"""Embeddings: our dynamic batching against sentence-transformers' `encode`, and against itself one by one."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

from benchmarks import models
from benchmarks.device import device, dtype
from benchmarks.report import print_all, print_table, row, verdict
from benchmarks.servers import our_server
from benchmarks.text import THREADS, alone, our_manager, place
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.sources.packages import MINILM
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk

ROUNDS = 5
TEXTS = 512
CALLERS = 64
GROWTH_MIB = 32
MODEL = "minilm"
_TEXT = (
    "The runtime keeps an account of memory for every device and evicts what is idle when a newcomer needs the room "
    "while streams go on and nobody waits longer than a batch takes on two cores of a machine that others share"
)


def mixed(number: int, count: int = TEXTS) -> list[str]:
    """Texts of 4 to 123 words, the same for every side of a round."""
    words = _TEXT.split()
    return [
        f"{number}.{index} " + " ".join(words[(index + place) % len(words)] for place in range(3 + index * 37 % 120))
        for index in range(count)
    ]


def queries(number: int) -> list[str]:
    """One for each caller, of 3 to 17 words."""
    return [" ".join(text.split()[: 3 + index % 15]) for index, text in enumerate(mixed(number, 10 * CALLERS)[::10])]


def reference(path: Path, texts: Sequence[str]) -> tuple[float, Any]:
    """Seconds and vectors of sentence-transformers, fp32, batches of 32."""
    import torch
    from sentence_transformers import SentenceTransformer

    global _reference  # noqa: PLW0603 - a process's own
    if _reference is None:
        torch.set_num_threads(THREADS)
        _reference = SentenceTransformer(str(path), device=device().key)
    begin = time.perf_counter()
    vectors = _reference.encode(list(texts), batch_size=32)
    return time.perf_counter() - begin, vectors


_reference: Any = None


async def ours(manager: RuntimeManager, texts: Sequence[str]) -> tuple[float, Any]:
    """Seconds and vectors of one call."""
    begin = time.perf_counter()
    result = await manager.run(MODEL, EmbeddingAsk(texts=tuple(texts)))
    return time.perf_counter() - begin, result.vectors


async def at_once(manager: RuntimeManager, texts: Sequence[str]) -> float:
    """Seconds for as many callers with one text each."""
    begin = time.perf_counter()
    await asyncio.gather(*(manager.run(MODEL, EmbeddingAsk(texts=(text,))) for text in texts))
    return time.perf_counter() - begin


async def one_by_one(manager: RuntimeManager, texts: Sequence[str]) -> float:
    """The same, one after the other."""
    begin = time.perf_counter()
    for text in texts:
        await manager.run(MODEL, EmbeddingAsk(texts=(text,)))
    return time.perf_counter() - begin


async def beside_a_job(manager: RuntimeManager, number: int) -> list[float]:
    """Seconds of queries while a job of 10,000 texts runs, in batches of that job (the mean)."""
    begin, size = time.perf_counter(), 10_000
    job = asyncio.ensure_future(manager.run(MODEL, EmbeddingAsk(texts=tuple(mixed(number, size)))))
    scheduler: Any = manager._residency._slots[MODEL].runtime._scheduler  # type: ignore[union-attr]
    batches = scheduler.batches
    waits: list[float] = []
    await asyncio.sleep(2)
    while not job.done() and len(waits) < 40:
        asked = time.perf_counter()
        await manager.run(MODEL, EmbeddingAsk(texts=(f"query {len(waits)}",)))
        waits.append(time.perf_counter() - asked)
        await asyncio.sleep(0.1)
    batch = (time.perf_counter() - begin) / (scheduler.batches - batches)
    job.cancel()
    return [wait / batch for wait in waits]


def in_process(path: Path) -> None:
    """One call, many callers, a query beside a job, and memory."""
    import numpy as np

    faster, gains, worst = [], [], 1.0
    with our_manager(_config(path)) as manager, alone() as process:
        for number in range(ROUNDS + 1):
            texts, singles = mixed(number), queries(100 + number)
            sides: list[Any] = [
                lambda texts=texts: process.submit(reference, path, texts).result(),
                lambda texts=texts: asyncio.run(ours(manager, texts)),
            ]
            theirs, mine = _in_turns(sides, number)
            worst = min(worst, float((theirs[1] * mine[1]).sum(1).min()))
            many, single = asyncio.run(at_once(manager, singles)), asyncio.run(one_by_one(manager, singles))
            if number:  # the first round warms up
                faster.append(theirs[0] / mine[0])
                gains.append(single / many)
        waits = asyncio.run(beside_a_job(manager, 500))
        before = psutil.Process().memory_info().rss
        for number in range(10):
            asyncio.run(ours(manager, [f"text {number * 10_000 + index}" for index in range(10_000)]))
        grown = (psutil.Process().memory_info().rss - before) / 2**20
    rows = [
        [f"{TEXTS} mixed texts in one call", "`encode`, fp32, batches of 32", *_ratio(statistics.median(faster), 1.8)],
        [f"{CALLERS} callers with one query each", "one by one", *_ratio(statistics.median(gains), 2.2)],
        ["one query while 10,000 texts run, p95", "a batch", f"{_p95(waits):.2f} {verdict(_p95(waits), at_most=3)}", "≤ 3"],
        row(
            f"{TEXTS} mixed texts through REST, `openai` client", lambda: ["in process", *_ratio(over_rest(path), 0.8)]
        ),
        ["resident memory after 100,000 short texts in ten calls, MiB", "before", f"{grown:+.0f} {verdict(grown, at_most=GROWTH_MIB)}", f"≤ +{GROWTH_MIB}"],
    ]  # fmt: skip
    print_table(
        "Embeddings: all-MiniLM-L6-v2",
        ["", "against", "ratio", "target"],
        rows,
        f"{dtype()}, {place()}, medians of {ROUNDS} rounds; lowest cosine against fp32 {np.round(worst, 5)}.",
    )


def over_rest(path: Path) -> float:
    """How fast `v1/embeddings` of the standalone server is against the manager in this process."""
    ratios = []
    with (
        our_server() as url,
        OpenAI(base_url=f"{url}/v1", api_key="none") as client,
        our_manager(_config(path)) as manager,
    ):

        def asked(texts: Sequence[str]) -> tuple[float, Any]:
            begin = time.perf_counter()
            answer = client.embeddings.create(model=MINILM.name, input=list(texts))
            return time.perf_counter() - begin, answer

        for number in range(ROUNDS + 1):
            texts = mixed(200 + number)
            sides: list[Any] = [
                lambda texts=texts: asyncio.run(ours(manager, texts)),
                lambda texts=texts: asked(texts),
            ]
            mine, served = _in_turns(sides, number)
            if number:
                ratios.append(mine[0] / served[0])
    return statistics.median(ratios)


def engines(path: Path) -> None:
    """The same texts on every engine and type, against `encode`."""

    def measured(engine: str, kind: str) -> list[str]:
        ratios, worst = [], 1.0
        with our_manager(_config(path, runtime_type=engine, quantization=kind)) as manager, alone() as process:
            for number in range(ROUNDS):
                texts = mixed(300 + number)
                sides: list[Any] = [
                    lambda texts=texts: process.submit(reference, path, texts).result(),
                    lambda texts=texts: asyncio.run(ours(manager, texts)),
                ]
                theirs, mine = _in_turns(sides, number)
                worst = min(worst, float((theirs[1] * mine[1]).sum(1).min()))
                if number:
                    ratios.append(theirs[0] / mine[0])
        return [kind, f"{statistics.median(ratios):.2f}", f"{worst:.4f}"]

    kinds = (("transformers", "fp32"), ("transformers", "bf16"), ("onnx", "fp32"), ("onnx", "int8"))
    print_table(
        "Embeddings: engines",
        ["engine", "type", "speed against `encode`, fp32", "lowest cosine"],
        [row(engine, measured, engine, kind) for engine, kind in kinds],
        f"all-MiniLM-L6-v2, {TEXTS} mixed texts in one call, {place()}.",
    )


def main() -> None:
    """Print the tables."""
    path = models.minilm()
    print_all(partial(in_process, path), partial(engines, path))


def _config(path: Path, **options: Any) -> ModelConfig:
    return ModelConfig.model_validate({
        "model_id": str(path), "model_name": MODEL, "device_type": device().type, "threads": THREADS, "quantization": dtype(),
        **options,
    })  # fmt: skip


def _in_turns(sides: list[Any], number: int) -> list[Any]:
    """What the sides give; who goes first changes from round to round."""
    order = sides if number % 2 else sides[::-1]
    found = [side() for side in order]
    return found if number % 2 else found[::-1]


def _ratio(value: float, target: float) -> tuple[str, str]:
    return f"{value:.2f} {verdict(value, at_least=target)}", f"≥ {target}"


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]
