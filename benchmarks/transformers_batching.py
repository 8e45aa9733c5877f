"""Several answers at once in Transformers: our batching against `transformers serve --continuous-batching`."""

import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from benchmarks import models
from benchmarks.device import device, dtype
from benchmarks.report import in_turns, print_table, row, verdict
from benchmarks.text import CONTEXT, SUBJECTS, THREADS, our_manager, place
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager, RuntimeType
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig

ROUNDS = 9
STREAMS = 4
SPEEDUP = 3.4
"""Of four streams over one: the target."""

Ask = Callable[[Sequence[str]], int]
"""Answers prompts at once and returns how many tokens were generated in all."""


def main(tokens: int = 64) -> None:
    """Print the table."""
    path = models.safetensors()
    config = ModelConfig(
        model_id=str(path), model_name="gemma", runtime_type=RuntimeType.TRANSFORMERS, device_type=device().type,
        quantization=dtype(), context_length=CONTEXT, threads=THREADS,
    )  # fmt: skip
    with our_manager(config) as manager, served(path) as client:
        sides: dict[str, Ask] = {
            "manager": lambda prompts: ours(manager, prompts, tokens),
            "`transformers serve --continuous-batching`": lambda prompts: theirs(client, str(path), prompts, tokens),
        }

        def in_round(name: str, count: int) -> Callable[[int], float]:
            return lambda number: timed(sides[name], prompts(number, count))

        speeds = in_turns(
            {f"{name} {count}": in_round(name, count) for name in sides for count in (1, STREAMS)}, ROUNDS
        )
    mine, other = sides

    def measured(name: str) -> list[str]:
        one, four = speeds[f"{name} 1"], speeds[f"{name} {STREAMS}"]
        gain = ratio(four, one)
        cells = [f"{statistics.median(speed):.1f}" for speed in (one, four)]
        if name != mine:
            return [*cells, f"{gain:.2f}"]
        against = ratio(four, speeds[f"{other} {STREAMS}"])
        reached = [f"{gain:.2f} {verdict(gain, at_least=SPEEDUP)}", f"{against:.2f} {verdict(against, at_least=1)}"]
        return [*cells, *reached]

    print_table(
        "Transformers: several streams",
        ["", "1 stream, tokens/s", f"{STREAMS} streams, tokens/s", f"gain (≥ {SPEEDUP})", "against serve (≥ 1)"],
        [row(name, measured, name) for name in sides],
        f"Gemma 3 270M {dtype()}, {tokens} tokens greedy, {place()}, medians of {ROUNDS} rounds in turns.",
    )


def prompts(number: int, count: int) -> list[str]:
    """For a round; no two rounds begin alike, so that nothing is found in a cache."""
    return [f"{number}.{index} The story of {subject} begins" for index, subject in enumerate(SUBJECTS[:count])]


def timed(ask: Ask, texts: Sequence[str]) -> float:
    """Tokens per second, from asking to the end of the last answer."""
    begin = time.perf_counter()
    return ask(texts) / (time.perf_counter() - begin)


def ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def ours(manager: RuntimeManager, texts: Sequence[str], tokens: int) -> int:
    """Through our manager."""
    streams = [
        manager.stream("gemma", GenerationConfig(prompt=text, raw=True, max_tokens=tokens, temperature=0))
        for text in texts
    ]
    return sum(stream.wait().tokens_generated for stream in streams)


def theirs(client: httpx.Client, model: str, texts: Sequence[str], tokens: int) -> int:
    """Over HTTP, from as many threads."""

    def post(text: str) -> int:
        body = {"model": model, "prompt": text, "max_tokens": tokens, "temperature": 0}
        response = client.post("/v1/completions", json=body).raise_for_status()
        return int(response.json()["usage"]["completion_tokens"])

    with ThreadPoolExecutor(len(texts)) as pool:
        return sum(pool.map(post, texts))


@contextlib.contextmanager
def served(path: Path) -> Iterator[httpx.Client]:
    """`transformers serve` with the model, in a process of its own, with as much cache as ours."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("transformers")), "serve", str(path), "--continuous-batching",
        "--device", device().key, "--dtype", "auto", "--port", str(port), "--host", "127.0.0.1", "--log-level", "error",
        "--cb-num-blocks", str(8 * CONTEXT // 32), "--cb-block-size", "32", "--cb-max-batch-tokens", "256",
    ]  # fmt: skip
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client,
    ):
        try:
            wait(client, server)
            yield client
        finally:
            server.terminate()


def wait(client: httpx.Client, server: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Until it answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"transformers serve ended with {server.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            client.get("/health").raise_for_status()
            return
        time.sleep(0.5)
    raise TimeoutError("transformers serve did not answer")
