"""Device choices with the probe replaced: no card is needed to test them."""

from collections.abc import Sequence

import pytest

from lfx_local_runtimes.errors import DeviceUnavailable
from lfx_local_runtimes.runtimes import devices
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


def test_capabilities_say_what_there_is() -> None:
    found = device_capabilities(FakeProbe(CUDA0))
    assert (found["cuda"], found["mps"], found["gpu_name"], found["memory_gb"]) == (True, False, "card", 8.0)
    assert [row["device"] for row in found["devices"]] == ["cuda:0", "cpu"]
    assert found["devices"][0]["free_bytes"] == 6 * 2**30
    found = device_capabilities(FakeProbe())
    assert (found["cuda"], found["mps"], found["gpu_name"], found["memory_gb"]) == (False, False, None, 8.0)
    assert device_capabilities(FakeProbe(MPS))["mps"] is True


def test_a_card_that_the_driver_has_lost_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def handle(index: int) -> int:
        if index == 0:
            raise pynvml.NVMLError_GpuIsLost
        return index

    class Usage:
        total, free = 2**30, 2**29

    monkeypatch.setattr(devices, "_cuda_cards", lambda: ((0, 0, "lost"), (1, 1, "card")))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: Usage)
    assert [device.key for device in MACHINE.accelerators()] == ["cuda:1"]
    with pytest.raises(DeviceUnavailable, match="lost the card 0"):
        MACHINE.memory(CUDA0)


def test_this_machine_has_a_cpu_with_memory() -> None:
    memory = MACHINE.memory(select_device("cpu"))
    assert 0 < memory.free <= memory.total
