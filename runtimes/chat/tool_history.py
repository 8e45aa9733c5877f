"""Tools, calls and results of a conversation: as data if the template supports them, otherwise as text."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lfx_local_runtimes.runtimes.chat.tool_formats import ToolFormat
from lfx_local_runtimes.runtimes.tasks.generation import ChatMessage, ImagePart, TextPart, Tool, ToolCall, as_content

_READS_PARTS = re.compile(
    r"""\bfor\s+\w+\s+in\s+(\w+\s*\[\s*["']content["']\s*\]|\w+\.content|content)\s*(-?%\}|\||if\b)"""
)
"""A loop over the parts of a message: `for part in message['content']`, also with a filter behind it."""

_READS_TEXTS = re.compile(r"""content(["']\s*\])?\s+is\s+(not\s+)?(string|iterable|mapping|sequence)\b""")
"""A test of whether a message is a text or has parts."""


@dataclass(frozen=True, slots=True)
class Support:
    """What a template supports by itself."""

    tools: bool = False
    calls: bool = False
    results: bool = False
    short_ids: bool = False
    """It needs ids of nine letters and digits, as Mistral's templates do."""
    parts: bool = False
    """It reads the parts of a message, and so it says where pictures are."""
    texts: bool = True
    """It reads a message that is a plain text. Otherwise even such a message has to be a list with one part."""

    @classmethod
    def of(cls, source: str) -> "Support":
        """Recognised by the words in the template's text."""
        parts = _READS_PARTS.search(source) is not None
        return cls(
            tools=re.search(r"\btools\b", source) is not None,
            calls="tool_calls" in source,
            results=re.search(r"""["']tool["']""", source) is not None,
            short_ids=re.search(r"length\s*!=\s*9\b", source) is not None,
            parts=parts,
            texts=not parts or _READS_TEXTS.search(source) is not None,
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
            written[-1] = written[-1].followed_by(turn)
        else:
            written.append(turn)
        after_result = is_result
    if tools and not support.tools:
        text = form.instructions(tools)
        if written[0].role == "system":
            written[0] = written[0].followed_by(text)
        else:
            written.insert(0, ChatMessage(role="system", content=text))
    return written


def _written(message: ChatMessage, names: dict[str, str], form: ToolFormat, support: Support) -> ChatMessage:
    if message.role == "tool" and not support.results:
        name = message.name or names.get(message.tool_call_id or "")
        result = TextPart(type="text", text=form.write_result(name, message.text))
        pictures = [part for part in message.parts if isinstance(part, ImagePart)]
        return ChatMessage(role="user", content=as_content([result, *pictures]))
    if message.tool_calls and not support.calls:
        calls = [form.write_call(call.name, arguments_of(call)) for call in message.tool_calls]
        content = "\n".join([message.text, *calls] if message.text else calls)
        return message.model_copy(update={"content": content, "tool_calls": ()})
    return message


def as_data(
    messages: Sequence[ChatMessage], *, support: Support, picture: str = "", text_arguments: bool = False
) -> list[dict[str, Any]]:
    """The conversation as chat templates expect it: OpenAI's form, but arguments as an object.

    Args:
        messages: the conversation.
        support: what the template reads.
        picture: what stands for a picture in the prompt, for templates that do not read parts.
        text_arguments: arguments as JSON text, for templates that append them to text.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_as_data(message, names, text_arguments, support, picture) for message in messages]


def _content(message: ChatMessage, support: Support, picture: str) -> str | list[dict[str, str]]:
    """The text, or the parts in the form of Transformers' templates. The pictures themselves stay outside."""
    if not support.parts or (support.texts and not message.pictures):
        return message.written(picture)
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
        for part in message.parts
    ]


def _as_data(
    message: ChatMessage, names: dict[str, str], text_arguments: bool, support: Support, picture: str
) -> dict[str, Any]:
    short_ids = support.short_ids
    data: dict[str, Any] = {"role": message.role, "content": _content(message, support, picture)}
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
