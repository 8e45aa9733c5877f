"""Processes that wait for a model: they are there in time, accounted for, replaced, and ended. With real processes."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lfx_local_runtimes.errors import EngineDied, LoadFailed
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.engines.isolated import runtime as isolated
from lfx_local_runtimes.runtimes.engines.isolated import spares as module
from lfx_local_runtimes.runtimes.engines.isolated.spares import Spares, start_child
from lfx_local_runtimes.runtimes.engines.registry import EngineRow
from lfx_local_runtimes.runtimes.processes.child import Child, ChildNotStarted
from lfx_local_runtimes.runtimes.processes.confinement import available
from lfx_local_runtimes.runtimes.processes.frames import Frame
from lfx_local_runtimes.settings import Settings
from tests import isolated_engines
from tests.isolated_engines import Actor, register, runtime_of
from tests.routes_app import write_model

WAIT_S = 60.0
PLAIN = ""
QUICK = EngineRow("quick", f"{Actor.__module__}:Actor", warm=f"{isolated_engines.__name__}:nothing")
ENDLESS = EngineRow("endless", "nowhere:nothing", warm=f"{isolated_engines.__name__}:import_for_ever")
THREADED = EngineRow(
    "actor", f"{Actor.__module__}:{Actor.__name__}", warm=f"{isolated_engines.__name__}:import_with_thread"
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
confining = pytest.mark.skipif(available().level == "none", reason="no process is confined here")


class Account:
    """What the ledger would show, by kind."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self._changed = threading.Condition()

    def __call__(self, kind: str, size: int) -> None:
        with self._changed:
            self.sizes[kind] = size
            self._changed.notify_all()

    def wait(self, condition: Callable[[dict[str, int]], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.sizes), WAIT_S)

    def shows(self, kind: str) -> int:
        self.wait(lambda sizes: sizes.get(kind, 0) > 0)
        return self.sizes[kind]


@pytest.fixture
def account() -> Account:
    return Account()


Make = Callable[[int], Spares]


@pytest.fixture
def make(account: Account) -> Iterator[Make]:
    made: list[Spares] = []

    def make(per_engine: int) -> Spares:
        made.append(Spares(per_engine, account))
        return made[-1]

    yield make
    for spares in made:
        spares.close()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Child]]:
    """Every process that was started."""
    children: list[Child] = []

    def start() -> Child:
        children.append(start_child())
        return children[-1]

    monkeypatch.setattr(module, "start_child", start)
    yield children
    for child in children:
        child.close(0)


def test_one_waits_and_is_taken(make: Make, account: Account, started: list[Child]) -> None:
    spares = make(1)
    spares.expect()
    assert account.shows(PLAIN) > 2**20
    spares.expect()
    child = spares.take(QUICK)
    assert started == [child]
    assert child.alive
    assert account.sizes[PLAIN] == 0


def test_a_load_waits_for_the_one_that_is_on_its_way(make: Make, started: list[Child]) -> None:
    spares = make(1)
    spares.expect()
    child = spares.take(QUICK)
    assert started == [child]
    assert child.alive


def test_each_one_on_its_way_is_waited_for_by_one_load(make: Make, started: list[Child]) -> None:
    spares = make(1)
    spares.expect()
    taken: list[Child] = []
    loads = [threading.Thread(target=lambda: taken.append(spares.take(QUICK))) for _ in range(3)]
    for load in loads:
        load.start()
    for load in loads:
        load.join(WAIT_S)
    assert len(set(taken)) == 3
    assert set(taken) == set(started), "two are new, and none was started in vain"
    assert not any(spares._wanted.values())


def test_one_that_fails_on_its_way_is_not_waited_for_longer(make: Make, started: list[Child]) -> None:
    spares = make(1)
    spares.refill(EngineRow("quick", "nowhere:nothing", warm="nowhere:nothing"))
    child = spares.take(QUICK)
    assert child.alive
    assert child is started[-1]


def test_the_end_is_not_held_up_by_a_load_that_waits(
    make: Make, started: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SOON_S", WAIT_S)
    spares = make(1)
    spares.refill(ENDLESS)
    load = threading.Thread(target=lambda: spares.take(ENDLESS))
    load.start()
    while not spares._wanted["endless"]:
        threading.Event().wait(0.01)
    spares.close()
    load.join(WAIT_S / 2)
    assert not load.is_alive()


def test_one_that_has_imported_the_engine_is_better(make: Make, account: Account, started: list[Child]) -> None:
    spares = make(1)
    spares.expect()
    account.shows(PLAIN)
    spares.refill(QUICK)
    account.shows("quick")
    plain, quick = started
    assert spares.take(QUICK) is quick
    assert spares.take(QUICK) is plain


def test_the_account_shows_all_that_wait(make: Make, account: Account, started: list[Child]) -> None:
    spares = make(2)
    spares.refill(QUICK)
    one = account.shows("quick")
    spares.refill(QUICK)
    account.wait(lambda sizes: sizes["quick"] > 1.5 * one)
    spares.refill(QUICK)
    assert len(started) == 2, "so many are enough"
    spares.take(QUICK)
    assert 0 < account.sizes["quick"] < 1.5 * one
    spares.take(QUICK)
    assert account.sizes["quick"] == 0


def test_several_of_a_kind_start_at_once(make: Make, account: Account, started: list[Child]) -> None:
    spares = make(3)
    for _ in range(5):
        spares.refill(QUICK)
    while len(spares._waiting["quick"]) < 3:
        threading.Event().wait(0.01)
    assert len(started) == 3
    assert not spares._starting
    spares.close()
    assert not any(child.alive for child in started)


def test_none_waits_if_none_is_wanted(make: Make, account: Account, started: list[Child]) -> None:
    spares = make(0)
    spares.expect()
    spares.refill(QUICK)
    assert started == []
    assert spares.take(QUICK).alive
    assert account.sizes == {}


def test_one_that_died_is_replaced(make: Make, account: Account, started: list[Child]) -> None:
    spares = make(1)
    spares.expect()
    account.shows(PLAIN)
    kill(started[0])
    spares.expect()
    account.wait(lambda sizes: len(started) == 2 and sizes[PLAIN] > 0)
    kill(started[1])
    child = spares.take(QUICK)
    assert child.alive
    assert started[2] is child


def kill(child: Child) -> None:
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(WAIT_S) is not None


def test_those_that_wait_make_room(make: Make, account: Account, started: list[Child]) -> None:
    spares = make(1)
    spares.expect()
    account.shows(PLAIN)
    assert spares.drop() is True
    assert account.sizes[PLAIN] == 0
    assert not psutil.pid_exists(started[0].pid)
    assert spares.drop() is False
    spares.expect()
    account.shows(PLAIN)


def test_the_end_ends_those_too_that_still_import(make: Make, account: Account, started: list[Child]) -> None:
    spares = make(1)
    spares.expect()
    account.shows(PLAIN)
    spares.refill(ENDLESS)
    while len(started) < 2:
        threading.Event().wait(0.01)
    spares.close()
    for child in started:
        assert child.wait(WAIT_S) is not None
    spares.expect()
    assert len(started) == 2


def test_an_import_that_fails_leaves_nothing(make: Make, account: Account, started: list[Child]) -> None:
    spares = make(1)
    spares.refill(EngineRow("broken", "nowhere:nothing", warm="nowhere:nothing"))
    while not started:
        threading.Event().wait(0.01)
    assert started[0].wait(WAIT_S) is not None
    assert spares.take(QUICK).alive
    assert account.sizes == {}


def test_a_machine_that_starts_no_process_has_no_spares(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()

    def start() -> Child:
        tried.set()
        raise ChildNotStarted("no more processes")

    monkeypatch.setattr(module, "start_child", start)
    spares = make(1)
    spares.expect()
    assert tried.wait(WAIT_S)
    with pytest.raises(ChildNotStarted):
        spares.take(QUICK)


@confining
def test_one_that_cannot_be_confined_is_not_used(
    make: Make, account: Account, started: list[Child], tmp_path: Path
) -> None:
    spares = make(1)
    spares.refill(THREADED)
    account.shows("actor")
    runtime = runtime_of(Actor, tmp_path, spares=spares)
    runtime.start().result(WAIT_S)
    assert runtime.confinement.level != "none"
    assert not started[0].alive
    assert runtime.pid != started[0].pid
    thread = runtime.stop()
    assert thread is not None
    thread.join(WAIT_S)


@confining
def test_a_new_process_that_cannot_be_confined_is_not_used_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> Child:
        child = start_child()
        child.ask(Frame({"t": "warm", "warm": THREADED.warm, "factory": THREADED.factory, "environment": {}}), WAIT_S)
        return child

    monkeypatch.setattr(isolated, "start_child", start)
    load = runtime_of(Actor, tmp_path).start()
    with pytest.raises(LoadFailed, match=r"cannot be confined: 2 threads run already") as caught:
        load.result(WAIT_S)
    assert not isinstance(caught.value, EngineDied)
    assert "LOCAL_RUNTIMES_CONFINE=off" in caught.value.hint


def test_a_manager_shows_them_and_ends_them(tmp_path: Path) -> None:
    register()
    write_model(tmp_path / "models" / "tiny")
    manager = RuntimeManager(
        Settings(home=tmp_path / "home", model_dirs=(tmp_path / "models",), offline=True, spare_processes=1)
    )
    manager.register_model(
        ModelConfig(
            model_id=str(tmp_path / "models" / "tiny"), model_name="tiny", runtime_type="actor", device_type="cpu"
        )
    )
    text = asyncio.run(manager.generate("tiny", GenerationConfig(prompt="answers"))).text
    residency = manager._residency
    residency._spares.refill(QUICK)
    assert residency.wait_for(lambda slots: bool(residency.ledger.holds("spare process quick")), WAIT_S)
    shown = manager.stats()["memory"]["cpu"]["models"]
    assert shown["spare process quick"] > 2**20
    assert shown["tiny"] > 0
    waiting = [child.pid for kind in residency._spares._waiting.values() for child in kind]
    assert waiting
    manager.close()
    assert residency.ledger.accounted("cpu") == 0
    assert not any(psutil.pid_exists(pid) for pid in (int(text.split()[0]), *waiting))


def test_large_blocks_are_asked_for_in_huge_pages_and_the_users_tunables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(module, "Child", lambda *_, environment, **__: seen.append(environment))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    start_child()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    start_child()
    assert [one["GLIBC_TUNABLES"] for one in seen] == [
        "glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=1:glibc.malloc.hugetlb=0",  # the C library takes the last one
    ]  # fmt: skip
