"""Bodies of requests and answers that only the routes use."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from lfx_local_runtimes.routes.access import MODEL_REF, ModelRef
from lfx_local_runtimes.routes.tasks.bodies import ask_of
from lfx_local_runtimes.runtimes.health import HealthState
from lfx_local_runtimes.runtimes.planning import Inspection
from lfx_local_runtimes.runtimes.registrar import Removed
from lfx_local_runtimes.runtimes.status import ModelStatus
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig

_MIB = 2**20


RequestId = Annotated[
    Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")] | None,
    Field(description="Your id for the request, for cancelling it. If you send none, the server makes one."),
]


class Addressed(BaseModel):
    """Which model a request is for, and its id."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: ModelRef = Field(description=MODEL_REF, examples=["gemma-3-270m"])
    request_id: RequestId = None


class GenerateBody(Addressed, GenerationConfig):
    """A request for text: the model, a prompt or messages, and sampling options."""

    stream: bool = Field(default=False, description="Stream the answer, as `generate/stream` does.")

    @property
    def generation(self) -> GenerationConfig:
        """The part for the engine room."""
        return ask_of(self, GenerationConfig)


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class ModelList(_Answer):
    """Models and their states."""

    models: list[ModelStatus]


class ModelReport(_Answer):
    """Facts from a model's files; nothing is loaded. Sizes are in MiB, lengths in tokens."""

    model_name: str = Field(description="The model.")
    valid: bool = Field(description="Its files have no problems.")
    message: str = Field(description="Whether the model can be loaded, in a sentence.")
    problems: list[str] = Field(description="What is wrong with its files.")
    task: str = Field(description="What the model does, as its files say; unsupported if nothing here serves it.")
    vision: bool = Field(description="It is a language model that reads pictures too.")
    unsupported: str | None = Field(description="Why nothing here serves it.")
    format: str = Field(description="gguf, safetensors, onnx …")
    engine: str | None = Field(description="The engine that will serve the model.")
    path: str = Field(description="Its file or folder.")
    files: list[str] = Field(description="The files that are loaded.")
    size_mb: float = Field(description="Of these files.")
    architecture: str | None = Field(description="As its files name it.")
    parameters: int | None = Field(description="How many numbers its weights have.")
    quantization: str | None = Field(description="The type of its weights on the disk.")
    context_length: int | None = Field(description="What it was trained for.")
    instruct: bool = Field(description="Its files say that it follows instructions.")
    has_chat_template: bool = Field(description="Its files have a chat template.")
    memory_estimate_mb: float | None = Field(description="For the weights as they are stored.")

    @classmethod
    def of(cls, model_name: str, info: Inspection) -> "ModelReport":
        """The JSON form of an inspection."""
        message = f"{model_name} can be loaded: {info.format.value}, by {info.engine}."
        if not info.valid:
            message = f"{model_name} cannot be loaded: {'; '.join(info.problems)}."
        elif info.unsupported:
            message = f"{model_name} cannot be loaded: {info.unsupported}."
        elif info.engine is None:
            message = f"{model_name} cannot be loaded: no engine loads {info.format.value} files."
        return cls(
            model_name=model_name, valid=info.valid, message=message, problems=list(info.problems), task=info.task,
            vision=info.vision, unsupported=info.unsupported or None, format=info.format.value,
            engine=info.engine, path=str(info.path), files=[file.name for file in info.files],
            size_mb=round(info.size_bytes / _MIB, 1), architecture=info.architecture, parameters=info.parameters,
            quantization=info.quantization, context_length=info.context_length, instruct=info.instruct,
            has_chat_template=info.chat_template is not None,
            memory_estimate_mb=round(info.memory.total / _MIB, 1) if info.memory else None,
        )  # fmt: skip


class Removal(_Answer):
    """A model that was removed."""

    model_name: str
    unregistered: bool = Field(description="It was registered, and is no longer.")
    freed_mb: float = Field(description="MiB that its files took on the disk; 0 if they stay.")

    @classmethod
    def of(cls, removed: Removed) -> "Removal":
        """The JSON form of what the manager did."""
        return cls(
            model_name=removed.model_name, unregistered=removed.unregistered,
            freed_mb=round(removed.freed_bytes / _MIB, 1),
        )  # fmt: skip


class Unloading(_Answer):
    """The models that `unload-all` takes out of memory."""

    unloading: list[str]
    in_use: list[str] = Field(description="These stay, because they are in use. `force=true` cancels their requests.")


class Cancelled(_Answer):
    """A request that was cancelled."""

    request_id: str
    state: str = Field(description="The state before: queued or running; or finished, failed or cancelled already.")


class ModelHealth(_Answer):
    """One model in memory."""

    status: str
    device: str | None
    memory_used_mb: float | None
    pid: int | None = Field(description="The process in which it runs.")
    uptime_s: float | None = Field(description="Seconds since it was loaded.")
    restarts: int = Field(description="How often its process ended although nobody asked for that.")


class Health(_Answer):
    """Whether the runtime serves, and the models in memory."""

    status: HealthState = Field(
        description="degraded: something does not work. unhealthy: nothing new can be served until somebody acts."
    )
    reasons: list[str] = Field(description="Why the status is not healthy, and what to do.")
    registered_models: int
    loaded_models: int
    device: str = Field(description="The device of models that name none.")
    device_info: dict[str, Any] = Field(
        description="cuda, mps, gpu_name, memory_gb, and devices: each with its type and its total and free bytes."
    )
    models: dict[str, ModelHealth]


class Stats(_Answer):
    """The memory ledger, counters since the start, and the process."""

    model_config = ConfigDict(extra="allow")

    memory: Any = Field(description="Budget, use and free bytes per device, and each model's share.")
    counters: dict[str, int] = Field(
        description="loads, unloads, evictions, failed_loads, requests by their end; deaths: processes of models that ended "
        "although nobody asked for that."
    )
    running_requests: int
    uptime_s: float
    pid: int
