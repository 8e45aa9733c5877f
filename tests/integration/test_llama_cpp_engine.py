"""llama.cpp on the real Gemma: what the contract suite does not ask."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lfx_local_runtimes.errors import ContextOverflow, InvalidInput, LoadFailed
from lfx_local_runtimes.runtimes import (
    ChatMessage,
    GemmaLocalRuntime,
    GemmaStreamingRuntime,
    GenerationConfig,
    LlamaCppRuntime,
    ModelConfig,
    RuntimeManager,
)
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.engines.llama_cpp.native import Row
from lfx_local_runtimes.runtimes.planning import forms
from lfx_local_runtimes.settings import Settings
from tests.plugin_models import save_gguf

pytestmark = pytest.mark.integration

PARIS = "What is the capital of France?"


@pytest.fixture(scope="module")
def runtime(gemma_gguf: Path) -> Iterator[LlamaCppRuntime]:
    runtime = LlamaCppRuntime(ModelConfig(model_id=str(gemma_gguf), model_name="gemma", context_length=1024))
    runtime.start().result()
    yield runtime
    thread = runtime.stop()
    assert thread is not None
    thread.join()


def greedy(**options: object) -> GenerationConfig:
    return GenerationConfig.model_validate({"prompt": PARIS, "temperature": 0, "max_tokens": 24, **options})


def last_prompt(runtime: LlamaCppRuntime) -> list[int]:
    assert runtime._scheduler is not None
    return max(runtime._scheduler.table.sequences, key=lambda one: one.used).prompt


async def test_a_base_model_answers_in_the_dialogue_form(runtime: LlamaCppRuntime) -> None:
    result = await runtime.generate(greedy())
    assert result.text.startswith("Paris")
    assert "Question" not in result.text
    assert result.finish_reason == "stop"
    assert result.metadata["template"] == "dialogue"
    assert result.metadata["engine"] == "llama_cpp"
    assert result.metadata["device"] == "cpu"
    assert result.metadata["quantization"] == "Q4_K_M"


async def test_raw_continues_the_text(runtime: LlamaCppRuntime) -> None:
    result = await runtime.generate(greedy(prompt="def add(a, b):\n    return", raw=True, max_tokens=4))
    assert result.text.startswith(" a + b")
    assert result.metadata["template"] == "raw"


async def test_token_ids_are_the_prompt(runtime: LlamaCppRuntime) -> None:
    text = "def add(a, b):\n    return"
    spelled = await runtime.generate(greedy(prompt=text, raw=True, max_tokens=4))
    assert runtime._model is not None
    ids = runtime._model.tokenize(text, add_special=True)
    found = await runtime.generate(greedy(prompt=None, prompt_ids=ids, raw=True, max_tokens=4, return_prompt=True))
    assert (found.text, found.prompt_tokens) == (spelled.text, len(ids))
    assert found.metadata["prompt"] == tuple(ids)
    with pytest.raises(InvalidInput, match="token id 99999999 is not in the model's vocabulary"):
        await runtime.generate(greedy(prompt=None, prompt_ids=[2, 99999999], raw=True))


async def test_a_gap_is_filled_by_the_models_own_tokens(tiny_llama: Path, tmp_path: Path) -> None:
    before, after, fim = "def add(", ":\n    return", (40, 41, 42)
    path = save_gguf(tiny_llama, tmp_path / "fim.gguf", fim=fim)
    runtime = LlamaCppRuntime(ModelConfig(model_id=str(path), model_name="fim", context_length=256))
    await runtime.load()
    try:
        model = runtime._model
        assert model is not None
        assert model.fim == fim
        ids = [
            0,
            fim[0],
            *model.tokenize(before, add_special=False),
            fim[1],
            *model.tokenize(after, add_special=False),
            fim[2],
        ]
        spelled = await runtime.generate(greedy(prompt=None, prompt_ids=ids, raw=True, max_tokens=8))
        filled = await runtime.generate(greedy(prompt=before, suffix=after, raw=True, max_tokens=8))
        assert (filled.text, filled.prompt_tokens) == (spelled.text, len(ids))
    finally:
        await runtime.unload()


async def test_a_model_without_tokens_for_a_gap_refuses_it(runtime: LlamaCppRuntime) -> None:
    with pytest.raises(InvalidInput, match=r"gemma cannot fill a gap.*Qwen2.5-Coder"):
        await runtime.generate(greedy(prompt="def add(", suffix=":", raw=True))


async def test_a_conversation_is_remembered(runtime: LlamaCppRuntime) -> None:
    turns = [
        ChatMessage(role="user", content="The secret word is banana."),
        ChatMessage(role="assistant", content="I will remember: banana."),
        ChatMessage(role="user", content="What is the secret word?"),
    ]
    result = await runtime.generate(greedy(prompt=None, messages=turns))
    assert "banana" in result.text


async def test_the_prompt_has_one_bos(runtime: LlamaCppRuntime) -> None:
    assert runtime._model is not None
    bos = runtime._model.bos
    assert bos == (2, "<bos>")
    await runtime.generate(greedy(max_tokens=1))
    assert last_prompt(runtime).count(2) == 1
    await runtime.generate(greedy(prompt="<bos>Hello", raw=True, max_tokens=1))
    assert last_prompt(runtime).count(2) == 1
    own = LlamaCppRuntime(
        runtime.config.model_copy(update={"chat_template": "{{ bos_token }}Say {{ messages[0].content }}"})
    )
    await own.load()
    result = await own.generate(greedy(max_tokens=1))
    assert last_prompt(own)[:2].count(2) == 1
    assert result.metadata["template"] == "custom"
    await own.unload()


async def test_a_shared_prefix_is_evaluated_once(runtime: LlamaCppRuntime) -> None:
    story = "Once upon a time there was a fox. " * 20
    first = await runtime.generate(greedy(prompt=story + "What animal?", max_tokens=4))
    second = await runtime.generate(greedy(prompt=story + "Which one?", max_tokens=4))
    assert first.metadata["cached_tokens"] <= 1, "<bos> at most"
    assert second.prompt_tokens - 8 < second.metadata["cached_tokens"] < second.prompt_tokens


async def test_deterministic_greedy_is_the_same_alone_and_after_a_prefix_hit(gemma_gguf: Path) -> None:
    """With text that is near a coin toss at every token, so that a difference in the last bit would show."""
    config = ModelConfig(model_id=str(gemma_gguf), model_name="gemma", context_length=1024, deterministic=True)
    runtime = LlamaCppRuntime(config)
    await runtime.load()
    babble = "xq zv ö 7 kj " * 60
    await runtime.generate(greedy(max_tokens=1))
    alone, hit = [await runtime.generate(greedy(prompt=babble, raw=True, max_tokens=24)) for _ in range(2)]
    assert (alone.metadata["cached_tokens"], hit.metadata["cached_tokens"]) == (0, 400)
    assert alone.text == hit.text
    await runtime.unload()


async def test_a_prompt_longer_than_the_context_is_an_error_with_numbers(runtime: LlamaCppRuntime) -> None:
    with pytest.raises(ContextOverflow, match="the context holds 1,024"):
        await runtime.generate(greedy(prompt="word " * 1500))
    assert (await runtime.generate(greedy())).text.startswith("Paris")


async def test_an_answer_ends_where_the_context_does(runtime: LlamaCppRuntime) -> None:
    result = await runtime.generate(greedy(prompt="word " * 1010, raw=True, max_tokens=500))
    assert result.finish_reason == "length"
    assert result.prompt_tokens + result.tokens_generated == 1024


async def test_a_cancel_lands_between_prefill_chunks(runtime: LlamaCppRuntime) -> None:
    stream = runtime.stream(greedy(prompt="something else entirely " * 200, raw=True))
    assert runtime._model is not None
    decode, rows_seen = runtime._model.decode, []

    def watched(rows: Sequence[Row]) -> None:
        decode(rows)
        rows_seen.append(len(rows))
        stream.cancel()

    runtime._model.decode = watched  # type: ignore[method-assign]
    try:
        result = await stream.wait_async()
        following = await runtime.generate(greedy(max_tokens=1))
    finally:
        del runtime._model.decode  # type: ignore[method-assign]
    assert rows_seen[0] == 256
    evaluated = following.prompt_tokens - following.metadata["cached_tokens"]
    assert sum(rows_seen[1:]) == evaluated, "one chunk, and then the next request's prompt"
    assert result.finish_reason == "cancelled"
    assert result.tokens_generated == 0


async def test_emoji_and_odd_text_survive(runtime: LlamaCppRuntime) -> None:
    result = await runtime.generate(greedy(prompt="Repeat: 🦊🦊🦊 \x00 ünïcödé", max_tokens=16, raw=True))
    assert "\ufffd" not in result.text[:-1]


async def test_sampling_options_reach_the_sampler(runtime: LlamaCppRuntime) -> None:
    def sampled(**options: object) -> GenerationConfig:
        return greedy(prompt="Tell me a story", temperature=2.0, top_p=1.0, min_p=0.0, seed=7, **options)

    wild = await runtime.generate(sampled(top_k=0))
    tame = await runtime.generate(sampled(top_k=1))
    best = await runtime.generate(greedy(prompt="Tell me a story"))
    assert tame.text == best.text
    assert wild.text != best.text
    looped = await runtime.generate(greedy(prompt="a b a b a b a b", raw=True))
    varied = await runtime.generate(greedy(prompt="a b a b a b a b", raw=True, repetition_penalty=1.8))
    assert looped.text != varied.text


async def test_a_load_can_be_called_off(gemma_gguf: Path) -> None:
    runtime = LlamaCppRuntime(ModelConfig(model_id=str(gemma_gguf), model_name="gemma"))
    context = LoadContext(lambda progress: context.cancel())
    with pytest.raises(LoadFailed, match="cancelled"):
        runtime.start(context).result()
    assert not runtime.loaded


@pytest.mark.parametrize("kind", [GemmaLocalRuntime, GemmaStreamingRuntime])
async def test_gemma_runtimes(gemma_gguf: Path, kind: type[GemmaLocalRuntime]) -> None:
    runtime = kind(ModelConfig(model_id=str(gemma_gguf), model_name="gemma", chat_template="gemma"))
    assert await runtime.load()
    pieces = [text async for text in runtime.generate_streaming(greedy())]
    assert len(pieces) > 5
    result = await runtime.generate(greedy())
    assert "".join(pieces) == result.text
    assert result.metadata["template"] == "gemma"
    await runtime.unload()


async def test_a_gemma_runtime_refuses_another_family(tmp_path: Path) -> None:
    from tests.builders import write_gguf

    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    with pytest.raises(InvalidInput, match="not a Gemma"):
        await GemmaLocalRuntime(ModelConfig(model_id=str(path), model_name="tiny")).load()


async def test_a_stop_string_does_not_match_the_space_before_the_answer(runtime: LlamaCppRuntime) -> None:
    """The base model opens some answers with an empty line; a flow that stops at one would get nothing."""
    result = await runtime.generate(greedy(prompt="Write a Python function that adds two numbers.", stop="\n\n"))
    assert result.tokens_generated > 3
    assert result.text.strip()


def test_a_large_model_on_the_cpu_is_its_gguf_file(
    gemma_gguf: Path, gemma_safetensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packaged Gemma in both formats, and any model is large."""
    monkeypatch.setattr(forms, "HEAVY", 1)
    folder = tmp_path / "models" / "gemma"
    folder.mkdir(parents=True)
    for file in (*gemma_safetensors.iterdir(), gemma_gguf):
        (folder / file.name).symlink_to(file.resolve())
    roots = (tmp_path / "models", gemma_gguf.parent, gemma_safetensors.parent)
    manager = RuntimeManager(Settings(home=tmp_path / "home", model_dirs=roots, offline=True, spare_processes=0))
    try:
        manager.register_model(
            ModelConfig(model_id=str(folder), model_name="gemma", context_length=512, device_type="cpu")
        )
        told = manager.model_status("gemma").acceleration
        result = manager.stream("gemma", greedy()).wait()
    finally:
        manager.close()
    assert "Paris" in result.text
    assert told is not None
    assert told.model_dump(include={"engine", "device", "dtype", "why"}) == result.metadata["acceleration"]
    assert (told.engine, told.dtype) == ("llama_cpp", "Q4_K_M")
    assert told.why.startswith("The model is large for a CPU, so its GGUF file is loaded and not the safetensors.")
