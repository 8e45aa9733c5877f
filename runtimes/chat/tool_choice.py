"""What holds an answer to a form: a caller's grammar, or one that makes any model write a tool call as its schema allows."""

import json
import re
from typing import Any

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.chat.tool_parsers import forced_opening
from lfx_local_runtimes.runtimes.tasks.generation import (
    MAX_GRAMMAR_CHARS,
    MAX_SCHEMA_CHARS,
    GenerationConfig,
    Grammar,
    Tool,
)

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


def answer_grammar(config: GenerationConfig) -> Grammar | None:
    """What the answer must look like; None if it may be any text.

    A forced choice is a call, whatever form a text would have. Beside a form the model may choose: the answer is a text in
    that form, or a call.

    The answer is one call in plain JSON, even if the model's family writes calls differently: `{"name": "f",
    "arguments": {…}}`, with exactly these spaces up to the arguments. Objects get only the properties that their schema
    names, unless the schema allows others.

    Raises:
        InvalidInput: a schema is nested too deeply, or too large.
    """
    tools = offered_tools(config)
    if not is_forced(config) and (config.grammar is None or not tools):
        return config.grammar
    calls: list[str] = []
    rules: list[str] = []
    schema: Any
    if config.grammar is not None and not is_forced(config):
        schema = {"type": "object"} if config.grammar.kind == "json_object" else config.grammar.json_schema
        calls.append("text")
        rules.append(f"text: %json {_written({} if schema is True else schema, 'The JSON schema')}")
    for index, tool in enumerate(tools):
        calls.append(f"call_{index}")
        subject = f"The parameters of the tool {tool.name}"
        try:
            schema = arguments_schema(tool)
        except RecursionError:
            raise InvalidInput(f"{subject} are nested too deeply.") from None
        rules.append(f'call_{index}: {_lexemes(forced_opening(tool.name))} arguments_{index} "}}"')
        rules.append(f"arguments_{index}: %json {_written(schema, subject)}")
    text = "\n".join([f"start: {' | '.join(calls)}", *rules])
    if len(text) > MAX_GRAMMAR_CHARS:
        raise InvalidInput(
            f"The tools have {len(text):,} characters; {MAX_GRAMMAR_CHARS:,} are allowed.", hint="Offer fewer."
        )
    return Grammar(kind="lark", text=text)


def _lexemes(opening: str) -> str:
    """The beginning of a call in the pieces in which llguidance reads JSON: its lexer does not go back over a longer one."""
    return " ".join(json.dumps(piece) for piece in re.findall(r'"[^"]*"|[^"]+', opening))


def _written(schema: Any, subject: str) -> str:
    """The schema as JSON.

    Raises:
        InvalidInput: it is nested too deeply, or too large.
    """
    try:
        text = json.dumps(schema)
    except RecursionError:
        raise InvalidInput(f"{subject}: nested too deeply.") from None
    if len(text) > MAX_SCHEMA_CHARS:
        raise InvalidInput(f"{subject}: {len(text):,} characters of JSON; {MAX_SCHEMA_CHARS:,} are allowed.")
    return text


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
