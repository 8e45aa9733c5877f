"""What planning decides about a load."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.runtimes.devices import CPU, Device
from lfx_local_runtimes.runtimes.formats.info import ModelInfo


@dataclass(frozen=True)
class LoadPlan:
    """One way to load a model."""

    info: ModelInfo
    """The model with the files that the engine loads."""
    engine: str
    device: Device
    dtype: str
    """fp32, fp16, bf16, int8, int4, or the type the file is stored in."""
    context_length: int
    """Tokens."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Estimated bytes per device key."""
    sequences: int = 1
    """Requests computed at once, each with its own context."""
    state_bytes: int = 0
    """Host memory for the states of prompts that had to leave the context. It is a part of `memory`."""
    warnings: tuple[str, ...] = ()
    """What the user should know about this choice."""
    task: str = "llm"
    """What the model does."""
    why: str = ""
    """Why this engine, this device and this type."""
    layers: Mapping[str, int] = field(default_factory=dict)
    """Layers by device if the model is divided over several. Empty: all of it is on `device`."""
    smaller: tuple["LoadPlan", ...] = ()
    """The same load with less memory, for one request at once and a shorter context. Tried in turn if it does not fit."""

    @property
    def cards(self) -> frozenset[str]:
        """The accelerators that it uses."""
        return frozenset({self.device.key, *self.layers} - {CPU.key})

    @property
    def acceleration(self) -> dict[str, Any]:
        """What was chosen and why, for the metadata of results."""
        layers = {"layers": dict(self.layers)} if self.layers else {}
        return {"engine": self.engine, "device": self.device.key, "dtype": self.dtype, "why": self.why, **layers}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A load that was considered, and why it is not tried."""

    engine: str
    device: str
    fault: RuntimeFault
    dtype: str | None = None
    """None: the usual one."""


@dataclass(frozen=True, slots=True)
class Considered:
    """The loads worth trying, best first, and those that are not."""

    plans: tuple[LoadPlan, ...]
    refused: tuple[Refusal, ...]
