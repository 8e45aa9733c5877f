"""Device choices with the probe replaced: no card is needed to test them."""

from collections.abc import Sequence

import pytest

from lfx_local_runtimes.errors import DeviceUnavailable
from lfx_local_runtimes.runtimes.config import DeviceType
from lfx_local_runtimes.runtimes.devices import (
    MACHINE,
    Device,
    Memory,
    default_dtype,
    device_capabilities,
    select_device,
)

CUDA0, CUDA1, MPS = Device(DeviceType.CUDA, 0, "card"), Device(DeviceType.CUDA, 1, "card"), Device(DeviceType.MPS)


class FakeProbe:
    def __init__(self, *accelerators: Device, bf16: bool = False) -> None:
        self._accelerators, self._bf16 = accelerators, bf16

    def accelerators(self) -> Sequence[Device]:
        return self._accelerators

    def memory(self, device: Device) -> Memory:
        return Memory(total=8 * 2**30, free=6 * 2**30)

    def cpu_has_bf16(self) -> bool:
        return self._bf16


@pytest.mark.parametrize(
    ("probe", "prefer", "force", "chosen"),
    [
        (FakeProbe(CUDA1, CUDA0), "auto", None, "cuda:1"),
        (FakeProbe(MPS), "auto", None, "mps"),
        (FakeProbe(), "auto", None, "cpu"),
        (FakeProbe(CUDA0), "cpu", None, "cpu"),
        (FakeProbe(CUDA0, MPS), "mps", None, "mps"),
        (FakeProbe(CUDA0), "cuda", "cpu", "cpu"),
        (FakeProbe(CUDA0), "cpu", "cuda", "cuda:0"),
    ],
)
def test_choice(probe: FakeProbe, prefer: str, force: str | None, chosen: str) -> None:
    assert select_device(prefer, force=force, probe=probe).key == chosen


def test_a_device_that_is_not_there_is_an_error_that_says_what_is() -> None:
    with pytest.raises(DeviceUnavailable, match=r"FORCE_DEVICE asks for cuda.*It has: mps, cpu"):
        select_device("auto", force="cuda", probe=FakeProbe(MPS))
    with pytest.raises(DeviceUnavailable, match="device_type asks for mps"):
        select_device("mps", probe=FakeProbe())


def test_dtype_by_device() -> None:
    cpu = select_device("cpu", probe=FakeProbe())
    assert default_dtype(CUDA0, FakeProbe()) == "bf16"
    assert default_dtype(MPS, FakeProbe(bf16=True)) == "fp32"
    assert default_dtype(cpu, FakeProbe(bf16=True)) == "bf16"
    assert default_dtype(cpu, FakeProbe(bf16=False)) == "fp32"


def test_capabilities_list_the_preferred_device_first() -> None:
    rows = device_capabilities(FakeProbe(CUDA0))
    assert [row["device"] for row in rows] == ["cuda:0", "cpu"]
    assert rows[0]["free_bytes"] == 6 * 2**30


def test_this_machine_has_a_cpu_with_memory() -> None:
    memory = MACHINE.memory(select_device("cpu"))
    assert 0 < memory.free <= memory.total
