"""What a person reads while a model loads or a request waits: in the Playground, and in the node's log."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lfx.components.input_output.chat import ChatInput
from lfx.components.input_output.chat_output import ChatOutput
from lfx.custom.custom_component.component import Component
from lfx.events.event_manager import (
    EventManager,
    create_default_event_manager,
    create_stream_tokens_event_manager,
)
from lfx.graph.graph.base import Graph

from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.nodes.reports import Reporter
from lfx_local_runtimes.nodes.waiting import Pace, PlaygroundNote
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, ScriptedRuntime
from lfx_local_runtimes.runtimes.requests import Progress
from tests.scripted_manager import PATIENCE_S, Theatre, theatre

MB = 10**6


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    with theatre(tmp_path, monkeypatch) as stage:
        yield stage


def test_progress_has_percent_speed_and_the_time_that_is_left() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.describe(Progress("download", 0, 400 * MB), "owl") == "Downloading owl: 0 % of 400 MB"
    clock.now += 4
    assert pace.describe(Progress("download", 100 * MB, 400 * MB), "owl") == (
        "Downloading owl: 25 % of 400 MB, 25 MB/s, 12 s left"
    )


def test_a_download_that_goes_on_counts_only_what_is_fetched_now() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.describe(Progress("download", 2000 * MB, 4000 * MB), "owl")
    clock.now += 10
    assert pace.describe(Progress("download", 2100 * MB, 4000 * MB), "owl").endswith("10 MB/s, 3 min left")


def test_each_phase_has_its_own_speed() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.describe(Progress("download", 0, 100 * MB), "owl")
    clock.now += 50
    assert pace.describe(Progress("load", 10 * MB, 100 * MB), "owl") == "Loading owl: 10 % of 100 MB"


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Progress("assemble"), "Putting the files of owl together"),
        (Progress("queue", 0, 1), "owl is busy: 1 request is before this one"),
        (Progress("queue", 0, 3), "owl is busy: 3 requests are before this one"),
        (Progress("memory"), "Waiting for memory for owl: other models have to finish their requests first"),
        (Progress("polish", 1 * MB, 2 * MB), "polish: owl: 50 % of 2 MB"),
    ],
)
def test_every_kind_of_waiting_is_named(event: Progress, text: str) -> None:
    assert Pace().describe(event, "owl") == text


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


def watched(make: Callable[..., EventManager]) -> tuple[EventManager, list[tuple[str, dict[str, Any]]]]:
    """One of Langflow's event managers, and what it is told."""
    manager, told = make(asyncio.Queue()), []
    for name in list(manager.events):
        kind = name.removeprefix("on_")
        manager.register_event(name, kind, lambda *, manager, event_type, data: told.append((event_type, data)))
    return manager, told


async def run(graph: Graph, manager: EventManager) -> None:
    async for _ in graph.async_start(event_manager=manager):
        pass


def notes(told: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, str]]:
    """Which messages about waiting appeared and went, in order."""
    shown: list[tuple[str, str]] = []
    ids: set[str] = set()
    for kind, data in told:
        if kind == "message" and str(data.get("text")).startswith("*Loading"):
            ids.add(data["id"])
            shown.append(("shown", data["id"]))
            assert data["session_id"] == "a session"
            assert data["properties"]["state"] == "partial"
        elif kind == "remove_message":
            assert data["id"] in ids
            assert data["session_id"] == "a session"
            shown.append(("removed", data["id"]))
        elif kind == "token" and data["chunk"]:
            shown.append(("token", ""))
    return shown


@pytest.mark.parametrize("stream", [False, True])
async def test_the_playground_shows_a_load_until_the_answer_begins(stage: Theatre, stream: bool) -> None:
    manager, told = watched(create_default_event_manager)
    await run(chat(stream=stream), manager)
    seen = [kind for kind, _ in notes(told)]
    assert seen[:2] == ["shown", "removed"]
    assert seen.count("shown") == seen.count("removed")
    assert not stream or seen.index("token") > seen.index("removed")


async def test_a_client_that_cannot_remove_messages_is_shown_none(stage: Theatre) -> None:
    manager, told = watched(create_stream_tokens_event_manager)
    await run(chat(), manager)
    assert notes(told) == [("token", "")] * 2


async def test_a_load_that_fails_leaves_nothing_behind(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(ScriptedRuntime, "_load", broken)
    manager, told = watched(create_default_event_manager)
    with pytest.raises(Exception, match="no luck"):
        await run(chat(), manager)
    assert [kind for kind, _ in notes(told)] == ["shown", "removed"]


def test_the_note_changes_a_few_times_a_second() -> None:
    clock, told = Clock(), []
    manager = EventManager(asyncio.Queue())
    for name in ("on_message", "on_remove_message"):
        manager.register_event(name, name, lambda *, manager, event_type, data: told.append((event_type, data["id"])))
    graph = chat()
    node = Component()
    node._vertex, node._event_manager = graph.get_vertex("LocalModel-chat"), manager
    note = PlaygroundNote(node, clock)
    for _ in range(10):
        note.show("Loading")
        clock.now += 0.1
    note.clear()
    note.clear()
    kinds = [kind for kind, _ in told]
    assert kinds == ["on_message", "on_remove_message"] * 4


def test_the_log_has_each_tenth_once() -> None:
    said: list[str] = []

    class Node:
        def log(self, message: str, name: str) -> None:
            said.append(message)

    report = Reporter(Node(), "owl")  # type: ignore[arg-type]
    for done in range(0, 101, 2):
        report(Progress("load", done * MB, 100 * MB))
    assert len(said) == 11
    assert said[5] == "Loading owl: 50 % of 100 MB"


async def test_a_request_that_has_to_wait_for_others_says_so(stage: Theatre) -> None:
    stage.manager.register_model(
        ModelConfig(model_id=str(stage.models / "owl"), model_name="narrow", runtime_type="scripted", parallel=1)
    )
    begun = stage.endless()
    first = asyncio.create_task(stage.manager.generate("narrow", GenerationConfig(prompt="Hi")))
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)
    heard: list[Progress] = []
    told = threading.Event()

    def hear(event: Progress) -> None:
        heard.append(event)
        told.set()

    second = asyncio.create_task(
        stage.manager.stream("narrow", GenerationConfig(prompt="Hi"), progress=hear).wait_async()
    )
    assert await asyncio.to_thread(told.wait, PATIENCE_S)
    assert heard == [Progress("queue", 0, 1)]
    for task in (first, second):
        task.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    await asyncio.to_thread(stage.wait_until_idle, "narrow")
