"""Hundreds of requests against one model: every one ends as it should, and nothing is left behind."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from lfx_local_runtimes.errors import ContextOverflow, QueueFull
from lfx_local_runtimes.runtimes import GenerationConfig, GenerationResult, LlamaCppRuntime, ModelConfig

pytestmark = pytest.mark.integration

REQUESTS = 200
WORDS = ("fox", "river", "lantern", "seven", "blue", "and", "then", "quietly", "because", "🦊", "ö", "42")


@pytest.fixture(scope="module")
def runtime(gemma_gguf: Path) -> Iterator[LlamaCppRuntime]:
    runtime = LlamaCppRuntime(
        ModelConfig(model_id=str(gemma_gguf), model_name="gemma", context_length=512, parallel=7, deterministic=True)
    )
    runtime.start().result()
    yield runtime
    thread = runtime.stop()
    assert thread is not None
    thread.join()


def asked(chance: random.Random) -> GenerationConfig:
    opening = "The story so far: " + "the fox went down to the river and " * 8 if chance.random() < 0.4 else ""
    prompt = opening + " ".join(chance.choices(WORDS, k=chance.randint(1, 40)))
    return GenerationConfig(
        prompt=prompt, raw=True, max_tokens=chance.randint(1, 8), temperature=chance.choice((0.0, 0.0, 1.0)),
        seed=chance.randrange(1000), stop=(chance.choice((" the", "\n", ".")),) if chance.random() < 0.3 else (),
    )  # fmt: skip


async def client(runtime: LlamaCppRuntime, number: int, config: GenerationConfig) -> GenerationResult | None:
    """One of three kinds: reads to the end, cancels in the middle, or just goes away."""
    stream = runtime.stream(config)
    if number % 5 == 3:
        async for _ in stream.adeltas():
            stream.cancel()
        return stream.result
    if number % 5 == 4:
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        stream.request.on_end(lambda: loop.call_soon_threadsafe(ended.set))
        pieces = aiter(stream)
        with contextlib.suppress(StopAsyncIteration):
            await anext(pieces)
        await pieces.aclose()
        await ended.wait()  # at its next token, after the reader has gone
        return None
    return await stream.wait_async()


async def test_two_hundred_requests_that_come_and_go(runtime: LlamaCppRuntime) -> None:
    chance = random.Random(7)
    configs = [asked(chance) for _ in range(REQUESTS)]
    threads = threading.active_count()
    memory = runtime.get_memory_usage()
    results = await asyncio.gather(*(client(runtime, number, config) for number, config in enumerate(configs)))
    assert threading.active_count() <= threads + 1, "the event loop's own helper may have come"
    assert (await runtime.health_check())["requests"] == 0
    assert runtime.get_memory_usage() == memory
    assert runtime._scheduler is not None
    assert not any(one.busy for one in runtime._scheduler.table.sequences)
    for number, (config, result) in enumerate(zip(configs, results, strict=True)):
        if result is None:
            continue
        if number % 5 != 3:
            assert result.finish_reason in ("stop", "length")
            assert (result.finish_reason == "length") == (result.tokens_generated == config.max_tokens) or config.stop
        assert not any(stop in result.text for stop in config.stop)
    for number in (*range(0, REQUESTS, 20), *range(1, REQUESTS, 40)):
        alone = await runtime.generate(configs[number])
        assert results[number] is not None
        assert (results[number].text, results[number].finish_reason) == (alone.text, alone.finish_reason)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "\x00\x01\x02 \x7f"},
        {"prompt": "", "raw": True},
        {"prompt": "Hi", "stop": tuple(f"stop number {number}" for number in range(64))},
    ],
    ids=["control characters", "empty", "many stop strings"],
)
async def test_odd_requests_are_answered(runtime: LlamaCppRuntime, options: dict[str, object]) -> None:
    result = await runtime.generate(GenerationConfig.model_validate({"max_tokens": 4, "temperature": 0, **options}))
    assert result.tokens_generated <= 4


async def test_a_megabyte_is_refused_with_the_numbers(runtime: LlamaCppRuntime) -> None:
    with pytest.raises(ContextOverflow, match="the context holds 512"):
        await runtime.generate(GenerationConfig(prompt="a" * 1_000_000))


@pytest.mark.parametrize(
    "options", [{"prompt": "lone surrogate \ud83d"}, {"prompt": "Hi", "stop": ("x",) * 1000}, {"prompt": None}]
)
def test_what_cannot_be_asked_names_the_field(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"prompt|stop"):
        GenerationConfig.model_validate(options)


async def test_too_many_waiting_are_told_so(gemma_gguf: Path) -> None:
    runtime = LlamaCppRuntime(
        ModelConfig(model_id=str(gemma_gguf), model_name="gemma", context_length=256, parallel=2, max_queued=5)
    )
    await runtime.load()
    asks = [GenerationConfig(prompt="Count:", raw=True, max_tokens=20, temperature=0) for _ in range(9)]
    answers = await asyncio.gather(*(runtime.generate(ask) for ask in asks), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, QueueFull)]
    assert len(refused) == 4
    assert all(error.hint for error in refused)
    assert all(isinstance(answer, GenerationResult) for answer in answers if answer not in refused)
    await runtime.unload()
