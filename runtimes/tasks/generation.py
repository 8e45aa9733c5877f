"""The task `llm`: text from a prompt or a conversation. What callers ask, what streams, what they get."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from lfx_local_runtimes.runtimes.config import MAX_PROMPT_CHARS, Strict
from lfx_local_runtimes.runtimes.tasks.base import Ask, Delta, TaskRow


class ToolCall(Strict):
    """A call the model made: the function's name and its arguments as JSON text."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    arguments: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)]


class ChatMessage(Strict):
    """One turn of a conversation. An assistant's turn may hold tool calls; a tool's says which call it answers."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: Annotated[str, StringConstraints(max_length=200)] | None = None
    name: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        default=None, description="Of the function a tool message answers for."
    )


class Tool(Strict):
    """A function the model may call."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: Annotated[str, StringConstraints(max_length=100_000)] = ""
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"type": "object", "properties": {}}, description="A JSON schema of an object."
    )


class Grammar(Strict):
    """What the answer must look like; every token that would break it is ruled out.

    `json_schema` takes a schema, `regex` and `gbnf` and `lark` their text, `json_object` nothing.
    """

    kind: Literal["json_object", "json_schema", "regex", "gbnf", "lark"]
    json_schema: dict[str, Any] | bool | None = None
    text: Annotated[str, StringConstraints(max_length=1_000_000)] | None = None

    @model_validator(mode="after")
    def _has_its_source(self) -> "Grammar":
        if (self.json_schema is not None) != (self.kind == "json_schema"):
            raise ValueError("json_schema goes with kind json_schema")
        if (self.text is not None) != (self.kind in ("regex", "gbnf", "lark")):
            raise ValueError("text goes with kind regex, gbnf or lark")
        return self


class GenerationConfig(Ask["GenerationResult"]):
    """One request for text: a `prompt` or `messages`, and how to sample.

    A prompt is one user turn and goes through the chat template, unless `raw` is set. Sampling means the same on every
    engine and is applied in this order: `logit_bias`, `grammar`, repetition penalty (over prompt and answer), frequency
    and presence penalty (over the answer), top-k, top-p, min-p, temperature. Temperature 0 is greedy.
    """

    task: ClassVar[str] = "llm"
    prompt: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)] | None = None
    prompt_ids: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_PROMPT_CHARS,
        description="The model's own token ids in place of a prompt; nothing is added to them. Needs raw.",
    )
    messages: tuple[ChatMessage, ...] | None = Field(default=None, min_length=1, max_length=10_000)
    raw: bool = Field(default=False, description="Continue the prompt as it stands, without a template.")
    max_tokens: int = Field(default=512, ge=1, le=16_777_216)
    temperature: float = Field(default=0.7, ge=0, le=5, allow_inf_nan=False)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=40, ge=0, description="0 is off.")
    min_p: float = Field(default=0.05, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=1024, description="Added to the logits of tokens by id; -100 bans a token."
    )
    logprobs: bool = Field(default=False, description="Tell how likely each token was, before any of the above.")
    top_logprobs: int = Field(default=0, ge=0, le=20, description="And the likeliest others. Needs logprobs.")
    min_tokens: int = Field(default=0, ge=0, description="The model may not end the answer before.")
    ignore_eos: bool = Field(default=False, description="The model may not end the answer at all.")
    stop: tuple[Annotated[str, StringConstraints(min_length=1, max_length=1000)], ...] = Field(
        default=(), max_length=64
    )
    seed: int | None = Field(default=None, ge=0, lt=2**32 - 1)
    grammar: Grammar | None = None
    tools: tuple[Tool, ...] = Field(default=(), max_length=128)
    tool_choice: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        default="auto", description="none, auto, required, or the name of the function to call."
    )
    parallel_tool_calls: bool = Field(default=True, description="More than one call in an answer is allowed.")
    reasoning_budget: int | None = Field(
        default=None, ge=0, description="Tokens the model may think for; then it has to answer. Unset: no limit."
    )
    continue_final_message: bool = Field(
        default=False, description="The last message is the assistant's and is continued, not answered."
    )
    truncate: bool = Field(
        default=False, description="Cut the oldest tokens of a prompt that is too long, instead of an error."
    )
    return_prompt: bool = Field(default=False, description="Tell the exact prompt in the metadata.")

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
        if self.grammar is not None and self.tool_choice not in ("none", "auto"):
            raise ValueError("a grammar and a forced tool_choice exclude each other")
        return self

    @property
    def turns(self) -> tuple[ChatMessage, ...]:
        """The conversation: the messages, or the prompt as one user turn."""
        return self.messages or (ChatMessage(role="user", content=self.prompt or ""),)

    def cancelled_result(self, model_name: str, request_id: str) -> "GenerationResult":
        """An empty answer."""
        return GenerationResult(
            text="", model_name=model_name, tokens_generated=0, prompt_tokens=0, finish_reason="cancelled",
            execution_time=0.0, time_to_first_token=None, metadata={"request_id": request_id},
        )  # fmt: skip


FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


class TokenLogprob(Strict):
    """How likely a token was: its text, its bytes and its natural logarithm of probability; then the likeliest others."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top: tuple["TokenLogprob", ...] = ()


class GenerationResult(Strict):
    """A finished answer. Times are seconds; `metadata` says what made it."""

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
        description="From the start of the computation; None when there was none."
    )
    metadata: dict[str, Any] = Field(description="engine, device, quantization, seed, template, request_id, warnings …")

    @property
    def cancelled(self) -> bool:
        """Somebody ended the answer before it was complete."""
        return self.finish_reason == "cancelled"


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of the answer's tool call number `index`: `id` and `name` come first and once, `arguments` in pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TextDelta(Delta):
    """More of the answer: of its text, of the reasoning before it, of its tool calls. `tokens` have been generated."""

    text: str
    tokens: int
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens since the last delta, if they were asked for."""

    def merged(self, later: Delta) -> "TextDelta | None":
        """Both as one: text and reasoning joined, tool calls and logprobs in order."""
        if not isinstance(later, TextDelta):
            return None
        return TextDelta(
            self.text + later.text, later.tokens, self.reasoning + later.reasoning,
            self.tool_calls + later.tool_calls, self.logprobs + later.logprobs,
        )  # fmt: skip


ROW = TaskRow(name="llm", family="text", ask=GenerationConfig, result=GenerationResult, delta=TextDelta)
