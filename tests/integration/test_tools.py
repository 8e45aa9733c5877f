"""Tools and thoughts on the real Gemma, a base model that was trained for neither."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes import GenerationConfig, GenerationResult, LlamaCppRuntime, ModelConfig
from lfx_local_runtimes.runtimes.tasks.generation import Tool, ToolCall

pytestmark = pytest.mark.integration

THINKING = """{% for message in messages %}{{ 'Question: ' + message.content + '\\n' }}{% endfor %}
{{- 'Answer: <think>\\n' }}"""

WEATHER = Tool(
    name="get_weather",
    description="Tells the weather in a city.",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 2, "maxLength": 20},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "place": {"$ref": "#/$defs/Place"},
        },
        "required": ["city", "days"],
        "$defs": {"Place": {"type": "object", "properties": {"kind": {"enum": ["town", "sea"]}}, "required": ["kind"]}},
    },
)
ADD = Tool(
    name="add",
    description="Adds two numbers.",
    parameters={
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 999}, "b": {"type": "integer", "maximum": 999}},
        "required": ["a", "b"],
    },
)
TOOLS = {tool.name: tool for tool in (WEATHER, ADD)}


@pytest.fixture(scope="module")
def runtime(gemma_gguf: Path) -> Iterator[LlamaCppRuntime]:
    yield from running(gemma_gguf)


@pytest.fixture(scope="module")
def thinker(gemma_gguf: Path) -> Iterator[LlamaCppRuntime]:
    yield from running(gemma_gguf, chat_template=THINKING)


def running(path: Path, **options: Any) -> Iterator[LlamaCppRuntime]:
    made = LlamaCppRuntime(
        ModelConfig(model_id=str(path), model_name="gemma", context_length=4096, threads=1, **options)
    )
    made.start().result()
    yield made
    thread = made.stop()
    assert thread is not None
    thread.join()


def asked(**options: Any) -> GenerationConfig:
    defaults = {
        "prompt": "What is the weather in Paris?",
        "temperature": 0,
        "max_tokens": 96,
        "tools": tuple(TOOLS.values()),
    }
    return GenerationConfig.model_validate({**defaults, **options})


def check(result: GenerationResult) -> ToolCall:
    (call,) = result.tool_calls
    jsonschema.validate(json.loads(call.arguments), TOOLS[call.name].parameters)
    assert (result.finish_reason, result.text) == ("tool_calls", "")
    return call


async def test_a_base_model_calls_what_it_has_to(runtime: LlamaCppRuntime) -> None:
    assert check(await runtime.generate(asked(tool_choice="get_weather"))).name == "get_weather"
    assert check(await runtime.generate(asked(tool_choice="add", prompt="What is 1 + 2?"))).name == "add"


async def test_forced_calls_validate_whatever_is_drawn(runtime: LlamaCppRuntime) -> None:
    configs = [asked(tool_choice="required", temperature=1.2, seed=seed) for seed in range(8)]
    results = await asyncio.gather(*map(runtime.generate, configs))
    assert len({check(result).arguments for result in results}) > 1


async def test_forced_arguments_stream(runtime: LlamaCppRuntime) -> None:
    stream = runtime.stream(asked(tool_choice="get_weather"))
    calls = [call async for delta in stream.adeltas() for call in delta.tool_calls]
    whole = check(await runtime.generate(asked(tool_choice="get_weather")))
    assert (calls[0].name, [call.name for call in calls[1:] if call.name]) == ("get_weather", [])
    assert "".join(call.arguments for call in calls) == whole.arguments
    assert len(calls) > 3


async def test_a_call_that_is_cut_off_says_so(runtime: LlamaCppRuntime) -> None:
    result = await runtime.generate(asked(tool_choice="get_weather", max_tokens=18))
    assert result.finish_reason == "length"
    assert result.tool_calls[0].arguments.startswith("{")


async def test_a_schema_that_cannot_be_enforced_is_refused(runtime: LlamaCppRuntime) -> None:
    tool = Tool(name="f", parameters={"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}})
    with pytest.raises(InvalidInput, match="uniqueItems"):
        await runtime.generate(asked(tools=(tool,), tool_choice="f"))


async def test_calls_and_results_reach_the_prompt(runtime: LlamaCppRuntime) -> None:
    messages = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "name": "get_weather", "arguments": '{"city": "Paris", "days": 1}'}]},
        {"role": "tool", "content": "It snows.", "tool_call_id": "1"},
    ]  # fmt: skip
    result = await runtime.generate(asked(prompt=None, messages=messages, tool_choice="none", return_prompt=True))
    assert "get_weather returned: It snows." in result.metadata["prompt"]
    assert result.text
    assert result.tool_calls == ()


async def test_a_free_choice_leaves_the_text_alone(runtime: LlamaCppRuntime) -> None:
    result = await runtime.generate(asked(prompt="What is the capital of France?", tools=(ADD,), max_tokens=24))
    assert result.text.startswith("Paris")
    assert result.tool_calls == ()


async def test_a_thought_ends_with_its_budget(thinker: LlamaCppRuntime) -> None:
    limited = await thinker.generate(asked(tools=(), reasoning_budget=8, max_tokens=40))
    free = await thinker.generate(asked(tools=(), max_tokens=40))
    assert limited.reasoning
    assert limited.text
    assert free.reasoning is not None
    assert free.reasoning.startswith(limited.reasoning.rstrip())
    assert len(free.reasoning) > len(limited.reasoning)


async def test_without_a_budget_nothing_is_thought(thinker: LlamaCppRuntime) -> None:
    result = await thinker.generate(asked(tools=(), reasoning_budget=0, return_prompt=True, max_tokens=8))
    assert result.metadata["prompt"].endswith("<think>\n\n</think>\n\n")
    assert result.reasoning is None
    assert result.text
