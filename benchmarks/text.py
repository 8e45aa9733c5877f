"""Tokens per second and first-token latency: raw libraries against our manager, chat model and REST stream."""

import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import models
from benchmarks.device import device, dtype, gpu_layers
from benchmarks.report import in_turns, print_all, print_table, row, verdict
from lfx_local_runtimes.langchain.chat import ChatLocalRuntime
from lfx_local_runtimes.runtimes import DeviceType, ModelConfig, RuntimeManager, RuntimeType
from lfx_local_runtimes.runtimes import manager as shared
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig
from tests.langflow_server import LangflowServer, run_langflow

ROUNDS = 7
CONTEXT = 2048
THREADS = psutil.cpu_count(logical=False) or 1
SUBJECTS = (
    "a lighthouse",
    "a bakery",
    "the first tram",
    "an old map",
    "two rivers",
    "a violin maker",
    "the night mail",
    "a glacier",
)


@dataclass(frozen=True)
class Sample:
    """One answer: its text and the seconds until its first and its last piece."""

    text: str
    first: float
    total: float


Side = Callable[[str], Sample]


def timed(start: Callable[[], Iterator[str]]) -> Sample:
    """Run a stream to its end, against the clock."""
    begin = time.perf_counter()
    first, pieces = 0.0, []
    for piece in start():
        if piece and not first:
            first = time.perf_counter() - begin
        pieces.append(piece)
    return Sample("".join(pieces), first, time.perf_counter() - begin)


def prompts() -> list[str]:
    """One per round, no two beginning alike, so that no side can reuse an earlier round's cache."""
    opening = "tells a long story. This is how it goes, from the first morning to the last evening, with every detail in its place:"
    return [
        f"{number}. {subject.capitalize()} {opening}"
        for number, subject in enumerate(SUBJECTS[:ROUNDS] + SUBJECTS[:1], 1)
    ]


def compare(title: str, sides: dict[str, tuple[Side, float | None]], count: Callable[[str], int], note: str) -> None:
    """Let all sides answer the same prompts in turns and print the medians; the first side is the yardstick."""
    asked = prompts()

    def in_round(side: Side) -> Callable[[int], Sample]:
        return lambda number: side(asked[number])

    samples = in_turns({name: in_round(side) for name, (side, _) in sides.items()}, len(asked) - 1)
    yardstick = next(iter(sides))

    def measured(name: str, target: float | None) -> list[str]:
        mine = samples[name]
        speed = statistics.median(count(sample.text) / sample.total for sample in mine)
        first = statistics.median(sample.first for sample in mine) * 1000
        cells = [f"{speed:.1f}", f"{first:.1f}"]
        if target is None:
            return cells
        raw = samples[yardstick]
        ratio = statistics.median(
            base.total * count(one.text) / (one.total * count(base.text)) for base, one in zip(raw, mine, strict=True)
        )
        later = statistics.median(one.first - base.first for base, one in zip(raw, mine, strict=True)) * 1000
        same = sum(base.text == one.text for base, one in zip(raw, mine, strict=True))
        return [
            *cells, f"{ratio:.3f} {verdict(ratio, at_least=target)}", f"≥ {target}",
            f"{later:+.1f} {verdict(later, at_most=5)}", f"{same}/{len(mine)}",
        ]  # fmt: skip

    print_table(
        title,
        ["", "tokens/s", "first token, ms", "speed against raw", "target", "first token later, ms (≤ 5)", "same text"],
        [row(name, measured, name, target) for name, (_, target) in sides.items()],
        note,
    )


@cache
def raw_llama(path: Path) -> Any:
    """A process's own."""
    import llama_cpp as library

    return library.Llama(
        str(path), n_ctx=CONTEXT, n_threads=THREADS, n_threads_batch=THREADS, n_gpu_layers=gpu_layers(), flash_attn=True,
        verbose=False,
    )  # fmt: skip


def raw_answer(path: Path, tokens: int, prompt: str) -> Sample:
    """As a user of llama-cpp-python writes it."""
    chunks = raw_llama(path).create_completion(prompt, max_tokens=tokens, temperature=0, stream=True)
    return timed(lambda: (chunk["choices"][0]["text"] for chunk in chunks))


def place() -> str:
    """Where both sides compute, in words."""
    return f"{THREADS} threads" if device().type is DeviceType.CPU else device().name


def alone() -> ProcessPoolExecutor:
    """A process for one side: OpenMP's threads wait less eagerly for each other where a process has several pools."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def llama_cpp(tokens: int = 128) -> None:
    """Gemma in GGUF, greedy, against llama-cpp-python's high-level object."""
    import llama_cpp as library

    path = models.gguf()
    vocabulary = library.Llama(str(path), vocab_only=True, verbose=False)
    config = ModelConfig(
        model_id=str(path), model_name="gemma", device_type=device().type, context_length=CONTEXT, threads=THREADS
    )

    def count(text: str) -> int:
        return len(vocabulary.tokenize(text.encode(), add_bos=False))

    with (
        alone() as raw,
        our_manager(config) as manager,
        tempfile.TemporaryDirectory() as folder,
        langflow(Path(folder), config) as stream,
    ):
        compare(
            "llama.cpp: one stream",
            {
                "llama-cpp-python": (lambda prompt: raw.submit(raw_answer, path, tokens, prompt).result(), None),
                "manager": (through_manager(manager, tokens), 0.97),
                "node's chat model (`ChatLocalRuntime.astream`)": (through_chat(tokens), 0.97),
                "REST, server-sent events, Langflow": (lambda prompt: timed(lambda: stream(prompt, tokens)), 0.93),
            },
            count,
            f"Gemma 3 270M Q4_K_M, {tokens} tokens greedy, context {CONTEXT}, {place()}, flash attention, medians of {ROUNDS} rounds.",
        )
    vocabulary.close()


def transformers(tokens: int = 64) -> None:
    """The same weights in safetensors, greedy, against `generate`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.generation.streamers import BaseStreamer

    path = models.safetensors()
    tokenizer = AutoTokenizer.from_pretrained(path)
    type_ = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype()]
    raw = AutoModelForCausalLM.from_pretrained(path, dtype=type_, device_map={"": device().key})
    config = ModelConfig(
        model_id=str(path), model_name="gemma", runtime_type=RuntimeType.TRANSFORMERS, device_type=device().type,
        quantization=dtype(), context_length=CONTEXT,
    )  # fmt: skip

    class Clock(BaseStreamer):  # type: ignore[misc]
        """Notes when the second `put` comes: the first brings the prompt."""

        def __init__(self) -> None:
            self.puts: list[float] = []

        def put(self, value: Any) -> None:
            self.puts.append(time.perf_counter())

        def end(self) -> None:
            pass

    def answer(prompt: str) -> Sample:
        clock, begin = Clock(), time.perf_counter()
        inputs = tokenizer(prompt, return_tensors="pt").to(device().key)
        with torch.inference_mode():
            ids = raw.generate(**inputs, max_new_tokens=tokens, do_sample=False, streamer=clock)
        text = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return Sample(text, clock.puts[1] - begin, time.perf_counter() - begin)

    with our_manager(config) as manager:
        compare(
            "Transformers: one stream",
            {"transformers.generate": (answer, None), "manager": (through_manager(manager, tokens), 0.97)},
            lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
            f"Gemma 3 270M {dtype()}, {tokens} tokens greedy, {place()}, medians of {ROUNDS} rounds.",
        )


@contextmanager
def our_manager(config: ModelConfig) -> Iterator[RuntimeManager]:
    """A manager with the model, as the process-wide one."""
    manager = RuntimeManager(models.settings())
    manager.catalog.remove(config.model_name)
    manager.register_model(config)
    before, shared._shared = shared._shared, manager
    try:
        yield manager
    finally:
        shared._shared = before
        manager.close()


def through_manager(manager: RuntimeManager, tokens: int) -> Side:
    """Our manager, read from this thread."""
    return lambda prompt: timed(
        lambda: iter(
            manager.stream("gemma", GenerationConfig(prompt=prompt, raw=True, max_tokens=tokens, temperature=0))
        )
    )


def through_chat(tokens: int) -> Side:
    """What our node's text output iterates."""
    model = ChatLocalRuntime(model="gemma", raw=True, temperature=0, max_tokens=tokens)

    async def answer(prompt: str) -> Sample:
        begin = time.perf_counter()
        first, pieces = 0.0, []
        async for chunk in model.astream(prompt):
            if chunk.text and not first:
                first = time.perf_counter() - begin
            pieces.append(str(chunk.text))
        return Sample("".join(pieces), first, time.perf_counter() - begin)

    return lambda prompt: asyncio.run(answer(prompt))


@contextmanager
def langflow(folder: Path, config: ModelConfig) -> Iterator[Callable[[str, int], Iterator[str]]]:
    """A running Langflow with the model; yields what streams an answer over REST."""
    with langflow_server(folder, config) as (_, stream):
        yield stream


@contextmanager
def langflow_server(
    folder: Path, config: ModelConfig
) -> Iterator[tuple[LangflowServer, Callable[[str, int], Iterator[str]]]]:
    """The same, with the server."""
    with (
        run_langflow(folder, LOCAL_RUNTIMES_MODEL_DIRS=str(models.CACHE)) as server,
        httpx.Client(base_url=server.runtime_url, headers=server.headers, timeout=120) as client,
    ):
        client.post("/models/register", json=config.model_dump(mode="json")).raise_for_status()

        def stream(prompt: str, tokens: int) -> Iterator[str]:
            body = {"model_name": "gemma", "prompt": prompt, "raw": True, "max_tokens": tokens, "temperature": 0}
            with client.stream("POST", "/generate/stream", json=body) as response:
                response.raise_for_status()
                event = ""
                for line in response.iter_lines():
                    field, _, value = line.partition(": ")
                    if field == "event":
                        event = value
                    elif field == "data" and event == "token":
                        yield json.loads(value)["text"]
                    elif field == "data" and event == "error":
                        raise RuntimeError(value)

        yield server, stream


def main() -> None:
    """Print both tables."""
    print_all(llama_cpp, transformers)
