"""A call that the caller demands: the grammar that makes any model write one, with arguments its schema allows."""

import json
from typing import Any

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, Grammar, Tool
from lfx_local_runtimes.runtimes.text.tool_parsers import forced_opening

_OPEN_ENDED = frozenset(
    {
        "additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames", "allOf", "anyOf",
        "oneOf", "not", "if", "$ref", "$dynamicRef", "dependentSchemas",
    }
)  # fmt: skip
"""Keywords beside which an object's properties are not all that it may have."""


def offered_tools(config: GenerationConfig) -> tuple[Tool, ...]:
    """The tools the model is told of: none where it may not call one, the one where it has to call that one."""
    named = tuple(tool for tool in config.tools if tool.name == config.tool_choice)
    return named or (() if config.tool_choice == "none" else config.tools)


def is_forced(config: GenerationConfig) -> bool:
    """The answer has to be a call."""
    return bool(config.tools) and config.tool_choice not in ("none", "auto")


def forced_grammar(config: GenerationConfig) -> Grammar | None:
    """The grammar of a forced choice; None where the choice is free.

    The answer is one call in plain JSON, whatever the model's family writes by itself: `{"name": "f", "arguments":
    {…}}`, spaced just so up to the arguments. Objects get no properties beyond those their schema names, unless it says otherwise.

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
    """The schema of a tool's arguments: an object, closed."""
    return {**close_objects(tool.parameters), "type": "object"}


def close_objects(schema: Any) -> Any:
    """A schema whose objects have no properties but those it names, where it does not speak of others itself."""
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
