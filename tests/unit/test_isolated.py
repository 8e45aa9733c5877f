"""A model in a process of its own: every way it can die, hang or misbehave. With real processes and scripted engines."""

import asyncio
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lfx_local_runtimes.errors import EngineDied, EngineFailure, LoadFailed, RuntimeFault
from lfx_local_runtimes.routes.faults import status_of
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.base import Inbox, LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.batching import BatchingRuntime
from lfx_local_runtimes.runtimes.config import DeviceType, ModelKey
from lfx_local_runtimes.runtimes.devices import CPU, MACHINE, Device, Memory
from lfx_local_runtimes.runtimes.engines.isolated import codec
from lfx_local_runtimes.runtimes.engines.isolated import runtime as isolated
from lfx_local_runtimes.runtimes.engines.isolated.runtime import IsolatedRuntime
from lfx_local_runtimes.runtimes.memory.slots import SlotState
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.processes.child import ChildDied
from lfx_local_runtimes.runtimes.processes.endings import MAX_LINES, ExitReport
from lfx_local_runtimes.runtimes.processes.frames import Frame, encode
from lfx_local_runtimes.runtimes.requests import Event, Failed, Finished, Request, RequestState
from lfx_local_runtimes.runtimes.requests.channel import MERGE_AFTER
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult, TextDelta
from lfx_local_runtimes.runtimes.testing import ScriptedRuntime, Step
from lfx_local_runtimes.settings import PREFIX, Settings, get_settings
from tests.isolated_engines import Actor, Deaf, register, runtime_of
from tests.routes_app import write_model

WAIT_S = 60.0
LIMIT_S = 4.0
"""For a step. A process needs less for its start, also on a busy machine."""
TOKENS = 20_000
"""Of a long answer: as frames they are more than a pipe holds."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def last_of(request: Request) -> Event:
    """The event that ends a request."""
    ended = threading.Event()
    request.on_end(ended.set)
    assert ended.wait(WAIT_S), "the request has no end"
    while not isinstance(event := request.channel.get(), Finished | Failed):
        pass
    return event


def fault_of(request: Request) -> RuntimeFault:
    event = last_of(request)
    assert isinstance(event, Failed), event
    return event.error


def text_of(request: Request) -> str:
    event = last_of(request)
    assert isinstance(event, Finished), event
    text: str = event.result.text
    return text


def begun(request: Request) -> Request:
    """The same, once its first token is there."""
    while not isinstance(event := request.channel.get(), TextDelta):
        assert not isinstance(event, Failed | Finished), event
    return request


# -- deaths, as the manager sees them --------------------------------------------------------------------------------


class House:
    """A manager with as many models as wanted, and a neighbour that answers all the time."""

    def __init__(self, folder: Path) -> None:
        register()
        self._models = folder / "models"
        self._numbers = itertools.count(1)
        self._models.mkdir()
        self.manager = RuntimeManager(
            Settings(home=folder / "home", model_dirs=(self._models,), offline=True, spare_processes=0)
        )
        self.neighbour = begun(self.ask(self.model(), "wait"))

    def model(self, **acts: str) -> str:
        """The name of a new model, which does so at its `load` or `close`."""
        name = f"model {next(self._numbers)}"
        folder = self._models / name
        write_model(folder)
        self.act(name, **acts)
        config = ModelConfig(model_id=str(folder), model_name=name, runtime_type="actor", device_type="cpu")
        self.manager.register_model(config)
        return name

    def act(self, name: str, **acts: str) -> None:
        """What it does from now on at its load or close."""
        for when in ("load", "close"):
            (self._models / name / when).write_text(acts.get(when, ""))

    def empty(self) -> None:
        """Only the neighbour stays."""
        names = [name for name in self.manager.loaded_models() if name != self.neighbour.model_name]
        for name in names:
            asyncio.run(self.manager.unload_model(name, force=True))

    def ask(self, name: str, prompt: str) -> Request:
        return self.manager.start(name, GenerationConfig(prompt=prompt)).request

    def pid(self, name: str) -> int:
        pid = self.manager.model_status(name).pid
        assert pid is not None
        return pid

    def reaches(self, name: str, state: SlotState) -> bool:
        return self.manager._residency.wait_for(lambda slots: slots[ModelKey(name)].state is state, WAIT_S)

    def check_freed(self, name: str) -> None:
        assert self.manager._residency.ledger.holds(ModelKey(name)) == {}
        assert self.neighbour.state is RequestState.RUNNING

    def check_died(self, name: str, fault: RuntimeFault, how: str, said: str = "") -> None:
        """It has died like this, is accounted for, and the next request loads it again."""
        assert type(fault) is EngineDied, fault
        assert (fault.code, status_of(fault), fault.model_name) == ("engine_died", 503, name)
        assert fault.message.startswith(f"The process of {name} (actor, ")
        assert how in fault.message
        assert said in fault.message
        assert "loads it again" in fault.hint
        status = self.manager.model_status(name)
        assert (status.state, status.last_exit, status.pid) == ("failed", fault.message, None)
        self.check_freed(name)
        self.act(name)
        pid = int(text_of(self.ask(name, "answers")).split()[0])
        assert pid == self.pid(name)
        assert f", {pid})" not in fault.message


@pytest.fixture(scope="module")
def whole_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    yield house
    house.manager.close()


@pytest.fixture
def house(whole_house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """Its models may die as often as they like."""
    monkeypatch.setattr("lfx_local_runtimes.runtimes.memory.slots.BACK_OFF_S", 0)
    yield whole_house
    whole_house.empty()


ENDS = {
    "SIGSEGV": "ended with signal SIGSEGV", "SIGABRT": "ended with signal SIGABRT",
    "SIGKILL": "was killed from outside (signal SIGKILL)", "exit": "ended with exit status 3",
}  # fmt: skip


def test_a_death_before_the_first_token(house: House) -> None:
    name = house.model()
    for how, said in ENDS.items():
        house.check_died(name, fault_of(house.ask(name, f"die {how}")), said, f"the last words before {how}.")
    assert house.manager.model_status(name).restarts == len(ENDS)


def test_a_death_in_the_middle_of_an_answer(house: House) -> None:
    name = house.model()
    for how in ("SIGSEGV", "SIGKILL"):
        running = begun(house.ask(name, "wait"))
        queued = [house.ask(name, "answers") for _ in range(3)]
        pid = house.pid(name)
        os.kill(pid, getattr(signal, how))
        faults = [fault_of(request) for request in (running, *queued)]
        assert {fault.message for fault in faults} == {faults[0].message}
        assert not psutil.pid_exists(pid)
        house.check_died(name, faults[0], ENDS[how])


class Card:
    """A machine with a card, as far as plans go. The engine computes elsewhere."""

    def accelerators(self) -> tuple[Device, ...]:
        return (Device(DeviceType.CUDA, 0, "card"),)

    def memory(self, device: Device) -> Memory:
        return MACHINE.memory(CPU)

    def cpu_has_bf16(self) -> bool:
        return False


def test_a_death_on_a_card_leaves_the_request_to_the_cpu(tmp_path: Path) -> None:
    """Before it has said anything: then its caller notices nothing but a warning."""
    register()
    folder = tmp_path / "model"
    write_model(folder)
    settings = Settings(home=tmp_path / "home", model_dirs=(tmp_path,), offline=True, spare_processes=0, confine="off")
    manager = RuntimeManager(settings, probe=Card())
    try:
        manager.register_model(ModelConfig(model_id=str(folder), model_name="model", runtime_type="actor"))
        request = manager.start("model", GenerationConfig(prompt=f"die_once {tmp_path / 'mark'}")).request
        event = last_of(request)
        assert isinstance(event, Finished), event
        told = event.result.metadata
        assert told["acceleration"]["device"] == "cpu"
        assert "died on cuda:0: The process of model (actor, " in told["warnings"][0]
        assert (event.result.text, manager.model_status("model").restarts) == ("alive", 1)
    finally:
        manager.close()


def test_a_death_while_nobody_asks(house: House) -> None:
    name = house.model()
    text_of(house.ask(name, "answers"))
    os.kill(house.pid(name), signal.SIGKILL)
    assert house.reaches(name, SlotState.FAILED)
    error = house.manager.model_status(name).last_exit
    assert error is not None
    assert ENDS["SIGKILL"] in error
    house.check_freed(name)
    assert text_of(house.ask(name, "answers"))


def test_a_death_at_load(house: House) -> None:
    name = house.model(load="die SIGABRT")
    faults = [fault_of(one) for one in [house.ask(name, "answers") for _ in range(2)]]
    assert faults[0] is faults[1]
    house.check_died(name, faults[0], ENDS["SIGABRT"], "the last words before SIGABRT")


def test_a_load_that_ends_as_programs_do_is_a_failed_load(house: House) -> None:
    name = house.model(load="quit")
    fault = fault_of(house.ask(name, "answers"))
    assert type(fault) is LoadFailed
    assert house.manager.model_status(name).state == "failed"
    house.check_freed(name)
    house.act(name)
    assert text_of(house.ask(name, "answers"))


def test_a_death_at_close_is_an_unload(house: House) -> None:
    name = house.model()
    for how in ("SIGSEGV", "SIGKILL"):
        house.act(name, close=f"die {how}")
        text_of(house.ask(name, "answers"))
        pid = house.pid(name)
        assert asyncio.run(house.manager.unload_model(name)) is True
        status = house.manager.model_status(name)
        assert (status.state, status.restarts) == ("registered", 0)
        assert not psutil.pid_exists(pid)
        house.check_freed(name)
    house.act(name)
    assert text_of(house.ask(name, "answers"))


@linux
def test_a_model_that_wants_too_much_memory(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_MARGIN", 2**29)
    name = house.model()
    fault = fault_of(house.ask(name, "exhaust python"))
    assert type(fault) is EngineFailure
    assert "MemoryError" in fault.message
    assert text_of(house.ask(name, "answers")), "Python gives the memory back, and the model goes on"
    assert house.manager.model_status(name).restarts == 0
    house.check_died(name, fault_of(house.ask(name, "exhaust native")), ENDS["SIGABRT"], "bad_alloc")


def test_a_loop_that_ends_as_programs_do(house: House) -> None:
    """The process lives, the model does not."""
    name = house.model()
    running = house.ask(name, "quits")
    queued = house.ask(name, "answers")
    assert [type(fault_of(one)) for one in (running, queued)] == [EngineFailure] * 2
    assert house.manager.model_status(name).state == "failed"
    house.check_freed(name)
    assert text_of(house.ask(name, "answers"))


def test_the_neighbour_has_not_noticed(house: House) -> None:
    """The last test of the house."""
    house.neighbour.cancel()
    event = last_of(house.neighbour)
    assert isinstance(event, Finished)
    assert (event.result.text, event.result.finish_reason) == ("begun ", "cancelled")


def test_the_kernel_ends_it_because_memory_ran_out(tmp_path: Path) -> None:
    how = "was killed by the kernel because the machine ran out of memory"

    class Killed:
        pid = 7

        def kill(self) -> None:
            pass

        def wait(self, limit_s: float) -> ExitReport:
            return ExitReport(-9, how, ("", "loading tensors", "  "), out_of_memory=True)

    runtime = runtime_of(Actor, tmp_path)
    runtime._child = Killed()  # type: ignore[assignment]
    fault = runtime._death(ChildDied("it", ExitReport(-9, how)))
    assert fault.message == f"The process of {tmp_path.name} (actor, 7) {how}. It said last: loading tensors."
    assert "smaller quantization" in fault.hint


def test_who_asks_while_a_dead_model_is_closed_hears_of_its_death() -> None:
    closing, go_on = threading.Event(), threading.Event()

    class Brittle(ScriptedRuntime):
        def _work(self, inbox: Inbox) -> None:
            inbox.get()
            raise RuntimeError("the loop broke")

        def _close(self) -> None:
            closing.set()
            assert go_on.wait(WAIT_S)

    runtime = Brittle(ModelConfig(model_id="none", model_name="brittle"))
    runtime.start().result(WAIT_S)
    first = ask(runtime, "x")
    assert closing.wait(WAIT_S)
    fault = fault_of(ask(runtime, "x"))
    go_on.set()
    assert fault is fault_of(first)
    assert "the loop broke" in fault.message


# -- hangs -------------------------------------------------------------------------------------------------------------

Start = Callable[..., IsolatedRuntime]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Start]:
    """Makes a runtime that is not loaded; `acts` say what it does at its `load` or `close`."""
    made: list[IsolatedRuntime] = []

    def make(
        kind: type[ModelRuntime] = Actor, *, config: dict[str, Any] | None = None, acts: dict[str, str] | None = None,
        **settings: Any,
    ) -> IsolatedRuntime:  # fmt: skip
        folder = tmp_path / f"model {len(made)}"
        folder.mkdir()
        for when, act in (acts or {}).items():
            (folder / when).write_text(act)
        made.append(runtime_of(kind, folder, config, **settings))
        return made[-1]

    yield make
    for runtime in made:
        if (thread := runtime.stop()) is not None:
            thread.join(WAIT_S)
            assert not thread.is_alive()


@pytest.fixture
def start(make: Start) -> Start:
    """The same, and loads it."""

    def start(*arguments: Any, **options: Any) -> IsolatedRuntime:
        runtime = make(*arguments, **options)
        runtime.start().result(WAIT_S)
        return runtime

    return start


@pytest.fixture(scope="module")
def sturdy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedRuntime]:
    """A loaded model for the tests that do not end it."""
    runtime = runtime_of(Actor, tmp_path_factory.mktemp("models"), cancel_limit_s=3)
    runtime.start().result(WAIT_S)
    yield runtime
    thread = runtime.stop()
    assert thread is not None
    thread.join(WAIT_S)


def ask(runtime: ModelRuntime, prompt: str, **options: Any) -> Request:
    request = Request(runtime.config.model_name, GenerationConfig(prompt=prompt, **options))
    runtime.submit(request)
    return request


def test_a_step_that_never_ends_is_noticed(make: Start, start: Start) -> None:
    """While a model answers and while it loads; with the interpreter's lock held and without."""
    answering = {how: start(step_limit_s=LIMIT_S) for how in ("native", "holding")}
    idle = start(step_limit_s=LIMIT_S)
    requests = [ask(runtime, f"hang {how}") for how, runtime in answering.items()]
    loads = [make(acts={"load": f"hang {how}"}, step_limit_s=LIMIT_S).start() for how in answering]
    faults = [fault_of(request) for request in requests]
    faults += [load.exception(WAIT_S) for load in loads]  # type: ignore[misc]
    assert {type(fault) for fault in faults} == {EngineDied}
    assert f"was killed: a step ran for more than {LIMIT_S:g} s (LOCAL_RUNTIMES_STEP_LIMIT_S)" in faults[0].message
    assert f"was killed: it gave no sign of life for {LIMIT_S:g} s" in faults[1].message
    assert all("was killed: " in fault.message for fault in faults)
    assert text_of(ask(idle, "answers")), "a model that has nothing to do is left alone"


def test_a_cancel_that_is_not_answered_ends_the_process(start: Start) -> None:
    runtime = start(Deaf, cancel_limit_s=0.3)
    running, queued = begun(ask(runtime, "x")), ask(runtime, "x")
    running.cancel()
    assert isinstance(last_of(running), Finished), "it was cancelled, as its caller wanted"
    fault = fault_of(queued)
    assert type(fault) is EngineDied
    assert "was killed: it did not answer a cancel within 0.3 s" in fault.message
    runtime.start().result(WAIT_S)
    assert begun(ask(runtime, "x")).state is RequestState.RUNNING
    runtime.kill("the test is over")


def test_a_cancel_that_is_answered_kills_nobody(sturdy: IsolatedRuntime) -> None:
    running, queued = begun(ask(sturdy, "wait")), ask(sturdy, "answers")
    pid = sturdy.pid
    queued.cancel()
    assert isinstance(last_of(queued), Finished)
    running.cancel()
    assert isinstance(last_of(running), Finished)
    assert int(text_of(ask(sturdy, "answers")).split()[0]) == pid


def test_a_cancel_while_a_request_is_sent_reaches_the_process(
    sturdy: IsolatedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the model would go on with an answer that nobody waits for."""
    request = Request("x", GenerationConfig(prompt="wait"))
    start_frame = codec.start_frame

    def cancelled_meanwhile(*arguments: Any) -> Frame:
        request.cancel()
        return start_frame(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(codec, "start_frame", cancelled_meanwhile)
        sturdy.submit(request)
        assert isinstance(last_of(request), Finished)
    assert text_of(ask(sturdy, "answers"))


@pytest.mark.parametrize("prompt", [None, "wait"])
def test_an_unload_that_hangs_ends_in_a_kill(start: Start, prompt: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "UNLOAD_S", 0.3)
    runtime = start(acts={"close": "hang native"})
    request = begun(ask(runtime, prompt)) if prompt else None
    pid, thread = runtime.pid, runtime.stop()
    assert thread is not None
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert not psutil.pid_exists(pid)
    assert runtime.death is None
    if request is not None:
        assert isinstance(last_of(request), Finished)


def test_a_manager_that_closes_waits_for_no_model_that_hangs(tmp_path: Path) -> None:
    house = House(tmp_path)
    name = house.model(close="hang native")
    text_of(house.ask(name, "answers"))
    pids = [house.pid(name), house.pid(house.neighbour.model_name)]
    house.manager._residency.close(timeout=0.2)
    assert isinstance(last_of(house.neighbour), Finished)
    assert all(house.reaches(one, SlotState.REGISTERED) for one in (name, house.neighbour.model_name))
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_load_that_is_no_longer_wanted_ends(make: Start) -> None:
    loading = threading.Event()
    runtime, context = make(acts={"load": "hang holding"}), LoadContext()
    context.on_cancel = lambda callback: (setattr(context, "_on_cancel", callback), loading.set())  # type: ignore[assignment,return-value]
    load = runtime.start(context)
    assert loading.wait(WAIT_S)
    context.cancel()
    assert isinstance(load.exception(WAIT_S), LoadFailed)


def test_each_token_of_a_script_is_a_step() -> None:
    ages: list[float] = []

    def script(config: GenerationConfig) -> Iterable[Step]:
        for number in range(3):
            ages.append(runtime._step_began or 0)
            yield str(number)

    runtime = ScriptedRuntime(ModelConfig(model_id="none", model_name="parrot"), script=script)
    runtime.start().result(WAIT_S)
    assert text_of(ask(runtime, "x")) == "012"
    assert ages == sorted(set(ages))
    thread = runtime.stop()
    assert thread is not None
    thread.join()


def test_a_prompt_that_is_never_ready_is_a_step_that_never_ends() -> None:
    preparing, go_on = threading.Event(), threading.Event()

    class Slow(BatchingRuntime):
        engine = "slow"

        def _load(self, plan: LoadPlan, context: LoadContext) -> None:
            pass

        def _close(self) -> None:
            pass

        def _measure(self) -> dict[str, int]:
            return {"cpu": 1}

        def _work(self, inbox: Inbox) -> None:
            self._batch_work(inbox, Nothing())

        def _prepare(self, request: Any) -> Any:
            preparing.set()
            assert go_on.wait(WAIT_S)
            raise EngineFailure("no")

    class Nothing:
        busy = False

        def add(self, job: Any) -> None: ...

        def step(self) -> None: ...

    config = ModelConfig(model_id="none", model_name="slow")
    runtime = Slow(config, ScriptedRuntime._own_plan(config))
    runtime.start().result(WAIT_S)
    assert runtime.step_age == 0
    request = ask(runtime, "x")
    assert preparing.wait(WAIT_S)
    assert runtime.step_age > 0
    go_on.set()
    fault_of(request)
    thread = runtime.stop()
    assert thread is not None
    thread.join()
    assert runtime._preparing_since is None


# -- what comes out of the process -----------------------------------------------------------------------------------


def test_a_caller_who_reads_slowly_does_not_hold_the_model_up(sturdy: IsolatedRuntime) -> None:
    ended = threading.Event()
    request = ask(sturdy, f"flood {TOKENS}", max_tokens=TOKENS + 1)
    request.on_end(ended.set)
    assert ended.wait(WAIT_S), "nobody reads, and the model goes on"
    texts: list[str] = []
    while isinstance(event := request.channel.get(), TextDelta):
        texts.append(event.text)
    assert len(texts) <= MERGE_AFTER
    assert "".join(texts) == "".join(f"{number} " for number in range(TOKENS))
    assert isinstance(event, Finished)
    assert event.result.tokens_generated == TOKENS


def test_what_a_library_prints_is_not_in_the_way(sturdy: IsolatedRuntime) -> None:
    assert text_of(ask(sturdy, "prints 1000000")) == "token0 token1 token2 done"
    assert text_of(ask(sturdy, "answers"))
    child = sturdy._child
    assert child is not None
    while "the last line" not in child.last_lines:  # it has a pipe of its own
        threading.Event().wait(0.01)
    assert len(child.last_lines) == MAX_LINES


def false_result() -> Frame:
    return codec.event_frame("1", Finished(GenerationResult(
        text="", model_name="m", tokens_generated=0, prompt_tokens=0, finish_reason="stop", execution_time=0,
        time_to_first_token=None, metadata={"warnings": 5},
    )))  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"no frame", "No frame starts with"),
        (Frame({"t": "delta", "id": "1", "delta": {"text": 5}}), "no TextDelta"),
        (false_result(), "What was sent is no tuple"),
    ],
)
def test_a_false_frame_ends_the_process(start: Start, sent: bytes | Frame, why: str) -> None:
    data = sent if isinstance(sent, bytes) else b"".join(encode(sent))
    runtime = start()
    pid = runtime.pid
    fault = fault_of(ask(runtime, f"sends {data.hex()}"))
    assert type(fault) is EngineDied
    assert "was killed: it sent something that is not allowed" in fault.message
    assert why in fault.message
    assert not psutil.pid_exists(pid)


def test_the_folder_that_a_process_may_write_is_removed_when_it_dies(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{PREFIX}TRUST_REMOTE_CODE", "true")
    get_settings.cache_clear()
    runtime = start(config={"trust_remote_code": True})
    pid, folder = text_of(ask(runtime, "answers")).split()
    assert Path(folder).is_dir()
    assert int(pid) == runtime.pid
    assert type(fault_of(ask(runtime, "die SIGSEGV"))) is EngineDied
    assert not Path(folder).exists()
