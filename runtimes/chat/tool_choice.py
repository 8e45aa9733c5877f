"""Forced tool calls: a grammar makes any model write a call, with arguments that the tool's schema allows."""

import json
from typing import Any

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.chat.tool_parsers import forced_opening
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, Grammar, Tool

_OPEN_ENDED = frozenset(
    {
        "additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames", "allOf", "anyOf",
        "oneOf", "not", "if", "$ref", "$dynamicRef", "dependentSchemas",
    }
)  # fmt: skip
"""If a schema has one of these, its objects may have more properties than `properties` names."""


def offered_tools(config: GenerationConfig) -> tuple[Tool, ...]:
    """The tools that the model is shown: none if it may not call any, only the named one if it has to call that one."""
    named = tuple(tool for tool in config.tools if tool.name == config.tool_choice)
    return named or (() if config.tool_choice == "none" else config.tools)


def is_forced(config: GenerationConfig) -> bool:
    """Whether the answer has to be a call."""
    return bool(config.tools) and config.tool_choice not in ("none", "auto")


def forced_grammar(config: GenerationConfig) -> Grammar | None:
    """The grammar of a forced choice; None if the model may choose.

    The answer is one call in plain JSON, even if the model's family writes calls differently: `{"name": "f",
    "arguments": {…}}`, with exactly these spaces up to the arguments. Objects get only the properties that their schema
    names, unless the schema allows others.

    Raises:
        InvalidInput: a schema is nested too deeply.
    """
    if not is_forced(config):
        return None
    calls, rules = [], []
    for index, tool in enumerate(offered_tools(config)):
        calls.append(f"call_{index}")
        try:
            schema = json.dumps(arguments_schema(tool))
        except RecursionError:
            raise InvalidInput(f"The parameters of the tool {tool.name} are nested too deeply.") from None
        rules.append(f'call_{index}: {json.dumps(forced_opening(tool.name))} arguments_{index} "}}"')
        rules.append(f"arguments_{index}: %json {schema}")
    return Grammar(kind="lark", text="\n".join([f"start: {' | '.join(calls)}", *rules]))


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments: an object without other properties."""
    return {**close_objects(tool.parameters), "type": "object"}


def close_objects(schema: Any) -> Any:
    """The schema with its objects limited to the properties it names, unless it says something about others."""
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(closed.get(key), dict):
            closed[key] = {name: close_objects(one) for name, one in closed[key].items()}
    if "items" in closed:
        closed["items"] = close_objects(closed["items"])
    for key in ("anyOf", "oneOf", "prefixItems"):
        if isinstance(closed.get(key), list) and "properties" not in closed:
            closed[key] = [close_objects(one) for one in closed[key]]
    if "properties" in closed and not closed.keys() & _OPEN_ENDED:
        closed["additionalProperties"] = False
    return closed
