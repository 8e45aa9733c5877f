"""Tools, calls and results of a conversation: as data if the template supports them, otherwise as text."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lfx_local_runtimes.runtimes.chat.tool_formats import ToolFormat
from lfx_local_runtimes.runtimes.tasks.generation import ChatMessage, Tool, ToolCall


@dataclass(frozen=True, slots=True)
class Support:
    """What a template supports by itself."""

    tools: bool = False
    calls: bool = False
    results: bool = False
    short_ids: bool = False
    """It needs ids of nine letters and digits, as Mistral's templates do."""

    @classmethod
    def of(cls, source: str) -> "Support":
        """Recognised by the words in the template's text."""
        return cls(
            tools=re.search(r"\btools\b", source) is not None,
            calls="tool_calls" in source,
            results=re.search(r"""["']tool["']""", source) is not None,
            short_ids=re.search(r"length\s*!=\s*9\b", source) is not None,
        )


def as_text(
    messages: Sequence[ChatMessage], tools: Sequence[Tool], form: ToolFormat, support: Support
) -> list[ChatMessage]:
    """The conversation. What the template does not support is written as text."""
    written: list[ChatMessage] = []
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    after_result = False
    """The last message is a user's that was made from results."""
    for message in messages:
        is_result = message.role == "tool" and not support.results
        turn = _written(message, names, form, support)
        if after_result and turn.role == "user":  # some templates need alternating roles
            written[-1] = _joined(written[-1], turn.content)
        else:
            written.append(turn)
        after_result = is_result
    if tools and not support.tools:
        text = form.instructions(tools)
        if written[0].role == "system":
            written[0] = _joined(written[0], text)
        else:
            written.insert(0, ChatMessage(role="system", content=text))
    return written


def _written(message: ChatMessage, names: dict[str, str], form: ToolFormat, support: Support) -> ChatMessage:
    if message.role == "tool" and not support.results:
        name = message.name or names.get(message.tool_call_id or "")
        return ChatMessage(role="user", content=form.write_result(name, message.content))
    if message.tool_calls and not support.calls:
        calls = [form.write_call(call.name, arguments_of(call)) for call in message.tool_calls]
        content = "\n".join([message.content, *calls] if message.content else calls)
        return message.model_copy(update={"content": content, "tool_calls": ()})
    return message


def _joined(message: ChatMessage, text: str) -> ChatMessage:
    return message.model_copy(update={"content": f"{message.content}\n\n{text}"})


def as_data(messages: Sequence[ChatMessage], *, text_arguments: bool, short_ids: bool) -> list[dict[str, Any]]:
    """The conversation as chat templates expect it: OpenAI's form, but arguments as an object.

    Args:
        messages: the conversation.
        text_arguments: arguments as JSON text, for templates that append them to text.
        short_ids: see `Support`.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_as_data(message, names, text_arguments, short_ids) for message in messages]


def _as_data(message: ChatMessage, names: dict[str, str], text_arguments: bool, short_ids: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        data["tool_calls"] = [
            {
                "id": _short(call.id) if short_ids else call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments if text_arguments else arguments_of(call)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        data["tool_call_id"] = _short(message.tool_call_id) if short_ids else message.tool_call_id
    if (name := message.name or names.get(message.tool_call_id or "")) is not None:
        data["name"] = name
    return data


def tools_as_data(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    """The tools as chat templates expect them: OpenAI's form; None if there are none."""
    return [
        {"type": "function", "function": tool.model_dump(include={"name", "description", "parameters"})}
        for tool in tools
    ] or None


def arguments_of(call: ToolCall) -> Any:
    """The arguments as an object, or their text if it is not JSON."""
    try:
        return json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return call.arguments


def _short(call_id: str) -> str:
    return call_id if re.fullmatch(r"[a-zA-Z0-9]{9}", call_id) else sha256(call_id.encode()).hexdigest()[:9]
