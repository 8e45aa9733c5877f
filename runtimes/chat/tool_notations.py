"""Reads tool calls in the notations of models: JSON, Gemma's notation, Python, XML. Each reader takes the complete text
of a call and returns names with arguments, or None if it is not a call. The text is not trusted and never executed."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from lfx_local_runtimes.runtimes.tasks.generation import Tool

Calls = list[tuple[str, dict[str, Any]]]
Tools = Mapping[str, Tool]

MAX_PYTHON_CHARS = 100_000
MAX_DEPTH = 64

_BARE_WORD = re.compile(r"[^,}\]:]*")


def read_json(text: str, tools: Tools) -> Calls | None:
    """`{"name": …, "arguments": {…}}`, or `parameters`, or OpenAI's `{"function": {…}}`; one or a list of them."""
    try:
        value = json.loads(text, strict=False, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    calls = [_from_object(one, tools) for one in (value if isinstance(value, list) else [value])]
    return _all_of(calls)


def _from_object(value: Any, tools: Tools) -> tuple[str, dict[str, Any]] | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name", value.get("function"))
    return as_call(name, value.get("arguments", value.get("parameters")), tools)


def as_call(name: Any, arguments: Any, tools: Tools) -> tuple[str, dict[str, Any]] | None:
    """A call of a known function, otherwise None. The arguments may be missing, or be JSON text."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, strict=False, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return None
    arguments = {} if arguments is None else arguments
    return (name, arguments) if isinstance(name, str) and name in tools and isinstance(arguments, dict) else None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _all_of(calls: list[tuple[str, dict[str, Any]] | None]) -> Calls | None:
    found = [call for call in calls if call is not None]
    return found if found and len(found) == len(calls) else None


# -- Gemma's notation ------------------------------------------------------------------------------------------------


def read_gemma(text: str, tools: Tools, quote: str) -> Calls | None:
    """`call:name{key:value,…}`. Text is between two `quote` marks; everything else is as in JSON."""
    match = re.match(r"\s*call:\s*([\w.-]+)\s*(?=\{)", text)
    if match is None:
        return None
    try:
        value, end = _gemma_value(text, match.end(), quote, 0)
    except ValueError:
        return None
    call = as_call(match[1], value, tools)
    return [call] if call is not None and not text[end:].strip() else None


def _gemma_value(text: str, at: int, quote: str, depth: int) -> tuple[Any, int]:
    """The value at a place, and where it ends."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    at = _skip_space(text, at)
    if text.startswith(quote, at):
        end = text.index(quote, at + len(quote))
        return text[at + len(quote) : end], end + len(quote)
    if text[at : at + 1] == "{":
        return _gemma_object(text, at + 1, quote, depth)
    if text[at : at + 1] == "[":
        return _gemma_list(text, at + 1, quote, depth)
    match = _BARE_WORD.match(text, at)
    word = match[0].strip() if match else ""
    if not word or match is None:
        raise ValueError("a value is missing")
    try:
        return json.loads(word, parse_constant=_no_constant), match.end()
    except ValueError:
        return word, match.end()


def _gemma_object(text: str, at: int, quote: str, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at = _skip_space(text, at)
    while text[at : at + 1] != "}":
        if text.startswith(quote, at):
            key, at = _gemma_value(text, at, quote, depth + 1)
        else:
            end = text.index(":", at)
            key, at = text[at:end].strip(), end
        at = _skip_space(text, at)
        if text[at : at + 1] != ":":
            raise ValueError("a colon is missing")
        found[key], at = _gemma_value(text, at + 1, quote, depth + 1)
        at = _next(text, at, "}")
    return found, at + 1


def _gemma_list(text: str, at: int, quote: str, depth: int) -> tuple[list[Any], int]:
    found = []
    at = _skip_space(text, at)
    while text[at : at + 1] != "]":
        value, at = _gemma_value(text, at, quote, depth + 1)
        found.append(value)
        at = _next(text, at, "]")
    return found, at + 1


def _next(text: str, at: int, closing: str) -> int:
    """After a member: the place of the next one, or of the closing bracket."""
    at = _skip_space(text, at)
    if text[at : at + 1] == ",":
        return _skip_space(text, at + 1)
    if text[at : at + 1] != closing:
        raise ValueError(f"{closing} is missing")
    return at


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def write_gemma(value: Any, quote: str) -> str:
    """A value in Gemma's notation."""
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{write_gemma(one, quote)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(write_gemma(one, quote) for one in value) + "]"
    return json.dumps(value)


# -- Python and XML --------------------------------------------------------------------------------------------------


def read_python(text: str, tools: Tools) -> Calls | None:
    """`f(a=1)`, also in `print(…)`, or a list of such calls. Arguments must be literals."""
    if len(text) > MAX_PYTHON_CHARS:
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        return _all_of([_from_node(node, tools) for node in nodes])
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _from_node(node: ast.expr, tools: Tools) -> tuple[str, dict[str, Any]] | None:
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    if name == "print" and name not in tools and len(node.args) == 1 and not node.keywords:
        return _from_node(node.args[0], tools)
    if name not in tools:
        return None
    keys = list(tools[name].parameters.get("properties", ()))
    arguments = dict(zip(keys, map(ast.literal_eval, node.args), strict=False)) if len(node.args) <= len(keys) else None
    if arguments is None or any(keyword.arg is None for keyword in node.keywords):
        return None
    arguments |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    json.dumps(arguments, allow_nan=False)  # raises if there is a set or bytes, which are not allowed
    return name, arguments


def read_xml(text: str, tools: Tools) -> Calls | None:
    """`<function=name><parameter=key>value</parameter>…</function>`; a value is text if the schema says so."""
    head, found, rest = text.strip().partition(">")
    name = head.removeprefix("<function=").strip()
    if not found or not head.startswith("<function=") or name not in tools:
        return None
    properties = tools[name].parameters.get("properties")
    arguments: dict[str, Any] = {}
    before, *parts = rest.partition("</function>")[0].split("<parameter=")
    if before.strip():
        return None
    for part in parts:
        key, found, value = part.partition(">")
        if not found:
            return None
        value = value.partition("</parameter>")[0].removeprefix("\n").removesuffix("\n")
        schema = properties.get(key.strip()) if isinstance(properties, dict) else None
        arguments[key.strip()] = _typed(value, schema)
    return [(name, arguments)]


def _typed(value: str, schema: Any) -> Any:
    if isinstance(schema, dict) and schema.get("type") == "string":
        return value
    try:
        return json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return value
