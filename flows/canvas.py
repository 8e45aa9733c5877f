"""`Flow`: builds a Langflow flow and writes it in the canvas's format."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from lfx.base.prompts.api_utils import process_prompt_template
from lfx.components.models_and_agents.prompt import PromptComponent
from lfx.custom.custom_component.component import Component
from lfx.custom.utils import create_component_template

LANGFLOW = "1.13.0"
"""The version whose file format this is."""

_COLUMN, _ROW = 420, 600
_NOTE_LINE, _NOTE_GAP, _NOTE_FRAME, _NOTE_HEADING, _NOTE_LETTER = 24, 16, 72, 52, 8.4
"""Pixels of a note: a line, the space between paragraphs, the frame on both sides, what a heading takes more, a letter."""
_OURS = "lfx_local_runtimes.components.local_runtimes."


@dataclass
class Flow:
    """A flow that is being built: nodes on a grid of columns and rows, connections between them, and a note."""

    name: str
    description: str
    endpoint_name: str
    nodes: list[dict[str, Any]] = field(default_factory=list)
    edges: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        kind: type[Component],
        label: str,
        column: float,
        row: float = 0,
        *,
        title: str = "",
        as_tool: bool = False,
        **values: Any,
    ) -> str:
        """Place a node, set its fields and return its id.

        A prompt's variables become its inputs. A field that changes the outputs does so here too. `as_tool` turns tool
        mode on.
        """
        module = kind.__module__
        component = kind()
        template, _ = create_component_template(component_extractor=component, module_name=_module(module))
        for name, value in values.items():
            template["template"][name]["value"] = value
        model = template["template"].get("model_name", {})
        # The canvas shows only values that are in the list, and the list is filled later.
        if model.get("value") and model["value"] not in model["options"]:
            model["options"] = [*model["options"], model["value"]]
        if kind is PromptComponent:
            process_prompt_template(values["template"], "template", template["custom_fields"], template["template"])
        shaping = {name: value for name, value in values.items() if template["template"][name].get("real_time_refresh")}
        for name, value in {**shaping, **({"tool_mode": True} if as_tool else {})}.items():
            asyncio.run(component.run_and_validate_update_outputs(template, name, value))
        for dependency in template["metadata"]["dependencies"]["dependencies"]:
            dependency["version"] = None  # a flow must not change if only a library changed
        name = node_type = component.name or kind.__name__
        if module.startswith(_OURS):
            node_type = f"ext:local_runtimes:{kind.__name__}@official"
            template |= {
                "extension": "lfx-local-runtimes",
                "bundle": "local_runtimes",
                "namespaced_id": node_type,
                "name": name,
            }
        if title:
            template["display_name"] = title
        template["lf_version"] = LANGFLOW
        node_id = f"{name.replace(' ', '')}-{label}"
        self.nodes.append(
            {
                "id": node_id,
                "type": "genericNode",
                "position": {"x": column * _COLUMN, "y": row * _ROW},
                "data": {"id": node_id, "type": node_type, "node": template, "showNode": not template.get("minimized")},
            }
        )
        return node_id

    def connect(self, source: str, output: str, target: str, field_name: str) -> None:
        """Connect an output to a field, with the handles as the canvas writes them.

        If a node's outputs are not grouped, the canvas shows only one of them and deletes the connections of the others.
        """
        source_data, target_data = self.node(source), self.node(target)
        source_data["selected_output"] = output
        types = next(item["types"] for item in source_data["node"]["outputs"] if item["name"] == output)
        into = target_data["node"]["template"][field_name]
        source_handle = {"dataType": source_data["type"], "id": source, "name": output, "output_types": types}
        target_handle = {"fieldName": field_name, "id": target, "inputTypes": into["input_types"], "type": into["type"]}
        written = [_handle(source_handle), _handle(target_handle)]
        self.edges.append(
            {
                "id": f"reactflow__edge-{source}{written[0]}-{target}{written[1]}",
                "source": source,
                "sourceHandle": written[0],
                "target": target,
                "targetHandle": written[1],
                "data": {"sourceHandle": source_handle, "targetHandle": target_handle},
            }
        )

    def note(self, text: str, column: float, row: float = 0, *, width: int = 360) -> None:
        """Place a note, in Markdown. It is as high as its text needs."""
        height = _note_height(text, width)
        node_id = f"note-{len(self.nodes)}"
        node = {
            "description": text,
            "display_name": "",
            "documentation": "",
            "template": {"backgroundColor": "neutral"},
        }
        self.nodes.append(
            {
                "id": node_id,
                "type": "noteNode",
                "position": {"x": column * _COLUMN, "y": row * _ROW},
                "width": width,
                "height": height,
                "measured": {"width": width, "height": height},  # the canvas takes the size from here
                "data": {"id": node_id, "type": "note", "node": node},
            }
        )

    def node(self, node_id: str) -> dict[str, Any]:
        """What a node's file has of it."""
        data: dict[str, Any] = next(node["data"] for node in self.nodes if node["id"] == node_id)
        return data

    def as_json(self) -> str:
        """The file's text."""
        flow = {
            "name": self.name, "description": self.description, "endpoint_name": self.endpoint_name, "is_component": False,
            "last_tested_version": LANGFLOW, "tags": ["local models"],
            "data": {"nodes": self.nodes, "edges": self.edges, "viewport": {"x": 0, "y": 0, "zoom": 0.8}},
        }  # fmt: skip
        return json.dumps(flow, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _module(module: str) -> str:
    """The name under which Langflow imports a module."""
    return module.replace(_OURS, "_lfx_ext.official.local_runtimes.")


def _note_height(text: str, width: int) -> int:
    """About the height of a Markdown text that is shown with this width; rather too much than too little."""
    letters = (width - _NOTE_FRAME) / _NOTE_LETTER
    lines = [line for line in text.splitlines() if line]
    return _NOTE_FRAME + _NOTE_HEADING + sum(_NOTE_GAP + _NOTE_LINE * ceil(len(line) / letters) for line in lines)


def _handle(handle: Mapping[str, Any]) -> str:
    return json.dumps(handle, sort_keys=True, separators=(",", ":"), ensure_ascii=False).replace('"', "œ")
