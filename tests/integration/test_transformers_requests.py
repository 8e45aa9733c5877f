"""Everything a request can ask of a Transformers model."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lfx_local_runtimes.errors import ContextOverflow, InvalidInput
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime
from lfx_local_runtimes.runtimes.engines.transformers.token_text import bytes_of_tokens
from lfx_local_runtimes.runtimes.tasks.generation import Grammar
from tests.plugin_models import byte_tokenizer
from tests.transformers_runtimes import NOISE, Start, noise, run, together

pytestmark = pytest.mark.integration

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


# -- what a request can ask ------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_model(tiny: TransformersRuntime, tiny_llama: Path) -> None:
    """Before penalties, biases and temperature."""
    result = noise(tiny, prompt="abc", max_tokens=6, logprobs=True, top_logprobs=4, frequency_penalty=1, seed=2)
    assert result.logprobs is not None
    assert len(result.logprobs) == 6
    tokenizer = byte_tokenizer()
    known = {(tokenizer.decode([token]), token) for token in range(len(tokenizer))}
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    ids = tokenizer("abc").input_ids
    for told in result.logprobs:
        with torch.inference_mode():
            shares = model(torch.tensor([ids])).logits[0, -1].log_softmax(0)
        (token,) = [token for _, token in known if bytes(told.bytes) == PIECE(token)]
        assert told.logprob == pytest.approx(float(shares[token]), abs=1e-4)
        best = shares.topk(4)
        assert [one.logprob for one in told.top[:4]] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [bytes(one.bytes) for one in told.top[:4]] == [PIECE(one) for one in best.indices.tolist()]
        assert bytes(told.bytes) in [bytes(one.bytes) for one in told.top], "the drawn token is always among them"
        ids.append(token)


PIECE = bytes_of_tokens(byte_tokenizer())


def test_the_answer_ends_no_sooner_than_min_tokens(start: Start, tiny_llama: Path) -> None:
    runtime = start(tiny_llama, quantization="fp32")
    always = {1: 100.0}  # the end token
    assert noise(runtime, logit_bias=always).tokens_generated == 0
    later = noise(runtime, logit_bias=always, min_tokens=7)
    assert (later.tokens_generated, later.finish_reason) == (7, "stop")
    never = noise(runtime, logit_bias=always, ignore_eos=True, max_tokens=20)
    assert (never.tokens_generated, never.finish_reason) == (20, "length")


def test_a_prompt_too_long_is_cut_where_that_is_asked_for(start: Start, tiny_llama: Path) -> None:
    runtime = start(tiny_llama, context_length=64)
    result = noise(runtime, prompt="a" * 200, max_tokens=10, truncate=True)
    assert result.prompt_tokens == 54
    assert result.metadata["truncated_tokens"] == 201 - 54
    assert result.tokens_generated == 10
    with pytest.raises(ContextOverflow, match=r"1,000,000 characters"):
        noise(runtime, prompt="word " * 200_000)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 90},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 2, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("batched", [True, False])
def test_an_answer_has_the_form_that_was_asked_for(
    start: Start, tiny_llama: Path, tiny_bloom: Path, batched: bool
) -> None:
    """From random weights, beside an answer that is free."""
    runtime = start(tiny_llama if batched else tiny_bloom, context_length=512, quantization="fp32")
    options: dict[str, Any] = {
        "prompt": "abc",
        "raw": True,
        "max_tokens": 300,
        "ignore_eos": True,
        "top_p": 1,
        "min_p": 0,
    }
    free = run(runtime, **{**options, "seed": 1, "max_tokens": 40})
    form, word = Grammar(kind="json_schema", json_schema=SCHEMA), Grammar(kind="regex", text="(ab|c){3}x")
    results = together(
        runtime,
        [
            {**options, "seed": 1, "grammar": form},
            {**options, "seed": 1, "max_tokens": 40},
            {**options, "temperature": 0, "grammar": word},
            {**options, "seed": 2, "grammar": form, "repetition_penalty": 1.2, "logprobs": True},
        ],
    )
    for result in (results[0], results[3]):
        jsonschema.validate(json.loads(result.text), SCHEMA)
    assert re.fullmatch("(ab|c){3}x", results[2].text)
    assert [result.finish_reason for result in results] == ["stop", "length", "stop", "stop"]
    assert results[1].text == free.text
    with pytest.raises(InvalidInput, match="regular expression"):
        run(runtime, **options, grammar=Grammar(kind="regex", text="(ab"))
    assert run(runtime, **{**options, "seed": 1, "max_tokens": 40}).text == free.text


def test_a_thought_ends_where_its_budget_does(start: Start, tiny_llama: Path, tmp_path: Path) -> None:
    """Also where the mark is a special token, which is otherwise left out of text."""
    tokenizer, folder = byte_tokenizer(), tmp_path / "thinking"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    marks = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    for path, bias in ((tiny_llama, {}), (folder, dict.fromkeys(marks, -100))):
        options: dict[str, Any] = {**NOISE, "raw": False, "seed": 4, "logit_bias": bias}
        template = "{{ messages[0].content }}<think>"
        runtime = start(path, chat_template=template, quantization="fp32", context_length=256)
        free, result = run(runtime, **options), run(runtime, **options, reasoning_budget=10)
        assert free.reasoning
        assert result.reasoning
        assert free.reasoning.startswith(result.reasoning.rstrip())
        assert (bool(free.text), bool(result.text)) == (False, True)
        assert "think>" not in free.reasoning + result.reasoning + result.text
        assert result.tokens_generated == 40


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_tokens_are_told_in_bytes(gemma_tokenizer: Any) -> None:
    """In both ways of writing a vocabulary."""
    text = "Grüße, 🙂 two  spaces\n\tx = {…}"
    for tokenizer in (byte_tokenizer(), gemma_tokenizer):
        piece = bytes_of_tokens(tokenizer)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert b"".join(map(piece, ids)) == text.encode()
        assert piece(tokenizer.bos_token_id) == tokenizer.bos_token.encode()
