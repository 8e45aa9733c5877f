"""Converts OpenAI's messages and tools to those of the engine room."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema, model_validator

from lfx_local_runtimes.routes.faults import InvalidField, Unsupported, validation_fault
from lfx_local_runtimes.runtimes.tasks.generation import CallName, ChatMessage, Grammar, Tool, ToolName
from lfx_local_runtimes.runtimes.tasks.media import media_of_url, url_schema

_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image_url", "input_image")


def _part_schema(field: str, content: dict[str, Any], *kinds: str) -> dict[str, Any]:
    properties = {"type": {"enum": [*kinds]}, field: content}
    return {"type": "object", "properties": properties, "required": ["type", field]}


_STRING = {"type": "string"}
_URL = url_schema("image/[a-z]+")
_IMAGE_URL = {"anyOf": [_URL, {"type": "object", "properties": {"url": _URL}, "required": ["url"]}]}
_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "anyOf": [
                    _part_schema("text", _STRING, *_TEXT_PARTS),
                    _part_schema("refusal", _STRING, "refusal"),
                    _part_schema("image_url", _IMAGE_URL, *_IMAGE_PARTS),
                ]
            },
        },
        {"type": "null"},
    ]
}


class Lenient(BaseModel):
    """What a client sends. Unknown fields are ignored, as in OpenAI's API."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


def _read_content(value: object) -> object:
    """Content as one text: its parts, joined by line breaks. If there are pictures, the parts of a `ChatMessage`."""
    if value is None or isinstance(value, str):
        return None if value is None else _sound(value)
    if not isinstance(value, list):
        raise ValueError("must be a text or a list of parts")
    parts = [_part(part, place) for place, part in enumerate(value)]
    if any(part["type"] == "image" for part in parts):
        return parts
    return "\n".join(part["text"] for part in parts)


def _sound(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("has half of a character (a lone surrogate)") from error
    return text


def _part(part: object, place: int) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in (*_TEXT_PARTS, "refusal", *_IMAGE_PARTS):
        raise ValueError(f"part {place} is {str(kind)[:40]}, which is not supported; text and image_url are")
    if kind in _IMAGE_PARTS:
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if not isinstance(url, str):
            raise ValueError(f"part {place} has no image_url; files that are stored elsewhere are not supported")
        try:
            return {"type": "image", "image": media_of_url(url)}
        except ValueError as error:
            raise ValueError(f"part {place}: {error}") from error
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise ValueError(f"part {place} has no text")
    return {"type": "text", "text": _sound(text)}


Content = Annotated[str | list[dict[str, Any]] | None, PlainValidator(_read_content), WithJsonSchema(_CONTENT_SCHEMA)]
"""Text, or a list of parts: text and pictures."""


class CalledFunction(Lenient):
    """The function of a call."""

    name: CallName = Field(description="The function's name.")
    arguments: str = Field(description="JSON text.")


class MessageToolCall(Lenient):
    """A call that the assistant made."""

    id: CallName = Field(description="The call's id.")
    type: Literal["function"] = Field(default="function", description="Only functions are supported.")
    function: CalledFunction = Field(description="The function that was called.")


_SAID = {"type": ["string", "array"]}
_MESSAGE: dict[str, Any] = {
    "anyOf": [
        {"properties": {"role": {"const": "assistant"}}},
        {"required": ["content"], "properties": {"role": {"enum": ["system", "developer", "user"]}, "content": _SAID}},
        {
            "required": ["content", "tool_call_id"],
            "properties": {"role": {"const": "tool"}, "tool_call_id": {"type": "string"}, "content": _SAID},
        },
    ]
}
"""What a message needs, by its role."""


class Message(Lenient):
    """One message of a chat. `reasoning_content` is accepted and not shown to the model."""

    model_config = ConfigDict(json_schema_extra=_MESSAGE)

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Who says it. developer means system. tool: the result of a call."
    )
    content: Content = Field(default=None, description="A text, or parts: text and pictures.")
    name: str | None = Field(default=None, description="For a tool message: the name of its function.")
    tool_calls: list[MessageToolCall] | None = Field(
        default=None, description="For an assistant message: the calls that the model made."
    )
    tool_call_id: str | None = Field(
        default=None, description="For a tool message: the id of the call that it answers."
    )

    @model_validator(mode="after")
    def _complete(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("tool_call_id is missing")
        return self

    def turn(self) -> dict[str, Any]:
        """The fields of a `ChatMessage`."""
        calls = [
            {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
            for call in self.tool_calls or ()
        ]
        return {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content or "",
            "tool_calls": calls if self.role == "assistant" else (),
            "tool_call_id": self.tool_call_id if self.role == "tool" else None,
            "name": self.name if self.role == "tool" else None,
        }


class Function(Lenient):
    """A function that the model may call. `strict` is accepted: a forced call always follows the schema."""

    name: ToolName = Field(description="The function's name.")
    description: str | None = Field(default=None, description="What it does. The model reads this.")
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema of an object.")

    def tool(self) -> dict[str, Any]:
        """The fields of a `Tool`, without those that are not set."""
        return self.model_dump(include=set(Tool.model_fields), exclude_none=True)


class FunctionTool(Lenient):
    """A function in the form of chat/completions."""

    type: Literal["function"] = Field(description="Only functions are supported.")
    function: Function = Field(description="The function.")


def read_choice(value: object, tools: Sequence[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """`tool_choice` of either API: none, auto, required or a function's name; and the tools that the model may choose from.

    Raises:
        InvalidField: it is none of those.
    """
    if value is None:
        return "auto", list(tools)
    if isinstance(value, str) and value in ("none", "auto", "required"):
        return value, list(tools)
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(value, dict) and kind == "function":
        name = _name(value)
        if name is not None:
            return name, list(tools)
    if isinstance(value, dict) and kind == "allowed_tools":
        allowed = value.get("allowed_tools", value)
        allowed = allowed if isinstance(allowed, dict) else {}
        rows = allowed.get("tools")
        names = {_name(one) for one in rows if isinstance(one, dict)} if isinstance(rows, list) else set()
        left = [tool for tool in tools if tool["name"] in names]
        if allowed.get("mode") in ("auto", "required") and left:
            return str(allowed["mode"]), left
    raise InvalidField(
        "tool_choice: must be none, auto, required, or an object that names a function of the tools.",
        param="tool_choice", hint="For example {'type': 'function', 'function': {'name': …}}.",
    )  # fmt: skip


def _name(value: dict[str, Any]) -> str | None:
    """The name of a function. chat/completions puts it one level deeper than responses."""
    inner = value.get("function", value)
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


class SchemaFormat(Lenient):
    """A schema with its name."""

    name: str | None = Field(default=None, description="Accepted, not used.")
    json_schema: dict[str, Any] | None = Field(
        default=None, alias="schema", description="A JSON schema that the answer must follow."
    )


class ResponseFormat(Lenient):
    """The format of the answer."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="The kind of format.")
    json_schema: SchemaFormat | None = Field(default=None, description="The schema, for the type json_schema.")
    own: dict[str, Any] | None = Field(default=None, alias="schema", description="llama.cpp's place for the schema.")

    def grammar(self) -> dict[str, Any] | None:
        """The fields of a `Grammar`."""
        schema = self.json_schema if self.own is None else SchemaFormat(schema=self.own)
        return format_grammar(self.type, schema, "response_format.json_schema")


def format_grammar(kind: str, schema: SchemaFormat | None, param: str) -> dict[str, Any] | None:
    """The fields of a `Grammar` for a response format; None for text. A schema is kept beside json_object too.

    Raises:
        InvalidField: the schema is missing.
    """
    if kind == "text":
        return None
    if schema is not None and schema.json_schema is not None:
        return {"kind": "json_schema", "json_schema": schema.json_schema}
    if kind == "json_schema":
        raise InvalidField(f"{param}.schema: is missing.", param=f"{param}.schema", hint="Give a JSON schema.")
    return {"kind": "json_object"}


Refusals = dict[str, tuple[tuple[object, ...], str]]
"""For each field: the values that change nothing, and what to do instead of other values."""


def refuse(data: object, table: Refusals) -> object:
    """Return the body, unless it uses a known field that is not supported.

    Raises:
        Unsupported: names the field.
    """
    for name, (harmless, hint) in table.items() if isinstance(data, dict) else ():
        value = data.get(name) if isinstance(data, dict) else None
        if value is not None and value not in harmless:
            raise Unsupported(name, hint)
    return data


def turns(items: Iterable[dict[str, Any]], field: str) -> tuple[ChatMessage, ...]:
    """The `ChatMessage`s.

    Raises:
        InvalidField: names the message and its field.
    """
    return tuple(_made(ChatMessage, item, f"{field}.{place}") for place, item in enumerate(items))


def tools_of(items: Iterable[dict[str, Any]]) -> tuple[Tool, ...]:
    """The `Tool`s; raises `InvalidField` as `turns` does."""
    return tuple(_made(Tool, item, f"tools.{place}") for place, item in enumerate(items))


def grammar_of(fields: dict[str, Any] | None, param: str) -> Grammar | None:
    """The `Grammar`; raises `InvalidField` as `turns` does."""
    return None if fields is None else _made(Grammar, fields, param)


def _made(kind: Any, fields: dict[str, Any], place: str) -> Any:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problems = [{**problem, "loc": (place, *problem["loc"])} for problem in error.errors(include_url=False)]
        raise validation_fault(problems) from error
