"""What the manager reports about a model, and about a download."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class RefusedLoad(BaseModel):
    """A load that is not tried, or does not fit."""

    model_config = ConfigDict(frozen=True)

    engine: str
    device: str
    dtype: str | None = Field(description="null: the usual one of the engine and the device.")
    why: str


class Acceleration(BaseModel):
    """How a model is loaded: where, in which type, and why."""

    model_config = ConfigDict(frozen=True)

    engine: str
    device: str
    dtype: str
    context_length: int = Field(description="Tokens.")
    memory_mb: dict[str, float] = Field(description="MiB by device, as they are reserved.")
    why: str = Field(description="Why this engine, this device and this type.")
    layers: dict[str, int] = Field(
        default={}, description="Layers by device if the model is divided over several. Empty: all on `device`."
    )
    refused: tuple[RefusedLoad, ...] = Field(
        default=(), description="What would come before it, or was considered beside it, and why it is not taken."
    )


class ModelStatus(BaseModel):
    """One known model. Sizes are in MiB, times in seconds. `None` means not known or not applicable."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_name: str
    model_id: str
    model_type: str = Field(
        description="The task: llm, embedding, rerank, classification, zero_shot, ner; unsupported, with the reason in "
        "`error`; unknown, if the files cannot be read."
    )
    source: str
    """registered, models file, folder, hub cache, package, variant or request."""
    format: str | None = None
    engine: str | None = None
    architecture: str | None = None
    size_mb: float | None = None
    on_disk: bool = Field(default=False, description="Its files are on this machine.")
    tool_calling: bool = Field(default=False, description="Its chat template says how to call tools.")
    parameters: int | None = None
    instruct: bool | None = Field(
        default=None,
        description="Whether a text model was made to follow instructions or to chat, as its files say. false: a base model, "
        "which continues texts.",
    )
    state: Literal["registered", "loading", "ready", "unloading", "failed"] = Field(
        description="registered: not in memory. See `on_disk` and `error` too."
    )
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
    error: str | None = Field(default=None, description="Why it cannot be loaded, or why the last load failed.")

    acceleration: Acceleration | None = Field(
        default=None,
        description="How it is loaded. If it is not in memory: how it would be loaded now, with no other model in memory. "
        "null: it cannot be loaded, or is not on this machine.",
    )
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


def state_in_words(state: str, *, on_disk: bool, error: str | None) -> str:
    """A model's state for people to read: a model that is not in memory is on disk, to fetch, or cannot be loaded."""
    if state != "registered":
        return state
    return "cannot be loaded" if error else "on disk" if on_disk else "to fetch"


DownloadState = Literal["checking", "downloading", "paused", "done", "failed", "cancelled"]


class DownloadStatus(BaseModel):
    """One download. `None` means not known, or not applicable."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    id: str
    model_name: str
    model_id: str
    revision: str | None = None
    state: DownloadState = Field(
        description="checking: its files are looked at. paused: what came is kept, and `resume` goes on. cancelled: somebody "
        "cancelled it, or nobody waits for it any more."
    )
    done_bytes: int = 0
    total_bytes: int | None = Field(default=None, description="The whole model, also what was there before.")
    bytes_per_second: float | None = Field(default=None, description="Over the last ten seconds.")
    seconds_left: float | None = None
    disk_free_bytes: int | None = Field(default=None, description="Of the disk, before the download began.")
    engine: str | None = Field(default=None, description="The engine that will load it.")
    device: str | None = None
    memory_bytes: int | None = Field(default=None, description="What it is expected to take on the device.")
    memory_budget_bytes: int | None = Field(default=None, description="What all models together may take there.")
    path: str | None = Field(default=None, description="Where it is, once it is complete.")
    error: str | None = Field(default=None, description="Why it failed.")
