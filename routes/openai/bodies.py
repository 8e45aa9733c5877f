"""What clients send to chat/completions and completions: OpenAI's fields, and the options of this package."""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from lfx_local_runtimes.routes.access import MODEL_REF, ModelRef
from lfx_local_runtimes.routes.faults import InvalidField, validation_fault
from lfx_local_runtimes.routes.openai.conversation import (
    FunctionTool,
    Lenient,
    Message,
    Refusals,
    ResponseFormat,
    read_choice,
    refuse,
    tools_of,
    turns,
)
from lfx_local_runtimes.routes.openai.forms import FORMS, Forms, form_rules
from lfx_local_runtimes.runtimes.config import KeepAlive
from lfx_local_runtimes.runtimes.tasks.base import TokenIds
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig
from lfx_local_runtimes.runtimes.tasks.generation_rules import TOKEN_IDS, at_most_one, fields

UNLIMITED = 16_777_216
"""`max_tokens` if the client sends none. The answer ends by itself, or at the end of the context."""

MAX_CHOICES = 128
_SEEDS = 2**32 - 1
_SMALLEST_TOP_P = 1e-6

NOT_STORED = "Answers are not stored here. Leave it out, or set it to false."
_ONLY_TEXT = "Local models answer in text."
_TOOLS = "Use tools."

_NATIVE = (
    "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "min_tokens", "ignore_eos", "truncate",
    "keep_alive", "reasoning_budget",
)  # fmt: skip
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
"""OpenAI's, where ours differ."""


CHAT_REFUSALS: Refusals = {
    "audio": ((), _ONLY_TEXT),
    "modalities": ((["text"],), _ONLY_TEXT),
    "web_search_options": ((), _TOOLS),
    "functions": (([],), _TOOLS),
    "function_call": (("none", "auto"), "Use tool_choice."),
    "store": ((False,), NOT_STORED),
}
COMPLETION_REFUSALS: Refusals = {
    "best_of": ((1,), "Ask for n answers and choose."),
}


_STOP = {"type": "string", "minLength": 1, "maxLength": 1000}
Stop = Annotated[str | list[str], WithJsonSchema({"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": 64}]})]
"""The limits are those of `GenerationConfig`, which checks them: its error does not name both kinds."""

ToolChoice = Annotated[
    str | dict[str, Any],
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                {
                    "type": "object",
                    "required": ["type"],
                    "properties": {"type": {"enum": ["function", "allowed_tools"]}},
                },
            ]
        }
    ),
]
"""Which tools may be called. An object names tools of the request."""


class Sampling(Forms):
    """The fields that all three kinds of request share. The defaults are OpenAI's."""

    model: ModelRef = Field(description=MODEL_REF, examples=["gemma-3-270m"])
    temperature: float | None = Field(default=None, ge=0, le=2, description="Default 1.")
    top_p: float | None = Field(default=None, ge=0, le=1, description="Default 1.")
    stream: bool | None = Field(default=None, description="Send the answer as server-sent events while it is made.")
    user: str | None = Field(default=None, description="Accepted, not used.")

    top_k: int | None = Field(default=None, ge=-1, description="Not OpenAI's. 0, the default, or -1 turns it off.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Not OpenAI's. Default 0.")
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=10, description="Not OpenAI's. Default 1.")
    frequency_penalty: float | None = Field(
        default=None,
        ge=-2,
        le=2,
        description="Above 0 makes a token less likely with each time that the answer has it.",
    )
    presence_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Above 0 makes tokens that the answer already has less likely."
    )
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, max_length=1024, description="For token ids: a number that is added to the token's logit.",
        json_schema_extra=TOKEN_IDS,
    )  # fmt: skip
    stop: Stop | None = Field(default=None, description="The answer ends before any of these texts.")
    seed: int | None = Field(default=None, description="The same seed gives the same answer.")
    min_tokens: int | None = Field(
        default=None, ge=0, description="Not OpenAI's. The answer has at least this many tokens."
    )
    ignore_eos: bool | None = Field(
        default=None,
        description="Not OpenAI's. The model cannot end the answer; it ends at max_tokens or the end of the context.",
    )
    truncate: bool | None = Field(
        default=None, description="Not OpenAI's. If a prompt is too long, remove its oldest tokens instead of failing."
    )
    keep_alive: KeepAlive | None = Field(
        default=None,
        description="Not OpenAI's. Seconds the model stays in memory afterwards when idle; -1 keeps it forever.",
    )
    reasoning_budget: int | None = Field(
        default=None, ge=0, description="Not OpenAI's. Tokens the model may think for."
    )

    @property
    def seeds(self) -> int | None:
        """The seed in the engines' range. OpenAI's is any 64-bit number."""
        return None if self.seed is None else self.seed % _SEEDS

    def options(self) -> dict[str, Any]:
        """The fields of a `GenerationConfig` that are set."""
        found = {name: value for name in _NATIVE if (value := getattr(self, name)) is not None}
        if self.temperature is not None:
            found["temperature"] = self.temperature
        if self.top_k is not None:
            found["top_k"] = max(self.top_k, 0)
        if self.top_p is not None:
            found["top_p"] = max(self.top_p, _SMALLEST_TOP_P)
        if self.stop is not None:
            found["stop"] = self.stop
        if self.logit_bias is not None:
            found["logit_bias"] = self.logit_bias
        return found if self.seeds is None else found | {"seed": self.seeds}


def configure(options: dict[str, Any], max_tokens: int = UNLIMITED) -> GenerationConfig:
    """The engine's configuration, with OpenAI's defaults. They count as unset: a model's own defaults go before them.

    Args:
        options: the fields; those that are None are unset.
        max_tokens: OpenAI's default for this route.

    Raises:
        InvalidField: the options contradict each other, or one is out of range.
    """
    try:
        asked = {name: value for name, value in options.items() if value is not None}
        config = GenerationConfig.model_validate({**_DEFAULTS, "max_tokens": max_tokens, **asked})
        return GenerationConfig.model_construct(set(asked), **dict(config))
    except ValidationError as error:
        raise validation_fault(error.errors(include_url=False)) from error


def _some(value: int) -> int:
    if value == 0:
        raise ValueError("Input should be at least 1, or -1 for no limit")
    return UNLIMITED if value == -1 else value


_MAX_TOKENS_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": UNLIMITED}, {"const": -1}]}

MaxTokens = Annotated[int, Field(ge=-1, le=UNLIMITED), AfterValidator(_some), WithJsonSchema(_MAX_TOKENS_SCHEMA)]
"""How many tokens an answer may have. Other servers' clients write -1 for no limit."""


class StreamOptions(Lenient):
    """How to stream."""

    include_usage: bool | None = Field(default=None, description="The last chunk has the numbers of tokens.")


class _Completions(Sampling):
    """The fields that chat/completions and completions share."""

    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES, description="How many answers each prompt gets.")
    stream_options: StreamOptions | None = Field(default=None, description="How to stream.")

    @property
    def wants_usage(self) -> bool:
        """Whether the last chunk of the stream reports the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def choices(self, config: GenerationConfig) -> list[GenerationConfig]:
        """A request for each of the `n` answers. With a seed, each answer has the next one; otherwise a random one."""
        count, first = self.n or 1, self.seeds
        if first is None:
            return [config] * count
        return [config.model_copy(update={"seed": (first + index) % _SEEDS}) for index in range(count)]


PLAIN_FORMAT = {"properties": {"type": {"const": "text"}}}
"""Or none."""
_LOGPROBS = {"anyOf": [fields(top_logprobs={"enum": [0, None]}), fields("logprobs", logprobs={"const": True})]}


class ChatBody(_Completions):
    """The body of chat/completions."""

    model_config = ConfigDict(json_schema_extra=form_rules(_LOGPROBS, response_format=PLAIN_FORMAT))

    messages: list[Message] = Field(min_length=1, max_length=10_000, description="The conversation to answer.")
    max_completion_tokens: MaxTokens | None = Field(default=None, description="-1, or none: no limit.")
    max_tokens: MaxTokens | None = Field(default=None, description="The older name of max_completion_tokens.")
    logprobs: bool | None = Field(default=None, description="Return the log-probability of each token of the answer.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Also return this many of the most likely tokens at each place."
    )
    response_format: ResponseFormat | None = Field(default=None, description="The form that the answer must have.")
    tools: list[FunctionTool] | None = Field(
        default=None, max_length=128, description="The functions that the model may call."
    )
    tool_choice: ToolChoice | None = Field(
        default=None, description="none, auto, required, or an object that names a function."
    )
    parallel_tool_calls: bool | None = Field(default=None, description="Allow more than one call. Default true.")
    reasoning_effort: str | None = Field(
        default=None, description="`none` means a reasoning_budget of 0. Other values are not used."
    )
    continue_final_message: bool | None = Field(
        default=None, description="Not OpenAI's. The last message is the assistant's, and the answer continues it."
    )

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: object) -> object:
        return refuse(data, CHAT_REFUSALS)

    def configs(self) -> list[GenerationConfig]:
        """A configuration for each answer.

        Raises:
            InvalidField: the fields contradict each other.
        """
        named = [tool.function.tool() for tool in self.tools or ()]
        choice, left = read_choice(self.tool_choice, named)
        options = self.options() | {
            "messages": turns((message.turn() for message in self.messages), "messages"),
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "logprobs": bool(self.logprobs),
            "top_logprobs": self.top_logprobs or 0,
            "tools": tools_of(left),
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "grammar": self.constraint(
                self.response_format.grammar() if self.response_format else None, "response_format"
            ),
            "continue_final_message": bool(self.continue_final_message),
        }
        if self.reasoning_effort == "none":
            options.setdefault("reasoning_budget", 0)
        return self.choices(configure(options))


_OFF = {"enum": [False, None]}
_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_GAP: dict[str, Any] = {"anyOf": [fields(suffix={"enum": ["", None]}), fields(prompt=_TEXTS, echo=_OFF, truncate=_OFF)]}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Prompts = Annotated[
    str | list[str] | TokenIds | list[TokenIds],
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                _IDS,
                *(
                    {"type": "array", "items": one, "minItems": 1, "maxItems": MAX_CHOICES}
                    for one in ({"type": "string"}, _IDS)
                ),
            ]
        }
    ),
]


class CompletionBody(_Completions):
    """The body of completions: a text to continue without a chat template, or token ids."""

    model_config = ConfigDict(json_schema_extra={"allOf": [at_most_one(*FORMS), _GAP]})

    prompt: Prompts = Field(description="The text to continue, or the model's token ids; or several of either.")
    suffix: str | None = Field(
        default=None,
        description="The text after a gap that the answer fills. Only for GGUF models that were trained for it.",
    )
    echo: bool | None = Field(
        default=None,
        description="Begin the answer with the prompt; with logprobs also with those of its tokens. Only for GGUF models.",
    )
    max_tokens: MaxTokens | None = Field(default=None, description="Default 16. -1: no limit.")
    logprobs: int | None = Field(
        default=None, ge=0, le=20,
        description="Return the log-probability of each token of the answer, and this many of the most likely ones.",
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: object) -> object:
        return refuse(data, COMPLETION_REFUSALS)

    def configs(self) -> list[GenerationConfig]:
        """A configuration for each answer: all of the first prompt, then all of the next one …

        Raises:
            InvalidField: the fields contradict each other.
        """
        one = isinstance(self.prompt, str) or isinstance(next(iter(self.prompt), None), int)
        prompts = [self.prompt] if one else self.prompt
        if not 0 < len(prompts) * (self.n or 1) <= MAX_CHOICES:
            raise InvalidField(
                f"prompt: {len(prompts)} prompts of {self.n or 1} answers each; a request may have 1 to {MAX_CHOICES} answers.",
                param="prompt", hint="Send several requests.",
            )  # fmt: skip
        options = self.options() | {
            "raw": True,
            "suffix": self.suffix or None,
            "echo": bool(self.echo),
            "max_tokens": self.max_tokens,
            "logprobs": self.logprobs is not None,
            "top_logprobs": self.logprobs or 0,
            "grammar": self.constraint(None, ""),
        }
        fields = [{"prompt" if isinstance(prompt, str) else "prompt_ids": prompt} for prompt in prompts]
        return [config for prompt in fields for config in self.choices(configure(options | prompt, max_tokens=16))]
