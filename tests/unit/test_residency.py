"""Life in memory: one load however many ask, leases, eviction, taking turns, idle time, cancels at every state."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lfx_local_runtimes.errors import (
    DeviceUnavailable,
    DoesNotFit,
    EngineDied,
    EngineFailure,
    LoadFailed,
    ModelBusy,
    ModelNotFound,
    RuntimeFault,
)
from lfx_local_runtimes.runtimes.base import Inbox, LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig, ModelKey
from lfx_local_runtimes.runtimes.devices import CPU, Device, Memory
from lfx_local_runtimes.runtimes.engines.registry import register_engine
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.memory.ledger import MemoryLedger
from lfx_local_runtimes.runtimes.memory.residency import Prepared, Residency
from lfx_local_runtimes.runtimes.memory.slots import DEATHS, LeaseWaiter, RequestWaiter, Slot, SlotState
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Finished, GenerationStream, Request, RequestState, Run
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, TextDelta
from lfx_local_runtimes.settings import Settings

GIB = 2**30
PATIENCE = 20.0


class Stage:
    """What the test decides and sees of its models."""

    def __init__(self) -> None:
        self.open_loads = threading.Event()
        self.open_loads.set()
        self.open_steps = threading.Event()
        self.open_steps.set()
        self.loads: list[str] = []
        self.closes: list[str] = []
        self.failures: list[Exception] = []
        self.sizes: dict[str, int] = {}
        self.devices = [CPU]
        self.smaller: dict[str, list[tuple[int, int]]] = {}
        """Context length and size of the smaller loads of a model."""
        self.serving = threading.Semaphore(0)


class DeadlyError(BaseException):
    """Ends the loop of a model, as a fault that is nobody's own."""


class Doll(ModelRuntime):
    """A runtime whose every step waits for the test."""

    engine = "doll"
    stage: Stage

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        self.stage.loads.append(self.config.model_name)
        while not self.stage.open_loads.wait(0.01):
            if context.cancelled:
                raise LoadFailed("The load was cancelled.")
        if self.stage.failures:
            raise self.stage.failures.pop(0)

    def _serve(self, request: Request) -> None:
        self.stage.serving.release()
        prompt, plan = request.ask.prompt, self._plan
        assert plan is not None
        if prompt == "speak on the card":
            request.emit(TextDelta("half ", 1))
        if prompt == "die" or (prompt.endswith("on the card") and plan.device.type is DeviceType.CUDA):
            raise DeadlyError
        while not self.stage.open_steps.wait(0.01) and not request.cancelled:
            pass
        request.emit(TextDelta("done", 1))
        result = request.empty().result
        if not request.cancelled:
            result = result.model_copy(update={"finish_reason": "stop", "text": "done", "tokens_generated": 1})
        request.emit(Finished(result))

    def _work(self, inbox: Inbox) -> None:
        try:
            super()._work(inbox)
        except DeadlyError as error:
            raise RuntimeError("the loop broke") from error

    def _close(self) -> None:
        self.stage.closes.append(self.config.model_name)

    def _measure(self) -> dict[str, int]:
        return {"cpu": self.stage.sizes.get(self.config.model_name, GIB)}


class Machine:
    """16 GiB of RAM and nothing else."""

    def accelerators(self) -> tuple[Device, ...]:
        return ()

    def memory(self, device: Device) -> Memory:
        return Memory(16 * GIB, 16 * GIB)

    def cpu_has_bf16(self) -> bool:
        return False


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    doll = type("StagedDoll", (Doll,), {"stage": stage})
    register_engine("doll", doll)
    register_engine("doll_too", doll)
    yield stage
    stage.open_loads.set()
    stage.open_steps.set()


MakeResidency = Callable[..., Residency]


@pytest.fixture
def make(stage: Stage) -> Iterator[MakeResidency]:
    made: list[Residency] = []

    def prepare(slot: Slot, context: LoadContext) -> Prepared:
        if slot.name.startswith("unknown"):
            raise ModelNotFound(f"no {slot.name}", model_name=slot.name)
        name = slot.name.removeprefix("alias of ")
        config = ModelConfig(model_id=name, model_name=name)
        info = ModelInfo(Path(name), ModelFormat.GGUF, (), 1)
        needs = {"cpu": stage.sizes.get(name, GIB)}
        smaller = tuple(
            LoadPlan(info, "doll", CPU, "x", length, {"cpu": size}, warnings=(f"Memory is short: {length}.",))
            for length, size in stage.smaller.get(name, ())
        )
        plans = (
            LoadPlan(info, engine, device, "x", 8, {device.key: needs["cpu"]}, smaller=smaller)
            for engine in ("doll", "doll_too")
            for device in stage.devices
        )
        return Prepared(ModelKey(name), config, "test", tuple(plans))

    def make(budget: float = 8, keep_alive: float = -1, wait: float = PATIENCE, places: int | None = None) -> Residency:
        ledger = MemoryLedger(Settings(memory_budget_gb=budget, max_loaded_models=places), Machine())
        made.append(Residency(ledger, prepare, keep_alive=keep_alive, admission_wait=wait))
        return made[-1]

    yield make
    for residency in made:
        stage.open_loads.set()
        stage.open_steps.set()
        residency.close(timeout=PATIENCE)


def ask(residency: Residency, name: str, keep_alive: float | None = None, prompt: str = "x") -> GenerationStream:
    request = Request(name, GenerationConfig(prompt=prompt, keep_alive=keep_alive))
    residency.join(ModelKey(name), RequestWaiter(request, residency.release))
    return GenerationStream(Run(request))


def lease(residency: Residency, name: str) -> LeaseWaiter:
    waiter = LeaseWaiter()
    residency.join(ModelKey(name), waiter)
    return waiter


def give_back(residency: Residency, name: str) -> None:
    with residency.slots() as slots:
        runtime = slots[ModelKey(name)].runtime
    assert runtime is not None
    residency.release(runtime)


def reaches(residency: Residency, name: str, state: SlotState) -> bool:
    return residency.wait_for(lambda slots: ModelKey(name) in slots and slots[ModelKey(name)].state is state, PATIENCE)


def test_one_load_however_many_ask(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.open_loads.clear()
    streams = [ask(residency, "a") for _ in range(20)]
    stage.open_loads.set()
    assert [stream.wait().text for stream in streams] == ["done"] * 20
    assert stage.loads == ["a"]


def test_a_caller_who_leaves_does_not_strand_the_load(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.open_loads.clear()
    first, second = ask(residency, "a"), ask(residency, "a")
    assert first.cancel() is RequestState.QUEUED
    assert first.wait().finish_reason == "cancelled"
    stage.open_loads.set()
    assert second.wait().text == "done"


def test_a_failed_load_tells_everybody_why_and_the_next_request_tries_again(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.failures = [RuntimeError("bad disk"), RuntimeError("worse disk")]
    stage.open_loads.clear()
    streams = [ask(residency, "a") for _ in range(3)]
    stage.open_loads.set()
    for stream in streams:
        with pytest.raises(LoadFailed, match="bad disk"):
            stream.wait()
    with residency.slots() as slots:
        assert slots[ModelKey("a")].state is SlotState.FAILED
        assert "bad disk" in str(slots[ModelKey("a")].error)
        assert residency.ledger.accounted("cpu") == 0
    assert ask(residency, "a").wait().text == "done"


def test_the_next_engine_is_tried_and_the_result_says_so(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.failures = [RuntimeError("no such instruction")]
    runtime = lease(residency, "a").future.result(PATIENCE)
    assert "no such instruction" in runtime.warnings[0]
    assert "doll_too" in runtime.warnings[0]
    assert stage.closes == ["a"], "the engine that failed is closed"
    give_back(residency, "a")


def test_a_model_that_grew_is_counted_as_it_is_now(
    make: MakeResidency, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    residency = make(budget=8)
    lease(residency, "a").future.result(PATIENCE)
    give_back(residency, "a")
    monkeypatch.setattr(Doll, "measure_again", lambda self: {"cpu": 6 * GIB})
    stage.sizes["b"] = 3 * GIB
    lease(residency, "b").future.result(PATIENCE)
    assert stage.closes == ["a"], "a was measured at 1 GiB when it was loaded, and has no room beside b now"
    give_back(residency, "b")


def test_a_shorter_context_is_tried_before_a_load_is_refused(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.sizes["big"], stage.smaller["big"] = 20 * GIB, [(4, 10 * GIB), (2, 5 * GIB)]
    runtime = lease(residency, "big").future.result(PATIENCE)
    assert runtime.plan is not None
    assert runtime.plan.context_length == 2
    assert stage.loads == ["big"]
    assert runtime.warnings[0] == "Memory is short: 2."
    assert "20,480 MiB" in runtime.warnings[1]
    give_back(residency, "big")


def test_a_broken_model_is_not_tried_with_a_shorter_context(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.smaller["a"] = [(4, GIB // 2)]
    stage.failures = [LoadFailed("It is broken."), LoadFailed("It is broken.")]
    with pytest.raises(LoadFailed):
        lease(residency, "a").future.result(PATIENCE)
    assert stage.loads == ["a", "a"], "one load for each engine"


def test_a_device_that_an_engine_does_not_know_is_a_reason_to_try_the_next(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.failures = [DeviceUnavailable("This build does not run on mps.")]
    runtime = lease(residency, "a").future.result(PATIENCE)
    assert "does not run on mps" in runtime.warnings[0]
    give_back(residency, "a")


def test_an_unknown_name_fails_and_leaves_nothing_behind(make: MakeResidency) -> None:
    residency = make()
    with pytest.raises(ModelNotFound):
        ask(residency, "unknown").wait()
    with residency.slots() as slots:
        assert not slots


def test_another_spelling_joins_the_same_model(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    assert ask(residency, "alias of a").wait().text == "done"
    assert ask(residency, "a").wait().text == "done"
    assert stage.loads == ["a"]


def test_a_lease_keeps_the_model(make: MakeResidency) -> None:
    residency = make()
    lease(residency, "a").future.result(PATIENCE)
    with pytest.raises(ModelBusy, match="in use by 1 request"):
        residency.unload(ModelKey("a"))
    give_back(residency, "a")
    assert residency.unload(ModelKey("a")).result(PATIENCE) is True
    assert residency.unload(ModelKey("a")).result(PATIENCE) is False
    assert residency.unload(ModelKey("never heard of")).result(PATIENCE) is False


def test_force_cancels_what_runs_and_what_waits(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.open_steps.clear()
    streams = [ask(residency, "a") for _ in range(3)]
    assert stage.serving.acquire(timeout=PATIENCE)
    assert residency.unload(ModelKey("a"), force=True).result(PATIENCE) is True
    assert [stream.wait().finish_reason for stream in streams] == ["cancelled"] * 3
    with residency.slots():
        assert residency.ledger.accounted("cpu") == 0


def test_force_during_the_load_calls_it_off(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.open_loads.clear()
    stream, waiter = ask(residency, "a"), lease(residency, "a")
    assert reaches(residency, "a", SlotState.LOADING)
    with pytest.raises(ModelBusy):
        residency.unload(ModelKey("a"))
    assert residency.unload(ModelKey("a"), force=True).result(PATIENCE) is True
    assert stream.wait().finish_reason == "cancelled"
    with pytest.raises(LoadFailed, match="cancelled"):
        waiter.future.result(PATIENCE)
    assert reaches(residency, "a", SlotState.REGISTERED)
    stage.open_loads.set()
    assert ask(residency, "a").wait().text == "done"


def test_idle_models_leave_the_longest_unused_first(make: MakeResidency) -> None:
    residency = make(budget=2)
    for name in ("a", "b", "a", "c"):
        ask(residency, name).wait()
    with residency.slots() as slots:
        assert {s.name for s in slots.values() if s.state is SlotState.READY} == {"a", "c"}
    assert residency.counters["evictions"] == 1


def test_places_count_too(make: MakeResidency) -> None:
    residency = make(places=1)
    for name in ("a", "b"):
        ask(residency, name).wait()
    assert reaches(residency, "a", SlotState.REGISTERED)


def test_a_pinned_model_stays(make: MakeResidency) -> None:
    residency = make(budget=1, wait=0.05)
    ask(residency, "a").wait()
    with residency.slots() as slots:
        slots[ModelKey("a")].pinned = True
    with pytest.raises(DoesNotFit):
        ask(residency, "b").wait()


def test_too_large_is_refused_with_the_numbers(make: MakeResidency, stage: Stage) -> None:
    stage.sizes["huge"] = 9 * GIB
    with pytest.raises(
        DoesNotFit, match=r"needs 9,216 MiB on cpu, 8,192 MiB of 8,192 MiB are free.*smaller quantization"
    ):
        ask(make(), "huge").wait()
    assert stage.loads == []


def test_a_busy_model_is_waited_for_and_the_refusal_names_it(make: MakeResidency, stage: Stage) -> None:
    residency = make(budget=1, wait=0.05)
    lease(residency, "a").future.result(PATIENCE)
    with pytest.raises(DoesNotFit, match="In use: a"):
        ask(residency, "b").wait()
    second = make(budget=1)
    lease(second, "a").future.result(PATIENCE)
    stream = ask(second, "b")
    assert second.wait_for(lambda slots: bool(slots[ModelKey("a")].wanted_by), PATIENCE)
    give_back(second, "a")
    assert stream.wait().text == "done"


def test_newcomers_queue_behind_a_load_that_waits(make: MakeResidency, stage: Stage) -> None:
    """Without this, a model with a steady stream of requests would never be evicted."""
    residency = make(budget=1)
    stage.open_steps.clear()
    here = ask(residency, "a")
    assert stage.serving.acquire(timeout=PATIENCE)
    other = ask(residency, "b")
    assert residency.wait_for(lambda slots: bool(slots[ModelKey("a")].wanted_by), PATIENCE)
    newcomer = ask(residency, "a")
    stage.open_steps.set()
    assert [s.wait().text for s in (here, other, newcomer)] == ["done"] * 3
    assert stage.loads == ["a", "b", "a"]


def test_a_load_that_gives_up_lets_the_newcomers_in(make: MakeResidency, stage: Stage) -> None:
    residency = make(budget=1)
    stage.open_steps.clear()
    here = ask(residency, "a")
    assert stage.serving.acquire(timeout=PATIENCE)
    ask(residency, "b")
    assert residency.wait_for(lambda slots: bool(slots[ModelKey("a")].wanted_by), PATIENCE)
    newcomer = ask(residency, "a")
    assert residency.unload(ModelKey("b"), force=True).result(PATIENCE) is True
    stage.open_steps.set()
    assert [s.wait().text for s in (here, newcomer)] == ["done", "done"]
    assert stage.loads == ["a"]


def test_fifty_callers_on_two_models_and_room_for_one(make: MakeResidency, stage: Stage) -> None:
    residency = make(budget=1)
    with ThreadPoolExecutor(50) as pool:
        texts = list(pool.map(lambda i: ask(residency, "ab"[i % 2]).wait().text, range(50)))
    assert texts == ["done"] * 50
    assert residency.wait_for(lambda slots: all(slot.leases == 0 for slot in slots.values()), PATIENCE)
    with residency.slots() as slots:
        assert sum(slot.state is SlotState.READY for slot in slots.values()) == 1
        assert residency.ledger.accounted("cpu") == GIB


def test_out_of_memory_at_load_frees_what_is_idle_and_tries_again(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    ask(residency, "a").wait()
    stage.failures = [DoesNotFit("the device ran out")]
    assert ask(residency, "b").wait().text == "done"
    with residency.slots() as slots:
        assert slots[ModelKey("a")].state is SlotState.REGISTERED


def test_idle_time_ends_the_stay(make: MakeResidency, stage: Stage) -> None:
    residency = make(keep_alive=0)
    ask(residency, "a").wait()
    assert reaches(residency, "a", SlotState.REGISTERED)
    assert stage.closes == ["a"]


def test_a_request_may_ask_for_another_idle_time(make: MakeResidency) -> None:
    residency = make(keep_alive=-1)
    ask(residency, "a", keep_alive=0.02).wait()
    assert reaches(residency, "a", SlotState.REGISTERED)
    residency = make(keep_alive=0)
    ask(residency, "b", keep_alive=-1).wait()
    with residency.slots() as slots:
        assert slots[ModelKey("b")].expires(0) is None


def test_an_idle_time_of_ages_does_not_stop_the_timer(make: MakeResidency) -> None:
    residency = make(keep_alive=-1)
    ask(residency, "a", keep_alive=1e300).wait()
    ask(residency, "b", keep_alive=0.02).wait()
    assert residency.wait_for(lambda slots: slots[ModelKey("b")].state is SlotState.REGISTERED, PATIENCE)
    with residency.slots() as slots:
        assert slots[ModelKey("a")].state is SlotState.READY


def test_the_idle_timer_spares_models_in_use(make: MakeResidency) -> None:
    residency = make(keep_alive=0)
    lease(residency, "a").future.result(PATIENCE)
    ask(residency, "b").wait()
    assert reaches(residency, "b", SlotState.REGISTERED)
    with residency.slots() as slots:
        assert slots[ModelKey("a")].state is SlotState.READY
    give_back(residency, "a")
    assert reaches(residency, "a", SlotState.REGISTERED)


def test_close_ends_everything(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.open_steps.clear()
    stream = ask(residency, "a")
    assert stage.serving.acquire(timeout=PATIENCE)
    residency.close(timeout=PATIENCE)
    assert stream.wait().finish_reason == "cancelled"
    with pytest.raises(LoadFailed, match="closed"):
        ask(residency, "a").wait()
    assert not {"model a", "load a", "unload a"} & {thread.name for thread in threading.enumerate()}


def test_states_follow_the_table() -> None:
    slot = Slot("a")
    with pytest.raises(RuntimeError, match="registered → ready"):
        slot.move(SlotState.READY)


# -- death -----------------------------------------------------------------------------------------------------------


def kill(residency: Residency, name: str) -> RuntimeFault:
    with pytest.raises(EngineFailure, match="the loop broke") as caught:
        ask(residency, name, prompt="die").wait()
    with residency.slots() as slots:
        assert slots[ModelKey(name)].state is not SlotState.READY
    return caught.value


def test_a_model_that_dies_fails_what_is_in_hand_and_is_loaded_afresh(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.open_loads.set()
    waiting = lease(residency, "a")
    runtime = waiting.future.result(PATIENCE)
    kill(residency, "a")
    with residency.slots() as slots:
        slot = slots[ModelKey("a")]
        assert (slot.runtime, slot.leases, slot.last_exit) == (None, 0, "doll failed: the loop broke")
        assert "the loop broke" in str(slot.error)
        assert residency.ledger.holds(ModelKey("a")) == {}
    assert stage.closes == ["a"]
    assert residency.counters["deaths"] == 1
    residency.release(runtime)  # the lease of a model that is gone
    stage.open_steps.set()
    assert ask(residency, "a").wait().text == "done"
    with residency.slots() as slots:
        assert slots[ModelKey("a")].leases == 0
    assert stage.loads == ["a", "a"]


def test_a_model_that_died_on_an_accelerator_is_loaded_elsewhere(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.devices = [Device(DeviceType.CUDA, 0, "card"), CPU]
    stage.open_steps.set()
    runtime = lease(residency, "a").future.result(PATIENCE)
    assert runtime.plan is not None
    assert runtime.plan.device.key == "cuda:0"
    kill(residency, "a")
    runtime = lease(residency, "a").future.result(PATIENCE)
    assert runtime.plan is not None
    assert runtime.plan.device.key == "cpu"
    assert "a died on cuda:0: doll failed: the loop broke" in runtime.warnings[0]
    give_back(residency, "a")


def test_the_request_in_hand_is_answered_by_the_next_device(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.devices = [Device(DeviceType.CUDA, 0, "card"), CPU]
    stage.open_steps.clear()
    first = ask(residency, "a", prompt="die on the card")
    assert stage.serving.acquire(timeout=PATIENCE)
    second = ask(residency, "a")
    stage.open_steps.set()
    assert (first.wait().text, second.wait().text) == ("done", "done")
    assert stage.loads == ["a", "a"]
    with residency.slots() as slots:
        slot = slots[ModelKey("a")]
        assert (slot.leases, slot.restarts, slot.runtime and slot.runtime.plan and slot.runtime.plan.device) == (
            0,
            1,
            CPU,
        )
    assert residency.counters["deaths"] == 1


def test_a_divided_model_that_dies_leaves_all_its_cards() -> None:
    """Nobody knows which of them failed."""
    info = ModelInfo(Path("m"), ModelFormat.GGUF, (), 1)
    layers = {"cuda:0": 8, "cuda:1": 8, "cpu": 4}
    plan = LoadPlan(info, "doll", Device(DeviceType.CUDA), "x", 8, layers=layers)
    assert plan.cards == {"cuda:0", "cuda:1"}
    slot = Slot(ModelKey("m"))
    slot.devices = frozenset({"cuda:0", "cuda:1", "cpu"})
    assert slot.falls_back_from(plan.cards, 0)
    slot.note_death(0, "it broke", plan.cards)
    assert [slot.distrusts([device], 1) for device in ("cuda:0", "cuda:1", "cpu")] == [True, True, False]
    assert not slot.falls_back_from(plan.cards, 1)


def test_an_answer_that_has_begun_is_not_begun_again(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.devices = [Device(DeviceType.CUDA, 0, "card"), CPU]
    with pytest.raises(EngineFailure, match="the loop broke"):
        ask(residency, "a", prompt="speak on the card").wait()
    assert stage.loads == ["a"]


@pytest.mark.parametrize("devices", [[CPU], [Device(DeviceType.CUDA, 0, "card")]], ids=["cpu", "card"])
def test_without_another_device_the_request_fails(make: MakeResidency, stage: Stage, devices: list[Device]) -> None:
    residency = make()
    stage.devices = devices
    kill(residency, "a")
    assert stage.loads == ["a"]


def test_a_request_that_kills_on_every_device_fails(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.devices = [Device(DeviceType.CUDA, 0, "card"), Device(DeviceType.CUDA, 1, "card"), CPU]
    kill(residency, "a")
    assert stage.loads == ["a", "a", "a"]


def test_a_request_that_is_cancelled_is_not_served_again(make: MakeResidency, stage: Stage) -> None:
    request = Request("a", GenerationConfig(prompt="x"))
    assert request.start()
    assert request.withdraw()
    assert (request.start(), request.withdraw()) == (True, True)
    request.cancel()
    assert not request.withdraw()


def test_the_others_do_not_notice_a_death(make: MakeResidency, stage: Stage) -> None:
    residency = make()
    stage.open_loads.set()
    other = ask(residency, "b")
    assert stage.serving.acquire(timeout=PATIENCE)
    kill(residency, "a")
    stage.open_steps.set()
    assert other.wait().text == "done"


def test_those_who_wait_behind_a_model_that_dies_get_a_fresh_one(make: MakeResidency, stage: Stage) -> None:
    residency = make(budget=1.5)
    stage.open_loads.set()
    held = lease(residency, "a").future.result(PATIENCE)
    wanting = lease(residency, "b")  # wants the room of a, so that newcomers of a queue
    assert residency.wait_for(lambda slots: slots[ModelKey("a")].wanted_by == {ModelKey("b")}, PATIENCE)
    newcomer = ask(residency, "a")
    request = Request("a", GenerationConfig(prompt="die"))
    held.submit(request)
    first = wanting.future.result(PATIENCE)
    residency.release(first)
    stage.open_steps.set()
    assert newcomer.wait().text == "done"


def test_a_model_that_keeps_dying_rests(make: MakeResidency, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    residency = make()
    stage.open_loads.set()
    stage.open_steps.set()
    for _ in range(DEATHS):
        kill(residency, "a")
        assert reaches(residency, "a", SlotState.FAILED)
    with pytest.raises(EngineDied, match=r"died 3 times within 5 minutes.*the loop broke.*again in") as caught:
        ask(residency, "a").wait()
    assert caught.value.model_name == "a"
    assert ask(residency, "b").wait().text == "done"
    monkeypatch.setattr("lfx_local_runtimes.runtimes.memory.slots.BACK_OFF_S", 0)
    assert ask(residency, "a").wait().text == "done"


def test_a_death_right_after_the_load_is_a_failed_load(make: MakeResidency, stage: Stage) -> None:
    class Stillborn(Doll):
        def _work(self, inbox: Inbox) -> None:
            raise RuntimeError("never lived")

    Stillborn.stage = stage
    register_engine("doll", Stillborn)
    stage.open_loads.set()
    residency = make()
    with pytest.raises(EngineFailure, match=r"never lived|not loaded"):
        ask(residency, "a").wait()
    assert reaches(residency, "a", SlotState.FAILED)
    with residency.slots() as slots:
        assert "never lived" in str(slots[ModelKey("a")].error)
