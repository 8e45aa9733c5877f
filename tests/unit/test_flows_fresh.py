"""The example flows are what their script writes today, and whole: every wire fits both ends."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.flows.build import FLOWS, FOLDER
from lfx_local_runtimes.flows.canvas import LANGFLOW

REGENERATE = "run: python -m lfx_local_runtimes.flows.build"


def stored(name: str) -> dict[str, Any]:
    flow: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return flow


def without_langflows_own_nodes(flow: dict[str, Any]) -> dict[str, Any]:
    """Another version of Langflow brings other source for its nodes; ours must still be fresh."""
    for node in flow["data"]["nodes"]:
        if not node["data"].get("type", "").startswith("ext:"):
            node["data"].pop("node")
    return flow


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_is_fresh(name: str) -> None:
    built = json.loads(FLOWS[name]().as_json())
    if version("lfx") == LANGFLOW:
        assert stored(name) == built, REGENERATE
    else:
        assert without_langflows_own_nodes(stored(name)) == without_langflows_own_nodes(built), REGENERATE


def test_no_flow_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(FLOWS)


@pytest.mark.parametrize("name", FLOWS)
def test_our_nodes_carry_the_installed_source(name: str) -> None:
    ours = [node["data"] for node in stored(name)["data"]["nodes"] if node["data"].get("type", "").startswith("ext:")]
    assert ours
    for data in ours:
        module = data["node"]["metadata"]["module"].rpartition(".")[2]
        source = (FOLDER.parent / "components" / "local_runtimes" / f"{module}.py").read_text(encoding="utf-8")
        assert data["node"]["template"]["code"]["value"] == source, REGENERATE


@pytest.mark.parametrize("name", FLOWS)
def test_every_wire_fits(name: str) -> None:
    flow = stored(name)["data"]
    nodes = {node["id"]: node["data"] for node in flow["nodes"]}
    for edge in flow["edges"]:
        source, target = nodes[edge["source"]], nodes[edge["target"]]
        handles = edge["data"]
        outputs = {output["name"]: output["types"] for output in source["node"]["outputs"]}
        assert handles["sourceHandle"]["output_types"] == outputs[handles["sourceHandle"]["name"]]
        into = target["node"]["template"][handles["targetHandle"]["fieldName"]]
        assert set(into["input_types"]) & set(handles["sourceHandle"]["output_types"])
        for end in ("sourceHandle", "targetHandle"):
            assert json.loads(edge[end].replace("œ", '"')) == handles[end]


@pytest.mark.parametrize("name", FLOWS)
def test_every_wire_begins_at_an_output_that_is_shown(name: str) -> None:
    """Langflow's canvas deletes the others when the flow is opened."""
    flow = stored(name)["data"]
    nodes = {node["id"]: node["data"] for node in flow["nodes"]}
    for edge in flow["edges"]:
        source, output = nodes[edge["source"]], edge["data"]["sourceHandle"]["name"]
        grouped = all(one.get("group_outputs") for one in source["node"]["outputs"])
        assert grouped or source["selected_output"] == output


@pytest.mark.parametrize("name", FLOWS)
def test_a_chosen_model_is_in_its_list(name: str) -> None:
    """The canvas shows "Select an option" for others."""
    for node in stored(name)["data"]["nodes"]:
        field = node["data"]["node"]["template"].get("model_name", {})
        assert not field.get("value") or field["value"] in field["options"], node["id"]


@pytest.mark.parametrize("name", FLOWS)
def test_a_chat_input_proposes_what_the_note_proposes(name: str) -> None:
    nodes = stored(name)["data"]["nodes"]
    (note,) = [node["data"]["node"]["description"] for node in nodes if node["type"] == "noteNode"]
    inputs = [node["data"]["node"]["template"] for node in nodes if node["data"]["type"] == "ChatInput"]
    assert all(template["input_value"]["value"] and template["input_value"]["value"] in note for template in inputs)
    assert len(inputs) == (name != "model_status")


@pytest.mark.parametrize("name", FLOWS)
def test_a_note_has_the_size_that_the_canvas_reads(name: str) -> None:
    """Without it the canvas shows the smallest note there can be. `tests/browser` looks whether the text fits."""
    for node in stored(name)["data"]["nodes"]:
        if node["type"] == "noteNode":
            assert node["measured"] == {"width": node["width"], "height": node["height"]}
            assert len(node["data"]["node"]["description"]) <= 2500, "the canvas cuts off the rest"


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_names_no_place_on_this_machine(name: str) -> None:
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert str(FOLDER) not in text
