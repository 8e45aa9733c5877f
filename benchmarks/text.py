"""Tokens per second and first-token latency: raw libraries against our manager, chat model and REST stream."""

import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from benchmarks import models
from benchmarks.device import device, dtype, gpu_layers
from benchmarks.report import in_turns, print_all, print_table, row, verdict
from benchmarks.servers import our_server
from lfx_local_runtimes.langchain.chat import ChatLocalRuntime
from lfx_local_runtimes.runtimes import DeviceType, ModelConfig, RuntimeManager, RuntimeType
from lfx_local_runtimes.runtimes import manager as shared
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig
from tests.langflow_server import LangflowServer, run_langflow

ROUNDS = 20
CONTEXT = 2048
THREADS = psutil.cpu_count(logical=False) or 1
JSON = {"Content-Type": "application/json"}
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
Opened = AbstractContextManager[Side]
"""A side that starts what it needs, and ends it."""


@dataclass(frozen=True)
class Target:
    """The speed at least, as a share of the yardstick's, and milliseconds that the first token may come later."""

    speed: float
    first_ms: float


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
    return [f"{number}. {SUBJECTS[number % len(SUBJECTS)].capitalize()} {opening}" for number in range(1, ROUNDS + 2)]


def compare(
    title: str,
    yardstick: tuple[str, Side],
    sides: dict[str, tuple[Opened, Target]],
    count: Callable[[str], int],
    note: str,
) -> None:
    """Let each side answer the same prompts as the yardstick, the two in turns, and print the medians.

    Only the two are there at that time: a server with nothing to do disturbs others all the same.
    """
    asked, (called, raw) = prompts(), yardstick

    def in_round(side: Side) -> Callable[[int], Sample]:
        return lambda number: side(asked[number])

    def speed(samples: Sequence[Sample]) -> float:
        return statistics.median(count(sample.text) / sample.total for sample in samples)

    def first(samples: Sequence[Sample]) -> float:
        return statistics.median(sample.first for sample in samples) * 1000

    def measured(opened: Opened, target: Target) -> list[str]:
        with opened as side:
            samples = in_turns({"raw": in_round(raw), "ours": in_round(side)}, ROUNDS)
        base, mine = samples["raw"], samples["ours"]
        ratio = statistics.median(
            one.total * count(other.text) / (other.total * count(one.text))
            for one, other in zip(base, mine, strict=True)
        )
        later = statistics.median(other.first - one.first for one, other in zip(base, mine, strict=True)) * 1000
        same = sum(one.text == other.text for one, other in zip(base, mine, strict=True))
        return [
            f"{speed(mine):.1f} ({speed(base):.1f})", f"{ratio:.3f} {verdict(ratio, at_least=target.speed)}",
            f"≥ {target.speed}", f"{first(mine):.1f} ({first(base):.1f})",
            f"{later:+.1f} {verdict(later, at_most=target.first_ms)}", f"≤ {target.first_ms:g}", f"{same}/{len(mine)}",
        ]  # fmt: skip

    print_table(
        title,
        [
            f"(beside it {called})", "tokens/s", "speed", "target", "first token, ms", "later, ms", "target",
            "same text",
        ],
        (row(name, measured, opened, target) for name, (opened, target) in sides.items()),
        note,
    )  # fmt: skip


@cache
def raw_llama(path: Path, threads: int) -> Any:
    """A process's own."""
    import llama_cpp as library

    return library.Llama(
        str(path), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, n_gpu_layers=gpu_layers(), flash_attn=True,
        verbose=False,
    )  # fmt: skip


def raw_answer(path: Path, tokens: int, prompt: str, threads: int = THREADS) -> Sample:
    """As a user of llama-cpp-python writes it."""
    chunks = raw_llama(path, threads).create_completion(prompt, max_tokens=tokens, temperature=0, stream=True)
    return timed(lambda: (chunk["choices"][0]["text"] for chunk in chunks))


def place() -> str:
    """Where both sides compute, in words."""
    return f"{THREADS} threads" if device().type is DeviceType.CPU else device().name


def alone() -> ProcessPoolExecutor:
    """A process for one side: OpenMP's threads wait less eagerly for each other where a process has several pools."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def llama_cpp(tokens: int = 96) -> None:
    """Gemma in GGUF, greedy, against llama-cpp-python's high-level object."""
    import llama_cpp as library

    path = models.gguf()
    vocabulary = library.Llama(str(path), vocab_only=True, verbose=False)
    config = ModelConfig(
        model_id=str(path), model_name="gemma", device_type=device().type, context_length=CONTEXT, threads=THREADS
    )

    def count(text: str) -> int:
        return len(vocabulary.tokenize(text.encode(), add_bos=False))

    with alone() as raw:
        compare(
            "llama.cpp: one stream",
            ("llama-cpp-python", lambda prompt: raw.submit(raw_answer, path, tokens, prompt).result()),
            {
                "manager": (through_manager(config, tokens), Target(0.97, 5)),
                "node's chat model (`ChatLocalRuntime.astream`)": (through_chat(config, tokens), Target(0.96, 6)),
                "REST, server-sent events, Langflow": (through_rest(langflow(config), tokens), Target(0.95, 12)),
                "the same, `lfx-local-runtimes serve`": (through_rest(serve(config), tokens), Target(0.97, 8)),
            },
            count,
            f"Gemma 3 270M Q4_K_M, {tokens} tokens greedy, context {CONTEXT}, {place()}, flash attention, medians of {ROUNDS} rounds.",
        )
    vocabulary.close()


def neighbour(tokens: int = 96) -> None:
    """One stream beside a process that keeps a core busy, against the better of raw llama.cpp with all and half the threads."""
    path, half = models.gguf(), max(1, THREADS // 2)
    config = ModelConfig(
        model_id=str(path), model_name="gemma", device_type=device().type, context_length=CONTEXT, threads=THREADS
    )
    asked = prompts()

    def raw(process: ProcessPoolExecutor, threads: int) -> Callable[[int], float]:
        return lambda number: tokens / process.submit(raw_answer, path, tokens, asked[number], threads).result().total

    with alone() as every, alone() as fewer, through_manager(config, tokens) as ours, busy():
        samples = in_turns(
            {
                "all": raw(every, THREADS),
                "half": raw(fewer, half),
                "ours": lambda number: tokens / ours(asked[number]).total,
            },
            len(asked) - 1,
        )

    def speed(side: str) -> float:
        return statistics.median(samples[side])

    def measured() -> list[str]:
        ratio = speed("ours") / max(speed("all"), speed("half"))
        return [f"{speed('ours'):.1f}", f"{ratio:.2f} {verdict(ratio, at_least=0.9)}", "≥ 0.9"]

    print_table(
        "llama.cpp: one stream beside a process that keeps a core busy",
        ["", "tokens/s", "against the better of the two", "target"],
        [
            row(f"llama-cpp-python, {THREADS} threads", lambda: [f"{speed('all'):.1f}"]),
            row(f"llama-cpp-python, {half} threads", lambda: [f"{speed('half'):.1f}"]),
            row("manager", measured),
        ],
        f"{tokens} tokens greedy, medians of {ROUNDS} rounds.",
    )


@contextmanager
def busy() -> Iterator[None]:
    """A process that computes all the time, on one core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


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

    compare(
        "Transformers: one stream",
        ("transformers.generate", answer),
        {"manager": (through_manager(config, tokens), Target(0.97, 5))},
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


@contextmanager
def through_manager(config: ModelConfig, tokens: int) -> Iterator[Side]:
    """Our manager, read from this thread."""
    with our_manager(config) as manager:
        yield lambda prompt: timed(
            lambda: iter(
                manager.stream(
                    config.model_name, GenerationConfig(prompt=prompt, raw=True, max_tokens=tokens, temperature=0)
                )
            )
        )


@contextmanager
def through_chat(config: ModelConfig, tokens: int) -> Iterator[Side]:
    """What our node's text output iterates."""
    model = ChatLocalRuntime(model=config.model_name, raw=True, temperature=0, max_tokens=tokens)

    async def answer(prompt: str) -> Sample:
        begin = time.perf_counter()
        first, pieces = 0.0, []
        async for chunk in model.astream(prompt):
            if chunk.text and not first:
                first = time.perf_counter() - begin
            pieces.append(str(chunk.text))
        return Sample("".join(pieces), first, time.perf_counter() - begin)

    with our_manager(config):
        yield lambda prompt: asyncio.run(answer(prompt))


@contextmanager
def through_rest(opened: AbstractContextManager["Stream"], tokens: int) -> Iterator[Side]:
    """A server, read from this thread."""
    with opened as stream:
        yield lambda prompt: timed(lambda: stream(prompt, tokens))


Stream = Callable[[str, int], Iterator[str]]
"""Streams the answer to a prompt, of so many tokens, over REST."""


@contextmanager
def langflow(config: ModelConfig) -> Iterator[Stream]:
    """A running Langflow with the model."""
    with langflow_server(config) as (_, stream):
        yield stream


@contextmanager
def langflow_server(config: ModelConfig) -> Iterator[tuple[LangflowServer, Stream]]:
    """The same, with the server."""
    with (
        tempfile.TemporaryDirectory() as folder,
        run_langflow(Path(folder), LOCAL_RUNTIMES_MODEL_DIRS=str(models.CACHE)) as server,
        over_rest(server.runtime_url, config, server.headers) as stream,
    ):
        yield server, stream


@contextmanager
def serve(config: ModelConfig) -> Iterator[Stream]:
    """`lfx-local-runtimes serve` with the model."""
    with our_server() as url, over_rest(f"{url}/api/v1/runtime", config) as stream:
        yield stream


@contextmanager
def over_rest(url: str, config: ModelConfig, headers: Mapping[str, str] | None = None) -> Iterator[Stream]:
    """A client of our routes, after it has registered the model. It does little itself: both run on the same cores."""
    httpx.post(
        f"{url}/models/register", json=config.model_dump(mode="json"), headers=headers, timeout=120
    ).raise_for_status()
    at = urlsplit(url)

    def stream(prompt: str, tokens: int) -> Iterator[str]:
        body = {
            "model_name": config.model_name, "prompt": prompt, "raw": True, "max_tokens": tokens, "temperature": 0,
        }  # fmt: skip
        with closing(HTTPConnection(at.netloc, timeout=120)) as connection:
            connection.request("POST", f"{at.path}/generate/stream", json.dumps(body), dict(headers or {}) | JSON)
            response = connection.getresponse()
            if response.status != HTTPStatus.OK:
                raise RuntimeError(response.read().decode())
            event = b""
            for line in response:
                field, _, value = line.rstrip().partition(b": ")
                if field == b"event":
                    event = value
                elif field == b"data" and event == b"token":
                    yield json.loads(value)["text"]
                elif field == b"data" and event == b"error":
                    raise RuntimeError(value.decode())

    yield stream


def main() -> None:
    """Print the tables."""
    print_all(llama_cpp, neighbour, transformers)
