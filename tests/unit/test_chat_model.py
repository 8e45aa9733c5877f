"""`ChatLocalRuntime` over scripted models: what is asked of the manager, what comes back, and that leaving cancels."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

from lfx_local_runtimes.chat import ChatLocalRuntime, to_chat_message
from lfx_local_runtimes.errors import InvalidInput, ModelNotFound
from lfx_local_runtimes.runtimes import GenerationConfig
from lfx_local_runtimes.runtimes.config import GenerationResult
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


def test_making_one_asks_nothing_of_the_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError

    monkeypatch.setattr("lfx_local_runtimes.chat.get_runtime_manager", never)
    parrot(temperature=0.0, runtime_type="llama_cpp", api_key="EMPTY")


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
        (
            AIMessage("Let me see.", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "1"}]),
            "assistant",
            'Let me see.\n{"name": "add", "arguments": {"a": 1}}',
        ),
        (
            AIMessage(
                [{"type": "tool_use", "id": "1", "name": "add", "input": {}}],
                tool_calls=[{"name": "add", "args": {}, "id": "1"}],
            ),
            "assistant",
            '{"name": "add", "arguments": {}}',
        ),
    ],
)
def test_messages_are_translated(message: BaseMessage, role: str, content: str) -> None:
    translated = to_chat_message(message)
    assert (translated.role, translated.content) == (role, content)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}], "image_url"),
        ([{"type": "text", "text": "a"}, {"type": "audio", "base64": "AA=="}], "audio"),
    ],
)
def test_attachments_are_refused_by_name(stage: Theatre, content: list[Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        parrot().invoke([HumanMessage(content)])
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


async def test_tools_are_accepted_and_every_answer_warns(stage: Theatre, caplog: pytest.LogCaptureFixture) -> None:
    model = parrot().bind_tools([add])
    with caplog.at_level(logging.WARNING, logger="lfx_local_runtimes.chat"):
        answers: list[Any] = [await asyncio.to_thread(model.invoke, "Hi"), await model.ainvoke("Hi")]
        answers.append([chunk async for chunk in model.astream("Hi")][-1])
    for answer in answers:
        (warning,) = answer.response_metadata["warnings"]
        assert "add" in warning
        assert "later release" in warning
    assert len(caplog.records) == 3


@pytest.mark.parametrize("choice", ["any", "required", "add", True, {"type": "function", "function": {"name": "add"}}])
def test_a_forced_tool_call_is_refused(choice: Any) -> None:
    with pytest.raises(NotImplementedError, match="parrot"):
        parrot().bind_tools([add], tool_choice=choice)


def test_structured_output_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="later release"):
        parrot().with_structured_output({"title": "x", "type": "object"})


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
