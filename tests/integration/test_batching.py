"""Many requests at once on the real Gemma: the same answers as alone, whatever the cache did."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from lfx_local_runtimes.errors import EngineFailure
from lfx_local_runtimes.runtimes import GenerationConfig, GenerationResult, LlamaCppRuntime, ModelConfig
from lfx_local_runtimes.runtimes.engines.llama_cpp.native import Row
from lfx_local_runtimes.runtimes.engines.llama_cpp.sequences import StateStore
from tests.near_ties import same_but_for_a_near_tie

pytestmark = pytest.mark.integration

PROMPTS = (
    "The lighthouse keeper",
    "What is the capital of France?",
    "def add(a, b):",
    "Once upon a time in a small village there lived an old violin maker who",
    "List: red, green, blue,",
    "In 1969, humans",
    "The recipe needs flour, eggs, milk. First",
    "xq zv ö 7 kj " * 20,
)
LONG = "It was a sunny day and they walked along the river. " * 200


def load(path: Path, **options: object) -> LlamaCppRuntime:
    config = {"model_id": str(path), "model_name": "gemma", "context_length": 1024, "parallel": 8, **options}
    runtime = LlamaCppRuntime(ModelConfig.model_validate(config))
    runtime.start().result()
    return runtime


def end(runtime: LlamaCppRuntime) -> None:
    thread = runtime.stop()
    assert thread is not None
    thread.join()


@pytest.fixture(scope="module")
def runtime(gemma_gguf: Path) -> Iterator[LlamaCppRuntime]:
    runtime = load(gemma_gguf)
    yield runtime
    end(runtime)


@pytest.fixture(scope="module")
def deterministic(gemma_gguf: Path) -> Iterator[LlamaCppRuntime]:
    runtime = load(gemma_gguf, deterministic=True)
    yield runtime
    end(runtime)


def greedy(prompt: str, tokens: int = 32, **options: object) -> GenerationConfig:
    return GenerationConfig.model_validate(
        {"prompt": prompt, "raw": True, "temperature": 0, "max_tokens": tokens, **options}
    )


async def together(runtime: LlamaCppRuntime, **options: object) -> list[GenerationResult]:
    return await asyncio.gather(*(runtime.generate(greedy(prompt, **options)) for prompt in PROMPTS))


async def one_by_one(runtime: LlamaCppRuntime, **options: object) -> list[GenerationResult]:
    return [await runtime.generate(greedy(prompt, **options)) for prompt in PROMPTS]


async def test_deterministic_answers_are_the_same_alone_and_in_company(deterministic: LlamaCppRuntime) -> None:
    alone = await one_by_one(deterministic)
    assert [one.text for one in await together(deterministic)] == [one.text for one in alone]
    assert all(one.finish_reason == "length" for one in alone)


@pytest.fixture(scope="module")
def alone(runtime: LlamaCppRuntime) -> list[GenerationResult]:
    """The answers one after the other, with what else was near the top."""
    return [runtime.stream(greedy(prompt, logprobs=True, top_logprobs=5)).wait() for prompt in PROMPTS]


async def test_company_only_tips_near_ties(runtime: LlamaCppRuntime, alone: list[GenerationResult]) -> None:
    company = await together(runtime, logprobs=True)
    for one, other in zip(alone, company, strict=True):
        assert same_but_for_a_near_tie(one, other)


async def test_the_next_turn_of_a_conversation_reuses_prompt_and_answer(runtime: LlamaCppRuntime) -> None:
    first = await runtime.generate(greedy("Once upon a time there was a fox.", 40, return_prompt=True))
    turn = first.metadata["prompt"] + first.text + " And then the fox said:"
    ask = greedy(turn, 8, logprobs=True, top_logprobs=5)
    hit = await runtime.generate(ask)
    assert hit.metadata["cached_tokens"] >= first.prompt_tokens + 30
    await together(runtime)  # takes every sequence
    fresh = await runtime.generate(ask)
    assert fresh.metadata["cached_tokens"] < first.prompt_tokens
    assert same_but_for_a_near_tie(fresh, hit)


async def test_another_thread_count_changes_no_more_than_company_does(
    runtime: LlamaCppRuntime, alone: list[GenerationResult]
) -> None:
    model = runtime._model
    assert model is not None
    model.use_threads(1)  # between two requests the model's thread is idle
    one = await one_by_one(runtime, logprobs=True, top_logprobs=5)
    for before, after in zip(alone, one, strict=True):
        assert same_but_for_a_near_tie(before, after)


async def test_a_prompt_is_evaluated_to_the_same_bits_with_and_without_its_beginning_cached(gemma_gguf: Path) -> None:
    """Alone, from another sequence by copy, and from the store after an eviction, with logprobs as witnesses."""
    runtime = load(gemma_gguf, parallel=2, deterministic=True)
    try:
        story = "xq zv ö 7 kj " * 30
        asks = [greedy(story + end, 8, logprobs=True, top_logprobs=3) for end in ("one", "two", "three more")]
        others = [greedy("a completely different text " * 20, 1), greedy("and now for something else " * 20, 1)]
        table = runtime._scheduler.table  # type: ignore[union-attr]
        store, table.store = table.store, StateStore(0)
        fresh = []
        for ask in asks:
            fresh.append(await runtime.generate(ask))
            for other in others:
                await runtime.generate(other)
        assert [one.metadata["cached_tokens"] for one in fresh] == [0, 0, 0]

        table.store = store
        hits = [await runtime.generate(ask) for ask in (*asks, *others, *asks)]
        del hits[3:5]
        assert store.size > 0
        assert hits[0].metadata["cached_tokens"] == 0
        assert min(one.metadata["cached_tokens"] for one in hits[1:]) > fresh[0].prompt_tokens - 32
        for one, other in zip([*fresh, *fresh], hits, strict=True):
            assert one.text == other.text
            assert one.logprobs == other.logprobs
    finally:
        end(runtime)


async def test_a_copy_of_a_running_prompt_is_as_good_as_its_own(deterministic: LlamaCppRuntime) -> None:
    story = "A tale of two cities and one river. " * 20
    same = [greedy(story + "It ends", 6) for _ in range(4)]
    alone = await deterministic.generate(same[0])
    await asyncio.gather(*(deterministic.generate(greedy(f"{number} filler " * 40, 1)) for number in range(8)))
    many = await asyncio.gather(*(deterministic.generate(ask) for ask in same))
    assert {one.text for one in many} == {alone.text}
    assert sum(one.metadata["cached_tokens"] > 0 for one in many) >= 3, "the prompt was evaluated once"


async def test_a_cache_that_lost_its_tokens_is_not_taken_for_one_that_has_them(runtime: LlamaCppRuntime) -> None:
    """Between two requests the model's thread is idle, so that this one may ask."""
    await runtime.generate(greedy(PROMPTS[7], 1))
    model = runtime._model
    assert model is not None
    assert runtime._scheduler is not None
    held = max(runtime._scheduler.table.sequences, key=lambda one: one.used)
    assert model.cut(held.id, 32)
    assert not model.cut(held.id, 33), "it has 32"
    assert not model.cut(held.id, 1), "and was emptied then"
    assert model.cut(held.id, 0)
    runtime._scheduler.table.empty(held)


async def test_a_failed_decode_fails_only_the_request_that_caused_it(runtime: LlamaCppRuntime) -> None:
    model = runtime._model
    assert model is not None
    decode = model.decode
    poison = runtime._model.tokenize(" lighthouse", add_special=False)[0]  # type: ignore[union-attr]

    def fails(rows: list[Row]) -> None:
        if any(row.token == poison for row in rows):
            raise EngineFailure("llama_decode failed with code -1.")
        decode(rows)

    ask = greedy(PROMPTS[2], logprobs=True, top_logprobs=5)
    alone = await runtime.generate(ask)
    model.decode = fails  # type: ignore[method-assign]
    try:
        answers = await asyncio.gather(
            runtime.generate(greedy("Nobody ever painted that lighthouse")),
            runtime.generate(ask),
            return_exceptions=True,
        )
    finally:
        del model.decode  # type: ignore[method-assign]
    assert isinstance(answers[0], EngineFailure)
    assert isinstance(answers[1], GenerationResult)
    assert answers[1].finish_reason == "length"
    assert same_but_for_a_near_tie(alone, answers[1])
    assert (await runtime.generate(greedy(PROMPTS[0], 2))).tokens_generated == 2


async def test_what_a_request_can_ask(runtime: LlamaCppRuntime) -> None:
    plain = await runtime.generate(greedy("Hello", 6, logprobs=True, top_logprobs=2, return_prompt=True))
    assert plain.logprobs is not None
    assert len(plain.logprobs) == 6
    assert all(one.logprob == one.top[0].logprob >= one.top[1].logprob for one in plain.logprobs)
    assert b"".join(bytes(one.bytes) for one in plain.logprobs).decode() == plain.text
    assert plain.metadata["prompt"] == "Hello"
    first = runtime._model.tokenize(plain.logprobs[0].token, add_special=False)[0]  # type: ignore[union-attr]
    banned = await runtime.generate(greedy("Hello", 6, logprobs=True, logit_bias={first: -100}))
    assert banned.logprobs is not None
    assert banned.logprobs[0].token != plain.logprobs[0].token
    loop = await runtime.generate(greedy("a b a b a b", 12))
    varied = await runtime.generate(greedy("a b a b a b", 12, frequency_penalty=2.0, presence_penalty=2.0))
    assert loop.text != varied.text


async def test_ends_can_be_put_off(runtime: LlamaCppRuntime) -> None:
    asks = {"prompt": "What is the capital of France?", "raw": False}
    short = await runtime.generate(greedy(tokens=40, **asks))
    assert short.finish_reason == "stop"
    end_ids = runtime._model.end_tokens()  # type: ignore[union-attr]
    assert end_ids
    forced = await runtime.generate(greedy("Hello", 3, logit_bias={end_ids[0]: 100}))
    assert (forced.finish_reason, forced.tokens_generated) == ("stop", 0)
    later = await runtime.generate(greedy("Hello", 9, logit_bias={end_ids[0]: 100}, min_tokens=5))
    assert (later.finish_reason, later.tokens_generated) == ("stop", 5)
    never = await runtime.generate(greedy("Hello", 9, logit_bias={end_ids[0]: 100}, ignore_eos=True))
    assert (never.finish_reason, never.tokens_generated) == ("length", 9)


async def test_a_prompt_too_long_is_cut_where_that_is_asked_for(runtime: LlamaCppRuntime) -> None:
    result = await runtime.generate(
        greedy(LONG + "Question: What is the capital of France?\nAnswer:", 8, truncate=True)
    )
    assert result.metadata["truncated_tokens"] > 1000
    assert result.prompt_tokens == 1024 - 8
    assert "Paris" in result.text


async def test_a_prompt_that_is_scored_does_not_hold_others_up(runtime: LlamaCppRuntime) -> None:
    scored = runtime.run(greedy("one two three " * 300, 1, echo=True, logprobs=True))
    answer = await runtime.generate(greedy("The capital of France is", 4))
    assert answer.tokens_generated == 4
    assert not scored.request.ended, "it is scored meanwhile"
    scored.cancel()
