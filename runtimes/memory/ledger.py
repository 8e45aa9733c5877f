"""One account of memory for RAM and every accelerator, across all engines.

free = min(free bytes by the driver − bytes promised but not yet taken, budget − accounted bytes).
"""

from collections.abc import Hashable, Mapping

from lfx_local_runtimes.runtimes.devices import CPU, Device, DeviceProbe, device_of
from lfx_local_runtimes.settings import Settings

MODELS = "models"
"""The resource that counts loaded models. The other resources are devices, counted in bytes."""

_RAM_SHARE = 0.90
_GPU_SHARE = 0.95
_GIB = 2**30


def device_budget(device: Device, settings: Settings, probe: DeviceProbe) -> int:
    """The bytes of a device's memory that all models together may take."""
    limit, share = (
        (settings.memory_budget_gb, _RAM_SHARE) if device.key == CPU.key else (settings.max_gpu_mem_gb, _GPU_SHARE)
    )
    return int(probe.memory(device).total * share) if limit is None else int(limit * _GIB)


class MemoryLedger:
    """How many bytes of each resource every model holds. Not thread-safe: the manager's lock guards it."""

    def __init__(self, settings: Settings, probe: DeviceProbe) -> None:
        self._settings = settings
        self._probe = probe
        self._entries: dict[Hashable, Mapping[str, int]] = {}
        self._promised: set[Hashable] = set()

    def devices(self) -> list[Device]:
        """Every device with an account."""
        return [CPU, *self._probe.accelerators()]

    def budget(self, resource: str) -> int | None:
        """How much of a resource all models together may take; None means no limit."""
        if resource == MODELS:
            return self._settings.max_loaded_models
        return device_budget(device_of(resource), self._settings, self._probe)

    def accounted(self, resource: str) -> int:
        """How much of a resource models hold or were promised."""
        return sum(entry.get(resource, 0) for entry in self._entries.values())

    def holds(self, name: Hashable) -> Mapping[str, int]:
        """What one model holds or was promised."""
        return self._entries.get(name, {})

    def free(self, resource: str) -> int | None:
        """How much of a resource another model may take; None means no limit."""
        budget = self.budget(resource)
        if budget is None:
            return None
        left = budget - self.accounted(resource)
        if resource == MODELS:
            return left
        promised = sum(self._entries[name].get(resource, 0) for name in self._promised)
        return max(0, min(left, self._probe.memory(device_of(resource)).free - promised))

    def rooms(self) -> dict[str, int]:
        """Bytes by accelerator that one model may take if all others leave: other programs may use it too."""
        found = {}
        for device in self._probe.accelerators():
            taken = sum(entry.get(device.key, 0) for name, entry in self._entries.items() if name not in self._promised)
            budget = device_budget(device, self._settings, self._probe)
            found[device.key] = min(budget, self._probe.memory(device).free + taken)
        return found

    def shortage(self, needs: Mapping[str, int]) -> dict[str, int]:
        """How much of each resource is missing; empty if the needs fit."""
        missing = {}
        for resource, amount in needs.items():
            free = self.free(resource)
            if free is not None and amount > free:
                missing[resource] = amount - free
        return missing

    def reserve(self, name: Hashable, needs: Mapping[str, int]) -> None:
        """Promise memory to a load, from its estimate."""
        self._entries[name] = dict(needs)
        self._promised.add(name)

    def correct(self, name: Hashable, measured: Mapping[str, int]) -> None:
        """Replace the estimate by what the load took."""
        self._entries[name] = {**measured, MODELS: 1}
        self._promised.discard(name)

    def hold(self, name: Hashable, amounts: Mapping[str, int]) -> None:
        """Something that is no model takes memory."""
        self._entries[name] = dict(amounts)

    def release(self, name: Hashable) -> None:
        """Remove everything that this model held or was promised."""
        self._entries.pop(name, None)
        self._promised.discard(name)

    def report(self) -> dict[str, dict[str, object]]:
        """Per device: budget, accounted and free bytes, free bytes by the driver, and the bytes of each model."""
        rows: dict[str, dict[str, object]] = {}
        for device in self.devices():
            key = device.key
            rows[key] = {
                "budget_bytes": self.budget(key), "accounted_bytes": self.accounted(key), "free_bytes": self.free(key),
                "driver_free_bytes": self._probe.memory(device).free,
                "models": {str(name): entry[key] for name, entry in self._entries.items() if entry.get(key)},
            }  # fmt: skip
        return rows
