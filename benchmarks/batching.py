"""Many streams at once on llama.cpp: against its own ceiling, its server, and one stream after the other."""

import asyncio
import contextlib
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks import models
from benchmarks.device import device, gpu_layers
from benchmarks.report import in_turns, print_all, print_table, row, verdict
from benchmarks.servers import llama_cpp_server, our_server
from benchmarks.text import SUBJECTS, THREADS, alone, our_manager, place, raw_answer
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig
from tests.langflow_server import run_langflow

ROUNDS = 5
STREAMS = 8
TOKENS = 64
CONTEXT = 2048
MODEL = "gemma-3-270m"
STORY = "It was the year of the great flood, and the miller counted his sacks for the third time that morning. "


@dataclass(frozen=True)
class Sample:
    """One run of several streams: all tokens, the seconds in all, and those until each stream's first token."""

    tokens: int
    seconds: float
    firsts: tuple[float, ...]

    @property
    def speed(self) -> float:
        """Tokens per second, all streams together."""
        return self.tokens / self.seconds


def prompts(number: int, count: int, words: int = 60) -> list[str]:
    """Different ones for every round, of `words` words, so that nothing finds an earlier round's cache."""
    return [
        f"{number}.{index} {subject.capitalize()}: " + " ".join((STORY * 20).split()[index : index + words])
        for index, subject in enumerate(SUBJECTS[:count])
    ]


class RawBatch:
    """llama.cpp's own batching as little as possible around it: every sequence at once, greedy, natively sampled."""

    def __init__(self, path: Path, sequences: int) -> None:
        import llama_cpp as lib

        self.lib = lib
        lib.llama_backend_init()
        options = lib.llama_model_default_params()
        options.n_gpu_layers = gpu_layers()
        self.model = lib.llama_model_load_from_file(str(path).encode(), options)
        self.vocab = lib.llama_model_get_vocab(self.model)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = CONTEXT * sequences, CONTEXT, sequences
        params.n_outputs_max = sequences
        params.n_threads = params.n_threads_batch = THREADS
        params.no_perf = True
        self.context = lib.llama_init_from_model(self.model, params)
        self.batch = lib.llama_batch_init(CONTEXT, 0, 1)
        self.sampler = lib.llama_sampler_init_greedy()

    def tokenize(self, text: str) -> list[int]:
        """With the begin-of-sequence token."""
        data = text.encode()
        tokens = (self.lib.llama_token * (len(data) + 8))()
        return list(tokens[: self.lib.llama_tokenize(self.vocab, data, len(data), tokens, len(tokens), True, True)])

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """Token, position, sequence, whether its logits are wanted."""
        for index, (token, position, sequence, output) in enumerate(rows):
            self.batch.token[index], self.batch.pos[index], self.batch.logits[index] = token, position, output
            self.batch.n_seq_id[index], self.batch.seq_id[index][0] = 1, sequence
        self.batch.n_tokens = len(rows)
        assert self.lib.llama_decode(self.context, self.batch) == 0

    def run(self, texts: Sequence[str], tokens: int = TOKENS) -> Sample:
        """Evaluate all prompts in one call, then decode them together."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)
        asked = [self.tokenize(text) for text in texts]
        begin = time.perf_counter()
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(asked)
            for position, token in enumerate(prompt)
        ]
        self.decode(rows)
        ends = [index for index, row in enumerate(rows) if row[3]]
        last = [self.lib.llama_sampler_sample(self.sampler, self.context, index) for index in ends]
        first = time.perf_counter() - begin
        for step in range(tokens - 1):
            self.decode([(token, len(asked[index]) + step, index, True) for index, token in enumerate(last)])
            last = [self.lib.llama_sampler_sample(self.sampler, self.context, index) for index in range(len(last))]
        return Sample(tokens * len(texts), time.perf_counter() - begin, (first,) * len(texts))


def over_http(url: str, texts: Sequence[str], tokens: int = TOKENS) -> tuple[Sample, list[int]]:
    """Stream completions of all prompts at once. Also returns the tokens of each.

    The client only counts and keeps the end: it shares the cores with the server.
    """

    def one(text: str) -> tuple[int, float]:
        body = {
            "model": MODEL, "prompt": text, "max_tokens": tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, "ignore_eos": True,
        }  # fmt: skip
        begin, first, count, tail = time.perf_counter(), 0.0, 0, b""
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=300)
        with (
            contextlib.closing(connection),
            contextlib.suppress(http.client.IncompleteRead),
        ):  # cut off: what came counts
            connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            while data := response.read1(65536):
                first = first or time.perf_counter() - begin
                count += data.count(b"data: {")
                tail = data
        _, _, usage = tail.decode().rpartition('"usage":')
        told = json.JSONDecoder().raw_decode(usage)[0]["completion_tokens"] if usage.startswith("{") else 0
        return told or count, first

    begin = time.perf_counter()
    with ThreadPoolExecutor(len(texts)) as threads:
        ends = list(threads.map(one, texts))
    seconds = time.perf_counter() - begin
    counts = [count for count, _ in ends]
    return Sample(sum(counts), seconds, tuple(first for _, first in ends)), counts


def asks(texts: Sequence[str], tokens: int = TOKENS) -> list[GenerationConfig]:
    """Greedy continuations of full length."""
    return [
        GenerationConfig(prompt=text, raw=True, max_tokens=tokens, temperature=0, ignore_eos=True) for text in texts
    ]


async def through_manager(manager: RuntimeManager, texts: Sequence[str], tokens: int = TOKENS) -> Sample:
    """All prompts at once through our manager."""
    begin = time.perf_counter()

    async def one(config: GenerationConfig) -> tuple[int, float]:
        stream, first = manager.stream(MODEL, config), 0.0
        async for _ in stream.adeltas():
            first = first or time.perf_counter() - begin
        assert stream.result is not None
        return stream.result.tokens_generated, first

    ends = await asyncio.gather(*(one(config) for config in asks(texts, tokens)))
    return Sample(sum(count for count, _ in ends), time.perf_counter() - begin, tuple(first for _, first in ends))


async def in_a_row(manager: RuntimeManager, texts: Sequence[str], tokens: int = TOKENS) -> Sample:
    """The same, one after the other."""
    begin = time.perf_counter()
    total = 0
    for config in asks(texts, tokens):
        total += (await manager.generate(MODEL, config)).tokens_generated
    return Sample(total, time.perf_counter() - begin, ())


def p95(values: Sequence[float]) -> float:
    """The 95th percentile, of few values the largest."""
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def median(values: Sequence[float]) -> float:
    """Shorthand."""
    return statistics.median(values)


@cache
def raw_batch(path: Path) -> RawBatch:
    """A process's own."""
    return RawBatch(path, STREAMS)


def ceiling(path: Path, texts: Sequence[str]) -> Sample:
    """Eight streams of the raw library."""
    return raw_batch(path).run(texts)


def one_raw_stream(path: Path, texts: Sequence[str]) -> Sample:
    """As a user of llama-cpp-python writes it."""
    answer = raw_answer(path, TOKENS, texts[0])
    return Sample(TOKENS, answer.total, (answer.first,))


def streams(path: Path, manager: RuntimeManager) -> None:
    """One and eight streams: the raw library, the ceiling, our manager and our server, in turns, each in a process."""
    with our_server() as url, alone() as raw, alone() as batched:
        sides: dict[str, tuple[int, Callable[[Sequence[str]], Sample]]] = {
            "raw1": (1, lambda texts: raw.submit(one_raw_stream, path, texts).result()),
            "rest1": (1, lambda texts: over_http(url, texts)[0]),
            "raw8": (STREAMS, lambda texts: batched.submit(ceiling, path, texts).result()),
            "manager8": (STREAMS, lambda texts: asyncio.run(through_manager(manager, texts))),
            "rest8": (STREAMS, lambda texts: over_http(url, texts)[0]),
        }

        def in_round(name: str) -> Callable[[int], Sample]:
            count, run = sides[name]
            return lambda number: run(prompts(number, count))

        samples = in_turns({name: in_round(name) for name in sides}, ROUNDS)

    def speed(name: str) -> float:
        return median([sample.speed for sample in samples[name]])

    def against(name: str, base: str, words: str, target: float) -> list[str]:
        ratio = median([a.speed / b.speed for a, b in zip(samples[name], samples[base], strict=True)])
        return [f"{speed(name):.1f}", words, f"{ratio:.2f} {verdict(ratio, at_least=target)}", f"≥ {target}"]

    def late(name: str) -> list[str]:
        value = median([p95(a.firsts) / b.firsts[0] for a, b in zip(samples[name], samples["raw8"], strict=True)])
        return ["", "one raw `llama_decode` of the prompts", f"{value:.2f} {verdict(value, at_most=1.15)}", "≤ 1.15"]

    print_table(
        "llama.cpp: one and eight streams",
        ["", "tokens/s", "against", "ratio", "target"],
        [
            row("raw llama-cpp-python, one stream", lambda: [f"{speed('raw1'):.1f}"]),
            row("REST `/v1/completions`, one stream", against, "rest1", "raw1", "raw, one stream", 0.97),
            row("raw `llama_decode`, eight sequences: the ceiling", lambda: [f"{speed('raw8'):.1f}"]),
            row("manager, eight streams", against, "manager8", "raw8", "the ceiling", 0.95),
            row("REST, eight streams", against, "rest8", "raw8", "the ceiling", 0.95),
            row("REST, eight streams", against, "rest8", "rest1", "REST, one stream", 2.0),
            row("manager, first token of eight at once, p95", late, "manager8"),
            row("REST, first token of eight at once, p95", late, "rest8"),
        ],
        f"Gemma 3 270M Q4_K_M, prompts of about 80 tokens, {TOKENS} tokens greedy, {place()}, medians of {ROUNDS} rounds.",
    )


def prefixes(manager: RuntimeManager) -> None:
    """First token of a second request that shares a thousand tokens with the first."""
    ratios, cached = [], 0
    for number in range(ROUNDS):
        story = f"Chapter {number}. " + STORY * 45
        firsts = []
        for question in ("Who counted?", "When was it?"):
            result = asyncio.run(manager.generate(MODEL, asks([f"{story}{question}"], 4)[0]))
            firsts.append(result.time_to_first_token or 0.0)
        cached = int(result.metadata["cached_tokens"])
        ratios.append(firsts[1] / firsts[0])
    value = median(ratios)
    print_table(
        "A shared prefix",
        ["", "first token against the first request's", "target"],
        [[f"second request, {cached:,} of {result.prompt_tokens:,} tokens cached", f"{value:.3f} {verdict(value, at_most=0.15)}", "≤ 0.15"]],
    )  # fmt: skip


def siblings(manager: RuntimeManager) -> None:
    """Four requests at once against four in a row; the same as four parallel nodes of a flow in Langflow."""

    def cells(measure: Callable[[], float]) -> list[str]:
        value = measure()
        return [f"{value:.2f} {verdict(value, at_least=1.4)}", "≥ 1.4"]

    print_table(
        "Four parallel requests on one model",
        ["", "against four in a row", "target"],
        [
            row("manager", cells, lambda: requests(manager)),
            row("nodes of `parallel_branches.json`", cells, nodes),
        ],
        "The nodes' four in a row is the same flow on a model loaded with `parallel: 1`.",
    )


def requests(manager: RuntimeManager) -> float:
    """How much faster the manager answers four requests at once."""
    gains = []
    for number in range(ROUNDS + 1):
        texts = prompts(100 + number, 4, words=20)
        turns: list[Callable[[], Awaitable[Sample]]] = [
            lambda texts=texts: through_manager(manager, texts),  # type: ignore[misc]
            lambda number=number: in_a_row(manager, prompts(200 + number, 4, words=20)),  # type: ignore[misc]
        ]
        if number % 2:
            turns.reverse()
        results = [asyncio.run(turn()) for turn in turns]  # type: ignore[arg-type]
        together, alone = results[::-1] if number % 2 else results
        if number:
            gains.append(together.speed / alone.speed)
    return median(gains)


def nodes() -> float:
    """How much faster Langflow runs the four branches on a model that computes them together."""
    flow = json.loads((Path(__file__).parents[1] / "flows" / "parallel_branches.json").read_text())
    branches = [node["id"] for node in flow["data"]["nodes"] if node["id"].startswith("LocalModel")]
    gains = []
    with (
        tempfile.TemporaryDirectory() as folder,
        run_langflow(Path(folder), LOCAL_RUNTIMES_MODEL_DIRS=str(models.CACHE)) as server,
        httpx.Client(base_url=server.base_url, headers=server.headers, timeout=300) as client,
    ):
        for parallel in (1, 4):
            config = ModelConfig(
                model_id=str(models.gguf()), model_name=f"at-once-{parallel}", context_length=CONTEXT,
                threads=THREADS, parallel=parallel, device_type=device().type,
            )  # fmt: skip
            client.post("/api/v1/runtime/models/register", json=config.model_dump(mode="json")).raise_for_status()
        made = client.post("/api/v1/flows/", json={"name": flow["name"], "data": flow["data"]}).raise_for_status()

        def run(parallel: int, text: str) -> float:
            settings = {"model_name": f"at-once-{parallel}", "raw": True, "max_tokens": TOKENS}
            body = {"input_value": text, "tweaks": dict.fromkeys(branches, settings)}
            begin = time.perf_counter()
            client.post(f"/api/v1/run/{made.json()['id']}", json=body).raise_for_status()
            return time.perf_counter() - begin

        for number in range(ROUNDS + 1):
            text = (
                ", ".join(f"{number}{count:02}" for count in range(6)) + ","
            )  # it goes on counting, to the full length
            order = (1, 4) if number % 2 else (4, 1)
            seconds = {parallel: run(parallel, text) for parallel in order}
            if number:
                gains.append(seconds[1] / seconds[4])
    return median(gains)


def cancelling(manager: RuntimeManager) -> None:
    """Calls of `llama_decode` between a cancel and the end of the request."""
    runtime: Any = manager._residency._slots[MODEL].runtime
    steps = []
    for number in range(20):
        stream = manager.stream(MODEL, asks(prompts(300 + number, 1), 500)[0])
        for index, _ in enumerate(stream.deltas()):
            if index == 5:
                before = runtime._scheduler.steps
                stream.cancel()
        steps.append(runtime._scheduler.steps - before)
    print_table(
        "Cancel",
        ["", "steps until the model is idle, worst of 20", "target"],
        [["from another thread, while decoding", f"{max(steps)} {verdict(max(steps), at_most=1)}", "≤ 1"]],
    )


def servers(path: Path) -> None:
    """Eight at once: who answers in full."""

    def cells(server: AbstractContextManager[str], *, ours: bool) -> list[str]:
        with server as url:
            over_http(url, prompts(0, 1))
            sample, counts = over_http(url, prompts(1, STREAMS))
        full = sum(count >= TOKENS for count in counts)
        reached = f" {verdict(full, at_least=STREAMS)}" if ours else ""
        return [f"{full} of {STREAMS}{reached}", f"{sample.tokens} of {TOKENS * STREAMS}", f"{sample.speed:.1f}"]

    rows = [
        row("`lfx-local-runtimes serve`", lambda: cells(our_server(), ours=True)),
        row("`llama_cpp.server`", lambda: cells(llama_cpp_server(path, MODEL, CONTEXT, THREADS), ours=False)),
    ]
    print_table("Eight streams at once over HTTP", ["", "answers of full length", "tokens", "tokens/s"], rows)


def main() -> None:
    """Print every table."""
    path = models.gguf()
    config = ModelConfig(
        model_id=str(path), model_name=MODEL, device_type=device().type, context_length=CONTEXT, threads=THREADS, parallel=8
    )  # fmt: skip
    with our_manager(config) as manager:
        print_all(
            partial(streams, path, manager), partial(prefixes, manager), partial(siblings, manager),
            partial(cancelling, manager), partial(servers, path),
        )  # fmt: skip
