"""How a model is to be loaded: plain, serialisable data."""

import re
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

FOREVER = -1.0
"""A keep-alive that never ends."""

AUTO_ENGINE = "auto"
"""A runtime type that leaves it to the model's files."""

AUTO_TASK = "auto"
"""A model type that leaves it to the model's files."""

_TASK_ALIASES = {
    "chat": "llm", "code": "llm", "coder": "llm", "completion": "llm", "conversational": "llm", "generation": "llm",
    "image_text_to_text": "llm", "instruct": "llm", "text": "llm", "text_generation": "llm",
    "embeddings": "embedding", "feature_extraction": "embedding", "sentence_similarity": "embedding",
    "reranker": "rerank", "reranking": "rerank", "text_ranking": "rerank",
    "classifier": "classification", "text_classification": "classification",
    "image_captioning": "caption", "image_to_text": "caption", "visual_question_answering": "vqa",
    "zero_shot_classification": "zero_shot", "token_classification": "ner", "entities": "ner",
    "image_feature_extraction": "image_embedding", "clip": "zero_shot_image_classification",
}  # fmt: skip
"""Other words for the tasks, among them the hub's."""

MAX_PROMPT_CHARS = 4_000_000

_QUANTIZATION = re.compile(r"fp32|fp16|bf16|int8|int4|(?:I?Q|TQ)[1-8]_[A-Z0-9_]+")


def _engines() -> list[str]:
    from lfx_local_runtimes.runtimes.engines.registry import engine_names  # it imports this module

    return [AUTO_ENGINE, *engine_names()]


class _Engines(type):
    """Lets `RuntimeType` be iterated as an `Enum` is."""

    def __iter__(cls) -> Iterator["RuntimeType"]:
        return map(RuntimeType._named, _engines())


class RuntimeType(str, metaclass=_Engines):
    """The name of an engine. Open: any name registered with `register_engine` is a runtime type.

    `AUTO` chooses by what the model's files are. Otherwise used as an `Enum` is: it iterates, has `value`, and
    `RuntimeType(name)` raises a `ValueError` if there is no such engine.
    """

    __slots__ = ()

    AUTO: ClassVar["RuntimeType"]
    LLAMA_CPP: ClassVar["RuntimeType"]
    TRANSFORMERS: ClassVar["RuntimeType"]
    ONNX: ClassVar["RuntimeType"]
    GEMMA_LOCAL: ClassVar["RuntimeType"]
    GEMMA_STREAMING: ClassVar["RuntimeType"]

    def __new__(cls, name: str) -> "RuntimeType":
        """Raises ValueError if there is no such engine."""
        made = cls._named(name.lower())
        if made not in _engines():
            raise ValueError(f"There is no engine {name}. Use one of: {', '.join(_engines())}.")
        return made

    @classmethod
    def _named(cls, name: str) -> "RuntimeType":
        """Without the question whether the engine is there."""
        return str.__new__(cls, name)

    @property
    def value(self) -> str:
        """The name as plain text."""
        return str(self)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(
            cls._read, core_schema.str_schema(to_lower=True, pattern=r"^[a-zA-Z][a-zA-Z0-9_]{0,63}$")
        )

    @classmethod
    def _read(cls, name: str, info: ValidationInfo) -> "RuntimeType":
        """Our own files and processes are read with a context. They may name an engine that is not here any more."""
        return cls(name) if info.context is None else cls._named(name)


RuntimeType.AUTO = RuntimeType._named(AUTO_ENGINE)
RuntimeType.LLAMA_CPP = RuntimeType._named("llama_cpp")
RuntimeType.TRANSFORMERS = RuntimeType._named("transformers")
RuntimeType.ONNX = RuntimeType._named("onnx")
RuntimeType.GEMMA_LOCAL = RuntimeType._named("gemma_local")
RuntimeType.GEMMA_STREAMING = RuntimeType._named("gemma_streaming")


class DeviceType(str, Enum):
    """Where a model runs. `AUTO` takes the best device that is there."""

    AUTO = "auto"
    CUDA = "cuda"
    MPS = "mps"
    CPU = "cpu"


class Strict(BaseModel):
    """Frozen; a field it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Name = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=200, pattern=r"^\s*[^\x00-\x1f\x7f\\\s][^\x00-\x1f\x7f\\]*$"
    ),
]
KeepAlive = Annotated[float, Field(ge=FOREVER, allow_inf_nan=False)]


def task_named(text: str) -> str:
    """The task that a word stands for: `text-generation` and `coder` are `llm`. Any other word stays as it is."""
    name = text.lower().replace("-", "_")
    return _TASK_ALIASES.get(name, name)


def _known_quantization(value: str) -> str:
    for form in (value, value.lower(), value.upper()):
        if _QUANTIZATION.fullmatch(form):
            return form
    raise ValueError("must be one of fp32, fp16, bf16, int8, int4, or a GGUF type such as Q4_K_M")


ContextLength = Annotated[int, Field(ge=16, le=16_777_216)]
"""Tokens."""

Quantization = (
    Annotated[
        str,
        AfterValidator(_known_quantization),
        WithJsonSchema({"type": "string", "pattern": f"^(?:{_QUANTIZATION.pattern})$"}),
    ]
    | None
)


class LoadOptions(Strict):
    """Options of a caller that make another copy of a model. None: as the model's configuration says."""

    runtime_type: RuntimeType | None = None
    device_type: DeviceType | None = None
    quantization: Quantization = None
    context_length: ContextLength | None = None

    def applied_to(self, config: "ModelConfig") -> "ModelConfig":
        """The configuration with these options. It is the same object if they change nothing.

        A shorter context than the model's own changes nothing: nobody loads a second copy for it.

        Raises:
            ValueError: the options do not go together with the configuration, or are out of range.
        """
        wanted = self.model_dump(exclude_none=True)
        context = self.context_length
        if context is not None and config.context_length is not None and context <= config.context_length:
            del wanted["context_length"]
        made = ModelConfig.model_validate({**config.model_dump(), **wanted})
        return config if made == config else made

    def __str__(self) -> str:
        chosen = self.model_dump(mode="json", exclude_none=True)
        return ", ".join(f"{_SHORT[name]} {value}" for name, value in chosen.items())


_SHORT = {"runtime_type": "on", "device_type": "device", "quantization": "as", "context_length": "context"}


class ModelKey(NamedTuple):
    """One copy of a model: its name, and the options that differ from its own configuration."""

    name: str
    options: LoadOptions = LoadOptions()

    @property
    def plain(self) -> bool:
        """The model as it is configured."""
        return self.options == LoadOptions()

    def __str__(self) -> str:
        return self.name if self.plain else f"{self.name} ({self.options})"


class Prompts(Strict):
    """Texts of the operator for a model. Each counts if the request has none of its own."""

    system: Annotated[str, StringConstraints(max_length=100_000)] | None = Field(
        default=None, description="The system message of a conversation."
    )
    query: Annotated[str, StringConstraints(max_length=10_000)] | None = Field(
        default=None, description="Put before texts that are embedded as queries."
    )
    document: Annotated[str, StringConstraints(max_length=10_000)] | None = Field(
        default=None, description="Put before texts that are embedded as documents."
    )


class Defaults(Strict):
    """What requests get that leave these fields unset. Those that the request's task does not have are left out."""

    max_tokens: Annotated[int, Field(ge=1, le=16_777_216)] | None = Field(default=None, description="For text.")
    temperature: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] | None = Field(
        default=None, description="For text."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="For text.")
    top_k: Annotated[int, Field(ge=0)] | None = Field(default=None, description="For text.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, description="For text.")
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = Field(default=None, description="For text.")
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = Field(default=None, description="For text.")
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = Field(default=None, description="For text.")
    stop: (
        Annotated[tuple[Annotated[str, StringConstraints(min_length=1, max_length=1000)], ...], Field(max_length=64)]
        | None
    ) = Field(default=None, description="For text.")
    seed: Annotated[int, Field(ge=0, lt=2**32 - 1)] | None = Field(default=None, description="For text.")
    reasoning_budget: Annotated[int, Field(ge=0)] | None = Field(default=None, description="For text.")
    truncate: bool | None = Field(default=None, description="For text.")
    overflow: Literal["truncate", "error"] | None = Field(default=None, description="For models that read.")
    normalize: bool | None = Field(default=None, description="For embeddings.")
    dimensions: Annotated[int, Field(ge=1)] | None = Field(default=None, description="For embeddings.")


class ModelConfig(Strict):
    """How one model is to be loaded. Frozen: two equal configurations are the same model.

    `model_id` is a Hugging Face repository, a folder or a file; `model_name` is what requests call it.
    """

    model_id: Annotated[
        str,
        StringConstraints(
            strip_whitespace=True, min_length=1, max_length=1024, pattern=r"^\s*[^\x00-\x1f\x7f\s][^\x00-\x1f\x7f]*$"
        ),
    ] = Field(description="Where it comes from: a Hugging Face id, a folder or a file, or the name of a found model.")
    model_name: Name = Field(default="", description="What requests call it. Unset: the model_id.")
    model_type: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"), AfterValidator(task_named)
    ] = Field(
        default=AUTO_TASK,
        description="The task: llm, embedding, rerank, classification, zero_shot, ner, ocr, or another word for one of them, "
        "such as chat or text-generation. Auto: as the model's files say.",
    )
    runtime_type: RuntimeType = Field(default=RuntimeType.AUTO, description="The engine; auto chooses by the files.")
    device_type: DeviceType = Field(
        default=DeviceType.AUTO, description="Where it runs. auto: the best device there is."
    )
    quantization: Quantization = Field(
        default=None,
        description="fp32, fp16, bf16, int8 or int4 (Transformers, ONNX), or the GGUF file to take from a hub repository (Q4_K_M …).",
    )
    context_length: ContextLength | None = Field(
        default=None, description="Tokens. Unset: as many as the model was trained for and memory allows."
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
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads at most. Unset: the physical cores."
    )
    gpu_layers: int | None = Field(
        default=None,
        ge=0,
        description="llama.cpp layers on the accelerator; the output counts as one. Unset: as many as fit.",
    )
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

    prompts: Prompts = Field(default=Prompts(), description="Texts for requests that have none of their own.")
    defaults: Defaults = Field(default=Defaults(), description="For fields that a request leaves unset.")

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_id(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and "model_id" in fields and fields.get("model_name") is None:
            return {**fields, "model_name": fields["model_id"]}
        return fields
