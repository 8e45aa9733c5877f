"""A slot: one model's life in the manager. Every method is called with the manager's lock held.

registered → loading → ready → unloading → registered. A load that fails, and a model that dies, lead to failed, from
where the next request tries again. `move` is the only writer of the state and follows the table.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from enum import Enum
from typing import Any, Protocol

from lfx_local_runtimes.errors import LoadFailed, RuntimeFault
from lfx_local_runtimes.runtimes.base import LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.config import FOREVER, ModelConfig, ModelKey
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Failed, Progress, Request

DEATHS = 3
"""A model that dies so often within `DEATH_WINDOW_S` is not loaded again for `BACK_OFF_S`."""

DEATH_WINDOW_S = 300.0
BACK_OFF_S = 60.0


class SlotState(str, Enum):
    """Where a model stands."""

    REGISTERED = "registered"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


IN_MEMORY = (SlotState.LOADING, SlotState.READY, SlotState.UNLOADING)

_MOVES: dict[SlotState, frozenset[SlotState]] = {
    SlotState.REGISTERED: frozenset({SlotState.LOADING}),
    SlotState.LOADING: frozenset({SlotState.READY, SlotState.FAILED, SlotState.REGISTERED}),
    SlotState.READY: frozenset({SlotState.UNLOADING, SlotState.FAILED}),
    SlotState.UNLOADING: frozenset({SlotState.REGISTERED}),
    SlotState.FAILED: frozenset({SlotState.LOADING}),
}


class Waiter(Protocol):
    """Somebody who wants a lease. Called without the lock."""

    @property
    def gone(self) -> bool:
        """True when the lease is no longer wanted."""

    def ready(self, runtime: ModelRuntime) -> None:
        """The lease is yours."""

    def failed(self, fault: RuntimeFault) -> None:
        """There will be none."""

    def progress(self, progress: Progress) -> None:
        """The load moved on."""


class RequestWaiter:
    """A request on its way to the runtime."""

    def __init__(self, request: Request[Any], release: Callable[[ModelRuntime, float | None], None]) -> None:
        self.request = request
        self._release = release

    @property
    def gone(self) -> bool:
        return self.request.cancelled

    def ready(self, runtime: ModelRuntime) -> None:
        self.request.on_end(lambda: self._release(runtime, self.request.ask.keep_alive))
        config = runtime.config
        self.request.ask = self.request.ask.completed(config.defaults, config.prompts)
        runtime.submit(self.request)

    def failed(self, fault: RuntimeFault) -> None:
        self.request.emit(Failed(fault))

    def progress(self, progress: Progress) -> None:
        self.request.emit(progress)


class LeaseWaiter:
    """A caller who wants the runtime itself; `future` yields it. `on_progress` is called on the loading thread."""

    def __init__(self, on_progress: Callable[[Progress], None] = lambda progress: None) -> None:
        self.future: Future[ModelRuntime] = Future()
        self._on_progress = on_progress

    @property
    def gone(self) -> bool:
        return self.future.cancelled()

    def claim(self) -> bool:
        """Take the lease; False when the caller has left."""
        return self.future.set_running_or_notify_cancel()

    def ready(self, runtime: ModelRuntime) -> None:
        self.future.set_result(runtime)

    def failed(self, fault: RuntimeFault) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(fault)

    def progress(self, progress: Progress) -> None:
        self._on_progress(progress)


class Slot:
    """One model the manager knows. `plan`, `runtime` and the times are there while it is loaded."""

    def __init__(self, key: ModelKey, config: ModelConfig | None = None, source: str = "request") -> None:
        self.key = key
        self.name = str(key)
        self.config = config
        self.source = source
        self.state = SlotState.REGISTERED
        self.runtime: ModelRuntime | None = None
        self.context: LoadContext | None = None
        self.error: RuntimeFault | None = None
        self.progress: Progress | None = None
        self.leases = 0
        self.last_used = 0.0
        self.load_time: float | None = None
        self.keep_alive: float | None = None
        self.pinned = config.pinned if config else False
        self.threads: int | None = None
        """For the next load only, instead of the configuration's."""
        self.waiters: deque[Waiter] = deque()
        self.unloads: list[Future[bool]] = []
        self.ready_since: float | None = None
        """When the loaded model became ready (monotonic seconds)."""
        self.deaths: deque[float] = deque(maxlen=DEATHS)
        """When the model died without being asked to end, the last times (monotonic seconds)."""
        self.died_on: dict[str, float] = {}
        """Accelerators on which the model died, and when."""
        self.devices: frozenset[str] = frozenset()
        """Where it may be loaded."""
        self.restarts = 0
        """How often that happened in all."""
        self.last_exit: str | None = None
        """How its process ended the last time."""
        self.wanted_by: set[ModelKey] = set()
        """Loads that wait for this model's memory: newcomers queue behind them."""

    def move(self, state: SlotState) -> None:
        """Change the state; an illegal move is a bug and raises."""
        if state not in _MOVES[self.state]:
            raise RuntimeError(f"{self.name}: {self.state.value} → {state.value} is not a move")
        self.state = state
        self.ready_since = time.monotonic() if state is SlotState.READY else None

    def note_death(self, now: float, how: str, cards: Iterable[str] = ()) -> None:
        """The model died without being asked to end, on these accelerators."""
        self.deaths.append(now)
        self.died_on |= dict.fromkeys(cards, now)
        self.restarts += 1
        self.last_exit = how

    def distrusts(self, cards: Iterable[str], now: float) -> bool:
        """It died on one of these accelerators a short time ago: others are tried first."""
        return any(card in self.died_on and now - self.died_on[card] <= DEATH_WINDOW_S for card in cards)

    def falls_back_from(self, cards: frozenset[str], now: float) -> bool:
        """It was not known that these accelerators fail, and there is another device that has not failed lately."""
        others = (one for one in self.devices - cards if not self.distrusts([one], now))
        return bool(cards) and not self.distrusts(cards, now) and any(others)

    @property
    def open(self) -> bool:
        """A newcomer gets a lease at once."""
        return self.state is SlotState.READY and not self.wanted_by

    @property
    def idle(self) -> bool:
        """Loaded and in nobody's hands."""
        return self.state is SlotState.READY and self.leases == 0

    def rests(self, now: float) -> float:
        """Seconds until it may be loaded again, because it has died too often; 0 if it may be loaded now."""
        if len(self.deaths) < DEATHS or now - self.deaths[0] > DEATH_WINDOW_S:
            return 0.0
        return max(0.0, self.deaths[-1] + BACK_OFF_S - now)

    @property
    def plan(self) -> LoadPlan | None:
        """What was decided for the load."""
        return self.runtime.plan if self.runtime else None

    def expires(self, default_keep_alive: float) -> float | None:
        """When idleness ends its stay (monotonic seconds); None while it stays."""
        if not self.idle or self.pinned:
            return None
        keep_alive = default_keep_alive if self.keep_alive is None else self.keep_alive
        return None if keep_alive == FOREVER else self.last_used + max(0.0, keep_alive)

    def grant(self) -> list[Waiter]:
        """Give a lease to everybody who still waits; the caller then calls their `ready`."""
        granted: list[Waiter] = []
        while self.waiters:
            waiter = self.waiters.popleft()
            if waiter.gone or (isinstance(waiter, LeaseWaiter) and not waiter.claim()):
                continue
            granted.append(waiter)
        self.leases += len(granted)
        return granted

    def cancelled_load(self) -> LoadFailed:
        """The fault for those who waited for a load that was called off."""
        return LoadFailed(f"The load of {self.name} was cancelled.", model_name=self.name, hint="Load it again.")
