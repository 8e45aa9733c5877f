"""Whether this machine can serve a model: asked before the model is downloaded."""

from dataclasses import dataclass

from lfx_local_runtimes.errors import DoesNotFit, MissingExtra
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.devices import CPU, MACHINE, DeviceProbe
from lfx_local_runtimes.runtimes.engines.registry import engine_row
from lfx_local_runtimes.runtimes.formats.info import ModelInfo
from lfx_local_runtimes.runtimes.memory.ledger import device_budget
from lfx_local_runtimes.runtimes.planning.plans import LoadPlan, plan_loads
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


def check_servable(
    config: ModelConfig, info: ModelInfo, *, settings: Settings, rules: Rules, probe: DeviceProbe = MACHINE
) -> Fit:
    """The first load that this machine has the engine and the memory for when no other model is loaded.

    Raises:
        MissingExtra: the engine for these files is not installed.
        DoesNotFit: it takes more memory than all models together may take.
        RuntimeFault: as `plan_loads`.
    """
    plans = plan_loads(config, info, settings=settings, rules=rules, probe=probe)
    fits = [_fit(one, settings, probe) for plan in _installed(plans) for one in (plan, *plan.smaller)]
    for fit in fits:
        if fit.memory <= fit.budget:
            return fit
    closest = min(fits, key=lambda fit: fit.memory - fit.budget)
    raise DoesNotFit(
        f"{info.name} needs {_gib(closest.memory)} on {closest.device}, and all models together may take "
        f"{_gib(closest.budget)} there.",
        model_name=config.model_name, hint="Choose a smaller model, a smaller quantization or a shorter context_length.",
    )  # fmt: skip


def _installed(plans: tuple[LoadPlan, ...]) -> list[LoadPlan]:
    """The plans of engines whose libraries are installed. Raises MissingExtra if there are none."""
    missing = {plan.engine: _missing(plan.engine) for plan in plans}
    found = [plan for plan in plans if missing[plan.engine] is None]
    if not found and (fault := missing[plans[0].engine]) is not None:
        raise fault
    return found


def _missing(engine: str) -> MissingExtra | None:
    try:
        engine_row(engine).check_installed()
    except MissingExtra as fault:
        return fault
    return None


def _fit(plan: LoadPlan, settings: Settings, probe: DeviceProbe) -> Fit:
    row, device = engine_row(plan.engine), plan.device
    apart = settings.isolation == "process" and row.isolated and device.key == CPU.key
    memory = plan.memory.get(device.key, 0) + (row.overhead if apart else 0)
    return Fit(row.name, device.key, memory, device_budget(device, settings, probe))


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
