"""What the manager reports about a model."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ModelStatus(BaseModel):
    """One known model. Sizes are in MiB, times in seconds. `None` means not known or not applicable."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_name: str
    model_id: str
    model_type: str
    source: str
    """registered, folder, hub cache, package, variant or request."""
    format: str | None = None
    engine: str | None = None
    architecture: str | None = None
    size_mb: float | None = None
    instruct: bool | None = Field(
        default=None,
        description="Whether a text model was made to follow instructions or to chat, as its files say. false: a base model, "
        "which continues texts.",
    )
    state: Literal["registered", "loading", "ready", "unloading", "failed"]
    device: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    memory_estimate_mb: float | None = None
    memory_used_mb: float | None = None
    idle_s: float | None = None
    leases: int = 0
    pinned: bool = False
    keep_alive_s: float
    load_time_s: float | None = None
    progress: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None

    isolation: Literal["process", "inline"] | None = Field(
        default=None,
        description="process: the loaded model has a process of its own. inline: it runs inside the server's process.",
    )
    pid: int | None = Field(default=None, description="The process in which the loaded model runs.")
    uptime_s: float | None = Field(default=None, description="Seconds since it was loaded.")
    restarts: int = Field(
        default=0,
        description="How often its process ended although nobody asked for that. The next request loads the model again.",
    )
    last_exit: str | None = Field(default=None, description="How its process ended the last time that happened.")
    confined: Literal["full", "partial", "none"] | None = Field(
        default=None,
        description="Whether the system keeps the loaded model's process from files, the network, programs and other "
        "processes.",
    )
    confined_why: str | None = Field(default=None, description="Why `confined` is not full.")
    server_pid: int = Field(description="The process that answers: each worker of a server has its own models.")
