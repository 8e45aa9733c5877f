"""Answers of a given form from the real Gemma, a base model that would rather write something else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes import DeviceType, GenerationConfig, LlamaCppRuntime, ModelConfig, TransformersRuntime
from lfx_local_runtimes.runtimes.engines.constraints import compile_constraint, hf_tokenizer
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult, Grammar

pytestmark = pytest.mark.integration

PROMPT = "Here is a JSON document about a village in the mountains:\n"


@pytest.fixture(scope="module")
def runtime(gemma_gguf: Path) -> Iterator[LlamaCppRuntime]:
    runtime = LlamaCppRuntime(
        ModelConfig(
            model_id=str(gemma_gguf), model_name="gemma", context_length=1024, threads=1, parallel=4, deterministic=True
        )
    )
    runtime.start().result()
    yield runtime
    thread = runtime.stop()
    assert thread is not None
    thread.join()


def asked(grammar: Grammar | None, **options: object) -> GenerationConfig:
    return GenerationConfig.model_validate(
        {"prompt": PROMPT, "raw": True, "grammar": grammar, "max_tokens": 700, "temperature": 0, **options}
    )


def schema(value: Any) -> Grammar:
    return Grammar(kind="json_schema", json_schema=value)


def answer(runtime: LlamaCppRuntime, grammar: Grammar | None, **options: object) -> GenerationResult:
    return runtime.stream(asked(grammar, **options)).wait()


# -- random schemas ----------------------------------------------------------------------------------------------------

names = st.text('abcdefgh_ -é🦊"\\/', min_size=1, max_size=6)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-1000, 1000), names)


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["length", "pattern", "enum", "format"]))
    if kind == "pattern":
        return {
            "type": "string",
            "pattern": draw(st.sampled_from(["^[A-Z][a-z]{1,8}$", "^(yes|no)$", r"^\d{2}-\d{2}$"])),
        }
    if kind == "enum":
        return {"type": "string", "enum": draw(st.lists(names, min_size=1, max_size=4, unique=True))}
    if kind == "format":
        return {"type": "string", "format": draw(st.sampled_from(["date", "uuid", "ipv4"]))}
    least = draw(st.integers(0, 4))
    return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 12))}


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    least = draw(st.integers(-500, 500))
    bounds = {
        draw(st.sampled_from(["minimum", "exclusiveMinimum"])): least,
        draw(st.sampled_from(["maximum", "exclusiveMaximum"])): least + draw(st.integers(5, 2000)),
    }
    # halves, because nothing else keeps a model from writing digits for ever
    return (
        draw(
            st.sampled_from(
                [{"type": "integer"}, {"type": "integer", "multipleOf": 5}, {"type": "number", "multipleOf": 0.5}]
            )
        )
        | bounds
    )


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    @st.composite
    def objects(draw: st.DrawFn) -> dict[str, Any]:
        properties = draw(st.dictionaries(names, inner, max_size=3))
        required = [name for name in properties if draw(st.booleans())]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    @st.composite
    def arrays(draw: st.DrawFn) -> dict[str, Any]:
        least = draw(st.integers(0, 2))
        return {"type": "array", "items": draw(inner), "minItems": least, "maxItems": least + draw(st.integers(0, 2))}

    return st.one_of(objects(), arrays(), st.builds(lambda *of: {"anyOf": list(of)}, inner, inner))


leaves = st.one_of(
    strings(), numbers(), st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}]),
    st.builds(lambda value: {"const": value}, scalars),
)  # fmt: skip
schemas = containers(st.recursive(leaves, containers, max_leaves=5))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(value=schemas, seed=st.integers(0, 2**31))
def test_every_answer_parses_and_validates(runtime: LlamaCppRuntime, value: dict[str, Any], seed: int) -> None:
    result = answer(runtime, schema(value), temperature=0.8, seed=seed)
    assert result.finish_reason == "stop"
    jsonschema.Draft202012Validator(value, format_checker=jsonschema.FormatChecker()).validate(json.loads(result.text))


# -- forms -------------------------------------------------------------------------------------------------------------


def test_references_and_letters_beyond_ascii(runtime: LlamaCppRuntime) -> None:
    value = {
        "type": "object",
        "properties": {"größe": {"const": '🦊 ünï\n"x"'}, "tree": {"$ref": "#/$defs/tree"}},
        "required": ["größe", "tree"],
        "additionalProperties": False,
        "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}},
    }
    read = json.loads(answer(runtime, schema(value), temperature=1, seed=3).text)
    assert read["größe"] == '🦊 ünï\n"x"'
    jsonschema.validate(read, value)


@pytest.mark.parametrize("seed", range(3))
def test_a_regex_is_matched(runtime: LlamaCppRuntime, seed: int) -> None:
    regex = r"[A-Z][a-z]+ (and|or) [a-z]{3,8}: \d{1,3}%"
    result = answer(runtime, Grammar(kind="regex", text=f"^{regex}$"), temperature=0.8, seed=seed)
    assert re.fullmatch(regex, result.text)
    assert result.finish_reason == "stop"


def test_a_gbnf_grammar_is_followed(runtime: LlamaCppRuntime) -> None:
    moves = Grammar(
        kind="gbnf", text='root ::= ("1. " move " " move "\\n")\nmove ::= [a-h] [1-8] | [NBRQK] [a-h] [1-8]'
    )
    result = answer(runtime, moves, prompt="A game of chess:\n", temperature=0.8, seed=1)
    assert re.fullmatch(r"1\. [NBRQK]?[a-h][1-8] [NBRQK]?[a-h][1-8]\n", result.text)


def test_a_lark_grammar_with_a_schema_in_it(runtime: LlamaCppRuntime) -> None:
    call = Grammar(
        kind="lark",
        text='start: "<call>" %json {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}, '
        '"required": ["n"], "additionalProperties": false} "</call>"',
    )
    assert re.fullmatch(r'<call>\{"n": ?[1-9]\}</call>', answer(runtime, call).text)


def test_a_chat_answer_is_json_too(runtime: LlamaCppRuntime) -> None:
    value = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 20}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    result = answer(runtime, schema(value), prompt="What is the capital of France?", raw=False)
    assert json.loads(result.text).keys() == {"capital"}
    assert result.metadata["template"] == "dialogue"


# -- endings -----------------------------------------------------------------------------------------------------------

FOX = schema({"const": {"fox": True}})


@pytest.mark.parametrize("options", [{"ignore_eos": True}, {"min_tokens": 50}, {"logprobs": True, "top_logprobs": 2}])
def test_a_complete_answer_ends_at_once(runtime: LlamaCppRuntime, options: dict[str, Any]) -> None:
    result = answer(runtime, FOX, **options)
    assert json.loads(result.text) == {"fox": True}
    assert result.finish_reason == "stop"
    assert result.tokens_generated < 12
    exactly = answer(runtime, FOX, **options, max_tokens=result.tokens_generated)
    assert exactly.finish_reason == "stop"


def test_an_answer_that_is_cut_says_length(runtime: LlamaCppRuntime) -> None:
    value = {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 9},
        "minItems": 200,
        "maxItems": 200,
    }
    result = answer(runtime, schema(value), max_tokens=20)
    assert result.finish_reason == "length"
    assert result.tokens_generated == 20


def test_impossible_and_unenforceable_schemas_are_errors_and_harm_nobody(runtime: LlamaCppRuntime) -> None:
    for value, words in (
        (False, "cannot be satisfied"),
        ({"$ref": "#"}, "an endless document"),
        ({"not": {}}, '"not"'),
    ):
        with pytest.raises(InvalidInput, match=words) as caught:
            answer(runtime, schema(value))
        assert caught.value.model_name == "gemma"
    with pytest.raises(InvalidInput, match="logit_bias bans every token"):
        answer(runtime, Grammar(kind="regex", text="7"), logit_bias=dict.fromkeys(sevens(runtime), -100))
    assert json.loads(answer(runtime, FOX).text) == {"fox": True}


def sevens(runtime: LlamaCppRuntime) -> list[int]:
    assert runtime._model is not None
    return [token for token in range(runtime._model.n_vocab) if runtime._model.piece(token) == b"7"]


def test_others_in_the_batch_are_unharmed(runtime: LlamaCppRuntime) -> None:
    """Bit for bit: the model was loaded `deterministic`."""
    free = asked(None, prompt="The old lighthouse keeper", max_tokens=40)
    alone = runtime.stream(free).wait()
    held = [
        asked(FOX),
        asked(schema({"type": "string", "minLength": 30, "maxLength": 30}), temperature=0.8, seed=5),
        asked(Grammar(kind="lark", text='start: "x" y\ny: Z\nZ: /a/ & /b/')),
    ]
    streams = [runtime.stream(config) for config in (*held, free)]
    assert json.loads(streams[0].wait().text) == {"fox": True}
    assert len(json.loads(streams[1].wait().text)) == 30
    with pytest.raises(InvalidInput, match="nothing may come next"):
        streams[2].wait()
    assert streams[3].wait().text == alone.text


# -- Transformers ------------------------------------------------------------------------------------------


def test_a_transformers_tokenizer(tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    native = hf_tokenizer(tokenizer, [tokenizer.eos_token_id])
    constraint = compile_constraint(schema({"enum": ["é🦊"]}), native)
    for token in tokenizer.encode('"é🦊"', add_special_tokens=False):
        assert constraint.allowed[token]
        constraint.accept(token)
    assert constraint.done


@pytest.mark.parametrize("temperature", [0, 1])
async def test_a_transformers_model_of_noise_writes_json(tiny_llama: Path, temperature: float) -> None:
    value = {
        "type": "object",
        "properties": {"word": {"type": "string", "minLength": 2, "maxLength": 4}, "n": {"enum": [1, 22]}},
        "required": ["word", "n"],
        "additionalProperties": False,
    }
    runtime = TransformersRuntime(
        ModelConfig(model_id=str(tiny_llama), model_name="tiny", device_type=DeviceType.CPU, threads=1)
    )
    await runtime.load()
    result = await runtime.generate(asked(schema(value), prompt="x", max_tokens=60, temperature=temperature, seed=1))
    await runtime.unload()
    jsonschema.validate(json.loads(result.text), value)
    assert result.finish_reason == "stop"


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"tokenizer \(object\) cannot be used with a grammar"):
        hf_tokenizer(object(), [1])
