"""What the manager reports about a model."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


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
    pid: int
