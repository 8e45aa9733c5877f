"""What an engine reports about a request. A task adds its own kinds of `Delta`."""

from dataclasses import dataclass
from typing import Any

from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.runtimes.tasks.base import Delta


@dataclass(frozen=True, slots=True)
class Progress:
    """Why there is no result yet.

    For a phase such as download or load: `done` of `total` bytes (0 if unknown). In the phase `queue`, the model is busy and
    `total` is the number of requests before this one. In the phase `memory`, a load waits for other models to leave. In the
    phase `read`, `done` of `total` pages are read.
    """

    phase: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request that ended well, or that was cancelled and has something to show."""

    result: Any

    @property
    def cancelled(self) -> bool:
        """Somebody cancelled the request."""
        return bool(self.result.cancelled)


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that failed, or that was cancelled and has nothing to show."""

    error: RuntimeFault


Event = Progress | Delta | Finished | Failed
