"""The task `llm`: text from a prompt or a conversation. Its request, its deltas and its result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from lfx_local_runtimes.runtimes.config import MAX_PROMPT_CHARS, Defaults, Prompts, Strict
from lfx_local_runtimes.runtimes.tasks.base import Ask, Delta, TaskRow, TokenIds
from lfx_local_runtimes.runtimes.tasks.generation_rules import GENERATION, GRAMMAR, TOKEN_IDS
from lfx_local_runtimes.runtimes.tasks.media import Image, Media, Source

MAX_SCHEMA_CHARS = 120_000
"""Characters of a JSON schema, as JSON."""

MAX_GRAMMAR_CHARS = 1_000_000

MAX_PICTURES = 100
"""Pictures in one conversation."""


def _plain(value: Any) -> Any:
    """Refuse what JSON can say and engines cannot read."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and not one.isascii() and any("\ud800" <= char <= "\udfff" for char in one):
            raise ValueError("has half of a character (a lone surrogate)")
        if isinstance(one, int) and not -(2**63) <= one < 2**63:
            raise ValueError("has an integer of more than 64 bits")
        if isinstance(one, dict):
            waiting += [*one, *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one
    return value


JsonSchema = Annotated[dict[str, Any], AfterValidator(_plain)]


CallName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class ToolCall(Strict):
    """A call that the model made: the function's name, and its arguments as JSON text."""

    id: CallName = Field(description="The call's id. The message with its result names it in tool_call_id.")
    name: CallName = Field(description="The function.")
    arguments: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)] = Field(
        description="A JSON object, as text."
    )


class TextPart(Strict):
    """A piece of a message's text, before, between or after its pictures."""

    type: Literal["text"] = Field(description="The kind of part.")
    text: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)] = Field(description="The text.")


class ImagePart(Strict):
    """A picture in its place in a message."""

    type: Literal["image"] = Field(description="The kind of part.")
    image: Image = Field(description="The picture, as a data URL or plain base64.")


def _text(text: str) -> TextPart:
    """A text that was checked before, or is written from arguments of a call, which may hold half of a character."""
    return TextPart.model_construct(type="text", text=text)


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _kind_of_content(value: object) -> str:
    return "parts" if isinstance(value, list | tuple) else "text"


Content = Annotated[
    Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS), Tag("text")]
    | Annotated[tuple[Part, ...], Field(min_length=1, max_length=1000), Tag("parts")],
    Discriminator(_kind_of_content),
]
"""A text, or pieces of text with pictures between them."""


class ChatMessage(Strict):
    """One turn of a conversation. An assistant's turn may contain tool calls. A tool's turn names the call that it answers.

    Pictures may be in the turns of a user or a tool.
    """

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Who says it. tool: the result of a call.")
    content: Content = Field(description="The text, or parts: text and pictures in their order.")
    tool_calls: tuple[ToolCall, ...] = Field(
        default=(), description="For an assistant message: the calls that the model made."
    )
    tool_call_id: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        default=None, description="For a tool message: the id of the call that it answers."
    )
    name: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        default=None, description="For a tool message: the name of its function."
    )

    @model_validator(mode="after")
    def _pictures_where_they_are_read(self) -> "ChatMessage":
        if self.pictures and self.role not in ("user", "tool"):
            raise ValueError(f"a {self.role} message has no pictures; put them into a user message")
        return self

    @property
    def parts(self) -> tuple[TextPart | ImagePart, ...]:
        """The content as parts."""
        return (_text(self.content),) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """The text without the pictures."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def pictures(self) -> tuple[Media | Source, ...]:
        """The pictures in their order."""
        return tuple(part.image for part in self.parts if isinstance(part, ImagePart))

    def written(self, mark: str) -> str:
        """The text with a mark in the place of each picture."""
        return "".join(part.text if isinstance(part, TextPart) else mark for part in self.parts)

    def followed_by(self, other: "ChatMessage | str") -> "ChatMessage":
        """This message with a text, or with the content of another message, in a new paragraph at its end."""
        *before, last = self.parts
        first, *after = (_text(other),) if isinstance(other, str) else other.parts
        if isinstance(last, TextPart) and isinstance(first, TextPart):
            middle: list[TextPart | ImagePart] = [_text(f"{last.text}\n\n{first.text}")]
        else:
            middle = [last, first]
        return self.model_copy(update={"content": as_content((*before, *middle, *after))})


def as_content(parts: Sequence[TextPart | ImagePart]) -> str | tuple[TextPart | ImagePart, ...]:
    """Parts as a message's content: a plain text if there is no picture."""
    if any(isinstance(part, ImagePart) for part in parts):
        return tuple(parts)
    return "".join(part.text for part in parts if isinstance(part, TextPart))


class Tool(Strict):
    """A function that the model may call."""

    name: ToolName = Field(description="The function.")
    description: Annotated[str, StringConstraints(max_length=100_000)] = Field(
        default="", description="What it does. The model reads this."
    )
    parameters: JsonSchema = Field(
        default_factory=lambda: {"type": "object", "properties": {}}, description="A JSON schema of an object."
    )


class Grammar(Strict):
    """The form that the answer must have. The model cannot choose a token that would break it.

    `json_schema` needs a schema; `regex`, `gbnf` and `lark` need their text; `json_object` needs nothing.
    """

    model_config = ConfigDict(json_schema_extra=GRAMMAR)

    kind: Literal["json_object", "json_schema", "regex", "gbnf", "lark"] = Field(description="The kind of form.")
    json_schema: JsonSchema | bool | None = Field(default=None, description="The schema, for the kind json_schema.")
    text: Annotated[str, StringConstraints(max_length=MAX_GRAMMAR_CHARS)] | None = Field(
        default=None, description="The regular expression or the grammar, for the kinds regex, gbnf and lark."
    )

    @model_validator(mode="after")
    def _has_its_source(self) -> "Grammar":
        if (self.json_schema is not None) != (self.kind == "json_schema"):
            raise ValueError("json_schema goes with kind json_schema")
        if (self.text is not None) != (self.kind in ("regex", "gbnf", "lark")):
            raise ValueError("text goes with kind regex, gbnf or lark")
        return self


class GenerationConfig(Ask["GenerationResult"]):
    """One request for text: a `prompt` or `messages`, and sampling options.

    A prompt is one user turn in the chat template, unless `raw` is set. Sampling options mean the same on every engine.
    They are applied in this order: `logit_bias`, `grammar`, repetition penalty (over prompt and answer), frequency
    and presence penalty (over the answer), top-k, top-p, min-p, temperature. Temperature 0 is greedy.
    """

    model_config = ConfigDict(json_schema_extra=GENERATION)

    task: ClassVar[str] = "llm"
    prompt: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)] | None = Field(
        default=None, kw_only=False, description="The text to answer: one user turn, or with raw a text to continue."
    )
    prompt_ids: Annotated[TokenIds, Field(max_length=MAX_PROMPT_CHARS)] | None = Field(
        default=None,
        description="Token ids of the model instead of a prompt. Nothing is added to them. Needs raw.",
    )
    messages: tuple[ChatMessage, ...] | None = Field(
        default=None, min_length=1, max_length=10_000, description="The conversation to answer, instead of a prompt."
    )
    raw: bool = Field(default=False, description="Continue the prompt as it is, without a chat template.")
    suffix: Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARS)] | None = Field(
        default=None,
        description="The text after a gap: the answer fills the gap between the prompt and this. Needs raw and a prompt, "
        "llama.cpp, and a model that was trained for it.",
    )
    echo: bool = Field(
        default=False,
        description="Begin the answer with the prompt; with logprobs also with those of its tokens. Needs raw and llama.cpp.",
    )
    max_tokens: int = Field(default=512, ge=1, le=16_777_216, description="The answer has at most this many tokens.")
    temperature: float = Field(
        default=0.7, ge=0, le=5, allow_inf_nan=False,
        description="0 always takes the most likely token. A higher number makes answers more varied.",
    )  # fmt: skip
    top_p: float = Field(
        default=0.95, gt=0, le=1,
        description="Choose among the most likely tokens whose probabilities add up to this. 1 turns it off.",
    )  # fmt: skip
    top_k: int = Field(
        default=40, ge=0, description="Choose among this many of the most likely tokens. 0 turns it off."
    )
    min_p: float = Field(
        default=0.05, ge=0, le=1,
        description="Leave out tokens that are less likely than this share of the most likely one. 0 turns it off.",
    )  # fmt: skip
    repetition_penalty: float = Field(
        default=1.0,
        ge=0.01,
        le=10,
        description="Above 1 makes tokens of the prompt and the answer less likely. 1 turns it off.",
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Above 0 makes a token less likely with each time that the answer has it."
    )
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Above 0 makes tokens that the answer already has less likely."
    )
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict,
        max_length=1024,
        description="For token ids: a number that is added to the token's logit. -100 bans a token.",
        json_schema_extra=TOKEN_IDS,
    )
    logprobs: bool = Field(
        default=False,
        description="Return the log-probability of each token of the answer's text, before any of the options above.",
    )
    top_logprobs: int = Field(
        default=0,
        ge=0,
        le=20,
        description="Also return this many of the most likely tokens at each place, and the drawn one if it is none of them. "
        "Needs logprobs.",
    )
    min_tokens: int = Field(
        default=0, ge=0, description="The answer has at least this many tokens. Stop texts count after them."
    )
    ignore_eos: bool = Field(
        default=False, description="The model cannot end the answer. It ends at max_tokens or the end of the context."
    )
    stop: tuple[Annotated[str, StringConstraints(min_length=1, max_length=1000)], ...] = Field(
        default=(), max_length=64, description="The answer ends before any of these texts."
    )
    seed: int | None = Field(
        default=None, ge=0, lt=2**32 - 1, description="The same seed gives the same answer. Unset: a new one each time."
    )
    grammar: Grammar | None = Field(default=None, description="The form that the answer must have.")
    tools: tuple[Tool, ...] = Field(default=(), max_length=128, description="The functions that the model may call.")
    tool_choice: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        default="auto", description="none, auto, required, or the name of the function to call."
    )
    parallel_tool_calls: bool = Field(default=True, description="Allow more than one call in an answer.")
    reasoning_budget: int | None = Field(
        default=None, ge=0, description="Tokens that the model may think for. Then it has to answer. Unset: no limit."
    )
    continue_final_message: bool = Field(
        default=False, description="The last message is the assistant's. The answer continues it."
    )
    truncate: bool = Field(
        default=False,
        description="If a prompt is too long, remove its oldest tokens instead of failing. Not for conversations with pictures.",
    )
    return_prompt: bool = Field(default=False, description="Return the exact prompt in the metadata.")

    if not TYPE_CHECKING:  # type checkers know from `kw_only` that the prompt may come without its name

        def __init__(self, prompt=None, /, **fields):
            super().__init__(**(fields if prompt is None else {"prompt": prompt, **fields}))

        __init__.__pydantic_base_init__ = True  # pydantic validates without calling it

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: object) -> object:
        return () if value is None else (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_input(self) -> "GenerationConfig":
        if sum(given is not None for given in (self.prompt, self.prompt_ids, self.messages)) != 1:
            raise ValueError("give exactly one of prompt, prompt_ids and messages")
        if self.raw and self.messages is not None:
            raise ValueError("raw needs a prompt, not messages")
        if self.prompt_ids is not None and not self.raw:
            raise ValueError("prompt_ids needs raw")
        if self.suffix is not None and not (self.raw and self.prompt is not None):
            raise ValueError("suffix needs raw and a prompt")
        if self.echo and (not self.raw or self.suffix is not None):
            raise ValueError("echo needs raw, and no suffix")
        if self.suffix is not None and self.truncate:
            raise ValueError("suffix and truncate exclude each other")
        if self.raw and self.tools:
            raise ValueError("tools need messages, or a prompt that is not raw")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs")
        if self.continue_final_message and (self.messages is None or self.messages[-1].role != "assistant"):
            raise ValueError("continue_final_message needs a last message of the assistant")
        return self

    @model_validator(mode="after")
    def _a_choice_there_is(self) -> "GenerationConfig":
        names = [tool.name for tool in self.tools]
        if len(set(names)) != len(names):
            raise ValueError("two tools have the same name")
        if self.tool_choice not in ("none", "auto", *names) and not (self.tool_choice == "required" and names):
            raise ValueError(f"tool_choice {self.tool_choice} is none of the tools")
        if self.grammar is not None and names and self.tool_choice != "none" and "json" not in self.grammar.kind:
            raise ValueError(
                f"a grammar of the kind {self.grammar.kind} and tools exclude each other; a JSON form may be beside tools"
            )
        return self

    @model_validator(mode="after")
    def _not_too_many_pictures(self) -> "GenerationConfig":
        if (count := len(self.pictures)) > MAX_PICTURES:
            raise ValueError(f"there are {count:,} pictures in the conversation; the limit is {MAX_PICTURES}")
        return self

    @property
    def turns(self) -> tuple[ChatMessage, ...]:
        """The conversation: the messages, or the prompt as one user turn."""
        return self.messages or (ChatMessage(role="user", content=self.prompt or ""),)

    @property
    def pictures(self) -> tuple[Media | Source, ...]:
        """The pictures of the conversation in their order."""
        return tuple(picture for message in self.messages or () for picture in message.pictures)

    def completed(self, defaults: Defaults, prompts: Prompts) -> Self:
        """Also with the model's system message, if the conversation has none."""
        ask = super().completed(defaults, prompts)
        if prompts.system is None or ask.raw or any(turn.role == "system" for turn in ask.turns):
            return ask
        system = ChatMessage(role="system", content=prompts.system)
        return ask.model_copy(update={"messages": (system, *ask.turns), "prompt": None})

    def cancelled_result(self, model_name: str, request_id: str) -> "GenerationResult":
        """An empty answer."""
        return GenerationResult(
            text="", model_name=model_name, tokens_generated=0, prompt_tokens=0, finish_reason="cancelled",
            execution_time=0.0, time_to_first_token=None, metadata={"request_id": request_id},
        )  # fmt: skip


FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


class TokenLogprob(Strict):
    """A token with the natural logarithm of its probability. `top` are the most likely tokens at its place.

    The first token of a prompt follows nothing, so its `logprob` is None.
    """

    token: str
    logprob: float | None
    bytes: tuple[int, ...]
    top: tuple["TokenLogprob", ...] = ()


class GenerationResult(Strict):
    """A finished answer. Times are in seconds. `metadata` says how it was made."""

    text: str
    model_name: str
    tokens_generated: int
    prompt_tokens: int
    finish_reason: FinishReason
    reasoning: str | None = Field(default=None, description="What the model thought before its answer.")
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    execution_time: float = Field(description="From the start of the computation to the last token.")
    time_to_first_token: float | None = Field(
        description="From the start of the computation. None if there was no token."
    )
    metadata: dict[str, Any] = Field(description="engine, device, quantization, seed, template, request_id, warnings …")

    @property
    def cancelled(self) -> bool:
        """Somebody ended the answer before it was complete."""
        return self.finish_reason == "cancelled"


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of tool call number `index`. `id` and `name` come once, at its start. `arguments` come in pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TextDelta(Delta):
    """More of the answer: text, reasoning before it, tool calls. `tokens` is the number generated so far."""

    text: str
    tokens: int
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens since the last delta, if the request wants them."""

    def merged(self, later: Delta) -> "TextDelta | None":
        """Both as one: text and reasoning joined, tool calls and logprobs in order."""
        if not isinstance(later, TextDelta):
            return None
        return TextDelta(
            self.text + later.text, later.tokens, self.reasoning + later.reasoning,
            self.tool_calls + later.tool_calls, self.logprobs + later.logprobs,
        )  # fmt: skip


ROW = TaskRow(name="llm", family="text", ask=GenerationConfig, result=GenerationResult, delta=TextDelta)
