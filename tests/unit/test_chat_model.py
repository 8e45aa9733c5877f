"""`ChatLocalRuntime` over scripted models: what is asked of the manager, what comes back, and that leaving cancels."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages import ChatMessage as LangChainChatMessage
from langchain_core.messages.tool import invalid_tool_call
from pydantic import BaseModel

from lfx_local_runtimes.errors import InvalidInput, ModelNotFound
from lfx_local_runtimes.langchain.chat import ChatLocalRuntime
from lfx_local_runtimes.langchain.messages import response_metadata, to_chat_message, to_tools
from lfx_local_runtimes.runtimes import GenerationConfig
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult, Grammar, TokenLogprob, Tool, ToolCall
from tests.scripted_manager import PATIENCE_S, Theatre, theatre


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    with theatre(tmp_path, monkeypatch) as stage:
        yield stage


def parrot(**options: Any) -> ChatLocalRuntime:
    return ChatLocalRuntime(model="parrot", **options)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


# -- asking --------------------------------------------------------------------------------------------------------------


def test_making_one_loads_nothing(stage: Theatre) -> None:
    parrot(temperature=0.0, runtime_type="llama_cpp", api_key="EMPTY")
    assert stage.manager.loaded_models() == []
    assert stage.runtimes == {}


def test_making_one_needs_no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ModelNotFound("There are no settings.")

    monkeypatch.setattr("lfx_local_runtimes.langchain.chat.get_runtime_manager", broken)
    assert parrot().profile is None


def test_the_profile_says_whether_the_model_reads_pictures(stage: Theatre) -> None:
    """By its files. An unknown model has no profile."""
    assert parrot().profile == {
        "text_inputs": True, "image_inputs": False, "image_url_inputs": False, "image_tool_message": False
    }  # fmt: skip
    folder = stage.models / "owl"
    (folder / "config.json").write_text(
        '{"model_type": "idefics3", "architectures": ["Idefics3ForConditionalGeneration"], "vision_config": {}}'
    )
    (folder / "processor_config.json").write_text("{}")
    profile = ChatLocalRuntime(model="owl").profile
    assert profile is not None
    assert (profile["image_inputs"], profile["image_tool_message"]) == (True, True)
    assert ChatLocalRuntime(model="nobody").profile is None


def test_options_left_open_are_the_managers(stage: Theatre) -> None:
    parrot().invoke("Hi")
    defaults = GenerationConfig.model_validate({"messages": [{"role": "user", "content": "Hi"}]})
    assert stage.requests[-1].model_copy(update={"seed": None}) == defaults


def test_zero_is_a_value(stage: Theatre) -> None:
    parrot(temperature=0.0, top_k=0, min_p=0.0, seed=0, keep_alive=0).invoke("Hi")
    asked = stage.requests[-1]
    assert (asked.temperature, asked.top_k, asked.min_p, asked.seed, asked.keep_alive) == (0, 0, 0, 0, 0)


def test_a_call_overrides_the_model(stage: Theatre) -> None:
    model = parrot(temperature=0.5, stop=["one"], max_tokens=7)
    answer = model.invoke("Hi", temperature=0.0, stop=["two"], model="owl")
    assert (stage.requests[-1].temperature, stage.requests[-1].stop, stage.requests[-1].max_tokens) == (0, ("two",), 7)
    assert answer.response_metadata["model_name"] == "owl"


def test_stop_of_the_model_is_used(stage: Theatre) -> None:
    parrot(stop=["x"]).invoke("Hi")
    assert stage.requests[-1].stop == ("x",)


def test_raw_continues_the_text(stage: Theatre) -> None:
    answer = parrot(raw=True).invoke([SystemMessage("def add"), HumanMessage("(a, b):")])
    assert (stage.requests[-1].prompt, stage.requests[-1].raw) == ("def add\n(a, b):", True)
    assert answer.response_metadata["template"] == "raw"


def test_load_options_make_a_variant(stage: Theatre) -> None:
    answer = parrot(context_length=64).invoke("Hi")
    assert answer.response_metadata["context_length"] == 64
    assert answer.response_metadata["model_name"] != "parrot"
    assert parrot().invoke("Hi").response_metadata["model_name"] == "parrot"


@pytest.mark.parametrize(
    ("message", "role", "content"),
    [
        (HumanMessage("a"), "user", "a"),
        (SystemMessage("a"), "system", "a"),
        (AIMessage("a"), "assistant", "a"),
        (HumanMessage(["a", {"type": "text", "text": "b"}]), "user", "ab"),
        (ToolMessage("3", tool_call_id="1"), "tool", "3"),
        (LangChainChatMessage(role="developer", content="a"), "system", "a"),
    ],
)
def test_messages_are_translated(message: BaseMessage, role: str, content: str) -> None:
    translated = to_chat_message(message)
    assert (translated.role, translated.content) == (role, content)


def test_calls_and_results_of_earlier_turns_are_translated() -> None:
    called = AIMessage(
        [{"type": "text", "text": "Let me see."}, {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1}}],
        tool_calls=[{"name": "add", "args": {"a": "é"}, "id": "1"}, {"name": "now", "args": {}, "id": None}],
        invalid_tool_calls=[invalid_tool_call(name="add", args='{"a":', id="3", error="cut off")],
    )
    translated = to_chat_message(called)
    assert (translated.role, translated.content) == ("assistant", "Let me see.")
    assert translated.tool_calls == (
        ToolCall(id="1", name="add", arguments='{"a": "é"}'),
        ToolCall(id="call_1", name="now", arguments="{}"),
        ToolCall(id="3", name="add", arguments='{"a":'),
    )
    answered = to_chat_message(ToolMessage("3", tool_call_id="1", name="add"))
    assert (answered.role, answered.content, answered.tool_call_id, answered.name) == ("tool", "3", "1", "add")


def test_attachments_are_refused_by_name(stage: Theatre) -> None:
    with pytest.raises(InvalidInput, match="audio"):
        parrot().invoke([HumanMessage([{"type": "text", "text": "a"}, {"type": "audio", "base64": "AA=="}])])
    assert stage.requests == []


@pytest.mark.parametrize("message", [LangChainChatMessage(role="narrator", content="a"), RemoveMessage(id="1")])
def test_an_unknown_role_is_refused(message: BaseMessage) -> None:
    with pytest.raises(InvalidInput):
        to_chat_message(message)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"temperature": 9.0}, "temperature"), ({"top_p": 0.0}, "top_p"), ({"max_tokens": 0}, "max_tokens")],
)
def test_a_value_out_of_range_is_named(stage: Theatre, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        parrot(**options).invoke("Hi")


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="temprature"):
        parrot(temprature=1)
    with pytest.raises(InvalidInput, match="temprature"):
        parrot().invoke("Hi", temprature=1)


def test_an_unknown_model_is_named(stage: Theatre) -> None:
    with pytest.raises(ModelNotFound, match="nobody"):
        ChatLocalRuntime(model="nobody").invoke("Hi")


# -- answers -------------------------------------------------------------------------------------------------------------


def check_answer(answer: AIMessage) -> None:
    assert answer.content == "Hello"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 2
    assert answer.usage_metadata["total_tokens"] == answer.usage_metadata["input_tokens"] + 2
    said = answer.response_metadata
    assert (said["model_name"], said["finish_reason"], said["engine"], said["device"]) == (
        "parrot",
        "stop",
        "scripted",
        "cpu",
    )
    assert "warnings" not in said


async def test_all_four_ways_answer_alike(stage: Theatre) -> None:
    check_answer(await asyncio.to_thread(parrot().invoke, "Hi"))
    check_answer(await parrot().ainvoke("Hi"))
    chunks = [chunk async for chunk in parrot().astream("Hi")]
    assert [chunk.content for chunk in chunks] == ["Hel", "lo", ""]
    check_answer(chunks[0] + chunks[1] + chunks[2])
    chunks = await asyncio.to_thread(lambda: list(parrot().stream("Hi")))
    check_answer(chunks[0] + chunks[1] + chunks[2])


def test_invoke_streams_when_it_is_told_to(stage: Theatre) -> None:
    check_answer(parrot(streaming=True).invoke("Hi"))


def test_the_observer_hears_of_the_load_and_the_result(stage: Theatre) -> None:
    heard: list[Any] = []
    parrot(observer=heard.append).invoke("Hi")
    assert [event.phase for event in heard[:-1]] == ["load"]
    assert isinstance(heard[-1], GenerationResult)


def test_the_fault_of_an_engine_arrives(stage: Theatre) -> None:
    stage.script = lambda config: ("Hel", ValueError("the wire broke"))
    with pytest.raises(Exception, match="the wire broke"):
        parrot().invoke("Hi")


# -- tools ---------------------------------------------------------------------------------------------------------------


def sections(count: int) -> Any:
    """A tool described as pydantic does it."""

    class Sections(BaseModel):
        """Make sections."""

        count: int

    return Sections


CALLS = '{"name": "add", "arguments": {"a": 1, "b": 2}}'


def test_tools_reach_the_model(stage: Theatre) -> None:
    parrot().bind_tools([add], parallel_tool_calls=False).invoke("Hi")
    (tool,) = stage.requests[-1].tools
    assert (tool.name, tool.description) == ("add", "Add two numbers.")
    assert tool.parameters["properties"] == {"a": {"type": "integer"}, "b": {"type": "integer"}}
    assert (stage.requests[-1].tool_choice, stage.requests[-1].parallel_tool_calls) == ("auto", False)


@pytest.mark.parametrize(
    ("choice", "ours"),
    [
        (None, "auto"), (False, "auto"), ("auto", "auto"), ("none", "none"), ("any", "required"), ("required", "required"),
        (True, "required"), ("add", "add"), ({"type": "function", "function": {"name": "add"}}, "add"),
        ({"type": "tool", "name": "add"}, "add"),
    ],
)  # fmt: skip
def test_choices_are_translated(stage: Theatre, choice: Any, ours: str) -> None:
    parrot().bind_tools([add], tool_choice=choice).invoke("Hi")
    assert stage.requests[-1].tool_choice == ours


@pytest.mark.parametrize("choice", ["subtract", {"type": "function"}, {"function": {"name": "subtract"}}])
def test_a_choice_that_is_none_of_the_tools_is_refused(choice: Any) -> None:
    with pytest.raises(InvalidInput, match="tool_choice"):
        parrot().bind_tools([add], tool_choice=choice)


@pytest.mark.parametrize(
    ("tool", "named"),
    [({"type": "web_search"}, "web_search"), ({"type": "function", "function": {"name": "a b"}}, "a b")],
)
def test_a_tool_that_is_no_function_is_refused_by_name(tool: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        parrot().bind_tools([tool])


def test_tools_of_every_kind() -> None:
    (made,) = to_tools([sections(1)])
    assert made.parameters["required"] == ["count"]
    assert to_tools([{"type": "function", "function": {"name": "now"}}]) == (Tool(name="now"),)


@pytest.mark.parametrize("choice", ["auto", "any"])
async def test_calls_arrive_whole_and_in_pieces(stage: Theatre, choice: str) -> None:
    stage.script = lambda config: (CALLS[:20], CALLS[20:35], CALLS[35:])
    model = parrot().bind_tools([add], tool_choice=choice)
    for answer in (await asyncio.to_thread(model.invoke, "Hi"), await model.ainvoke("Hi")):
        (call,) = answer.tool_calls
        assert (call["name"], call["args"]) == ("add", {"a": 1, "b": 2})
        assert answer.content == ""
        assert answer.response_metadata["finish_reason"] == "tool_calls"
    chunks: list[Any] = [chunk async for chunk in model.astream("Hi")]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("add", {"a": 1, "b": 2})]
    assert whole.tool_calls[0]["id"].startswith("call_")
    assert len([chunk for chunk in chunks if chunk.tool_call_chunks]) == (2 if choice == "any" else 1)


def test_a_call_that_was_cut_off_is_invalid(stage: Theatre) -> None:
    stage.script = lambda config: (CALLS[:42], CALLS[42:])
    answer = parrot(max_tokens=1).bind_tools([add], tool_choice="any").invoke("Hi")
    assert answer.tool_calls == []
    assert answer.invalid_tool_calls[0]["args"] == '{"a": 1, "b": '[: len(answer.invalid_tool_calls[0]["args"] or "")]
    assert answer.response_metadata["finish_reason"] == "length"


class Sum(BaseModel):
    """A sum."""

    total: int


class SumDict(TypedDict):
    """A sum."""

    total: int


@pytest.mark.parametrize(
    ("schema", "parsed"),
    [(Sum, Sum(total=3)), (SumDict, {"total": 3}), (Sum.model_json_schema(), {"total": 3})],
)
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(stage: Theatre, schema: Any, parsed: Any, method: Any) -> None:
    said = '{"total": 3}' if method == "json_schema" else '{"name": "%s", "arguments": {"total": 3}}'
    stage.script = lambda config: (said % config.tools[0].name if config.tools else said,)
    assert parrot().with_structured_output(schema, method=method).invoke("1 + 2") == parsed
    asked = stage.requests[-1]
    if method == "json_schema":
        assert asked.grammar is not None
        assert isinstance(asked.grammar.json_schema, dict)
        assert asked.grammar.json_schema["properties"]["total"]["type"] == "integer"
        assert asked.grammar.json_schema["additionalProperties"] is False
    else:
        assert asked.tool_choice == asked.tools[0].name


def test_structured_output_with_what_it_was_made_of(stage: Theatre) -> None:
    model = parrot().with_structured_output(Sum, include_raw=True)
    answer = model.invoke("1 + 2")
    assert (answer["raw"].content, answer["parsed"]) == ("Hello", None)
    assert isinstance(answer["parsing_error"], Exception)
    stage.script = lambda config: ('{"total": 3}',)
    answer = model.invoke("1 + 2")
    assert (answer["parsed"], answer["parsing_error"]) == (Sum(total=3), None)


def test_json_mode(stage: Theatre) -> None:
    stage.script = lambda config: ('{"a": [1]}',)
    assert parrot().with_structured_output(method="json_mode").invoke("Hi") == {"a": [1]}
    assert stage.requests[-1].grammar == Grammar(kind="json_object")


@pytest.mark.parametrize(("options", "named"), [({}, "schema"), ({"schema": Sum, "method": "telepathy"}, "telepathy")])
def test_structured_output_that_cannot_be(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        parrot().with_structured_output(**options)


@pytest.mark.parametrize(
    "response_format", [{"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}]
)
def test_a_response_format_we_do_not_know_is_refused(stage: Theatre, response_format: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=response_format["type"]):
        parrot().invoke("Hi", response_format=response_format)


async def test_reasoning_is_told_apart(stage: Theatre) -> None:
    stage.script = lambda config: ("<think>", "Hm", "m.", "</think>\n\n", "Hello")
    answer = await parrot().ainvoke("Hi")
    assert (answer.content, answer.additional_kwargs) == ("Hello", {"reasoning_content": "Hmm."})
    chunks: list[Any] = [chunk async for chunk in parrot().astream("Hi")]
    assert [chunk.additional_kwargs.get("reasoning_content") for chunk in chunks] == ["Hm", "m.", None, None]
    assert [chunk.content for chunk in chunks] == ["", "", "Hello", ""]


def test_logprobs_are_told_as_openai_does() -> None:
    one = TokenLogprob(token="a", logprob=-0.5, bytes=(97,), top=(TokenLogprob(token="b", logprob=-1.0, bytes=(98,)),))
    result = GenerationResult(
        text="a", model_name="m", tokens_generated=1, prompt_tokens=1, finish_reason="stop", logprobs=(one,),
        execution_time=1, time_to_first_token=1, metadata={"warnings": []},
    )  # fmt: skip
    told = response_metadata(result)
    assert told["logprobs"] == {
        "content": [
            {
                "token": "a", "bytes": [97], "logprob": -0.5,
                "top_logprobs": [{"token": "b", "bytes": [98], "logprob": -1.0}],
            }
        ]
    }  # fmt: skip
    assert json.dumps(told)
    assert "logprobs" not in response_metadata(result.model_copy(update={"logprobs": None}))


def test_options_of_a_call_reach_the_model(stage: Theatre) -> None:
    parrot(logprobs=True, reasoning_budget=5).invoke("Hi", top_logprobs=2, min_tokens=1, frequency_penalty=0.5)
    asked = stage.requests[-1]
    assert (asked.logprobs, asked.top_logprobs, asked.reasoning_budget) == (True, 2, 5)
    assert (asked.min_tokens, asked.frequency_penalty) == (1, 0.5)


# -- leaving -------------------------------------------------------------------------------------------------------------


def test_leaving_a_stream_cancels_the_computation(stage: Theatre) -> None:
    stage.endless()
    for chunk in parrot().stream("Hi"):
        assert chunk.content == "more "
        break
    stage.wait_until_idle()
    assert stage.runtimes["parrot"].tokens == 1


async def test_leaving_an_async_stream_cancels_the_computation(stage: Theatre) -> None:
    stage.endless()
    stream = parrot().astream("Hi")
    assert (await anext(stream)).content == "more "
    await stream.aclose()  # type: ignore[attr-defined]
    await asyncio.to_thread(stage.wait_until_idle)


@pytest.mark.parametrize("streaming", [False, True])
async def test_cancelling_the_task_cancels_the_computation(stage: Theatre, streaming: bool) -> None:
    begun = stage.endless()
    task = asyncio.create_task(parrot(streaming=streaming).ainvoke("Hi"))
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(stage.wait_until_idle)


def test_a_timeout_cancels_and_says_so(stage: Theatre) -> None:
    stage.endless()
    with pytest.raises(TimeoutError, match=r"parrot did not finish within 0\.05 s"):
        parrot(timeout=0.05).invoke("Hi")
    stage.wait_until_idle()


async def test_a_timeout_ends_an_async_stream(stage: Theatre) -> None:
    stage.endless()
    with pytest.raises(TimeoutError):
        _ = [chunk async for chunk in parrot(timeout=0.05).astream("Hi")]
    await asyncio.to_thread(stage.wait_until_idle)


# -- what it tells of itself ---------------------------------------------------------------------------------------------


def test_the_key_is_ignored_and_never_shown() -> None:
    model = parrot(api_key="hunter2", temperature=0.0)
    assert "hunter2" not in repr(model) + str(model.to_json())
    assert model._identifying_params == {"model": "parrot", "temperature": 0.0, "raw": False}


def test_tracing_gets_the_standard_parameters() -> None:
    model = parrot(temperature=0.0, max_tokens=5, stop=["x"])
    assert model._get_ls_params() == {
        "ls_provider": "local-runtimes", "ls_model_name": "parrot", "ls_model_type": "chat",
        "ls_temperature": 0.0, "ls_max_tokens": 5, "ls_stop": ["x"],
    }  # fmt: skip
