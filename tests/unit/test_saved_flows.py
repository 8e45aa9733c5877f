"""Flows that earlier versions saved still run: their nodes' source is in the file, and imports names of this package."""

import ast
import contextlib
import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from lfx.custom.validate import create_class, extract_class_name
from lfx.graph.graph.base import Graph

from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, ScriptedRuntime, register_engine
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.testing import Step
from tests.routes_app import write_model
from tests.scripted_tasks import School, TaskPlayer

REPOSITORY = Path(__file__).parents[2]
SAVED = sorted((REPOSITORY / "tests" / "saved_flows").rglob("*.json"))

INPUTS = {
    "ENCODER_ENGINES", "ENGINES", "GEMMA_PRESETS", "after_input", "chat_inputs", "choice_input", "history_input",
    "loading_inputs", "model_input", "other_model_input", "overflow_input", "parallel_input", "preset_input",
    "sampling_inputs", "score_input", "text_input", "tool_inputs",
}  # fmt: skip
MANAGING = {
    "ACTIONS", "list_models_in", "manage_model", "memory_rows", "model_choices", "model_rows", "show_fields_of",
}  # fmt: skip
WRITING = {"GemmaBaseComponent", "LocalModelBaseComponent"}
READING = {
    "EntityTaggerBaseComponent", "LocalEmbeddingsBaseComponent", "LocalRerankBaseComponent",
    "TextClassifierBaseComponent", "ZeroShotBaseComponent", "label_outputs",
}  # fmt: skip
DESCRIBING = {"ImageDescriberBaseComponent"}
DOCUMENTS = {"DocumentReaderBaseComponent", "document_files_input"}
SEEING = {
    "DepthBaseComponent", "ImageClassifierBaseComponent", "ObjectDetectorBaseComponent", "SEEING_ENGINES",
    "SegmenterBaseComponent", "ZeroShotImageBaseComponent", "picture_inputs",
}  # fmt: skip
SURFACE = {
    "lfx_local_runtimes.nodes": INPUTS | MANAGING | WRITING | READING | SEEING | DESCRIBING | DOCUMENTS,
    "lfx_local_runtimes.node_inputs": INPUTS - {"history_input", "other_model_input"}
    | {"given", "told_of", "labels_of", "loading_options", "sampling_options", "schema_of", "stop_texts"},
    "lfx_local_runtimes.task_nodes": READING,
}
"""What the source of a node may import, by module. Frozen: a name may be added here, and none may be taken away."""

PROGRAMS = {
    "lfx_local_runtimes.langchain": {"ChatLocalRuntime", "LocalRuntimeEmbeddings", "LocalRuntimeReranker"},
    "lfx_local_runtimes.chat": {"ChatLocalRuntime"},
    "lfx_local_runtimes.embeddings": {"LocalRuntimeEmbeddings", "LocalRuntimeReranker"},
    "lfx_local_runtimes.provider": {"live_models"},
}
"""What programs import, likewise."""


def our_imports(source: str) -> set[tuple[str, str]]:
    """Module and name of everything that a source imports from this package."""
    return {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lfx_local_runtimes")
        for alias in node.names
    }


def saved(path: Path) -> dict[str, Any]:
    flow: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return flow


def our_nodes(flow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes that contain source of ours, by id."""
    nodes = {node["id"]: node["data"]["node"] for node in flow["data"]["nodes"] if node["type"] != "noteNode"}
    return {
        name: node
        for name, node in nodes.items()
        if "lfx_local_runtimes" in str(node["template"].get("code", {}).get("value"))
    }


@pytest.mark.parametrize(("module", "name"), sorted((m, n) for m, names in (SURFACE | PROGRAMS).items() for n in names))
def test_a_name_of_the_surface_is_there(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is not None


def test_the_surface_has_no_other_names() -> None:
    """A new name belongs into the list above."""
    module = importlib.import_module("lfx_local_runtimes.nodes")
    assert set(module.__all__) == SURFACE[module.__name__]


def test_no_other_name_is_imported_by_mistake() -> None:
    for name in (*SURFACE, *PROGRAMS):
        with pytest.raises(AttributeError):
            _ = importlib.import_module(name).no_such_name


@pytest.mark.parametrize("path", sorted((REPOSITORY / "components").rglob("*.py")), ids=lambda path: path.stem)
def test_nodes_import_the_surface_only(path: Path) -> None:
    for module, name in our_imports(path.read_text(encoding="utf-8")):
        assert module == "lfx_local_runtimes.nodes"
        assert name in SURFACE[module]


@pytest.mark.parametrize("path", SAVED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_saved_source_makes_its_node(path: Path) -> None:
    nodes = our_nodes(saved(path))
    assert nodes
    for node in nodes.values():
        source = node["template"]["code"]["value"]
        assert all(name in SURFACE[module] for module, name in our_imports(source))
        made = create_class(source, extract_class_name(source))()
        assert {field.name for field in made.inputs} <= set(node["template"])
        for output in node["outputs"]:
            assert callable(getattr(made, output["method"])), output["name"]


# -- runs ----------------------------------------------------------------------------------------------------------------


TASK_OF = {
    "Gemma": "llm", "LocalModel": "llm", "LocalEmbeddings": "embedding", "LocalRerank": "rerank",
    "TextClassifier": "classification", "ZeroShotClassifier": "zero_shot", "EntityTagger": "ner",
}  # fmt: skip


class Company(School):
    """A manager with a scripted model for every name that a flow uses."""

    def __init__(self, folder: Path, flow: dict[str, Any]) -> None:
        super().__init__(folder)
        self.answers = 0
        register_engine("scripted", self._make)
        for node_id, node in our_nodes(flow).items():
            if (task := TASK_OF.get(node_id.partition("-")[0])) is not None:
                name = node["template"]["model_name"]["value"]
                write_model(folder / "models" / name)
                self.manager.register_model(
                    ModelConfig(
                        model_id=str(folder / "models" / name),
                        model_name=name,
                        model_type=task,
                        runtime_type="scripted",
                    )
                )

    def _make(self, config: ModelConfig, plan: LoadPlan | None) -> ScriptedRuntime:
        return (
            ScriptedRuntime(config, plan, script=self._say)
            if config.model_type == "llm"
            else TaskPlayer(self, config, plan)
        )

    def _say(self, config: GenerationConfig) -> Iterable[Step]:
        self.answers += 1
        yield "Hello"


@pytest.mark.parametrize("path", SAVED, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def test_a_saved_flow_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = saved(path)
    company = Company(tmp_path, flow)
    monkeypatch.setattr("lfx_local_runtimes.runtimes.manager._shared", company.manager)
    graph = Graph.from_payload(flow["data"])
    graph.session_id = "a session"
    with contextlib.closing(company.manager):
        await graph.arun([{"input_value": "delivery"}], types=["chat"], outputs=[], fallback_to_env_vars=False)
    ran = {vertex.id for vertex in graph.vertices if vertex.result is not None}
    writers = {node_id for node_id in our_nodes(flow) if node_id.startswith("LocalModel")}
    if path.stem == "triage":
        assert writers & ran == {"LocalModel-delivery"}, "the branch of the topic"
    else:
        assert {vertex.id for vertex in graph.vertices} == ran
    assert company.answers == len(writers & ran)
