"""The loads worth trying: which engines are asked, on which devices, and in which order their offers are tried.

Each plan is one attempt. If it fails, the next one is tried.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lfx_local_runtimes.errors import (
    InvalidInput,
    InvalidModelFile,
    LoadFailed,
    RemoteCodeRefused,
    RuntimeFault,
    WrongTask,
)
from lfx_local_runtimes.runtimes.config import AUTO_TASK, ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.devices import MACHINE, DeviceProbe
from lfx_local_runtimes.runtimes.engines.registry import EngineRow, engine_row
from lfx_local_runtimes.runtimes.formats.info import ModelInfo
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.formats.tasks import UNSUPPORTED
from lfx_local_runtimes.runtimes.planning.forms import forms
from lfx_local_runtimes.runtimes.planning.load_plan import Considered, LoadPlan, Refusal
from lfx_local_runtimes.runtimes.planning.placement import Placement, check_files
from lfx_local_runtimes.runtimes.planning.rules import Rules
from lfx_local_runtimes.runtimes.size_limit import check_size
from lfx_local_runtimes.runtimes.tasks import task_rows
from lfx_local_runtimes.settings import Settings, get_settings

logger = logging.getLogger(__name__)


def task_of_model(config: ModelConfig, info: ModelInfo | None) -> str:
    """What a model does: the task it was registered for, else the task its files name."""
    if config.model_type != AUTO_TASK:
        return config.model_type
    return info.task if info is not None else "llm"


def check_task(config: ModelConfig) -> None:
    """Refuse a model type that is no task.

    Raises:
        InvalidInput: the message has the tasks there are.
    """
    if config.model_type not in (AUTO_TASK, *task_rows()):
        raise InvalidInput(
            f"model_type {config.model_type} is not a task.", model_name=config.model_name,
            hint=f"Use auto or one of: {', '.join(task_rows())}.",
        )  # fmt: skip


def plan_loads(
    config: ModelConfig, info: ModelInfo, *, settings: Settings, rules: Rules, probe: DeviceProbe = MACHINE,
    rooms: Mapping[str, int] | None = None,
) -> tuple[LoadPlan, ...]:  # fmt: skip
    """Every load worth trying, best first: each engine on the chosen device, then on others of its kind, then on the CPU.

    If the configuration asks for int8 or int4, the nearest other types follow: not every engine and device has these two.
    If nobody asked for a type and 16-bit weights fit on no accelerator, 8 bits follow. A model that fits on no accelerator is
    also divided over several, or partly put on the CPU.

    Args:
        config: the model's.
        info: its files.
        settings: the operator's.
        rules: which engines are asked.
        probe: facts about the machine.
        rooms: bytes by accelerator that models may take now. Unset: as the settings say, as if no other program used it.

    Raises:
        InvalidModelFile: the files have problems.
        WrongTask: nothing here serves what the model does.
        NotAllowed: pickle weights, remote code or a large model without permission.
        DeviceUnavailable: the device is forced, or required, and this machine or the engine does not have it.
        InvalidInput: no engine takes these files, or not with these options.
        LoadFailed: the engine of an installed package cannot be imported.
        MissingExtra: the model takes pictures, and the library that reads them is not installed.
    """
    return consider_loads(config, info, settings=settings, rules=rules, probe=probe, rooms=rooms).plans


def consider_loads(
    config: ModelConfig, info: ModelInfo, *, settings: Settings, rules: Rules, probe: DeviceProbe = MACHINE,
    rooms: Mapping[str, int] | None = None,
) -> Considered:  # fmt: skip
    """The same, with the loads that were refused while others are possible.

    Raises:
        RuntimeFault: as `plan_loads`.
    """
    _refuse(config, info, settings)
    found: list[LoadPlan] = []
    refusals: list[Refusal] = []
    unknown: list[RuntimeFault] = []
    for form in forms(config, info, settings, probe):
        engines = _engines(config, form.info, rules)
        rows, missing = _rows(engines)
        unknown += missing
        for wanted in (config.quantization, *_NEAREST.get(config.quantization or "", ())):
            placement = Placement(
                config.model_copy(update={"quantization": wanted}), form, rows, task=task_of_model(config, form.info),
                settings=settings, probe=probe, narrows=config.quantization is None, rooms=rooms or {},
            )  # fmt: skip
            made = placement.plans()
            if wanted != config.quantization:
                why = refusals[0].fault.message if refusals and not found else ""
                made = [_instead(plan, config, why) for plan in made]
            found += made
            refusals += placement.refusals
    if not found:
        check_files(info, config, settings)
        faults = unknown + [refused.fault for refused in refusals]
        if not faults:
            raise InvalidInput(
                f"No engine loads {info.format.value} files ({info.path.name}).", model_name=config.model_name,
                hint="Use a GGUF or safetensors copy of the model, or name a runtime_type.",
            )  # fmt: skip
        faults[0].model_name = config.model_name
        raise faults[0]
    return Considered(tuple(found), tuple(refusals))


def _engines(config: ModelConfig, info: ModelInfo, rules: Rules) -> tuple[str, ...]:
    """The engines to ask, in order."""
    named = config.runtime_type != RuntimeType.AUTO
    return (str(config.runtime_type),) if named else rules.engines_for(info)


_NEAREST: Mapping[str, tuple[str | None, ...]] = {"int4": ("int8", None), "int8": (None,)}
"""What is tried if a load in one of these types is not possible. None: the type that is usual for the files and the device."""


def _instead(plan: LoadPlan, config: ModelConfig, why: str) -> LoadPlan:
    """The plan, with a warning that it is not in the type asked for. `why`: what kept the type from being planned."""
    told = f"{config.quantization} was asked for, and the model is loaded in {plan.dtype}."
    smaller = tuple(_instead(one, config, why) for one in plan.smaller)
    return replace(plan, warnings=(f"{why} {told}".strip(), *plan.warnings), smaller=smaller)


def _rows(engines: Sequence[str]) -> tuple[list[EngineRow], list[RuntimeFault]]:
    """The engines that are there, and what is wrong with the others."""
    rows: list[EngineRow] = []
    refusals: list[RuntimeFault] = []
    for engine in engines:
        try:
            rows.append(engine_row(engine))
        except (InvalidInput, LoadFailed) as refusal:  # noqa: PERF203 - one engine that is not there leaves the others
            logger.warning("%s is left out: %s", engine, refusal)
            refusals.append(refusal)
    return rows, refusals


def plan_for_engine(
    config: ModelConfig, engine: str, path: Path | None = None, settings: Settings | None = None
) -> LoadPlan:
    """The first plan for a runtime that is used without a manager.

    Args:
        config: the model's.
        engine: the runtime's.
        path: the model's file or folder; unset, its `model_id`.
        settings: unset, the environment's.

    Raises:
        RuntimeFault: as `plan_loads`.
    """
    settings = settings or get_settings()
    info = read_model(path or Path(config.model_id).expanduser(), thorough=True)
    chosen = config.model_copy(update={"runtime_type": RuntimeType(engine)})
    return plan_loads(chosen, info, settings=settings, rules=Rules.load(settings.rules_file))[0]


def _refuse(config: ModelConfig, info: ModelInfo, settings: Settings) -> None:
    """Refuse what no engine may load."""
    name = config.model_name
    if info.problems:
        raise InvalidModelFile(
            f"{info.path.name} cannot be loaded: {'; '.join(info.problems)}.", model_name=name,
            hint="Fetch the file again, or use another copy of the model.",
        )  # fmt: skip
    check_task(config)
    if task_of_model(config, info) == UNSUPPORTED:
        raise WrongTask(
            f"{info.path.name} cannot be served: {info.unsupported}.", model_name=name,
            hint="Use another model. If the reason is wrong, register this one with the model_type that it has.",
        )  # fmt: skip
    check_size(name, info.size_bytes, settings.size_limit)
    if config.trust_remote_code and not settings.trust_remote_code:
        raise RemoteCodeRefused(f"{name} asks to run code that came with it.", model_name=name)
