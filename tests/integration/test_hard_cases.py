"""Many requests at once, and odd ones: every one ends as it should, and nothing is left behind."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks import soak
from lfx_local_runtimes.errors import ContextOverflow, QueueFull
from lfx_local_runtimes.runtimes import GenerationConfig, GenerationResult, LlamaCppRuntime, ModelConfig

pytestmark = pytest.mark.integration


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


def test_mixed_requests_that_come_and_go(minilm_gguf: Path, tmp_path: Path) -> None:
    """On a live server, over every kind of route: `python -m benchmarks soak` is the same for longer."""
    found = soak.run(tmp_path, minilm_gguf, rounds=2, calls=4)
    assert found.wrong == []
    assert found.left_over == []
    assert found.ends.total() == 2 * 4 * soak.TIMES, "every request ended"
    assert min(found.ends[end] for end in ("finished", "cancelled", "left")) > 0


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


async def test_fifty_callers_at_once_are_answered_or_told_that_the_queue_is_full(gemma_gguf: Path) -> None:
    """Each goes on counting where its own prompt ends."""
    runtime = LlamaCppRuntime(
        ModelConfig(
            model_id=str(gemma_gguf), model_name="gemma", context_length=256, parallel=7, threads=1, max_queued=45
        )
    )
    await runtime.load()
    starts = range(1, 51)
    asks = [
        GenerationConfig(
            prompt=", ".join(map(str, range(start, start + 5))) + ",", raw=True, max_tokens=6, temperature=0
        )
        for start in starts
    ]
    answers = await asyncio.gather(*(runtime.generate(ask) for ask in asks), return_exceptions=True)
    await runtime.unload()
    for start, answer in zip(starts[:45], answers[:45], strict=True):
        assert isinstance(answer, GenerationResult)
        assert answer.text.startswith(f" {start + 5},")
    for refused in answers[45:]:
        assert isinstance(refused, QueueFull)
        assert "45 requests are in hand" in refused.message
        assert refused.hint
