"""What clients send to responses. Its items become `ChatMessage`s."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from lfx_local_runtimes.routes.faults import InvalidField, Unsupported, validation_fault
from lfx_local_runtimes.routes.openai.bodies import NOT_STORED, PLAIN_FORMAT, MaxTokens, Sampling, ToolChoice, configure
from lfx_local_runtimes.routes.openai.conversation import (
    Content,
    Function,
    Lenient,
    Refusals,
    SchemaFormat,
    format_grammar,
    read_choice,
    refuse,
    tools_of,
    turns,
)
from lfx_local_runtimes.routes.openai.forms import form_rules
from lfx_local_runtimes.runtimes.tasks.generation import CallName, GenerationConfig

LOGPROBS = "message.output_text.logprobs"

_WHOLE_HISTORY = "Nothing is stored between requests: send the whole conversation as input."
RESPONSES_REFUSALS: Refusals = {
    "previous_response_id": ((), _WHOLE_HISTORY),
    "conversation": ((), _WHOLE_HISTORY),
    "store": ((False,), NOT_STORED),
    "background": ((False,), "Stream the answer, or wait for it."),
    "prompt": ((), "Send the text itself as input."),
}


class Said(Lenient):
    """A message. Its type may be left out."""

    type: Literal["message"] = Field(default="message", description="The kind of item.")
    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who says it.")
    content: Content = Field(description="A text, or parts with text.")


class Called(Lenient):
    """A call the assistant made."""

    type: Literal["function_call"] = Field(description="The kind of item.")
    call_id: CallName = Field(description="The call's id.")
    name: CallName = Field(description="The function's name.")
    arguments: str = Field(description="JSON text.")


class Returned(Lenient):
    """The result of a call."""

    type: Literal["function_call_output"] = Field(description="The kind of item.")
    call_id: str = Field(description="The id of the call.")
    output: Content = Field(description="A text, or parts with text.")


class Thought(Lenient):
    """The reasoning of an earlier answer. It is not shown to the model again."""

    type: Literal["reasoning"] = Field(description="The kind of item.")


Item = Annotated[
    dict[str, Any], BeforeValidator(lambda item: item, json_schema_input_type=Said | Called | Returned | Thought)
]
"""Read later, so that an error names the field of the kind that is meant, not those of every kind."""

_KINDS: dict[str, TypeAdapter[Any]] = {
    "message": TypeAdapter(Said),
    "function_call": TypeAdapter(Called),
    "function_call_output": TypeAdapter(Returned),
}


class ResponseTool(Function):
    """A function in the form of responses."""

    type: Literal["function"] = Field(description="Only functions are supported.")
    strict: bool | None = Field(default=None, description="Accepted. A forced call always follows the schema.")


class TextFormat(SchemaFormat):
    """The format of the answer."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="The kind of format.")


class TextOptions(Lenient):
    """Options of the text."""

    format: TextFormat | None = Field(default=None, description="The format of the answer. Default text.")


class Reasoning(Lenient):
    """Options of the reasoning."""

    effort: str | None = Field(
        default=None, description="`none` means a reasoning_budget of 0. Other values are not used."
    )


class ResponsesBody(Sampling):
    """The body of responses. `input` is a text, or a list of messages, function calls and their outputs."""

    model_config = ConfigDict(json_schema_extra=form_rules(text={"properties": {"format": PLAIN_FORMAT}}))

    input: str | Annotated[list[Item], Field(json_schema_extra={"minItems": 1})] = Field(
        description="A text, or the conversation: messages, function calls and their outputs."
    )
    instructions: str | None = Field(default=None, description="The system message.")
    max_output_tokens: MaxTokens | None = Field(default=None, description="-1, or none: no limit.")
    tools: list[ResponseTool] | None = Field(
        default=None, max_length=128, description="The functions that the model may call."
    )
    tool_choice: ToolChoice | None = Field(
        default=None, description="none, auto, required, or an object that names a function."
    )
    parallel_tool_calls: bool | None = Field(default=None, description="Allow more than one call. Default true.")
    text: TextOptions | None = Field(default=None, description="Options of the answer's text.")
    reasoning: Reasoning | None = Field(default=None, description="Options of the reasoning.")
    include: list[str] | None = Field(default=None, description=f"`{LOGPROBS}`, or nothing.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Also return this many of the most likely tokens at each place."
    )
    truncation: Literal["auto", "disabled"] | None = Field(
        default=None,
        description="auto: if the conversation is too long, remove its oldest tokens. disabled: fail. Default disabled.",
    )
    metadata: dict[str, str] | None = Field(default=None, description="Returned as it is.")

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: object) -> object:
        refuse(data, RESPONSES_REFUSALS)
        for place, tool in enumerate(_list(data, "tools")):
            kind = tool.get("type") if isinstance(tool, dict) else None
            if isinstance(kind, str) and kind != "function":
                raise Unsupported(f"tools.{place}.type", "Only functions are supported, which the client runs.", kind)
        return data

    @property
    def form(self) -> TextFormat | None:
        """The format that the client wants, if it names one."""
        return self.text.format if self.text else None

    def config(self) -> GenerationConfig:
        """The engine's configuration.

        Raises:
            InvalidField: an item is not understood, or the fields contradict each other.
        """
        named = [tool.tool() for tool in self.tools or ()]
        choice, left = read_choice(self.tool_choice, named)
        wanted = format_grammar(self.form.type, self.form, "text.format") if self.form else None
        options = self.options() | {
            "messages": turns(self._turns(), "input"),
            "max_tokens": self.max_output_tokens,
            "logprobs": LOGPROBS in (self.include or ()) or bool(self.top_logprobs),
            "top_logprobs": self.top_logprobs or 0,
            "tools": tools_of(left),
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "grammar": self.constraint(wanted, "text.format"),
        }
        if self.truncation is not None:
            options.setdefault("truncate", self.truncation == "auto")
        if self.reasoning is not None and self.reasoning.effort == "none":
            options.setdefault("reasoning_budget", 0)
        return configure(options)

    def _turns(self) -> list[dict[str, Any]]:
        """The fields of the `ChatMessage`s. Calls become part of the assistant's message before them."""
        found: list[dict[str, Any]] = [{"role": "system", "content": self.instructions}] if self.instructions else []
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        for place, item in enumerate(items):
            read = _item(item, place)
            if isinstance(read, Said):
                role = "system" if read.role == "developer" else read.role
                found.append({"role": role, "content": read.content or ""})
            elif isinstance(read, Returned):
                found.append({"role": "tool", "content": read.output or "", "tool_call_id": read.call_id})
            elif isinstance(read, Called):
                if not found or found[-1]["role"] != "assistant":
                    found.append({"role": "assistant", "content": ""})
                call = {"id": read.call_id, "name": read.name, "arguments": read.arguments}
                found[-1].setdefault("tool_calls", []).append(call)
        if not found:
            raise InvalidField("input: is empty.", param="input", hint="Send a text or messages.")
        return found


def _item(item: dict[str, Any], place: int) -> Said | Called | Returned | None:
    """One item; None for reasoning, which is not shown to the model again."""
    kind = item.get("type", "message")
    if kind == "reasoning":
        return None
    reader = _KINDS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise Unsupported(f"input.{place}.type", "Send messages, function calls and their outputs.", str(kind))
    try:
        read: Said | Called | Returned = reader.validate_python(item)
    except ValidationError as error:
        problems = [
            {**problem, "loc": ("input", place, *problem["loc"])} for problem in error.errors(include_url=False)
        ]
        raise validation_fault(problems) from error
    return read


def _list(data: object, name: str) -> list[Any]:
    value = data.get(name) if isinstance(data, dict) else None
    return value if isinstance(value, list) else []
