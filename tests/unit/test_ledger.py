"""The account: promised, measured and returned bytes, and what the driver says."""

import pytest

from lfx_local_runtimes.runtimes.config import DeviceType
from lfx_local_runtimes.runtimes.devices import CPU, Device, Memory
from lfx_local_runtimes.runtimes.memory.ledger import MODELS, MemoryLedger
from lfx_local_runtimes.settings import Settings

GIB = 2**30
CARD = Device(DeviceType.CUDA, 0, "card")


class Machine:
    """A machine with a card, whose driver says what the test wants it to."""

    def __init__(self) -> None:
        self.free = {"cpu": 16 * GIB, "cuda:0": 8 * GIB}

    def accelerators(self) -> tuple[Device, ...]:
        return (CARD,)

    def memory(self, device: Device) -> Memory:
        return Memory(total=16 * GIB if device.type is DeviceType.CPU else 8 * GIB, free=self.free[device.key])

    def cpu_has_bf16(self) -> bool:
        return False


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def ledger(machine: Machine) -> MemoryLedger:
    return MemoryLedger(Settings(memory_budget_gb=4, max_gpu_mem_gb=2, max_loaded_models=2), machine)


def test_budgets_come_from_the_settings(ledger: MemoryLedger, machine: Machine) -> None:
    assert (ledger.budget("cpu"), ledger.budget("cuda:0"), ledger.budget(MODELS)) == (4 * GIB, 2 * GIB, 2)
    unset = MemoryLedger(Settings(), machine)
    assert unset.budget("cpu") == int(0.9 * 16 * GIB)
    assert unset.budget("cuda:0") == int(0.95 * 8 * GIB)
    assert unset.free(MODELS) is None


def test_promise_measure_return(ledger: MemoryLedger) -> None:
    ledger.reserve("a", {"cpu": 3 * GIB, MODELS: 1})
    assert ledger.free("cpu") == 1 * GIB
    ledger.correct("a", {"cpu": 1 * GIB})
    assert ledger.free("cpu") == 3 * GIB
    assert ledger.free(MODELS) == 1
    ledger.release("a")
    assert ledger.free("cpu") == 4 * GIB
    assert ledger.free(MODELS) == 2


def test_the_driver_has_the_last_word(ledger: MemoryLedger, machine: Machine) -> None:
    machine.free["cuda:0"] = GIB
    assert ledger.shortage({"cuda:0": 2 * GIB}) == {"cuda:0": GIB}


def test_what_is_promised_but_not_taken_is_not_free(ledger: MemoryLedger, machine: Machine) -> None:
    machine.free["cpu"] = 3 * GIB
    ledger.reserve("a", {"cpu": 2 * GIB})
    assert ledger.free("cpu") == 1 * GIB
    machine.free["cpu"] = 1 * GIB  # it has been taken
    ledger.correct("a", {"cpu": 2 * GIB})
    assert ledger.free("cpu") == 1 * GIB


def test_places_run_out(ledger: MemoryLedger) -> None:
    for name in "ab":
        ledger.reserve(name, {"cpu": 1, MODELS: 1})
    assert ledger.shortage({MODELS: 1}) == {MODELS: 1}


def test_report(ledger: MemoryLedger) -> None:
    ledger.reserve("a", {"cuda:0": GIB, MODELS: 1})
    report = ledger.report()
    assert list(report) == [CPU.key, CARD.key]
    assert report["cuda:0"]["models"] == {"a": GIB}
    assert report["cpu"]["models"] == {}
