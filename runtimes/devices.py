"""Which devices this machine has, and which one a model runs on.

Nothing here imports torch: CUDA cards are read from the driver's management library, Apple's from the platform.
"""

import ctypes
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import psutil

from lfx_local_runtimes.errors import DeviceUnavailable
from lfx_local_runtimes.runtimes.config import DeviceType


@dataclass(frozen=True, slots=True)
class Device:
    """A place to run a model. `key` (`cpu`, `cuda:0`, `mps`) is its name in the memory ledger and in torch."""

    type: DeviceType
    index: int = 0
    name: str = ""

    @property
    def key(self) -> str:
        """The ledger's and torch's name for it."""
        return f"cuda:{self.index}" if self.type is DeviceType.CUDA else self.type.value


def device_of(key: str) -> Device:
    """The device with this key."""
    kind, _, index = key.partition(":")
    return Device(DeviceType(kind), int(index or 0))


CPU = Device(DeviceType.CPU, name=platform.processor() or platform.machine())


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on a device."""

    total: int
    free: int


class DeviceProbe(Protocol):
    """Facts about the machine. Tests replace it."""

    def accelerators(self) -> Sequence[Device]:
        """CUDA and MPS devices, best first."""

    def memory(self, device: Device) -> Memory:
        """The device's memory, from the driver or the operating system."""

    def cpu_has_bf16(self) -> bool:
        """Whether the processor multiplies bfloat16 natively."""


class MachineProbe:
    """The real machine."""

    def accelerators(self) -> Sequence[Device]:
        """CUDA cards with the most free memory first, then Apple's GPU."""
        cards = []
        for position, index, name in _cuda_cards():
            with suppress(DeviceUnavailable):  # a card that the driver has lost
                cards.append((self._nvml_memory(index).free, Device(DeviceType.CUDA, position, name)))
        found = [device for _, device in sorted(cards, key=lambda card: -card[0])]
        if platform.system() == "Darwin" and platform.machine() == "arm64":
            found.append(Device(DeviceType.MPS, name="Apple GPU"))
        return found

    def memory(self, device: Device) -> Memory:
        """RAM for the CPU and for Apple's unified memory, the card's own for CUDA."""
        if device.type is DeviceType.CUDA:
            for position, index, _ in _cuda_cards():
                if position == device.index:
                    return self._nvml_memory(index)
            raise DeviceUnavailable(f"{device.key} is not there.")
        ram = psutil.virtual_memory()
        return Memory(ram.total, ram.available)

    def cpu_has_bf16(self) -> bool:
        """AVX512-BF16 or AMX on x86, the BF16 extension on ARM."""
        return _cpu_has_bf16()

    @staticmethod
    def _nvml_memory(index: int) -> Memory:
        import pynvml

        try:
            usage = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError as error:
            raise DeviceUnavailable(f"The driver has lost the card {index}: {error}.") from error
        return Memory(int(usage.total), int(usage.free))


@lru_cache(maxsize=1)
def _cuda_cards() -> tuple[tuple[int, int, str], ...]:
    """(position as CUDA numbers it, index as the driver numbers it, name) of every visible card."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    cards = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        cards.append((index, str(pynvml.nvmlDeviceGetUUID(handle)), str(pynvml.nvmlDeviceGetName(handle))))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        chosen = []
        for entry in (part.strip() for part in visible.split(",")):
            match = [
                card
                for card in cards
                if entry == str(card[0]) or (entry.startswith("GPU-") and card[1].startswith(entry))
            ]
            if not match:  # CUDA itself stops at the first entry it does not know
                break
            chosen += match
        cards = chosen
    return tuple((position, index, name) for position, (index, _, name) in enumerate(cards))


@lru_cache(maxsize=1)
def _cpu_has_bf16() -> bool:
    if platform.system() == "Darwin":
        value, size = ctypes.c_int(0), ctypes.c_size_t(4)
        name = b"hw.optional.arm.FEAT_BF16"
        ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
        return bool(value.value)
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def gpu_memory_of(pid: int) -> dict[str, int]:
    """Bytes that a process holds on CUDA cards, per device key, as the driver counts them; empty if it does not say."""
    found: dict[str, int] = {}
    cards = _cuda_cards()
    if not cards:
        return found
    import pynvml

    for position, index, _ in cards:
        try:
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError:
            continue
        used = sum(one.usedGpuMemory or 0 for one in running if one.pid == pid)
        if used:
            found[f"cuda:{position}"] = used
    return found


MACHINE: DeviceProbe = MachineProbe()
"""The probe of this machine."""


def select_device(
    prefer: DeviceType | str = DeviceType.AUTO, *, force: DeviceType | str | None = None, probe: DeviceProbe = MACHINE
) -> Device:
    """The device for a model.

    Args:
        prefer: the model's preference; AUTO takes CUDA, then MPS, then the CPU.
        force: the operator's decision (`FORCE_DEVICE`); it overrides `prefer`.
        probe: facts about the machine.

    Raises:
        DeviceUnavailable: the device forced or preferred by name is not there.
    """
    wanted = DeviceType(force or prefer)
    if wanted is DeviceType.CPU:
        return CPU
    accelerators = probe.accelerators()
    if wanted is DeviceType.AUTO:
        return accelerators[0] if accelerators else CPU
    for device in accelerators:
        if device.type is wanted:
            return device
    there = ", ".join([device.key for device in accelerators] + ["cpu"])
    source = "FORCE_DEVICE" if force else "device_type"
    raise DeviceUnavailable(
        f"{source} asks for {wanted.value}, which this machine does not have.", hint=f"It has: {there}."
    )


HEAVY = 3_000_000_000
"""Bytes of 16-bit weights, those of 1.5 billion parameters, from which a model is slow on a CPU."""


def goes_to_cpu(prefer: DeviceType | str, *, force: DeviceType | str | None, probe: DeviceProbe) -> bool:
    """Whether a model runs on the CPU: by choice, or because the accelerator it prefers is not there."""
    try:
        return select_device(prefer, force=force, probe=probe).type is DeviceType.CPU
    except DeviceUnavailable:
        return force is None


def default_dtype(device: Device, probe: DeviceProbe = MACHINE) -> str:
    """The floating-point type to compute in: CUDA bf16, MPS fp32, CPU bf16 if the processor has it, else fp32."""
    if device.type is DeviceType.CUDA or (device.type is DeviceType.CPU and probe.cpu_has_bf16()):
        return "bf16"
    return "fp32"


def device_capabilities(probe: DeviceProbe = MACHINE) -> dict[str, Any]:
    """What this machine can compute on.

    `cuda` and `mps`: whether there is such a device. `gpu_name`: the name of the preferred accelerator, or None.
    `memory_gb`: GiB of memory of the preferred device. `devices`: each device with key, name, default dtype, total and
    free memory in bytes, the preferred one first.
    """
    rows: list[dict[str, Any]] = []
    for device in (*probe.accelerators(), CPU):
        memory = probe.memory(device)
        rows.append({
            "device": device.key, "type": device.type.value, "name": device.name, "dtype": default_dtype(device, probe),
            "total_bytes": memory.total, "free_bytes": memory.free,
        })  # fmt: skip
    types = [row["type"] for row in rows]
    return {
        "cuda": DeviceType.CUDA.value in types,
        "mps": DeviceType.MPS.value in types,
        "gpu_name": rows[0]["name"] or None if len(rows) > 1 else None,
        "memory_gb": round(rows[0]["total_bytes"] / 2**30, 1),
        "devices": rows,
    }
