"""The lists of models in the nodes: what they offer, what they show beside each model, and which name wins."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lfx.custom.custom_component.component import Component

from lfx_local_runtimes.components.local_runtimes.entity_tagger import EntityTaggerComponent
from lfx_local_runtimes.components.local_runtimes.gemma import GemmaComponent
from lfx_local_runtimes.components.local_runtimes.local_embeddings import LocalEmbeddingsComponent
from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.components.local_runtimes.local_rerank import LocalRerankComponent
from lfx_local_runtimes.components.local_runtimes.model_manager import ModelManagerComponent
from lfx_local_runtimes.components.local_runtimes.text_classifier import TextClassifierComponent
from lfx_local_runtimes.components.local_runtimes.zero_shot_classifier import ZeroShotClassifierComponent
from lfx_local_runtimes.nodes.models import model_choices
from lfx_local_runtimes.nodes.suggestions import SUGGESTIONS, suggested
from lfx_local_runtimes.runtimes import ModelConfig
from lfx_local_runtimes.runtimes.tasks import task_rows
from tests.routes_app import write_model
from tests.scripted_manager import Theatre, theatre
from tests.scripted_tasks import School, school

NODES = [
    EntityTaggerComponent, GemmaComponent, LocalEmbeddingsComponent, LocalModelComponent, LocalRerankComponent,
    ModelManagerComponent, TextClassifierComponent, ZeroShotClassifierComponent,
]  # fmt: skip
GB = 10**9


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    with theatre(tmp_path, monkeypatch) as stage:
        yield stage


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[School]:
    with school(tmp_path, monkeypatch) as stage:
        yield stage


def online(stage: Theatre | School) -> None:
    """Downloads are possible from now on. Nothing here starts one."""
    stage.manager.settings = stage.manager.settings.model_copy(update={"downloads": "on"})


def fields_of(node: Component) -> dict[str, Any]:
    template: dict[str, Any] = node.to_frontend_node()["data"]["node"]["template"]
    return template


def facts_in(fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(zip(fields["model_name"]["options"], fields["model_name"]["options_metadata"], strict=True))


@pytest.mark.parametrize("kind", NODES)
async def test_a_change_of_any_field_lists_the_models(tasks: School, kind: type[Component]) -> None:
    """A new node asks about several fields at once, and the last answer replaces the others."""
    node = kind()
    fields = await node.update_build_config(fields_of(node), ["a", "b"], "labels")
    again = await node.update_build_config(fields_of(node), "", "model_name")
    assert fields["model_name"]["options"] == again["model_name"]["options"]
    assert fields["model_name"]["options"]


@pytest.mark.parametrize("kind", NODES)
async def test_a_list_takes_no_free_text_and_a_field_beside_it_does(tasks: School, kind: type[Component]) -> None:
    fields = fields_of(kind())
    assert not fields["model_name"]["combobox"]
    assert not fields["model_name"]["required"]  # Langflow would ask for it although Other Model is filled in
    assert not fields["other_model"]["advanced"]


async def test_the_memory_is_measured_off_the_event_loop(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    online(stage)
    threads: list[threading.Thread] = []
    stats = stage.manager.stats
    monkeypatch.setattr(stage.manager, "stats", lambda: threads.append(threading.current_thread()) or stats())
    await model_choices()
    assert threads
    assert threading.current_thread() not in threads


async def test_an_empty_list_says_so(stage: Theatre) -> None:
    node = EntityTaggerComponent()
    fields = await node.update_build_config(fields_of(node), "", "model_name")
    assert fields["model_name"]["options"] == []
    assert fields["model_name"]["placeholder"] == "No model for this task is here"


def test_the_other_model_wins(stage: Theatre) -> None:
    assert LocalModelComponent(model_name="parrot", other_model=" owl ").build_model().model == "owl"
    assert LocalModelComponent(model_name="parrot", other_model=" ").build_model().model == "parrot"
    assert LocalModelComponent(model_name="", other_model="owl").build_model().model == "owl"


async def test_a_model_shows_its_facts(stage: Theatre) -> None:
    write_model(stage.models / "owl-it")
    stage.manager.register_model(ModelConfig(model_id="org/far", model_name="far", runtime_type="scripted"))
    await stage.manager.load_model("parrot")
    node = LocalModelComponent()
    facts = facts_in(await node.update_build_config(fields_of(node), "", "model_name"))
    assert facts["parrot"] == {"icon": "Zap", "base text": "1 MB", "loaded": "✓"}
    expected = stage.manager.model_status("owl-it").memory_estimate_mb or 0
    size = f"{expected * 2**20 / GB:.1f} GB"
    assert facts["owl-it"] == {"icon": "HardDrive", "instruct text": size, "on this machine": "✓"}
    assert facts["far"] == {"icon": "CloudDownload", "text": "", "to fetch": "✓"}
    assert list(facts).index("owl-it") < list(facts).index("owl")  # instruct models first


async def test_a_model_that_cannot_be_loaded_is_marked(stage: Theatre) -> None:
    write_model(stage.models / "torn")
    (stage.models / "torn" / "model.safetensors").write_bytes(b"torn")
    names, details = await model_choices()
    facts = dict(zip(names, details, strict=True))
    assert facts["torn"] == {"icon": "TriangleAlert", "base text": "", "cannot be loaded": "✓"}


async def test_a_copy_that_another_node_loaded_is_no_choice_of_its_own(stage: Theatre) -> None:
    await LocalModelComponent(model_name="parrot", context_length=128).build_model().ainvoke("Hi")
    assert "parrot (context 128)" in [one.model_name for one in stage.manager.list_models()]
    assert "parrot (context 128)" not in (await model_choices())[0]


async def test_without_the_network_nothing_is_suggested(stage: Theatre) -> None:
    names, _ = await model_choices()
    assert not {one.name for one in SUGGESTIONS} & set(names)


async def test_models_to_fetch_come_after_those_of_this_machine(tasks: School) -> None:
    online(tasks)
    node = ZeroShotClassifierComponent()
    facts = facts_in(await node.update_build_config(fields_of(node), "", "model_name"))
    here = [name for name, fact in facts.items() if fact["icon"] == "HardDrive"]
    assert list(facts)[: len(here)] == here
    assert here[0] == "my zero_shot"
    assert "my embedding" in here
    assert facts["cross-encoder/nli-deberta-v3-small"] == {"icon": "CloudDownload", "NLI": "0.6 GB", "to fetch": "✓"}


async def test_gated_models_are_suggested_for_gemma_only(stage: Theatre) -> None:
    online(stage)
    gated = {one.name for one in SUGGESTIONS if one.gated}
    assert not gated & set((await model_choices())[0])
    assert gated & set((await GemmaComponent().choices())[0])


async def test_the_gemma_list_is_gemmas(stage: Theatre) -> None:
    write_model(stage.models / "my-gemma")
    node = GemmaComponent()
    fields = await node.update_build_config(fields_of(node), "", "model_name")
    assert fields["model_name"]["options"] == ["gemma-3-270m", "my-gemma"]
    online(stage)
    fields = await node.update_build_config(fields, "", "model_name")
    facts = dict(zip(fields["model_name"]["options"], fields["model_name"]["options_metadata"], strict=True))
    assert facts["google/gemma-3-1b-it"] == {
        "icon": "CloudDownload", "instruct text": "2.0 GB", "to fetch": "✓", "gated": "✓",
    }  # fmt: skip
    assert all("gemma" in name.lower() for name in facts)


def test_suggestions_fit_the_machine() -> None:
    small = suggested(("llm",), 2 * GB)
    assert small
    assert all(one.memory_bytes <= 2 * GB for one in small)
    assert len(suggested(("llm",), 64 * GB)) > len(small)
    assert suggested(("llm", "embedding"), 0) == []


SEEING = [row.name for row in task_rows().values() if row.family == "seeing"]


@pytest.mark.parametrize("task", ["llm", "embedding", "rerank", "classification", "zero_shot", "ner", *SEEING])
def test_every_task_has_a_small_suggestion(task: str) -> None:
    assert any(one.size_gb < 1 and not one.gated for one in suggested((task,), 64 * GB))
