"""When a request reached each stage."""

import time
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class Timeline:
    """Stages of a request, in seconds of `time.monotonic`. None: it has not come so far, or has skipped the stage."""

    queued: float = field(default_factory=time.monotonic)
    """The caller made the request."""
    loaded: float | None = None
    """The model was in memory and took it."""
    started: float | None = None
    """The engine began to compute."""
    first: float | None = None
    """The first delta was there."""
    ended: float | None = None

    def milliseconds(self) -> dict[str, float]:
        """The stages that were reached, in milliseconds since `queued`."""
        stamps = {one.name: getattr(self, one.name) for one in fields(self)[1:]}
        return {name: round((at - self.queued) * 1000, 2) for name, at in stamps.items() if at is not None}
