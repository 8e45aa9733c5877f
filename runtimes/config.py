"""What callers say and get: model and generation configuration, results. Plain, serialisable data."""

import re
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

FOREVER = -1.0
"""A keep-alive that never ends."""

AUTO_TASK = "auto"
"""A model type that leaves it to the model's files."""

MAX_PROMPT_CHARS = 4_000_000

_QUANTIZATION = re.compile(r"fp32|fp16|bf16|int8|int4|(?:I?Q|TQ)[1-8]_[A-Z0-9_]+")


class RuntimeType(str):
    """The name of an engine. Open: any name registered with `register_engine` is a runtime type.

    `AUTO` chooses by what the model's files are.
    """

    __slots__ = ()

    AUTO: ClassVar["RuntimeType"]
    LLAMA_CPP: ClassVar["RuntimeType"]
    TRANSFORMERS: ClassVar["RuntimeType"]
    ONNX: ClassVar["RuntimeType"]
    GEMMA_LOCAL: ClassVar["RuntimeType"]
    GEMMA_STREAMING: ClassVar["RuntimeType"]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(to_lower=True, pattern=r"^[a-zA-Z][a-zA-Z0-9_]{0,63}$")
        )


RuntimeType.AUTO = RuntimeType("auto")
RuntimeType.LLAMA_CPP = RuntimeType("llama_cpp")
RuntimeType.TRANSFORMERS = RuntimeType("transformers")
RuntimeType.ONNX = RuntimeType("onnx")
RuntimeType.GEMMA_LOCAL = RuntimeType("gemma_local")
RuntimeType.GEMMA_STREAMING = RuntimeType("gemma_streaming")


class DeviceType(str, Enum):
    """Where a model runs. `AUTO` takes the best device that is there."""

    AUTO = "auto"
    CUDA = "cuda"
    MPS = "mps"
    CPU = "cpu"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f\\]+$")
]
KeepAlive = Annotated[float, Field(ge=FOREVER, allow_inf_nan=False)]


class ModelConfig(_Strict):
    """How one model is to be loaded. Frozen: two equal configurations are the same model.

    `model_id` is a Hugging Face repository, a folder or a file; `model_name` is what requests call it.
    """

    model_id: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$")
    ]
    model_name: Name
    model_type: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = Field(
        default=AUTO_TASK, description="The task: llm, embedding, rerank … Auto: as the model's files say."
    )
    runtime_type: RuntimeType = Field(default=RuntimeType.AUTO, description="The engine; auto chooses by the files.")
    device_type: DeviceType = DeviceType.AUTO
    quantization: str | None = Field(
        default=None,
        description="fp32, fp16, bf16, int8 or int4 (Transformers, ONNX), or the GGUF file to take from a hub repository (Q4_K_M …).",
    )
    context_length: int | None = Field(
        default=None, ge=16, le=16_777_216, description="Tokens. Unset: the model's own, at most 4,096."
    )
    revision: Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9_./-]+$")] | None = Field(
        default=None, description="Branch, tag or commit on the hub."
    )
    chat_template: Annotated[str, StringConstraints(max_length=200_000)] | None = Field(
        default=None,
        description="Overrides the template choice: Jinja text, or one of gemma, chatml, llama3, dialogue, none.",
    )
    pooling: Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len", "weightedmean"] | None = Field(
        default=None,
        description="How an embedding model's tokens become one vector. Unset: as the model's files say, else mean. "
        "llama.cpp does mean, cls and lasttoken.",
    )
    keep_alive: KeepAlive | None = Field(default=None, description="Idle seconds before it leaves memory; -1 is never.")
    pinned: bool = Field(
        default=False, description="Never evicted and never timed out; an explicit unload still works."
    )
    requires_accelerator: bool = Field(default=False, description="Refuse to run on the CPU.")
    trust_remote_code: bool = Field(default=False, description="Also needs the setting of the same name.")
    threads: int | None = Field(default=None, ge=1, le=1024, description="CPU threads at most. Unset: the physical cores.")
    gpu_layers: int | None = Field(default=None, ge=0, description="llama.cpp layers on the accelerator. Unset: all.")
    parallel: int | None = Field(
        default=None, ge=1, le=64, description="Requests computed at once. Unset: up to 8, as many as memory allows."
    )
    deterministic: bool = Field(
        default=False,
        description="Greedy answers do not depend on what else is computed, bit for bit; weights are then not repacked for speed.",
    )
    max_queued: int = Field(
        default=256, ge=1, le=100_000, description="Requests in hand and waiting; more are refused."
    )

    @field_validator("quantization")
    @classmethod
    def _known_quantization(cls, value: str | None) -> str | None:
        if value is None or _QUANTIZATION.fullmatch(value):
            return value
        for normalised in (value.lower(), value.upper()):
            if _QUANTIZATION.fullmatch(normalised):
                return normalised
        raise ValueError("must be one of fp32, fp16, bf16, int8, int4, or a GGUF type such as Q4_K_M")


class ToolCall(_Strict):
    """A call the model made: the function's name and its arguments as JSON text."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    arguments: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)]


class ChatMessage(_Strict):
    """One turn of a conversation. An assistant's turn may hold tool calls; a tool's says which call it answers."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: Annotated[str, StringConstraints(max_length=200)] | None = None
    name: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        default=None, description="Of the function a tool message answers for."
    )


class Tool(_Strict):
    """A function the model may call."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: Annotated[str, StringConstraints(max_length=100_000)] = ""
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"type": "object", "properties": {}}, description="A JSON schema of an object."
    )


class Grammar(_Strict):
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


class GenerationConfig(_Strict):
    """One request for text: a `prompt` or `messages`, and how to sample.

    A prompt is one user turn and goes through the chat template, unless `raw` is set. Sampling means the same on every
    engine and is applied in this order: `logit_bias`, `grammar`, repetition penalty (over prompt and answer), frequency
    and presence penalty (over the answer), top-k, top-p, min-p, temperature. Temperature 0 is greedy.
    """

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
    keep_alive: KeepAlive | None = Field(
        default=None, description="Overrides the model's idle time after this request."
    )

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


FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


class TokenLogprob(_Strict):
    """How likely a token was: its text, its bytes and its natural logarithm of probability; then the likeliest others."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top: tuple["TokenLogprob", ...] = ()


class GenerationResult(_Strict):
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
