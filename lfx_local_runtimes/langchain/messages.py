"""Converts messages, tools and answers between LangChain and the engine room."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages import ChatMessage as LangChainChatMessage
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.output_parsers.openai_tools import parse_tool_call
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.tasks.generation import (
    ChatMessage,
    GenerationResult,
    Grammar,
    ImagePart,
    TextDelta,
    TextPart,
    TokenLogprob,
    Tool,
    ToolCall,
    as_content,
)
from lfx_local_runtimes.runtimes.tasks.media import Media, Source, media_of_url

_SKIPPED_PARTS = frozenset({"tool_use", "tool_call", "reasoning", "thinking", "redacted_thinking"})
"""Parts of a message that are not text: calls are also in `tool_calls`, and thoughts are not sent to the model."""


# -- requests ------------------------------------------------------------------------------------------------------------


def to_chat_message(message: BaseMessage) -> ChatMessage:
    """A LangChain message as the engine room's, with its tool calls, or with the id of the call it answers.

    Raises:
        InvalidInput: the role is unknown, or the content is neither text nor pictures.
    """
    role, content = _role_of(message), _content_of(message)
    fields: dict[str, Any] = {}
    if isinstance(message, AIMessage):
        fields = {"tool_calls": tuple(_calls_of(message))}
    elif isinstance(message, ToolMessage):
        fields = {"tool_call_id": message.tool_call_id, "name": message.name}
    try:
        return ChatMessage(role=role, content=content, **fields)
    except ValidationError as error:
        raise InvalidInput(first_problem(error)) from error


def _calls_of(message: AIMessage) -> Iterable[ToolCall]:
    """The calls of an earlier turn. A call with broken arguments keeps them as text."""
    for index, call in enumerate(message.tool_calls):
        arguments = json.dumps(call["args"], ensure_ascii=False)
        yield ToolCall(id=call["id"] or f"call_{index}", name=call["name"], arguments=arguments)
    for index, broken in enumerate(message.invalid_tool_calls, len(message.tool_calls)):
        if broken["name"]:
            yield ToolCall(id=broken["id"] or f"call_{index}", name=broken["name"], arguments=broken["args"] or "")


def _role_of(message: BaseMessage) -> Literal["system", "user", "assistant", "tool"]:
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, ToolMessage):
        return "tool"
    if isinstance(message, LangChainChatMessage):
        for ours, theirs in (("user", "human"), ("assistant", "ai"), ("system", "developer"), ("tool", "function")):
            if message.role in (ours, theirs):
                return ours  # type: ignore[return-value]
        raise InvalidInput(f"role {message.role!r} is unknown.", hint="Use user, assistant, system or tool.")
    raise InvalidInput(f"{type(message).__name__} cannot be sent to a local model.")


def _content_of(message: BaseMessage) -> str | tuple[TextPart | ImagePart, ...]:
    """A text, or text and pictures in their places. LangChain brings the forms of all providers into one."""
    if isinstance(message.content, str):
        return message.content
    parts: list[TextPart | ImagePart] = []
    for block in _blocks_of(message):
        kind = block.get("type")
        if kind == "text":
            parts.append(TextPart(type="text", text=str(block.get("text", ""))))
        elif kind == "image":
            parts.append(ImagePart(type="image", image=_image_of(block)))
        elif kind not in _SKIPPED_PARTS:
            raise InvalidInput(
                f"A message holds {kind or 'content without a type'}: local models read text and pictures.",
                hint="Remove the attachment, or describe it in words.",
            )
    return as_content(parts)


def _blocks_of(message: BaseMessage) -> list[dict[str, Any]]:
    """The parts of a message. Pictures have LangChain's own form: `url`, or `base64` with `mime_type`."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in message.content]
    if all(part.get("type") in (*_SKIPPED_PARTS, "text") for part in parts):
        return parts
    blocks: list[dict[str, Any]] = []
    for part in parts:
        if part.get("type") in ("image_url", "input_image") and isinstance(part.get("image_url"), str):
            part = {"type": "image_url", "image_url": {"url": part["image_url"]}}  # noqa: PLW2901 - LangChain does not know it
        (block,) = HumanMessage(content=[part]).content_blocks
        blocks.append(part if block["type"] == "non_standard" else dict(block))
    return blocks


def _image_of(block: Mapping[str, Any]) -> Media | Source:
    try:
        if isinstance(url := block.get("url"), str):
            return media_of_url(url)
        if isinstance(data := block.get("base64"), str):
            return media_of_url(f"data:{block.get('mime_type') or 'image/png'};base64,{data}")
    except ValueError as error:
        raise InvalidInput(f"A picture in a message cannot be read: {error}.") from error
    raise InvalidInput(
        "A message names a picture that is stored elsewhere.", hint="Send the picture itself, as base64 or a data URL."
    )


def to_tools(tools: Iterable[Any]) -> tuple[Tool, ...]:
    """Tools in any form LangChain knows (functions, pydantic models, `BaseTool`, dictionaries) as the engine room's.

    Raises:
        InvalidInput: a tool is not a function, or its name is not allowed.
    """
    return tuple(_to_tool(tool) for tool in tools)


def _to_tool(tool: Any) -> Tool:
    described = convert_to_openai_tool(tool)
    function = described.get("function")
    if not isinstance(function, dict):
        raise InvalidInput(
            f"The tool {described.get('type', described)} is not a function: a local model cannot use it."
        )
    fields = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
    try:
        return Tool.model_validate(fields)
    except ValidationError as error:
        raise InvalidInput(f"The tool {function.get('name')!r}: {first_problem(error)}") from error


def to_tool_choice(choice: str | bool | Mapping[str, Any] | None, tools: Sequence[Tool]) -> str:
    """LangChain's or OpenAI's tool choice as ours: none, auto, required, or a function's name.

    Raises:
        InvalidInput: it is not one of these.
    """
    if isinstance(choice, Mapping):
        function = choice.get("function", choice)
        choice = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(choice, str):
            raise InvalidInput("tool_choice names no function.", hint="Give its name, auto, required or none.")
    if choice is None or choice is False or choice == "auto":
        return "auto"
    if choice is True or choice in ("any", "required"):
        return "required"
    if choice != "none" and choice not in {tool.name for tool in tools}:
        known = ", ".join(tool.name for tool in tools) or "no tool"
        raise InvalidInput(f"tool_choice {choice!r} is not one of the tools: {known}.")
    return choice


def to_grammar(response_format: Mapping[str, Any] | None) -> Grammar | None:
    """OpenAI's `response_format` as a grammar; None if any text is allowed.

    Raises:
        InvalidInput: it is not text, json_object or json_schema.
    """
    kind = response_format.get("type") if response_format else "text"
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return Grammar(kind="json_object")
    described = response_format.get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if kind == "json_schema" and isinstance(schema, dict | bool):
        return Grammar(kind="json_schema", json_schema=schema)
    raise InvalidInput(
        f"response_format {kind!r} is not understood.",
        hint='Use {"type": "json_object"}, or {"type": "json_schema", "json_schema": {"name": …, "schema": …}}.',
    )


def first_problem(error: ValidationError) -> str:
    """The first error that pydantic found, in one line that names the field."""
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(str(part) for part in first['loc']) or 'request'}: {reason}."


# -- answers -------------------------------------------------------------------------------------------------------------


def to_message(result: GenerationResult, metadata: dict[str, Any]) -> AIMessage:
    """An answer as LangChain's message. A call with cut-off arguments is in `invalid_tool_calls`."""
    calls: list[LangChainToolCall] = []
    broken: list[InvalidToolCall] = []
    for call in result.tool_calls:
        function = {"name": call.name, "arguments": call.arguments}
        try:
            parsed = parse_tool_call({"id": call.id, "type": "function", "function": function})
        except OutputParserException as error:
            broken.append(invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error=str(error)))
        else:
            calls.append(tool_call(name=call.name, args=parsed["args"] if parsed else {}, id=call.id))
    return AIMessage(
        content=result.text, tool_calls=calls, invalid_tool_calls=broken, additional_kwargs=_reasoning(result.reasoning),
        response_metadata=metadata, usage_metadata=_usage(result),
    )  # fmt: skip


def to_chunk(delta: TextDelta) -> AIMessageChunk:
    """A piece of an answer."""
    chunks = [
        tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=call.index) for call in delta.tool_calls
    ]
    return AIMessageChunk(
        content=delta.text, tool_call_chunks=chunks, additional_kwargs=_reasoning(delta.reasoning or None)
    )


def to_last_chunk(result: GenerationResult, metadata: dict[str, Any]) -> AIMessageChunk:
    """The end of an answer that came in pieces: no text, but the metadata and the token counts."""
    return AIMessageChunk(
        content="", response_metadata=metadata, usage_metadata=_usage(result), chunk_position="last"
    )  # fmt: skip


def response_metadata(result: GenerationResult) -> dict[str, Any]:
    """The `response_metadata` of an answer."""
    logprobs = {"content": [_logprob(one) for one in result.logprobs]} if result.logprobs is not None else None
    return {
        **{key: value for key, value in result.metadata.items() if key != "warnings" or value},
        "model_name": result.model_name,
        "model_provider": "local-runtimes",
        "finish_reason": result.finish_reason,
        "execution_time": result.execution_time,
        "time_to_first_token": result.time_to_first_token,
        **({} if logprobs is None else {"logprobs": logprobs}),
    }


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    """A token in OpenAI's form."""
    return {
        "token": one.token,
        "bytes": list(one.bytes),
        "logprob": one.logprob,
        "top_logprobs": [
            {"token": other.token, "bytes": list(other.bytes), "logprob": other.logprob} for other in one.top
        ],
    }


def _reasoning(text: str | None) -> dict[str, Any]:
    return {} if text is None else {"reasoning_content": text}


def _usage(result: GenerationResult) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=result.prompt_tokens, output_tokens=result.tokens_generated,
        total_tokens=result.prompt_tokens + result.tokens_generated,
    )  # fmt: skip
