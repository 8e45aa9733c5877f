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
        default="llm", description="The task."
    )
    runtime_type: RuntimeType = Field(default=RuntimeType.AUTO, description="The engine; auto chooses by the files.")
    device_type: DeviceType = DeviceType.AUTO
    quantization: str | None = Field(
        default=None,
        description="fp32, fp16, bf16, int8 or int4 (Transformers), or the GGUF file to take from a hub repository (Q4_K_M …).",
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
    keep_alive: KeepAlive | None = Field(default=None, description="Idle seconds before it leaves memory; -1 is never.")
    pinned: bool = Field(
        default=False, description="Never evicted and never timed out; an explicit unload still works."
    )
    requires_accelerator: bool = Field(default=False, description="Refuse to run on the CPU.")
    trust_remote_code: bool = Field(default=False, description="Also needs the setting of the same name.")
    threads: int | None = Field(default=None, ge=1, le=1024, description="CPU threads. Unset: the physical cores.")
    gpu_layers: int | None = Field(default=None, ge=0, description="llama.cpp layers on the accelerator. Unset: all.")

    @field_validator("quantization")
    @classmethod
    def _known_quantization(cls, value: str | None) -> str | None:
        if value is None or _QUANTIZATION.fullmatch(value):
            return value
        for normalised in (value.lower(), value.upper()):
            if _QUANTIZATION.fullmatch(normalised):
                return normalised
        raise ValueError("must be one of fp32, fp16, bf16, int8, int4, or a GGUF type such as Q4_K_M")


class ChatMessage(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)]


class GenerationConfig(_Strict):
    """One request for text: a `prompt` or `messages`, and how to sample.

    A prompt is one user turn and goes through the chat template, unless `raw` is set. Sampling means the same on every
    engine and is applied in this order: repetition penalty (over prompt and answer), top-k, top-p, min-p, temperature.
    Temperature 0 is greedy.
    """

    prompt: Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)] | None = None
    messages: tuple[ChatMessage, ...] | None = Field(default=None, min_length=1, max_length=10_000)
    raw: bool = Field(default=False, description="Continue the prompt as it stands, without a template.")
    max_tokens: int = Field(default=512, ge=1, le=16_777_216)
    temperature: float = Field(default=0.7, ge=0, le=5, allow_inf_nan=False)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=40, ge=0, description="0 is off.")
    min_p: float = Field(default=0.05, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    stop: tuple[Annotated[str, StringConstraints(min_length=1, max_length=1000)], ...] = Field(
        default=(), max_length=64
    )
    seed: int | None = Field(default=None, ge=0, lt=2**32 - 1)
    keep_alive: KeepAlive | None = Field(
        default=None, description="Overrides the model's idle time after this request."
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: object) -> object:
        return () if value is None else (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_input(self) -> "GenerationConfig":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        if self.raw and self.prompt is None:
            raise ValueError("raw needs a prompt, not messages")
        return self

    @property
    def turns(self) -> tuple[ChatMessage, ...]:
        """The conversation: the messages, or the prompt as one user turn."""
        return self.messages or (ChatMessage(role="user", content=self.prompt or ""),)


FinishReason = Literal["stop", "length", "cancelled"]


class GenerationResult(_Strict):
    """A finished answer. Times are seconds; `metadata` says what made it."""

    text: str
    model_name: str
    tokens_generated: int
    prompt_tokens: int
    finish_reason: FinishReason
    execution_time: float = Field(description="From the start of the computation to the last token.")
    time_to_first_token: float | None = Field(
        description="From the start of the computation; None when there was none."
    )
    metadata: dict[str, Any] = Field(description="engine, device, quantization, seed, template, request_id, warnings …")
