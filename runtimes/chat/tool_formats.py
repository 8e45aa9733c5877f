"""How each family of models gets its tools, writes calls, and reads their results.

The family is recognised by the marks in its chat template. A model of no known family uses plain JSON. Templates that
support tools describe them in their own words. For other templates, the format describes them in a system message.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from lfx_local_runtimes.runtimes.chat.tool_notations import (
    Calls,
    Tools,
    read_gemma,
    read_json,
    read_python,
    read_xml,
    write_gemma,
)
from lfx_local_runtimes.runtimes.chat.tool_parsers import CallForm, ToolParser
from lfx_local_runtimes.runtimes.tasks.generation import Tool

_JSON_STARTS = ('{"name"', '{"type"', '{"function"', '{"arguments"', '{"parameters"', '{"id"', '{"tool_calls"')
_LIST_STARTS = tuple(f"[{start}" for start in _JSON_STARTS)


class ToolFormat:
    """Plain JSON: `{"name": …, "arguments": {…}}` as the whole answer, or in a fence. For models of no known family.

    It is also the base class of the other formats.
    """

    name: ClassVar[str] = "json"
    template_marks: ClassVar[tuple[str, ...]] = ()
    """A chat template with any of these belongs to the family."""
    openings: ClassVar[tuple[str, ...]] = ("```",)
    closings: ClassVar[tuple[str, ...]] = ("```",)
    separators: ClassVar[str] = ",;"
    languages: ClassVar[tuple[str, ...]] = ("json", "tool_call", "tool_code")
    """Words after the opening of a fence that name its content."""
    readers: ClassVar[tuple[Callable[[str, Tools], Calls | None], ...]] = (read_json,)
    control: ClassVar[tuple[str, ...]] = ()
    """Marks that may be control tokens. Engines keep these in the text and leave out other control tokens."""
    stops: ClassVar[tuple[str, ...]] = ()
    """Marks after which the model waits for results."""
    arguments_key: ClassVar[str] = "arguments"

    def starts(self, tools: Sequence[Tool]) -> Mapping[str, tuple[str, ...]]:
        """See `CallForm`."""
        fenced = tuple(f"{word}{start}" for word in ("json", "tool_call", "") for start in _JSON_STARTS + _LIST_STARTS)
        return {"": _JSON_STARTS + _LIST_STARTS, "```": fenced}

    def parser(self, tools: Sequence[Tool], *, parallel: bool) -> ToolParser:
        """A parser that finds calls of these tools in an answer."""
        named = {tool.name: tool for tool in tools}

        def read(body: str) -> Calls | None:
            text = re.sub(rf"\A\s*(?:{'|'.join(self.languages)})\s", "", body) if self.languages else body
            return next((calls for reader in self.readers if (calls := reader(text, named)) is not None), None)

        form = CallForm(self.openings, self.closings, self.starts(tools), self.separators, self.languages, read)
        return ToolParser(form, parallel=parallel)

    def instructions(self, tools: Sequence[Tool]) -> str:
        """The text of the system message for a model whose template does not support tools."""
        call = self.write_call("NAME", {"PARAMETER": "VALUE"})
        listed = "\n".join(self.describe(tool) for tool in tools)
        return (
            f"You can call functions. They are described here, one per line, with their parameters as JSON schemas:\n"
            f"{listed}\n\nTo call a function, answer with nothing but this, its name and its parameters filled in:\n"
            f"{call}\nYou are then told what it returned. Call a function only where it helps; otherwise answer in words."
        )

    def describe(self, tool: Tool) -> str:
        """One tool, in one line."""
        return _dump({"name": tool.name, "description": tool.description, "parameters": tool.parameters})

    def write_call(self, name: str, arguments: Any) -> str:
        """A call as the model would write it."""
        return _dump({"name": name, self.arguments_key: arguments})

    def write_result(self, name: str | None, content: str) -> str:
        """The result of a function, as the text of a user's turn."""
        return f"{name} returned: {content}" if name else content


class Hermes(ToolFormat):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes 2 Pro and later, Qwen 2.5 and 3; with XML inside,
    Qwen 3 Coder. From their chat templates."""

    name = "hermes"
    template_marks = ("<tool_call>", "<|im_start|>")
    openings, closings = ("<tool_call>",), ("</tool_call>",)
    separators = ""
    languages = ()
    readers = (read_json, read_xml)
    control = ("<tool_call>", "</tool_call>")

    def starts(self, tools: Sequence[Tool]) -> Mapping[str, tuple[str, ...]]:
        """Any text may follow the mark."""
        return {}

    def describe(self, tool: Tool) -> str:
        """One tool, in one line, as the family was trained to read it."""
        return _dump({"type": "function", "function": json.loads(super().describe(tool))})

    def instructions(self, tools: Sequence[Tool]) -> str:
        """With the schemas between marks."""
        listed = "\n".join(self.describe(tool) for tool in tools)
        return (
            f"# Tools\n\nYou can call these functions to help the user. Their signatures:\n<tools>\n{listed}\n</tools>\n\n"
            "For each call, write a JSON object with the function's name and its arguments between tool_call marks:\n"
            '<tool_call>\n{"name": NAME, "arguments": ARGUMENTS}\n</tool_call>'
        )

    def write_call(self, name: str, arguments: Any) -> str:
        """Between its marks."""
        return f"<tool_call>\n{super().write_call(name, arguments)}\n</tool_call>"

    def write_result(self, name: str | None, content: str) -> str:
        """Between its marks."""
        return f"<tool_response>\n{content}\n</tool_response>"


class Llama3(ToolFormat):
    """`{"name": …, "parameters": {…}}` as the whole answer, with or without `<|python_tag|>` before it. Several calls
    are separated by `;`. From the chat templates of Llama 3.1 to 3.3."""

    name = "llama3"
    template_marks = ("<|python_tag|>", "<|start_header_id|>")
    openings, closings = ("<|python_tag|>",), ()
    separators = ";"
    languages = ()
    control = ("<|python_tag|>",)
    arguments_key = "parameters"

    def starts(self, tools: Sequence[Tool]) -> Mapping[str, tuple[str, ...]]:
        """Without a mark, the text has to begin like a call."""
        return {"": _JSON_STARTS + _LIST_STARTS}


class Mistral(ToolFormat):
    """`[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`; since tokenizer 11 `[TOOL_CALLS]name[ARGS]{…}` for each call,
    with or without a `[CALL_ID]` after the name. From mistral-common and the chat templates."""

    name = "mistral"
    template_marks = ("[TOOL_CALLS]",)
    openings, closings = ("[TOOL_CALLS]",), ()
    separators = ""
    languages = ()
    control = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")

    def starts(self, tools: Sequence[Tool]) -> Mapping[str, tuple[str, ...]]:
        """Any text may follow the mark."""
        return {}

    @staticmethod
    def read_named(text: str, tools: Tools) -> Calls | None:
        """`name[ARGS]{…}`, with or without the mark `[ARGS]`."""
        match = re.match(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\])?\s*(?=\{)", text)
        return read_json(f'{{"name": {_dump(match[1])}, "arguments": {text[match.end() :]}}}', tools) if match else None

    readers = (read_json, read_named)

    def write_call(self, name: str, arguments: Any) -> str:
        """A list of one."""
        return f"[TOOL_CALLS] [{super().write_call(name, arguments)}]"

    def write_result(self, name: str | None, content: str) -> str:
        """Between its marks."""
        return f"[TOOL_RESULTS] {_dump({'content': content})}[/TOOL_RESULTS]"


class Gemma(ToolFormat):
    """Gemma 2 and 3, which have no tokens for calls: JSON, alone or in a fence, or Python as in ```` ```tool_code ````
    or `[f(a=1)]`. From Google's guide to function calling with Gemma."""

    name = "gemma"
    template_marks = ("<start_of_turn>",)
    readers = (read_json, read_python)

    def starts(self, tools: Sequence[Tool]) -> Mapping[str, tuple[str, ...]]:
        """JSON, and also a list of Python calls or a fence with them."""
        json_starts = super().starts(tools)
        python = tuple(f"[{tool.name}(" for tool in tools)
        return {"": json_starts[""] + python, "```": json_starts["```"] + ("tool_code",)}

    def write_call(self, name: str, arguments: Any) -> str:
        """JSON in a fence."""
        return f"```json\n{super().write_call(name, arguments)}\n```"

    def write_result(self, name: str | None, content: str) -> str:
        """In the fence that goes with the family's calls."""
        return f"```tool_output\n{super().write_result(name, content)}\n```"


class FunctionGemma(ToolFormat):
    """`<start_function_call>call:name{key:<escape>text<escape>}<end_function_call>`. From Google's description of the
    format of FunctionGemma."""

    name = "functiongemma"
    template_marks = ("<start_function_call>",)
    openings, closings = ("<start_function_call>",), ("<end_function_call>",)
    separators = ""
    languages = ()
    quote: ClassVar[str] = "<escape>"
    readers = (partial(read_gemma, quote="<escape>"),)
    control = ("<start_function_call>", "<end_function_call>", "<escape>", "<start_function_response>")
    stops = ("<start_function_response>",)
    response: ClassVar[tuple[str, str]] = ("<start_function_response>", "<end_function_response>")

    def starts(self, tools: Sequence[Tool]) -> Mapping[str, tuple[str, ...]]:
        """Any text may follow the mark."""
        return {}

    def write_call(self, name: str, arguments: Any) -> str:
        """In its notation, between its marks."""
        return f"{self.openings[0]}call:{name}{write_gemma(arguments, self.quote)}{self.closings[0]}"

    def write_result(self, name: str | None, content: str) -> str:
        """In its notation, between its marks."""
        body = write_gemma({"value": content}, self.quote)
        return f"{self.response[0]}response:{name or 'function'}{body}{self.response[1]}"


class Gemma4(FunctionGemma):
    """The same notation between other marks: `<|tool_call>call:name{key:<|"|>text<|"|>}<tool_call|>`. From Google's
    description of Gemma 4's format."""

    name = "gemma4"
    template_marks = ("<|tool_call>",)
    openings, closings = ("<|tool_call>",), ("<tool_call|>",)
    quote = '<|"|>'
    readers = (partial(read_gemma, quote='<|"|>'),)
    control = ("<|tool_call>", "<tool_call|>", '<|"|>', "<|tool_response>")
    stops = ("<|tool_response>",)
    response = ("<|tool_response>", "<tool_response|>")


class Harmony(ToolFormat):
    """`<|channel|>commentary to=functions.name<|message|>{…}<|call|>`, in the one form that `reasoning` passes on.
    From OpenAI's description of harmony, the format of gpt-oss."""

    name = "harmony"
    template_marks = ("<|channel|>",)
    openings, closings = ("<|channel|>commentary to=functions.",), ("<|call|>",)
    separators = ""
    languages = ()

    def starts(self, tools: Sequence[Tool]) -> Mapping[str, tuple[str, ...]]:
        """Any text may follow the mark."""
        return {}

    @staticmethod
    def read_message(text: str, tools: Tools) -> Calls | None:
        """The name, a mark, the arguments."""
        name, _, arguments = text.partition("<|message|>")
        return read_json(f'{{"name": {_dump(name.strip())}, "arguments": {arguments}}}', tools)

    readers = (read_message,)

    def write_call(self, name: str, arguments: Any) -> str:
        """As the model writes it."""
        return f"{self.openings[0]}{name}<|message|>{_dump(arguments)}<|call|>"


PLAIN = ToolFormat()
FORMATS: tuple[ToolFormat, ...] = (Harmony(), Gemma4(), FunctionGemma(), Mistral(), Hermes(), Llama3(), Gemma())
"""In the order in which their marks are looked for: the most specific marks come first."""

_BUILT_IN = {"gemma": "gemma", "chatml": "hermes", "llama3": "llama3"}


def choose_format(template_name: str, source: str | None) -> ToolFormat:
    """The format of a model's tool calls, by its chat template: its Jinja text, or the name of a built-in form."""
    if source is None:
        return next((one for one in FORMATS if one.name == _BUILT_IN.get(template_name)), PLAIN)
    return next((one for one in FORMATS if any(mark in source for mark in one.template_marks)), PLAIN)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
