"""Bodies of requests and answers that only the routes use."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from lfx_local_runtimes.routes.access import ModelRef
from lfx_local_runtimes.routes.tasks.bodies import ask_of
from lfx_local_runtimes.runtimes.health import HealthState
from lfx_local_runtimes.runtimes.planning import Inspection
from lfx_local_runtimes.runtimes.registrar import Removed
from lfx_local_runtimes.runtimes.status import ModelStatus
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig

_MIB = 2**20


class Addressed(BaseModel):
    """Which model a request is for, and its id."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: ModelRef = Field(examples=["gemma-3-270m"])
    request_id: Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")] | None = Field(
        default=None, description="Your id for the request, for cancelling it. If you send none, the server makes one."
    )


class GenerateBody(Addressed, GenerationConfig):
    """A request for text: the model, a prompt or messages, and sampling options."""

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

    model_name: str
    valid: bool
    problems: list[str]
    task: str = Field(description="What the model does, as its files say; unsupported if nothing here serves it.")
    unsupported: str | None = Field(description="Why nothing here serves it.")
    format: str
    engine: str | None = Field(description="The engine that will serve the model.")
    path: str
    files: list[str]
    size_mb: float
    architecture: str | None
    parameters: int | None
    quantization: str | None
    context_length: int | None
    instruct: bool
    has_chat_template: bool
    memory_estimate_mb: float | None

    @classmethod
    def of(cls, model_name: str, info: Inspection) -> "ModelReport":
        """The JSON form of an inspection."""
        return cls(
            model_name=model_name, valid=info.valid, problems=list(info.problems), task=info.task,
            unsupported=info.unsupported or None, format=info.format.value,
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
