"""What the manager reports about a model, and about a download."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class RefusedLoad(BaseModel):
    """A load that is not tried, or does not fit."""

    model_config = ConfigDict(frozen=True)

    engine: str = Field(description="What would compute it.")
    device: str = Field(description="Where it would run: cpu, cuda:0, mps; several are joined by `and`.")
    dtype: str | None = Field(description="The type of its weights. null: the usual one of the engine and the device.")
    why: str = Field(description="The reason against it.")


class Acceleration(BaseModel):
    """How a model is loaded: where, in which type, and why."""

    model_config = ConfigDict(frozen=True)

    engine: str = Field(description="What computes it.")
    device: str = Field(description="Where it runs: cpu, cuda:0, mps.")
    dtype: str = Field(description="The type of its weights.")
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

    model_name: str = Field(description="What requests call it.")
    model_id: str = Field(
        description="Where it comes from: a Hugging Face id, a path, or the name of a packaged model."
    )
    model_type: str = Field(
        description="The task: llm, embedding, rerank, classification, zero_shot, ner, caption, vqa; unsupported, with the "
        "reason in `error`; unknown, if the files cannot be read."
    )
    source: str = Field(
        description="How its name is known: registered, models file, folder, hub cache, package; variant, a copy with other "
        "load options; or request."
    )
    format: str | None = Field(default=None, description="gguf, safetensors, onnx …")
    engine: str | None = Field(default=None, description="What runs it, or would run it.")
    architecture: str | None = Field(default=None, description="As its files name it.")
    size_mb: float | None = Field(default=None, description="MiB of its weights on the disk.")
    on_disk: bool = Field(default=False, description="Its files are on this machine.")
    valid: bool = Field(
        default=True,
        description="Nothing in its files, its registration and the installed libraries keeps it from being loaded. If false, "
        "`error` says what does.",
    )
    tool_calling: bool = Field(default=False, description="Its chat template says how to call tools.")
    vision: bool = Field(default=False, description="It is a language model that reads pictures too.")
    parameters: int | None = Field(default=None, description="How many numbers its weights have.")
    instruct: bool | None = Field(
        default=None,
        description="Whether a text model was made to follow instructions or to chat, as its files say. false: a base model, "
        "which continues texts.",
    )
    state: Literal["registered", "loading", "ready", "unloading", "failed"] = Field(
        description="registered: not in memory. See `on_disk` and `error` too."
    )
    device: str | None = Field(default=None, description="Where the loaded model runs.")
    quantization: str | None = Field(
        default=None, description="The type of its weights in memory, or before a load on the disk."
    )
    context_length: int | None = Field(default=None, description="The most tokens of a prompt and its answer together.")
    memory_estimate_mb: float | None = Field(default=None, description="MiB that a load reserves.")
    memory_used_mb: float | None = Field(default=None, description="MiB that the loaded model takes.")
    idle_s: float | None = Field(default=None, description="Seconds since the last request, if nobody uses it now.")
    leases: int = Field(default=0, description="How many requests use it now.")
    pinned: bool = Field(default=False, description="It stays in memory until somebody unloads it.")
    keep_alive_s: float = Field(description="Idle seconds after which it leaves memory; -1 is never.")
    load_time_s: float | None = Field(default=None, description="Seconds that its load took.")
    progress: dict[str, Any] | None = Field(
        default=None, description="While it loads: the phase, and how much of it is done."
    )
    warnings: tuple[str, ...] = Field(default=(), description="What to know about how it was loaded.")
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

    id: str = Field(description="For the other routes of downloads.")
    model_name: str = Field(description="What requests call the model.")
    model_id: str = Field(description="Its repository on the hub.")
    revision: str | None = Field(default=None, description="Branch, tag or commit, if one was asked for.")
    state: DownloadState = Field(
        description="checking: its files are looked at. paused: what came is kept, and `resume` goes on. cancelled: somebody "
        "cancelled it, or nobody waits for it any more."
    )
    done_bytes: int = Field(default=0, description="How much of the model is here.")
    total_bytes: int | None = Field(default=None, description="The whole model, also what was there before.")
    bytes_per_second: float | None = Field(default=None, description="Over the last ten seconds.")
    seconds_left: float | None = Field(default=None, description="At the speed of the last ten seconds.")
    disk_free_bytes: int | None = Field(default=None, description="Of the disk, before the download began.")
    engine: str | None = Field(default=None, description="The engine that will load it.")
    device: str | None = Field(default=None, description="Where it will run.")
    memory_bytes: int | None = Field(default=None, description="What it is expected to take on the device.")
    memory_budget_bytes: int | None = Field(default=None, description="What all models together may take there.")
    path: str | None = Field(default=None, description="Where it is, once it is complete.")
    error: str | None = Field(default=None, description="Why it failed.")
