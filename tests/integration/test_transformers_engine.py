"""Transformers on the real Gemma and on tiny seeded models: what the contract suite does not ask."""

import json
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import ContextOverflow, InvalidInput
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime
from lfx_local_runtimes.runtimes.requests import Event, Request
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, TextDelta
from tests.plugin_models import byte_tokenizer
from tests.transformers_runtimes import NOISE, Start, answer_of, copy_of, noise, run

pytestmark = pytest.mark.integration

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PARIS = "What is the capital of France?"


# -- answers ---------------------------------------------------------------------------------------------------------


def test_a_base_model_answers_in_the_dialogue_form(gemma: TransformersRuntime) -> None:
    result = run(gemma, prompt=PARIS, temperature=0, max_tokens=24)
    assert result.text.startswith("Paris")
    assert "Question" not in result.text
    assert result.finish_reason == "stop"
    expected = {
        "engine": "transformers", "engine_version": transformers.__version__, "device": "cpu", "dtype": "bf16",
        "quantization": "bf16", "template": "dialogue", "context_length": 2048, "warnings": [],
    }  # fmt: skip
    assert {name: result.metadata[name] for name in expected} == expected
    assert result.time_to_first_token is not None
    assert 0 < result.time_to_first_token < result.execution_time


def test_a_stop_string_ends_the_answer_across_tokens(gemma: TransformersRuntime) -> None:
    options: dict[str, Any] = {"prompt": "Once upon a time", "raw": True, "temperature": 0, "max_tokens": 16}
    whole = run(gemma, **options).text
    stop = whole[9:17]  # begins and ends inside words
    stream = gemma.stream(GenerationConfig(stop=(stop,), **options))
    assert "".join(stream) == whole[: whole.index(stop)]
    assert stream.result is not None
    assert stream.result.finish_reason == "stop"
    assert stream.result.tokens_generated < 16


def test_the_stream_is_the_whole_answer(tiny: TransformersRuntime) -> None:
    stream = tiny.stream(GenerationConfig(**NOISE, seed=3))
    pieces = list(stream)
    assert stream.result is not None
    assert len(pieces) > 10
    assert "".join(pieces) == stream.result.text


def test_the_seed_decides(tiny: TransformersRuntime) -> None:
    first = noise(tiny, seed=0)
    assert first.metadata["seed"] == 0
    assert noise(tiny, seed=0).text == first.text
    assert noise(tiny, seed=1).text != first.text
    drawn = noise(tiny, seed=None)
    assert noise(tiny, seed=drawn.metadata["seed"]).text == drawn.text


def test_two_models_on_two_threads_do_not_disturb_each_other(start: Start, tiny: TransformersRuntime) -> None:
    other = start(Path(tiny.config.model_id), quantization="fp32")
    alone = noise(tiny, seed=5, max_tokens=200).text
    streams = [
        runtime.stream(GenerationConfig(**{**NOISE, "seed": 5, "max_tokens": 200}))
        for runtime in (tiny, other, tiny, other)
    ]
    assert [stream.wait().text for stream in streams] == [alone] * 4


def test_the_answer_ends_where_the_context_does(start: Start, tiny_llama: Path) -> None:
    runtime = start(tiny_llama, context_length=32)
    result = noise(runtime, prompt="a" * 20, max_tokens=500)
    assert result.prompt_tokens == 21
    assert result.tokens_generated == 32 - 21
    assert result.finish_reason == "length"
    with pytest.raises(ContextOverflow, match=r"41 tokens.*holds 32"):
        noise(runtime, prompt="a" * 40)


def test_an_empty_prompt_begins_with_bos(tiny: TransformersRuntime) -> None:
    assert noise(tiny, prompt="").prompt_tokens == 1


def test_token_ids_are_the_prompt(tiny: TransformersRuntime) -> None:
    ids = byte_tokenizer()("abc").input_ids
    found = noise(tiny, prompt=None, prompt_ids=ids, temperature=0)
    assert (found.text, found.prompt_tokens) == (noise(tiny, prompt="abc", temperature=0).text, len(ids))
    with pytest.raises(InvalidInput, match="token id 9999 is not in the model's vocabulary"):
        noise(tiny, prompt=None, prompt_ids=[9999])


def test_bos_is_there_once(tiny: TransformersRuntime) -> None:
    assert noise(tiny, prompt="<s>abc").prompt_tokens == noise(tiny, prompt="abc").prompt_tokens == 4


def test_an_end_token_ends_the_answer_and_is_not_counted(start: Start, tiny_llama: Path, tmp_path: Path) -> None:
    runtime = start(tiny_llama)
    whole = noise(runtime, temperature=0, max_tokens=3)
    first = byte_tokenizer()(whole.text).input_ids[1]
    folder = copy_of(tiny_llama, tmp_path / "ends")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, first]}))
    result = noise(start(folder), temperature=0)
    assert (result.text, result.tokens_generated, result.finish_reason) == ("", 0, "stop")


def test_the_files_generation_config_does_not_change_our_options(
    start: Start, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_llama, tmp_path / "opinionated")
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "num_beams": 3, "repetition_penalty": 5.0, "max_new_tokens": 2, "top_k": 2})
    )
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    assert noise(start(folder), **options).text == noise(start(tiny_llama), **options).text


# -- cancelling ------------------------------------------------------------------------------------------------------


class CancelsAfter(Request):
    """Cancels itself at its n-th piece of text."""

    def __init__(self, pieces: int, **options: Any) -> None:
        super().__init__("test", GenerationConfig(**options))
        self.left = pieces
        self.tokens = 0
        """Generated when it cancelled."""

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, TextDelta):
            self.left -= 1
            if self.left == 0:
                self.tokens = event.tokens
                self.cancel()


def test_a_cancel_lands_within_one_token(tiny: TransformersRuntime) -> None:
    request = CancelsAfter(3, prompt="abc", raw=True, max_tokens=400, temperature=0)
    result = answer_of(tiny, request)
    assert result.finish_reason == "cancelled"
    assert result.tokens_generated == request.tokens
    assert result.tokens_generated < 30
    whole = noise(tiny, max_tokens=400, temperature=0)
    assert whole.finish_reason == "length"
    assert whole.text.startswith(result.text)
