"""Which models are in memory: loads, leases, eviction, idle time, unloads.

One lock guards every slot and the ledger; nothing slow happens under it. Loads and unloads run on threads of their own,
so callers never wait here: they leave a `Waiter`. When models compete for memory, those asked to leave finish what they
have in hand, newcomers queue behind the load that waits, and nobody starves.
"""

import contextlib
import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace

from lfx_local_runtimes.errors import (
    DeviceFailed,
    DeviceUnavailable,
    DoesNotFit,
    EngineDied,
    LoadFailed,
    MissingExtra,
    ModelBusy,
    RuntimeFault,
    as_fault,
)
from lfx_local_runtimes.runtimes.base import LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.config import ModelConfig, ModelKey
from lfx_local_runtimes.runtimes.devices import CPU
from lfx_local_runtimes.runtimes.engines.isolated.runtime import make_runtime
from lfx_local_runtimes.runtimes.engines.isolated.spares import Spares
from lfx_local_runtimes.runtimes.memory.ledger import MODELS, MemoryLedger
from lfx_local_runtimes.runtimes.memory.policy import Candidate, choose_victims
from lfx_local_runtimes.runtimes.memory.slots import DEATH_WINDOW_S, DEATHS, RequestWaiter, Slot, SlotState, Waiter
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.trust.gate import check, level_of
from lfx_local_runtimes.settings import Settings, get_settings

logger = logging.getLogger(__name__)

ADMISSION_WAIT_S = 300.0
"""How long a load waits for models in use to be released before it is refused."""

_SETTLE_S = 2.0
"""How long the driver may take to show the memory of a model that has left."""


@dataclass(frozen=True)
class Prepared:
    """A name made concrete: its configuration, where that came from, and the loads worth trying."""

    key: ModelKey
    """The copy of a model that is meant: another one if the name was another spelling of a known model."""
    config: ModelConfig
    source: str
    plans: tuple[LoadPlan, ...]


Prepare = Callable[[Slot, LoadContext], Prepared]
"""Finds, fetches and inspects a model on the loading thread; raises a `RuntimeFault`."""


class Residency:
    """The models in memory and their lives."""

    def __init__(
        self, ledger: MemoryLedger, prepare: Prepare, *, keep_alive: float, clock: Callable[[], float] = time.monotonic,
        admission_wait: float = ADMISSION_WAIT_S, settings: Settings | None = None,
    ) -> None:  # fmt: skip
        self.ledger = ledger
        self.counters: Counter[str] = Counter()
        self.keep_alive = keep_alive
        self._prepare = prepare
        self._settings = settings or get_settings()
        self._clock = clock
        self._admission_wait = admission_wait
        self._slots: dict[ModelKey, Slot] = {}
        self._owners: dict[ModelRuntime, Slot] = {}
        self._queue: dict[ModelKey, frozenset[str]] = {}
        """Loads that wait for memory, in order of arrival, and the resources they are short of."""
        self._changed = threading.Condition(threading.RLock())
        self._threads: set[threading.Thread] = set()
        self._reaper: threading.Thread | None = None
        self._spares = Spares(
            0 if self._settings.isolation == "inline" else self._settings.spare_processes, self._account
        )
        self._closed = False

    @contextlib.contextmanager
    def slots(self) -> Iterator[dict[ModelKey, Slot]]:
        """All slots, for reading or registering, under the lock."""
        with self._changed:
            yield self._slots

    def rooms(self) -> dict[str, int]:
        """Bytes by accelerator that one model may take if all others leave."""
        with self._changed:
            return self.ledger.rooms()

    def wait_for(self, condition: Callable[[dict[ModelKey, Slot]], bool], timeout: float) -> bool:
        """Block until the slots satisfy a condition; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self._slots), timeout)

    def wake(self) -> None:
        """Something outside a slot's own methods changed: timers and waiting loads look again."""
        with self._changed:
            self._changed.notify_all()

    # -- leases ------------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Slot | None:
        """The slot with this name, options included: `gemma (context 512)`."""
        with self._changed:
            return next((slot for slot in self._slots.values() if slot.name == name), None)

    def join(self, key: ModelKey, waiter: Waiter) -> None:
        """Ask for a lease; the model is loaded if need be. Returns at once, the waiter hears of the outcome."""
        granted: list[Waiter] = []
        fault: RuntimeFault | None = None
        with self._changed:
            if self._closed:
                fault = LoadFailed("The runtime manager is closed.", model_name=key.name)
            else:
                slot = self._slots.setdefault(key, Slot(key))
                fault = self._refused_for_now(slot)
            if fault is None:
                slot.waiters.append(waiter)
                if slot.open:
                    granted = slot.grant()
                elif slot.state in (SlotState.REGISTERED, SlotState.FAILED):
                    self._begin_load(slot)
                runtime = slot.runtime
        if fault is not None:
            waiter.failed(fault)
        for ready in granted:
            assert runtime is not None  # an open slot has one
            ready.ready(runtime)

    def _refused_for_now(self, slot: Slot) -> RuntimeFault | None:
        """A model that keeps dying rests for a while: each of its loads costs time, and each death its requests."""
        rest = slot.rests(self._clock()) if slot.state is SlotState.FAILED else 0.0
        if not rest:
            return None
        return EngineDied(
            f"{slot.name} died {DEATHS} times within {DEATH_WINDOW_S / 60:g} minutes. The last time: {slot.last_exit}",
            model_name=slot.name, hint=f"It can be loaded again in {rest:.0f} s.",
        )  # fmt: skip

    def resting(self) -> list[str]:
        """The names of models that died so often that they are not loaded for a while."""
        with self._changed:
            return [slot.name for slot in self._slots.values() if self._refused_for_now(slot) is not None]

    def release(self, runtime: ModelRuntime, keep_alive: float | None = None) -> None:
        """Give a lease back; `keep_alive` seconds, if given, replace the model's own from now on."""
        with self._changed:
            slot = self._owners.get(runtime)
            if slot is None:
                return  # it has died meanwhile, and its leases with it
            slot.leases -= 1
            slot.last_used = self._clock()
            if keep_alive is not None:
                slot.keep_alive = keep_alive
            self._changed.notify_all()

    # -- loading -----------------------------------------------------------------------------------------------------

    def _begin_load(self, slot: Slot) -> None:
        slot.move(SlotState.LOADING)
        slot.error = None
        slot.context = LoadContext(lambda progress: self._report(slot, progress), self._settings)
        self._spawn(f"load {slot.name}", lambda: self._load(slot))

    def _report(self, slot: Slot, progress: Progress) -> None:
        with self._changed:
            slot.progress = progress
            waiters = list(slot.waiters)
        for waiter in waiters:
            waiter.progress(progress)

    def _load(self, slot: Slot) -> None:
        assert slot.context is not None
        started = self._clock()
        self._spares.expect()  # it starts while the files are found and checked
        try:
            prepared = self._prepare(slot, slot.context)
            if prepared.key != slot.key:
                self._redirect(slot, prepared.key)
                return
            slot.config, slot.source, slot.pinned = (
                prepared.config,
                prepared.source,
                slot.pinned or prepared.config.pinned,
            )
            slot.keep_alive = prepared.config.keep_alive
            slot.devices = frozenset(plan.device.key for plan in prepared.plans)
            runtime = self._first_that_loads(slot, prepared, slot.context)
            self._load_done(slot, runtime, self._clock() - started)
        except Exception as error:
            if not isinstance(error, RuntimeFault):
                logger.exception("loading %s", slot.name)
            self._load_failed(slot, as_fault(error, LoadFailed, f"{slot.name} could not be loaded", slot.name))

    def _redirect(self, slot: Slot, key: ModelKey) -> None:
        """The name was another spelling of a known model: everybody who waits here waits there."""
        with self._changed:
            slot.move(SlotState.REGISTERED)
            waiters, slot.waiters = list(slot.waiters), type(slot.waiters)()
            del self._slots[slot.key]
            self._changed.notify_all()
        for waiter in waiters:
            self.join(key, waiter)

    def _load_done(self, slot: Slot, runtime: ModelRuntime, seconds: float) -> None:
        """Raises the runtime's fault if it has died already."""
        runtime.on_death(lambda: self._died(slot, runtime))
        with self._changed:
            if runtime.death is not None:
                raise runtime.death
            unwanted = slot.context is not None and slot.context.cancelled  # too late for the engine to notice
            slot.move(SlotState.READY)
            slot.runtime, slot.context, slot.progress = runtime, None, None
            self._owners[runtime] = slot
            slot.load_time, slot.last_used = seconds, self._clock()
            self.counters["loads"] += 1
            granted = [] if unwanted else slot.grant()
            if unwanted:
                self._begin_unload(slot)
            self._ensure_reaper()
            self._changed.notify_all()
        for waiter in granted:
            waiter.ready(runtime)

    def _load_failed(self, slot: Slot, fault: RuntimeFault) -> None:
        with self._changed:
            cancelled = slot.context is not None and slot.context.cancelled
            slot.move(SlotState.REGISTERED if cancelled else SlotState.FAILED)
            slot.context, slot.progress, slot.error = None, None, None if cancelled else fault
            if isinstance(fault, EngineDied) and not cancelled:
                self._note_death(slot, fault)
            self.ledger.release(slot.key)
            self.counters["failed_loads"] += not cancelled
            waiters, slot.waiters = list(slot.waiters), type(slot.waiters)()
            unloads, slot.unloads = slot.unloads, []
            if slot.source == "request":  # only the request knew this name
                del self._slots[slot.key]
            self._changed.notify_all()
        for waiter in waiters:
            waiter.failed(slot.cancelled_load() if cancelled else fault)
        for future in unloads:
            future.set_result(True)

    def _account(self, engine: str, size: int) -> None:
        """A process that waits for a model takes memory, or is gone."""
        name = f"spare process {engine}".rstrip()
        with self._changed:
            if size and not self._closed:
                self.ledger.hold(name, {CPU.key: size})
            else:
                self.ledger.release(name)
            self._changed.notify_all()

    def _first_that_loads(self, slot: Slot, prepared: Prepared, context: LoadContext) -> ModelRuntime:
        """Try the plans in turn; what the failed ones said is told by the one that works."""
        faults: list[RuntimeFault] = []
        too_much: dict[str, int] = {}
        """Bytes that did not fit, by device."""
        now = self._clock()
        left = deque(sorted(prepared.plans, key=lambda plan: slot.distrusts(plan.cards, now)))
        if left[0] is not prepared.plans[0]:
            faults.append(EngineDied(f"{slot.name} died on {prepared.plans[0].device.key}: {slot.last_exit}"))
        while left:
            plan = left.popleft()
            needs = plan.memory.get(plan.device.key, 0)
            if needs >= too_much.get(plan.device.key, needs + 1):
                continue
            runtime = make_runtime(prepared.config, replace(plan, smaller=()), self._settings, self._spares)
            try:
                level = level_of(runtime.isolation, self._settings)
                context.clearance = check(prepared.config, plan.info, self._settings, level, name=slot.key.name)
                self._load_one(slot, runtime, plan, context)
            except (LoadFailed, EngineDied, DeviceFailed, MissingExtra, DoesNotFit, DeviceUnavailable) as fault:
                if context.cancelled:
                    raise
                logger.warning("%s on %s: %s", plan.engine, plan.device.key, fault)
                faults.append(fault)
                if isinstance(fault, DoesNotFit):
                    too_much[plan.device.key] = needs
                    left.extendleft(reversed(plan.smaller))
                continue
            runtime.warnings += [f"{fault} Running on {plan.engine}, {plan.device.key} instead." for fault in faults]
            return runtime
        raise faults[0]

    def _load_one(self, slot: Slot, runtime: ModelRuntime, plan: LoadPlan, context: LoadContext) -> None:
        for last_try in (False, True):
            self._admit(slot, plan, runtime.reservation(plan), context)
            context.report(Progress("load", 0, plan.info.size_bytes))
            try:
                runtime.start(context).result()
                break
            except DoesNotFit:  # the estimate was too low: make all the room there is, once
                with self._changed:
                    self.ledger.release(slot.key)
                if last_try:
                    raise
                self._evict_idle(context)
            except RuntimeFault:
                with self._changed:
                    self.ledger.release(slot.key)
                raise
        with self._changed:
            self.ledger.correct(slot.key, runtime.get_memory_usage()["devices"])

    # -- admission and eviction --------------------------------------------------------------------------------------

    def _admit(self, slot: Slot, plan: LoadPlan, memory: Mapping[str, int], context: LoadContext) -> None:
        """Reserve memory for a load, evicting idle models and waiting for busy ones.

        Raises:
            DoesNotFit: even then it is too large, or those in use were not released in time.
            LoadFailed: the load was cancelled meanwhile.
        """
        self.measure_again()
        try:
            self._wait_for_room(slot, plan, memory, context)
        finally:
            with self._changed:
                self._queue.pop(slot.key, None)
                granted = self._no_longer_wants(slot.key)
                self._changed.notify_all()
            for runtime, waiter in granted:
                waiter.ready(runtime)

    def measure_again(self) -> None:
        """Correct the account of the loaded models. It reads from the system, so the lock is not held meanwhile."""
        with self._changed:
            loaded = [(slot, slot.runtime) for slot in self._slots.values() if slot.state is SlotState.READY]
        for slot, runtime in loaded:
            if runtime is None or not (taken := runtime.measure_again()):
                continue
            with self._changed:
                if slot.runtime is runtime and slot.state is SlotState.READY:
                    self.ledger.correct(slot.key, taken)

    def _wait_for_room(self, slot: Slot, plan: LoadPlan, memory: Mapping[str, int], context: LoadContext) -> None:
        needs = {**memory, MODELS: 1}
        deadline = self._clock() + self._admission_wait
        settled = 0.0
        with self._changed:
            while (shortage := self.ledger.shortage(needs)) or self._is_behind(slot.key, needs):
                if context.cancelled:
                    raise slot.cancelled_load()
                self._queue[slot.key] = frozenset(shortage or needs)
                behind = self._is_behind(slot.key, needs)
                if shortage and self._drop_spares():
                    continue
                if not behind and self._evict_for(slot, shortage):
                    settled = self._clock() + _SETTLE_S
                if self._leaving():
                    self._changed.wait()
                elif not behind and self._clock() < settled:
                    self._changed.wait(0.05)  # the driver has yet to notice
                else:
                    busy = choose_victims(shortage, self._candidates(slot, idle=False))
                    if busy is None or self._clock() >= deadline:
                        raise self._refusal(slot, plan, needs, busy)
                    if not behind:
                        self._ask_to_leave(busy, slot.key)
                    context.report(Progress("memory"))
                    self._changed.wait(deadline - self._clock())
            self.ledger.reserve(slot.key, needs)

    def _drop_spares(self) -> bool:
        """End the processes that wait for a model: a model that is here needs the room."""
        self._changed.release()
        try:
            return self._spares.drop()
        finally:
            self._changed.acquire()

    def _ask_to_leave(self, keys: Iterable[ModelKey], loading: ModelKey) -> None:
        for key in keys:
            wanted_by = self._slots[key].wanted_by
            if loading not in wanted_by:
                wanted_by.add(loading)
                self._changed.notify_all()

    def _is_behind(self, key: ModelKey, needs: Mapping[str, int]) -> bool:
        """An earlier load waits for something this one needs too: what becomes free is for that one."""
        earlier = itertools.takewhile(lambda other: other != key, self._queue)
        return any(not self._queue[other].isdisjoint(needs) for other in earlier)

    def _evict_for(self, slot: Slot, shortage: Mapping[str, int]) -> bool:
        """Evict idle models if that covers the shortage."""
        victims = choose_victims(shortage, self._candidates(slot, idle=True)) or ()
        for key in victims:
            self.counters["evictions"] += 1
            self._begin_unload(self._slots[key])
        return bool(victims)

    def _candidates(self, loading: Slot, *, idle: bool) -> list[Candidate[ModelKey]]:
        """Who may leave: now (`idle`), or once they are released."""
        return [
            Candidate(slot.key, self.ledger.holds(slot.key), slot.last_used)
            for slot in self._slots.values()
            if slot is not loading
            and not slot.pinned
            and (
                slot.idle
                if idle
                else slot.state in (SlotState.READY, SlotState.LOADING) and self.ledger.holds(slot.key)
            )
        ]

    def _leaving(self) -> bool:
        return any(slot.state is SlotState.UNLOADING for slot in self._slots.values())

    def _no_longer_wants(self, key: ModelKey) -> list[tuple[ModelRuntime, Waiter]]:
        granted: list[tuple[ModelRuntime, Waiter]] = []
        for slot in self._slots.values():
            if key in slot.wanted_by:
                slot.wanted_by.discard(key)
                if slot.open and slot.runtime is not None:
                    granted += [(slot.runtime, waiter) for waiter in slot.grant()]
        return granted

    def _refusal(
        self, slot: Slot, plan: LoadPlan, needs: dict[str, int], busy: tuple[ModelKey, ...] | None
    ) -> DoesNotFit:
        parts = []
        for resource, amount in needs.items():
            free, budget = self.ledger.free(resource), self.ledger.budget(resource)
            if free is None or budget is None or amount <= free:
                continue
            if resource == MODELS:
                parts.append(f"{budget} models are loaded, which is the limit")
            else:
                parts.append(f"it needs {_mib(amount)} on {resource}, {_mib(free)} of {_mib(budget)} are free")
        if not parts:
            parts.append("other models wait for the same memory")
        hint = (
            f"In use: {', '.join(map(str, busy))}. Wait, or unload with force."
            if busy
            else f"Try a smaller quantization, a context shorter than {plan.context_length:,} tokens, or a larger memory budget."
        )
        return DoesNotFit(f"{slot.name} does not fit: {'; '.join(parts)}.", model_name=slot.name, hint=hint)

    def _evict_idle(self, context: LoadContext) -> None:
        with self._changed:
            for slot in list(self._slots.values()):
                if slot.idle and not slot.pinned:
                    self.counters["evictions"] += 1
                    self._begin_unload(slot)
            self._changed.wait_for(lambda: context.cancelled or not self._leaving())

    # -- unloading ---------------------------------------------------------------------------------------------------

    def unload(self, key: ModelKey, *, force: bool = False) -> "Future[bool]":
        """Take a model out of memory. The future is True when it was there.

        Raises:
            ModelBusy: it is in use, and `force` is not set.
        """
        done: Future[bool] = Future()
        with self._changed:
            slot = self._slots.get(key)
            if slot is None or slot.state in (SlotState.REGISTERED, SlotState.FAILED):
                done.set_result(False)
                return done
            users = slot.leases + sum(not waiter.gone for waiter in slot.waiters)
            if users and not force and slot.state is not SlotState.UNLOADING:
                raise ModelBusy(
                    f"{key} is in use by {users} request{'s' if users > 1 else ''}.", model_name=key.name,
                    hint="Wait for them, cancel them, or unload with force.",
                )  # fmt: skip
            slot.unloads.append(done)
            waiters = list(slot.waiters) if force else []
            if slot.state is SlotState.LOADING and slot.context is not None:
                slot.context.cancel()
                self._changed.notify_all()
            elif slot.state is SlotState.READY:
                self._begin_unload(slot)
        for waiter in waiters:
            if isinstance(waiter, RequestWaiter):
                waiter.request.cancel()
        return done

    def _begin_unload(self, slot: Slot) -> None:
        slot.move(SlotState.UNLOADING)
        self._spawn(f"unload {slot.name}", lambda: self._unload(slot))
        self._changed.notify_all()

    def _unload(self, slot: Slot) -> None:
        assert slot.runtime is not None
        thread = slot.runtime.stop()
        if thread is not None:
            thread.join()
        with self._changed:
            slot.move(SlotState.REGISTERED)
            self._owners.pop(slot.runtime, None)
            slot.runtime, slot.load_time, slot.keep_alive = None, None, None
            self.ledger.release(slot.key)
            self.counters["unloads"] += 1
            unloads, slot.unloads = slot.unloads, []
            if any(not waiter.gone for waiter in slot.waiters) and not self._closed:
                self._begin_load(slot)
            self._changed.notify_all()
        for future in unloads:
            future.set_result(True)

    # -- death -------------------------------------------------------------------------------------------------------

    def _died(self, slot: Slot, runtime: ModelRuntime) -> None:
        """A loaded model has ended by itself. Its requests have failed; those who waited behind it get a fresh load.

        If it ended on an accelerator, requests that have shown nothing yet get the load on the next device.
        """
        fault = runtime.death
        assert fault is not None
        with self._changed:
            if slot.runtime is not runtime or slot.state is not SlotState.READY:
                return  # it was being unloaded, or has not been ready yet: then `_load_done` notices
            logger.error("%s died: %s", slot.name, fault)
            slot.move(SlotState.FAILED)
            plan = slot.plan
            slot.runtime, slot.load_time, slot.keep_alive, slot.leases = None, None, None, 0
            self._owners.pop(runtime, None)
            slot.error = fault
            cards = plan.cards if plan else frozenset()
            if not self._closed and slot.falls_back_from(cards, self._clock()):
                again = [RequestWaiter(request, self.release) for request in runtime.withdraw()]
                slot.waiters.extendleft(reversed(again))
            self._note_death(slot, fault, cards)
            self.ledger.release(slot.key)
            refusal = self._refused_for_now(slot)
            refused: list[Waiter] = []
            if refusal is not None:
                refused, slot.waiters = list(slot.waiters), type(slot.waiters)()
            elif any(not waiter.gone for waiter in slot.waiters) and not self._closed:
                self._begin_load(slot)
            self._changed.notify_all()
        for waiter in refused:
            assert refusal is not None
            waiter.failed(refusal)

    def _note_death(self, slot: Slot, fault: RuntimeFault, cards: Iterable[str] = ()) -> None:
        slot.note_death(self._clock(), fault.message, cards)
        self.counters["deaths"] += 1

    # -- idle time ---------------------------------------------------------------------------------------------------

    def _ensure_reaper(self) -> None:
        if self._reaper is None and not self._closed:
            self._reaper = threading.Thread(target=self._reap, name="runtime idle timer", daemon=True)
            self._reaper.start()

    def _reap(self) -> None:
        with self._changed:
            while not self._closed:
                now = self._clock()
                expiries = [(slot.expires(self.keep_alive), slot) for slot in self._slots.values()]
                for expiry, slot in expiries:
                    if expiry is not None and expiry <= now:
                        self._begin_unload(slot)
                later = [expiry - now for expiry, _ in expiries if expiry is not None and expiry > now]
                self._changed.wait(min([*later, threading.TIMEOUT_MAX]))

    # -- the end -----------------------------------------------------------------------------------------------------

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            finally:
                with self._changed:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.add(thread)
        thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Cancel everything, unload everything, and wait for the threads at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            for slot in self._slots.values():
                if slot.context is not None:
                    slot.context.cancel()
                if slot.state is SlotState.READY:
                    self._begin_unload(slot)
            threads = [*self._threads, *([self._reaper] if self._reaper else [])]
            self._changed.notify_all()
        self._spares.close()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            left = [slot.runtime for slot in self._slots.values() if slot.runtime is not None]
        for runtime in left:
            runtime.kill("the runtime manager is closed")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
