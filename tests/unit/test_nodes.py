"""The nodes over scripted models, in real graphs: what they ask, show and stop."""

import ast
import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool
from lfx.components.input_output.chat import ChatInput
from lfx.components.input_output.chat_output import ChatOutput
from lfx.components.models_and_agents.prompt import PromptComponent
from lfx.custom.custom_component.component import Component
from lfx.custom.validate import create_class
from lfx.events.event_manager import EventManager
from lfx.graph.graph.base import Graph
from lfx.schema.message import Message

from lfx_local_runtimes.components.local_runtimes.document_reader import DocumentReaderComponent
from lfx_local_runtimes.components.local_runtimes.entity_tagger import EntityTaggerComponent
from lfx_local_runtimes.components.local_runtimes.gemma import GemmaComponent
from lfx_local_runtimes.components.local_runtimes.image_describer import ImageDescriberComponent
from lfx_local_runtimes.components.local_runtimes.local_embeddings import LocalEmbeddingsComponent
from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.components.local_runtimes.local_rerank import LocalRerankComponent
from lfx_local_runtimes.components.local_runtimes.model_manager import ModelManagerComponent
from lfx_local_runtimes.components.local_runtimes.runtime_status import RuntimeStatusComponent
from lfx_local_runtimes.components.local_runtimes.text_classifier import TextClassifierComponent
from lfx_local_runtimes.components.local_runtimes.zero_shot_classifier import ZeroShotClassifierComponent
from lfx_local_runtimes.errors import InvalidInput, ModelBusy, ModelConflict, ModelNotFound, PathNotAllowed
from lfx_local_runtimes.nodes.inputs import (
    GEMMA_PRESETS,
    SAMPLING_DEFAULTS,
    TOOL_ROUNDS,
    describe_schema,
    schema_of,
    stop_texts,
)
from lfx_local_runtimes.nodes.provider import BASE_ICON, ICON, INSTRUCT_ONLY, LISTED, live_models, validate
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig
from lfx_local_runtimes.runtimes.testing import Step
from tests.routes_app import write_model
from tests.scripted_manager import PATIENCE_S, Theatre, theatre

NODES = [
    LocalModelComponent, GemmaComponent, ModelManagerComponent, RuntimeStatusComponent, LocalEmbeddingsComponent,
    LocalRerankComponent, TextClassifierComponent, ZeroShotClassifierComponent, EntityTaggerComponent, ImageDescriberComponent,
    DocumentReaderComponent,
]  # fmt: skip
COMPONENTS = Path(__file__).parents[2] / "components"


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    with theatre(tmp_path, monkeypatch) as stage:
        yield stage


# -- what Langflow sees --------------------------------------------------------------------------------------------------


def test_langflows_validator_passes() -> None:
    lfx = Path(sys.executable).parent / "lfx"
    ran = subprocess.run(
        [lfx, "extension", "validate", COMPONENTS], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "validate: ok" in ran.stdout


@pytest.mark.parametrize("node", NODES)
def test_a_node_explains_itself(node: type[Component]) -> None:
    assert node.display_name
    assert node.description.endswith(".")
    assert node.icon
    assert node.documentation.startswith("/api/v1/runtime/manual#")
    assert "offline" in node.metadata["keywords"]  # Langflow's search looks there
    for field in node.inputs:
        assert field.display_name, field.name
        assert field.info, field.name


@pytest.mark.parametrize("node", [LocalModelComponent, GemmaComponent])
def test_a_model_node_is_small_until_it_is_opened(node: type[Component]) -> None:
    shown = [field.name for field in node.inputs if not field.advanced]
    assert shown == [
        name
        for name in ("model_name", "other_model", "preset", "input_value", "system_message", "n_messages", "tools")
        if name in shown
    ]


@pytest.mark.parametrize("path", sorted((COMPONENTS / "local_runtimes").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_node_file_is_thin(path: Path) -> None:
    """Flows carry it along and run it afresh each time, where only imports and classes survive."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert [
        type(statement) for statement in body if not isinstance(statement, ast.Import | ast.ImportFrom | ast.Expr)
    ] == [ast.ClassDef]
    assert all(statement.level == 0 for statement in body if isinstance(statement, ast.ImportFrom))


@pytest.mark.parametrize("node", NODES)
def test_the_source_runs_as_a_flow_runs_it(node: type[Component]) -> None:
    source = Path(sys.modules[node.__module__].__file__ or "").read_text(encoding="utf-8")
    made = create_class(source, node.__name__)()
    assert [field.name for field in made.inputs] == [field.name for field in node.inputs]
    assert [output.name for output in made.outputs] == [output.name for output in node.outputs]


# -- Local Model and Gemma -----------------------------------------------------------------------------------------------


def test_a_fresh_node_asks_for_the_defaults() -> None:
    model = LocalModelComponent(model_name="gemma-3-270m").build_model()
    assert {name: getattr(model, name) for name in SAMPLING_DEFAULTS} == dict(SAMPLING_DEFAULTS)
    assert (model.model, model.seed, model.stop, model.raw) == ("gemma-3-270m", None, None, False)
    assert (model.runtime_type, model.device_type, model.quantization, model.context_length, model.keep_alive) == (
        None,
    ) * 5


def test_every_option_reaches_the_model() -> None:
    model = LocalModelComponent(
        model_name="parrot", max_tokens=9, temperature=0.0, top_p=0.5, top_k=0, min_p=0.0, repetition_penalty=1.1, seed=0,
        stop_sequences=["\\n", "", "END"], raw=True, keep_alive="-1", runtime_type="llama_cpp", device_type="cpu",
        quantization="int8", context_length=128,
    ).build_model()  # fmt: skip
    assert (model.max_tokens, model.temperature, model.top_p, model.top_k, model.min_p) == (9, 0, 0.5, 0, 0)
    assert (model.repetition_penalty, model.seed, model.stop, model.raw, model.keep_alive) == (
        1.1,
        0,
        ["\n", "END"],
        True,
        -1,
    )
    assert (model.runtime_type, model.device_type, model.quantization, model.context_length) == (
        "llama_cpp",
        "cpu",
        "int8",
        128,
    )


def test_the_gemma_node_starts_with_its_preset_and_shares_the_model_with_other_nodes() -> None:
    model = GemmaComponent().build_model()
    assert model.runtime_type is None  # another engine would be a second copy in memory
    assert {name: getattr(model, name) for name in GEMMA_PRESETS["Recommended"]} == GEMMA_PRESETS["Recommended"]


@pytest.mark.parametrize("values", [None, "", [], [""]])
def test_no_stop_text(values: Any) -> None:
    assert stop_texts(values) == []


@pytest.fixture
def instructed(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> str:
    """The only instruct model on the machine."""
    monkeypatch.setattr("lfx_local_runtimes.runtimes.sources.discovery.carriers", tuple)
    write_model(stage.models / "owl-instruct")
    return "owl-instruct"


def test_a_fresh_node_takes_an_instruct_model(instructed: str) -> None:
    assert LocalModelComponent().model_name == "auto"
    assert LocalModelComponent().build_model().model == instructed
    assert LocalModelComponent(model_name="").build_model().model == instructed


async def test_the_list_says_which_model_a_fresh_node_takes(instructed: str) -> None:
    node = LocalModelComponent()
    fields = await node.update_build_config(fields_of(node), "auto", "model_name")
    assert (fields["model_name"]["options"][0], fields["model_name"]["options_metadata"][0]) == (
        "auto", {"icon": "Sparkles", f"now {instructed}": ""},
    )  # fmt: skip


async def test_a_machine_without_models_says_how_to_get_one(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage.manager, "list_models", list)
    with pytest.raises(ModelNotFound) as caught:
        LocalModelComponent().build_model()
    assert "pip install 'lfx-local-runtimes[demo]'" in str(caught.value)
    node = LocalModelComponent()
    fields = await node.update_build_config(fields_of(node), "auto", "model_name")
    assert "pip install 'lfx-local-runtimes[demo]'" in str(fields["model_name"]["options_metadata"][0])


def test_a_value_that_is_no_number_names_its_field() -> None:
    with pytest.raises(InvalidInput, match="temperature"):
        LocalModelComponent(temperature="warm").build_model()


def fields_of(node: Component) -> dict[str, Any]:
    template: dict[str, Any] = node.to_frontend_node()["data"]["node"]["template"]
    return template


async def test_the_model_list_is_the_managers(stage: Theatre) -> None:
    node = LocalModelComponent()
    fields = await node.update_build_config(fields_of(node), "parrot", "model_name")
    assert {"owl", "parrot"} <= set(fields["model_name"]["options"])
    details = dict(zip(fields["model_name"]["options"], fields["model_name"]["options_metadata"], strict=True))
    assert details["parrot"] == {"icon": "HardDrive", "base text": "", "on this machine": "✓"}


@pytest.mark.parametrize("kind", [LocalModelComponent, ModelManagerComponent])
async def test_a_chosen_model_stays_in_the_list(stage: Theatre, kind: type[Component]) -> None:
    """Langflow's UI shows a value that is not in the list as none at all."""
    node = kind(model_name="org/elsewhere")
    fields = await node.update_build_config(fields_of(node), "org/elsewhere", "model_name")
    assert fields["model_name"]["options"].count("org/elsewhere") == 1
    assert len(fields["model_name"]["options"]) == len(fields["model_name"]["options_metadata"])


async def test_a_preset_fills_in_its_values(stage: Theatre) -> None:
    node = GemmaComponent()
    fields = await node.update_build_config(fields_of(node), "Repeatable", "preset")
    assert {name: fields[name]["value"] for name in GEMMA_PRESETS["Repeatable"]} == GEMMA_PRESETS["Repeatable"]


def chat(**options: Any) -> Graph:
    """Chat Input → Local Model → Chat Output."""
    ask = ChatInput(_id="ChatInput-ask", should_store_message=False).set(input_value="Hi")
    model = LocalModelComponent(_id="LocalModel-chat").set(
        input_value=ask.message_response, model_name="parrot", **options
    )
    say = ChatOutput(_id="ChatOutput-say", should_store_message=False).set(input_value=model.text_response)
    graph = Graph(ask, say)
    graph.session_id = "a session"
    return graph


class Events:
    """What the UI would be told. `on_token` may hold the node up."""

    def __init__(self, hold: threading.Event | None = None) -> None:
        self.tokens: list[str] = []
        self.logs: list[dict[str, Any]] = []
        self.first_token = threading.Event()
        self._hold = hold
        self.manager = EventManager(asyncio.Queue())
        for name, callback in (
            ("on_token", self._token),
            ("on_log", self._log),
            ("on_message", self._other),
            ("on_error", self._other),
        ):
            self.manager.register_event(
                name, name.removeprefix("on_"), lambda *, manager, event_type, data, to=callback: to(data)
            )

    def _token(self, data: dict[str, Any]) -> None:
        self.tokens.append(data["chunk"])
        self.first_token.set()
        if self._hold is not None:
            self._hold.wait(PATIENCE_S)

    def _log(self, data: dict[str, Any]) -> None:
        self.logs.append(data)

    def _other(self, data: dict[str, Any]) -> None:
        pass


async def run(graph: Graph, events: Events | None = None) -> str:
    results = [result async for result in graph.async_start(event_manager=events.manager if events else None)]
    message: Message = next(
        item.result_dict.results["message"]
        for item in results
        if getattr(item, "vertex", None) and item.vertex.id == "ChatOutput-say"
    )
    return str(message.text)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_graph_answers(stage: Theatre, stream: bool) -> None:
    assert await run(chat(stream=stream, system_message="Be brief.")) == "Hello"
    assert [(turn.role, turn.content) for turn in stage.requests[-1].turns] == [("system", "Be brief."), ("user", "Hi")]


async def test_a_model_reads_the_chat_before_its_input(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    stored = [
        Message(text=text, sender=sender, sender_name=sender)
        for sender, text in (("User", "old"), ("User", "I am Ada."), ("Machine", "Hello Ada."), ("Machine", ""))
    ]

    async def history(**options: Any) -> list[Message]:
        asked.append(options)
        return stored

    monkeypatch.setattr("lfx.components.models_and_agents.memory.aget_agent_chat_history", history)
    assert await run(chat(n_messages=3, system_message="Be brief.")) == "Hello"
    assert [(turn.role, turn.content) for turn in stage.requests[-1].turns] == [
        ("system", "Be brief."), ("user", "I am Ada."), ("assistant", "Hello Ada."), ("user", "Hi"),
    ]  # fmt: skip
    assert (asked[0]["session_id"], asked[0]["n_messages"]) == ("a session", 4)
    await run(chat())
    assert [turn.content for turn in stage.requests[-1].turns] == ["Hi"]
    assert len(asked) == 1


async def test_tokens_reach_the_playground_and_the_log_tells_the_rest(stage: Theatre) -> None:
    events = Events()
    assert await run(chat(), events) == "Hello"
    assert events.tokens == ["", "Hel", "lo", ""]  # the empty one first: see _HeldStream
    logs = {log["name"]: log["message"] for log in events.logs}
    assert logs["progress"].startswith("Loading parrot")
    assert (logs["answer"]["engine"], logs["answer"]["tokens"], logs["answer"]["model_name"]) == (
        "scripted",
        2,
        "parrot",
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_ends_the_computation(stage: Theatre, stream: bool) -> None:
    begun = stage.endless()
    task = asyncio.create_task(run(chat(stream=stream), Events()))
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(stage.wait_until_idle)


@pytest.mark.parametrize("with_tools", [False, True])
async def test_stop_while_a_token_is_on_its_way_ends_the_computation(stage: Theatre, with_tools: bool) -> None:
    """Then the stream is not being read, and nobody but the node would close it."""
    stage.endless()
    hold = threading.Event()
    events = Events(hold)
    task = asyncio.create_task(run(chat(tools=[adder()] if with_tools else []), events))
    assert await asyncio.to_thread(events.first_token.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as kept:  # its traceback keeps the stream from being collected
        await task
    await asyncio.to_thread(stage.wait_until_idle)
    assert kept.tb is not None
    hold.set()


async def test_a_fault_names_the_model_and_the_remedy(stage: Theatre) -> None:
    graph = chat()
    graph.get_vertex("LocalModel-chat").update_raw_params({"model_name": "nobody"}, overwrite=True)
    with pytest.raises(Exception, match="nobody"):
        await run(graph)


async def test_four_branches_are_asked_at_the_same_time(stage: Theatre) -> None:
    """By the runner of Langflow's server. No answer ends before all four requests have reached the model."""

    class AllFour:
        def wait(self, timeout: float) -> bool:
            return stage.manager.model_status("parrot").leases == 4 or threading.Event().wait(timeout)

    asked = AllFour()
    stage.script = lambda config: (
        (asked, config.turns[0].content) if len(stage.requests) == 1 else (config.turns[0].content,)
    )
    ask = ChatInput(_id="ChatInput-ask", should_store_message=False).set(input_value="Hi")
    branches = {}
    for index in range(4):
        model = LocalModelComponent(_id=f"LocalModel-{index}").set(
            input_value=ask.message_response, system_message=str(index), model_name="parrot"
        )
        branches[f"answer{index}"] = model.text_response
    join = PromptComponent(_id="Prompt-join").set(template=" ".join(f"{{{name}}}" for name in branches), **branches)
    say = ChatOutput(_id="ChatOutput-say", should_store_message=False).set(input_value=join.build_prompt)
    graph = Graph(ask, say)
    graph.session_id = "a session"
    await graph.process(fallback_to_env_vars=False)
    assert graph.get_vertex("ChatOutput-say").result.results["message"].text == "0 1 2 3"


# -- tools and structured output ------------------------------------------------------------------------------------------


def adder(fault: Exception | None = None) -> StructuredTool:
    """A tool `add` that adds, or fails."""

    async def add(a: int, b: int) -> str:
        """Add two numbers."""
        if fault is not None:
            raise fault
        return str(a + b)

    return StructuredTool.from_function(coroutine=add)


CALL = '{"name": "add", "arguments": {"a": 2, "b": 3}}'


def calls_when_forced(config: GenerationConfig) -> Iterable[Step]:
    """Calls `add` if it has to, and otherwise says what it was told last."""
    return tuple(CALL) if config.tool_choice in ("add", "required") else ("It says: ", config.turns[-1].content)


@pytest.mark.parametrize(("choice", "then"), [("add", "none"), ("required", "auto")])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_and_its_result_answered_with(
    stage: Theatre, stream: bool, choice: str, then: str
) -> None:
    stage.script = calls_when_forced
    events = Events()
    assert await run(chat(stream=stream, tools=[adder()], tool_choice=choice), events) == "It says: 5"
    assert [request.tool_choice for request in stage.requests] == [choice, then]
    assert [turn.role for turn in stage.requests[1].turns] == ["user", "assistant", "tool"]
    assert [log["message"] for log in events.logs if log["name"] == "tool"] == [
        {"tool": "add", "arguments": {"a": 2, "b": 3}, "result": "5"}
    ]


async def test_tools_are_offered_and_need_not_be_called(stage: Theatre) -> None:
    assert await run(chat(tools=[adder()])) == "Hello"
    assert [(request.tool_choice, [tool.name for tool in request.tools]) for request in stage.requests] == [
        ("auto", ["add"])
    ]


async def test_a_model_that_only_calls_is_made_to_answer(stage: Theatre) -> None:
    stage.script = lambda config: ("enough",) if config.tool_choice == "none" else (CALL,)
    assert await run(chat(tools=[adder()])) == "enough"
    assert len(stage.requests) == TOOL_ROUNDS + 1


async def test_the_model_is_told_of_a_tools_failure(stage: Theatre) -> None:
    stage.script = calls_when_forced
    answer = await run(chat(tools=[adder(ValueError("out of fingers"))], tool_choice="add"))
    assert answer == "It says: add failed: out of fingers"


async def test_a_call_that_breaks_off_is_an_error(stage: Theatre) -> None:
    stage.script = lambda config: (CALL[:-5],)
    with pytest.raises(Exception, match=r"add was cut off.*Max Tokens"):
        await run(chat(tools=[adder()], tool_choice="add", stream=False))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tools": [], "tool_choice": "add"}, "there is no tool"),
        ({"tools": [adder()], "tool_choice": "subtract"}, "not one of the tools: add"),
        ({"tools": [adder()], "raw": True}, "tools need messages"),
    ],
)
async def test_a_choice_that_cannot_be_is_an_error(stage: Theatre, options: dict[str, Any], named: str) -> None:
    with pytest.raises(Exception, match=named):
        await run(chat(**options))
    assert stage.requests == []


async def test_stop_while_a_tool_runs_ends_the_flow(stage: Theatre) -> None:
    stage.script = calls_when_forced
    begun, ended = asyncio.Event(), asyncio.Event()

    async def add(a: int, b: int) -> str:
        """Never ends by itself."""
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    task = asyncio.create_task(
        run(chat(tools=[StructuredTool.from_function(coroutine=add)], tool_choice="add"), Events())
    )
    await asyncio.wait_for(begun.wait(), PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    assert len(stage.requests) == 1


async def test_stop_with_tools_ends_the_computation(stage: Theatre) -> None:
    begun = stage.endless()
    task = asyncio.create_task(run(chat(tools=[adder()]), Events()))
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(stage.wait_until_idle)


async def test_an_agents_first_call_is_the_nodes_choice(stage: Theatre) -> None:
    """Langflow's Agent binds its tools without a choice, every time again."""
    stage.script = calls_when_forced
    bound = LocalModelComponent(model_name="parrot", tool_choice="add").build_model().bind_tools([adder()])
    first = await bound.ainvoke([HumanMessage("2 and 3?")])
    assert isinstance(first, AIMessage)
    assert [(call["name"], call["args"]) for call in first.tool_calls] == [("add", {"a": 2, "b": 3})]
    told = ToolMessage("5", tool_call_id=first.tool_calls[0]["id"])
    assert (await bound.ainvoke([HumanMessage("2 and 3?"), first, told])).text == "It says: 5"


ROWS = [
    {"name": "city", "type": "str", "description": "where", "multiple": False},
    {"name": "years", "type": "int", "description": "", "multiple": "True"},
]


def structured(**options: Any) -> LocalModelComponent:
    return LocalModelComponent(_id="LocalModel-chat", input_value="Hi", model_name="parrot", **options)


async def test_structured_output_is_data_of_the_schema(stage: Theatre) -> None:
    stage.script = lambda config: ('{"city": "Rome", ', '"years": [1, 2]}')
    data = await structured(output_schema=ROWS, system_message="Be brief.").structured_response()
    assert data.data == {"city": "Rome", "years": [1, 2]}
    asked = stage.requests[-1]
    assert asked.grammar is not None
    assert asked.grammar.json_schema == schema_of(ROWS)
    assert asked.turns[0].content == f"Be brief.\n\n{describe_schema(schema_of(ROWS) or {})}"


def test_a_schema_and_what_the_model_is_told() -> None:
    schema = schema_of(ROWS)
    assert schema == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "where"},
            "years": {"type": "array", "items": {"type": "integer", "minimum": -(2**53), "maximum": 2**53}},
        },
        "required": ["city", "years"],
        "additionalProperties": False,
    }
    assert describe_schema(schema).splitlines()[1:] == ["- city (string): where", "- years (list of integer)"]
    assert schema_of([]) is None


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"name": " ", "type": "str"}], "row 1: it has no name"),
        ([{"name": "a", "type": "str"}, {"name": "a", "type": "int"}], "row 2: a is used already"),
        ([{"name": "a", "type": "date"}], "row 1: date is not a type"),
    ],
)
def test_a_schema_that_cannot_be_names_the_row(rows: list[dict[str, Any]], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        schema_of(rows)


async def test_json_that_is_cut_off_says_what_to_do(stage: Theatre) -> None:
    stage.script = lambda config: ('{"city": "Ro',)
    with pytest.raises(InvalidInput, match="Max Tokens"):
        await structured(output_schema=ROWS).structured_response()


async def test_structured_output_without_a_schema(stage: Theatre) -> None:
    """Wired, it is an error; in a node with no wires, where Langflow asks for every output, it is nothing."""
    with pytest.raises(InvalidInput, match="Output Schema"):
        await structured().structured_response()
    node = structured()
    graph = Graph(node, node)
    assert [result async for result in graph.async_start()]
    assert len(stage.requests) == 1  # the text


# -- Model Manager -------------------------------------------------------------------------------------------------------


async def manage(action: str, name: str = "parrot", **fields: Any) -> dict[str, Any]:
    data: dict[str, Any] = (await ModelManagerComponent(action=action, model_name=name, **fields).manage()).data
    return data


async def test_a_model_goes_through_its_life(stage: Theatre) -> None:
    assert (await manage("State"))["state"] == "registered"
    loaded = await manage("Load")
    assert (loaded["changed"], loaded["state"], loaded["engine"]) == (True, "ready", "scripted")
    assert (await manage("Load"))["changed"] is False
    assert (await manage("Pin"))["pinned"] is True
    unpinned = await manage("Unpin")
    assert (unpinned["pinned"], unpinned["changed"]) == (False, True)
    unloaded = await manage("Unload")
    assert (unloaded["changed"], unloaded["state"]) == (True, "registered")
    assert (await manage("Unload"))["changed"] is False


async def test_a_model_is_registered_from_a_flow(stage: Theatre) -> None:
    write_model(stage.models / "crow")
    made = await manage(
        "Register", "black bird", model_id=str(stage.models / "crow"), keep_alive="60", context_length=256
    )
    assert (made["changed"], made["model_name"], made["keep_alive_s"], made["context_length"]) == (
        True,
        "black bird",
        60,
        256,
    )
    assert (
        await manage("Register", "black bird", model_id=str(stage.models / "crow"), keep_alive="60", context_length=256)
    )["changed"] is False
    with pytest.raises(ModelConflict):
        await manage("Register", "black bird", model_id=str(stage.models / "parrot"))


async def test_a_registration_is_replaced_and_removed_from_a_flow(stage: Theatre) -> None:
    source = str(stage.models / "parrot")
    with pytest.raises(ModelConflict, match="Replace in the Model Manager node"):
        await manage("Register", model_id=source, context_length=256)
    replaced = await manage("Register", model_id=source, context_length=256, replace=True)
    assert (replaced["changed"], replaced["context_length"]) == (True, 256)
    assert (await manage("Register", model_id=source, context_length=256, replace=True))["changed"] is False
    removed = await manage("Unregister")
    assert removed == {"action": "unregister", "changed": True, "model_name": "parrot", "state": "unregistered"}
    assert "parrot" not in stage.manager.catalog.registered()
    with pytest.raises(ModelNotFound, match="not registered"):
        await manage("Unregister")


async def test_a_registration_says_how_many_requests_are_computed_at_once(stage: Theatre) -> None:
    await manage("Register", "flock", model_id=str(stage.models / "parrot"), parallel=4)
    await manage("Register", "as many as fit", model_id=str(stage.models / "parrot"), parallel=0)
    parallel = {row.config.model_name: row.config.parallel for row in stage.manager.catalog.list()}
    assert (parallel["flock"], parallel["as many as fit"]) == (4, None)


async def test_a_flow_registers_only_inside_the_model_folders(stage: Theatre, tmp_path: Path) -> None:
    write_model(tmp_path / "elsewhere")
    with pytest.raises(PathNotAllowed):
        await manage("Register", "outsider", model_id=str(tmp_path / "elsewhere"))
    assert "outsider" not in [model.model_name for model in stage.manager.list_models()]


async def test_a_model_in_use_is_unloaded_by_force_only(stage: Theatre) -> None:
    stage.endless()
    stream = aiter(stage.manager.stream("parrot", GenerationConfig(prompt="Hi")))
    await anext(stream)
    with pytest.raises(ModelBusy):
        await manage("Unload")
    assert (await manage("Unload", force=True))["state"] == "registered"
    await stream.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fields", "fault", "named"),
    [
        ({"action": "Load", "name": ""}, ModelNotFound, "Model field"),
        ({"action": "Load", "name": "nobody"}, ModelNotFound, "nobody"),
        ({"action": "Pin", "name": "nobody"}, ModelNotFound, "nobody"),
        ({"action": "Register", "name": "x"}, InvalidInput, "Source field"),
        ({"action": "Register", "name": "x", "model_id": "y", "quantization": "tiny"}, InvalidInput, "quantization"),
        ({"action": "Register", "name": "x", "model_id": "y", "parallel": 65}, InvalidInput, "parallel"),
        ({"action": "Explode"}, InvalidInput, "Explode"),
    ],
)
async def test_what_cannot_be_done_says_why(
    stage: Theatre, fields: dict[str, Any], fault: type[Exception], named: str
) -> None:
    with pytest.raises(fault, match=named):
        await manage(**fields)


async def test_only_the_fields_of_the_action_show(stage: Theatre) -> None:
    node = ModelManagerComponent()
    fields = fields_of(node)

    def shown() -> set[str]:
        return {name for name, field in fields.items() if isinstance(field, dict) and field.get("show")} - {"code"}

    assert shown() == {"action", "model_name", "other_model", "after"}
    fields = await node.update_build_config(fields, "Register", "action")
    assert {"model_id", "runtime_type", "pinned", "replace", "force"} <= shown()
    fields = await node.update_build_config(fields, "Unload", "action")
    assert shown() == {"action", "model_name", "other_model", "after", "force"}


# -- Runtime Status and the provider -------------------------------------------------------------------------------------


async def test_the_status_tables(stage: Theatre) -> None:
    node = RuntimeStatusComponent(loaded_only=False)
    rows = {row["model_name"]: row for row in (await node.models()).to_dict(orient="records")}
    assert {"owl", "parrot"} <= set(rows)
    await stage.manager.load_model("parrot")
    rows = {
        row["model_name"]: row
        for row in (await RuntimeStatusComponent(loaded_only=True).models()).to_dict(orient="records")
    }
    assert set(rows) == {"parrot"}
    assert "problem" not in rows["parrot"]  # nothing is wrong: no empty column
    assert (rows["parrot"]["state"], rows["parrot"]["memory_used_mb"]) == ("ready", 1.0)
    memory = (await node.memory()).to_dict(orient="records")
    assert [(row["device"], row["models"]) for row in memory] == [("cpu", "parrot")]
    assert memory[0]["budget_mb"] > memory[0]["free_mb"] > 0


def test_the_provider_lists_models_of_a_kind(stage: Theatre) -> None:
    rows = {row["name"]: row for row in live_models(None, "llm")}
    assert {"owl", "parrot"} <= set(rows)
    assert (rows["owl"]["provider"], rows["owl"]["model_type"]) == ("Local Runtimes", "llm")
    assert not {"owl", "parrot"} & {row["name"] for row in live_models(None, "embeddings")}
    assert stage.runtimes == {}


def test_the_provider_puts_instruct_models_first_and_can_leave_base_models_out(
    stage: Theatre, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(stage.models / "zebra-it")
    rows = [row for row in live_models(None, "llm") if row["name"] in ("owl", "zebra-it")]
    assert [(row["name"], row["icon"]) for row in rows] == [("zebra-it", ICON), ("owl", BASE_ICON)]
    chosen = {LISTED: INSTRUCT_ONLY}
    monkeypatch.setattr(
        "lfx_local_runtimes.nodes.provider.get_provider_variable_value", lambda user_id, name: chosen[name]
    )
    names = [row["name"] for row in live_models("a user", "llm")]
    assert "zebra-it" in names
    assert "owl" not in names


def test_the_provider_leaves_out_what_cannot_be_loaded(stage: Theatre) -> None:
    (stage.models / "owl" / "model.safetensors").write_bytes(b"broken")
    names = {row["name"] for row in live_models(None, "llm")}
    assert "parrot" in names
    assert "owl" not in names


def test_the_manifest_names_what_the_providers_page_saves() -> None:
    """Langflow's page needs a variable that is required: without one it has no heading, and cannot be switched off."""
    (provider,) = json.loads((COMPONENTS / "extension.json").read_text(encoding="utf-8"))["providers"]
    (variable,) = provider["metadata"]["variables"]
    assert variable["required"]
    assert variable["variable_key"] == LISTED
    assert INSTRUCT_ONLY in variable["options"]


def test_the_providers_page_says_where_models_belong(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    validate("Local Runtimes", {})
    monkeypatch.setattr(stage.manager, "list_models", list)
    with pytest.raises(ValueError, match=re.escape(str(stage.models))):
        validate("Local Runtimes", {})


def broken() -> list[Any]:
    raise InvalidInput("The rules are wrong.")


def test_the_providers_page_shows_a_fault(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage.manager, "list_models", broken)
    with pytest.raises(ValueError, match="The rules are wrong"):
        validate("Local Runtimes", {})


def test_the_provider_says_which_models_call_tools(stage: Theatre) -> None:
    (stage.models / "owl" / "chat_template.jinja").write_text("{% for tool in tools %}{{ tool | tojson }}{% endfor %}")
    (stage.models / "parrot" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    stage.manager.register_model(stage.config("owl", chat_template="chatml").model_copy(update={"model_name": "plain"}))
    rows = {row["name"]: row["tool_calling"] for row in live_models(None, "llm")}
    assert (rows["owl"], rows["parrot"], rows["plain"]) == (True, False, False)


@pytest.mark.parametrize("kind", ["llm", "embeddings"])
def test_a_fault_of_the_provider_is_shown(stage: Theatre, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def fail() -> None:
        raise ValueError("the disk is gone")

    monkeypatch.setattr(stage.manager, "list_models", fail)
    (row,) = live_models(None, kind)
    assert row["name"] == "Local models cannot be listed: the disk is gone"
    assert row["tool_calling"] is (kind == "llm"), "an Agent's list shows only models that call tools"


def test_models_that_cannot_be_served_are_in_no_list(stage: Theatre) -> None:
    (stage.models / "whisper").mkdir()
    write_model(stage.models / "whisper")
    (stage.models / "whisper" / "config.json").write_text('{"architectures": ["WhisperForConditionalGeneration"]}')
    (stage.models / "broken.gguf").write_bytes(b"GGUF")
    names = {row["name"] for kind in ("llm", "embeddings") for row in live_models(None, kind)}
    assert not {"whisper", "broken"} & names


async def test_the_state_of_a_model_in_words(stage: Theatre) -> None:
    (stage.models / "broken.gguf").write_bytes(b"GGUF")
    stage.manager.register_model(ModelConfig(model_id="org/absent", model_name="absent"))
    rows = {row["model_name"]: row for row in (await RuntimeStatusComponent().models()).to_dict(orient="records")}
    assert {name: rows[name]["state"] for name in ("parrot", "absent", "broken")} == {
        "parrot": "on disk", "absent": "to fetch", "broken": "cannot be loaded",
    }  # fmt: skip
    assert "broken.gguf" in rows["broken"]["problem"]
    node = ModelManagerComponent(action="State", model_name="parrot")
    assert (await node.manage()).data["state"] == "registered", "programs rely on this value"
    assert node.status == "parrot: on disk"
