"""Which load of a model this machine has the engine and the memory for. Asked before a download, and for lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lfx_local_runtimes.errors import DoesNotFit, MissingExtra
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.devices import MACHINE, DeviceProbe, device_of
from lfx_local_runtimes.runtimes.engines.isolated.runtime import memory_of
from lfx_local_runtimes.runtimes.engines.registry import engine_row
from lfx_local_runtimes.runtimes.formats.info import ModelInfo
from lfx_local_runtimes.runtimes.memory.ledger import device_budget
from lfx_local_runtimes.runtimes.planning.load_plan import Considered, LoadPlan, Refusal
from lfx_local_runtimes.runtimes.planning.plans import consider_loads
from lfx_local_runtimes.runtimes.planning.rules import Rules
from lfx_local_runtimes.settings import Settings


@dataclass(frozen=True, slots=True)
class Fit:
    """How a model would be loaded. Sizes are in bytes."""

    engine: str
    device: str
    memory: int
    """What it is expected to take on the device."""
    budget: int
    """What all models together may take there."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The load that would be taken, and those that would not."""

    plan: LoadPlan | None
    """None: this machine can do none of them."""
    refused: tuple[Refusal, ...]


def choose_load(
    considered: Considered, settings: Settings, probe: DeviceProbe, rooms: Mapping[str, int] | None = None
) -> Choice:
    """The first load that this machine has the engine and the memory for when no other model is loaded.

    Args:
        considered: the loads.
        settings: the operator's.
        probe: facts about the machine.
        rooms: bytes by accelerator that models may take now. Unset: as the settings say.
    """
    space = _Space(settings, probe, rooms or {})
    refused = list(considered.refused)
    for plan in considered.plans:
        fault: MissingExtra | DoesNotFit | None = _missing(plan.engine)
        if fault is None:
            fits = [one for one in (plan, *plan.smaller) if space.excess(one)[0] <= 0]
            if fits:
                return Choice(fits[0], tuple(refused))
            fault = space.refusal((plan, *plan.smaller))
        refused.append(Refusal(plan.engine, plan.device.key, fault, plan.dtype))
    return Choice(None, tuple(refused))


def check_servable(
    config: ModelConfig, info: ModelInfo, *, settings: Settings, rules: Rules, probe: DeviceProbe = MACHINE
) -> Fit:
    """The first load that this machine has the engine and the memory for when no other model is loaded.

    Raises:
        MissingExtra: the engine for these files is not installed.
        DoesNotFit: it takes more memory than all models together may take.
        RuntimeFault: as `plan_loads`.
    """
    considered = consider_loads(config, info, settings=settings, rules=rules, probe=probe)
    plan = choose_load(considered, settings, probe).plan
    if plan is not None:
        device = plan.device
        return Fit(
            plan.engine, device.key, memory_of(plan, settings)[device.key], device_budget(device, settings, probe)
        )
    missing = {plan.engine: _missing(plan.engine) for plan in considered.plans}
    there = [one for plan in considered.plans if missing[plan.engine] is None for one in (plan, *plan.smaller)]
    refusal = _Space(settings, probe, {}).refusal(there) if there else missing[considered.plans[0].engine]
    assert refusal is not None  # else there would be a plan of its engine
    refusal.model_name = config.model_name
    raise refusal


def _missing(engine: str) -> MissingExtra | None:
    try:
        engine_row(engine).check_installed()
    except MissingExtra as fault:
        return fault
    return None


@dataclass(frozen=True, slots=True)
class _Space:
    """The memory that models may take."""

    settings: Settings
    probe: DeviceProbe
    rooms: Mapping[str, int]

    def excess(self, plan: LoadPlan) -> tuple[int, str]:
        """By how many bytes a load is too large for a device, and for which one; 0 or less if it fits."""
        return max((size - self._of(key), key) for key, size in memory_of(plan, self.settings).items())

    def refusal(self, plans: Sequence[LoadPlan]) -> DoesNotFit:
        """Of loads that do not fit, with the numbers of the one that comes closest."""
        (_, key), closest = min(((self.excess(plan), plan) for plan in plans), key=lambda one: one[0])
        needs = memory_of(closest, self.settings)[key]
        return DoesNotFit(
            f"{closest.info.name} needs {_gib(needs)} on {key}, and all models together may take {_gib(self._of(key))} there.",
            hint="Choose a smaller model, a smaller quantization or a shorter context_length.",
        )

    def _of(self, key: str) -> int:
        budget = device_budget(device_of(key), self.settings, self.probe)
        return min(budget, self.rooms.get(key, budget))


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
