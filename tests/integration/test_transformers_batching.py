"""Several requests in one forward pass, and everything a request can ask, on tiny seeded models and the real Gemma."""

from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import DoesNotFit, EngineFailure
from lfx_local_runtimes.runtimes.engines.transformers import batching
from lfx_local_runtimes.runtimes.engines.transformers import runtime as engine
from lfx_local_runtimes.runtimes.engines.transformers.batching import PagedBatch
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime
from lfx_local_runtimes.runtimes.engines.transformers.sampling import Sampler
from lfx_local_runtimes.runtimes.requests import Finished, Request
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig
from tests.plugin_models import byte_tokenizer
from tests.transformers_runtimes import NOISE, Start, answer_of, by_generate, noise, run, together

pytestmark = pytest.mark.integration

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


# -- exactness -------------------------------------------------------------------------------------------------------

STORIES = ("Once upon a time", "The capital of Italy is", "In 1969, humans went to the moon for the")


def test_greedy_takes_the_tokens_that_generate_takes(
    start: Start, gemma_safetensors: Path, gemma_tokenizer: Any
) -> None:
    """Alone and in a batch, in fp32."""
    count = 6
    raw = transformers.AutoModelForCausalLM.from_pretrained(
        gemma_safetensors, dtype=torch.float32, local_files_only=True
    )
    expected = [by_generate(raw, gemma_tokenizer, prompt, count) for prompt in STORIES]
    runtime = start(gemma_safetensors, quantization="fp32", context_length=256)
    options: dict[str, Any] = {"raw": True, "temperature": 0, "max_tokens": count}
    assert [run(runtime, prompt=prompt, **options).text for prompt in STORIES] == expected
    assert [
        result.text for result in together(runtime, [{"prompt": prompt, **options} for prompt in STORIES])
    ] == expected


def test_in_bf16_greedy_differs_from_generate_only_where_scores_tie(
    gemma: TransformersRuntime, gemma_safetensors: Path, gemma_tokenizer: Any
) -> None:
    """The batched forward pass rounds differently. Scores around 20 have steps of 1/8 in bf16."""
    raw = transformers.AutoModelForCausalLM.from_pretrained(
        gemma_safetensors, dtype=torch.bfloat16, local_files_only=True
    )
    for prompt in STORIES:
        expected = by_generate(raw, gemma_tokenizer, prompt, 10)
        result = run(gemma, prompt=prompt, raw=True, temperature=0, max_tokens=10, logprobs=True, top_logprobs=5)
        assert result.logprobs is not None
        text = ""
        for told in result.logprobs:
            if not expected.startswith(text + told.token):
                rivals = [one for one in told.top if expected.startswith(text + one.token)]
                assert told.logprob - max(one.logprob for one in rivals) <= 3 / 8
                break
            text += told.token


# -- long prompts ----------------------------------------------------------------------------------------------------


class CancelsInPrefill(Request):
    """Asks for the end when it is looked at for the n-th time."""

    def __init__(self, look: int, **options: Any) -> None:
        super().__init__("test", GenerationConfig(**options))
        self.left = look

    @property
    def cancelled(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("batched", [True, False])
def test_a_cancel_lands_within_one_prefill_chunk(
    start: Start, tiny_llama: Path, tiny_bloom: Path, monkeypatch: pytest.MonkeyPatch, batched: bool
) -> None:
    monkeypatch.setattr(batching, "CHUNK", 50)
    monkeypatch.setattr(engine, "PREFILL_CHUNK", 50)
    runtime = start(tiny_llama if batched else tiny_bloom, context_length=512)
    looks = 5 if batched else 3  # when it is prepared, and before each chunk: the prompt has eight or nine
    request = CancelsInPrefill(looks, prompt="a" * 400, raw=True)
    result = answer_of(runtime, request)
    assert request.left == 0  # the chunk after the cancel was not computed
    assert (result.finish_reason, result.tokens_generated, result.time_to_first_token) == ("cancelled", 0, None)


def tiny_gemma(folder: Path) -> Any:
    """Layers that see a sliding window of 24 tokens, and layers that see everything."""
    tokenizer = byte_tokenizer()
    config = transformers.Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=24, max_position_embeddings=512, bos_token_id=0,
        eos_token_id=1, pad_token_id=1, initializer_range=0.2,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Gemma3ForCausalLM(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_prompts_longer_than_window_and_chunk_compute_the_same_side_by_side(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tiny-gemma"
    model = tiny_gemma(folder)
    prompts = ["The quick brown fox jumps over the lazy dog. " * count for count in (5, 1, 3)]
    expected = [by_generate(model, byte_tokenizer(), prompt, 30) for prompt in prompts]
    options: dict[str, Any] = {"raw": True, "temperature": 0, "max_tokens": 30}
    for chunk in (512, 64, 17):
        monkeypatch.setattr(batching, "CHUNK", chunk)
        runtime = start(folder, quantization="fp32", parallel=3)
        results = together(runtime, [{"prompt": prompt, **options} for prompt in prompts])
        assert [result.text for result in results] == expected


# -- several at once -------------------------------------------------------------------------------------------------

VARIED: list[dict[str, Any]] = [
    {"prompt": "abc", "temperature": 0},
    {"prompt": "a longer prompt with some words in it, " * 3, "seed": 2},
    {"prompt": "x", "seed": 3, "repetition_penalty": 1.3},
    {"prompt": "abc", "seed": 4, "frequency_penalty": 0.8, "presence_penalty": 0.3, "max_tokens": 9},
    {"prompt": "hello", "seed": 5, "logit_bias": {40: 4, 41: -100}, "logprobs": True, "top_logprobs": 3},
    {"prompt": "", "seed": 6, "top_k": 0, "top_p": 0.9, "min_p": 0.02, "temperature": 1.5},
    {"prompt": "abc", "temperature": 0, "repetition_penalty": 1.5, "min_tokens": 5},
    {"prompt": "y" * 70, "seed": 8, "ignore_eos": True, "max_tokens": 55},
]


def test_answers_in_a_batch_are_those_given_alone(start: Start, tiny_llama: Path) -> None:
    """Two more than fit at once, of different lengths: some join while others are under way."""
    runtime = start(tiny_llama, quantization="fp32", parallel=6)
    requests = [{**NOISE, **options} for options in VARIED]
    alone = [run(runtime, **options) for options in requests]
    for result, one in zip(together(runtime, requests), alone, strict=True):
        assert (result.text, result.finish_reason) == (one.text, one.finish_reason)
        assert (result.tokens_generated, result.prompt_tokens) == (one.tokens_generated, one.prompt_tokens)
        assert (result.logprobs is None) == (one.logprobs is None)


class NotesItsStart(Request):
    """Tells when it is taken up."""

    def __init__(self, order: list["NotesItsStart"]) -> None:
        super().__init__("test", GenerationConfig(**NOISE))
        self.order = order

    def start(self) -> bool:
        self.order.append(self)
        return super().start()


def test_requests_wait_in_order(start: Start, tiny_llama: Path) -> None:
    runtime = start(tiny_llama, parallel=2)
    order: list[NotesItsStart] = []
    requests = [NotesItsStart(order) for _ in range(7)]
    for request in requests:
        runtime.submit(request)
    for request in requests:
        while not isinstance(request.channel.get(), Finished):
            pass
    assert order == requests


def test_a_request_that_fails_leaves_the_others_alone(
    tiny: TransformersRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = noise(tiny, seed=3)
    sample = Sampler.sample

    def breaks(sampler: Sampler, scores: Any) -> int:
        if sampler._config.seed == 13 and sampler._count == 4:
            raise ZeroDivisionError
        return sample(sampler, scores)

    monkeypatch.setattr(Sampler, "sample", breaks)
    good, bad, other = (tiny.stream(GenerationConfig(**{**NOISE, "seed": seed})) for seed in (3, 13, 3))
    with pytest.raises(EngineFailure):
        bad.wait()
    assert good.wait().text == other.wait().text == whole.text


def test_when_a_step_fails_the_last_request_gives_way(
    start: Start, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = start(tiny_llama, quantization="fp32")
    options: dict[str, Any] = {**NOISE, "seed": 3, "max_tokens": 30}
    whole = run(runtime, **options)
    step, calls = PagedBatch.step, iter(range(1000))

    def fails_once(batch: PagedBatch) -> None:
        if next(calls) == 8:
            raise torch.OutOfMemoryError
        step(batch)

    monkeypatch.setattr(PagedBatch, "step", fails_once)
    first, last = runtime.stream(GenerationConfig(**options)), runtime.stream(GenerationConfig(**options))
    with pytest.raises(DoesNotFit):
        last.wait()
    assert first.wait().text == whole.text
    assert run(runtime, **options).text == whole.text


def test_what_prompts_have_in_common_is_computed_once(start: Start, tiny_llama: Path) -> None:
    runtime = start(tiny_llama, quantization="fp32")
    common = "The quick brown fox jumps over the lazy dog. " * 4
    first, again, other = (noise(runtime, prompt=common + end) for end in ("one", "one", "two"))
    assert first.metadata["cached_tokens"] == 0
    assert again.metadata["cached_tokens"] == 160  # whole blocks
    assert other.metadata["cached_tokens"] == 160
    assert again.text == first.text
    assert other.text == noise(start(tiny_llama, quantization="fp32"), prompt=common + "two").text


def test_more_prompts_than_the_cache_holds_push_each_other_out(start: Start, tiny_llama: Path) -> None:
    runtime = start(tiny_llama, quantization="fp32", context_length=128, parallel=2)
    prompts = [letter * 100 for letter in "abcdefghijkl"]
    alone = [noise(runtime, prompt=prompt).text for prompt in prompts]
    results = together(runtime, [{**NOISE, "seed": 1, "prompt": prompt} for prompt in prompts])
    assert [result.text for result in results] == alone


def test_a_model_that_cannot_be_batched_answers_one_by_one(start: Start, tiny_bloom: Path) -> None:
    runtime = start(tiny_bloom, quantization="fp32", parallel=4, context_length=256)
    assert runtime.plan is not None
    assert runtime.plan.sequences == 1
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_bloom, dtype=torch.float32)
    expected = by_generate(model, byte_tokenizer(), "abc", 20)
    options: dict[str, Any] = {"prompt": "abc", "raw": True, "temperature": 0, "max_tokens": 20}
    results = together(runtime, [options, options, {**options, "logprobs": True, "min_tokens": 20}])
    assert [result.text for result in results] == [expected] * 3
    assert results[0].metadata["warnings"] == ["BloomForCausalLM answers one request at a time."]
    assert results[2].logprobs is not None
    assert len(results[2].logprobs) == 20


def test_a_model_that_would_compute_something_else_in_a_batch_is_found_out(start: Start, tiny_llama: Path) -> None:
    runtime = start(tiny_llama, quantization="fp32")
    loaded, plan = runtime._loaded, runtime.plan
    assert loaded is not None
    assert plan is not None
    assert batching.paged_batch(loaded, plan, share=True) is not None
    attention = loaded.model.model.layers[1].self_attn
    forward = attention.forward
    attention.forward = lambda *args, cache=None, **options: forward(*args, **options)
    assert batching.paged_batch(loaded, plan, share=True) is None


def test_a_deterministic_model_computes_alone(start: Start, tiny_llama: Path) -> None:
    runtime = start(tiny_llama, quantization="bf16", deterministic=True, parallel=4)
    assert runtime.plan is not None
    assert runtime.plan.sequences == 1
    options: dict[str, Any] = {**NOISE, "seed": 1, "max_tokens": 100, "prompt": "a" * 100}
    whole = run(runtime, **options)
    assert [result.text for result in together(runtime, [options] * 3)] == [whole.text] * 3
    assert whole.metadata["warnings"] == []
