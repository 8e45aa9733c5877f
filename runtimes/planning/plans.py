"""The loads worth trying: which engines are asked, on which devices, and in which order their offers are tried.

Each plan is one attempt. If it fails, the next one is tried.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lfx_local_runtimes.errors import (
    DeviceUnavailable,
    InvalidInput,
    InvalidModelFile,
    LoadFailed,
    PickleRefused,
    RemoteCodeRefused,
    RuntimeFault,
)
from lfx_local_runtimes.runtimes.config import AUTO_TASK, DeviceType, ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.devices import CPU, MACHINE, Device, DeviceProbe, select_device
from lfx_local_runtimes.runtimes.engines.registry import EngineRow, engine_row
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.memory.ledger import device_budget
from lfx_local_runtimes.runtimes.planning.estimates import DEFAULT_CONTEXT
from lfx_local_runtimes.runtimes.planning.offers import Terms
from lfx_local_runtimes.runtimes.planning.rules import Rules
from lfx_local_runtimes.runtimes.size_limit import check_size
from lfx_local_runtimes.settings import Settings, get_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadPlan:
    """One way to load a model."""

    info: ModelInfo
    """The model with the files that the engine loads."""
    engine: str
    device: Device
    dtype: str
    """fp32, fp16, bf16, int8, int4, or the type the file is stored in."""
    context_length: int
    """Tokens."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Estimated bytes per device key."""
    sequences: int = 1
    """Requests computed at once, each with its own context."""
    state_bytes: int = 0
    """Host memory for the states of prompts that had to leave the context. It is a part of `memory`."""
    warnings: tuple[str, ...] = ()
    """What the user should know about this choice."""
    task: str = "llm"
    """What the model does."""


def task_of_model(config: ModelConfig, info: ModelInfo | None) -> str:
    """What a model does: the task it was registered for, else the task its files name."""
    if config.model_type != AUTO_TASK:
        return config.model_type
    return info.task if info is not None else "llm"


def plan_loads(
    config: ModelConfig, info: ModelInfo, *, settings: Settings, rules: Rules, probe: DeviceProbe = MACHINE
) -> tuple[LoadPlan, ...]:
    """Every load worth trying, best first: each engine on the chosen device, then on the CPU.

    Raises:
        InvalidModelFile: the files have problems.
        NotAllowed: pickle weights, remote code or a large model without permission.
        DeviceUnavailable: the device is forced, or required, and this machine or the engine does not have it.
        InvalidInput: no engine takes these files, or not with these options.
        LoadFailed: the engine of an installed package cannot be imported.
    """
    _refuse(config, info, settings)
    named = config.runtime_type != RuntimeType.AUTO
    engines = (str(config.runtime_type),) if named else rules.engines_for(info)
    if not engines:
        raise InvalidInput(
            f"No engine loads {info.format.value} files ({info.path.name}).", model_name=config.model_name,
            hint="Use a GGUF or safetensors copy of the model, or name a runtime_type.",
        )  # fmt: skip
    devices, warnings = _devices(config, settings, probe)
    task, context = task_of_model(config, info), _context_length(config, info)
    found: list[tuple[LoadPlan, int]] = []
    refusals: list[RuntimeFault] = []
    for engine in engines:
        try:
            row = engine_row(engine)
        except (InvalidInput, LoadFailed) as refusal:
            logger.warning("%s is left out: %s", engine, refusal)
            refusals.append(refusal)
            continue
        for device, told in _devices_of(row, devices):
            terms = Terms(row.name, task, context, device_budget(device, settings, probe), probe)
            try:
                _check_device(row, device, config)
                offer = row.make_offer(config, info, device, terms)
                _check_files(offer.files, config, settings)
            except (InvalidInput, DeviceUnavailable, PickleRefused, LoadFailed) as refusal:
                refusals.append(refusal)
                continue
            plan = LoadPlan(
                offer.files, row.name, device, offer.dtype, context, offer.memory, offer.sequences, offer.state_bytes,
                (*warnings, *told, *offer.warnings), task,
            )  # fmt: skip
            found.append((plan, offer.speed))
    if not found:
        _check_files(info, config, settings)
        refusals[0].model_name = config.model_name
        raise refusals[0]
    return _ordered(found)


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
    check_size(name, info.size_bytes, settings.size_limit)
    if config.trust_remote_code and not settings.trust_remote_code:
        raise RemoteCodeRefused(f"{name} asks to run code that came with it.", model_name=name)


def _check_device(row: EngineRow, device: Device, config: ModelConfig) -> None:
    if not row.runs_on(device.type):
        raise DeviceUnavailable(
            f"{row.name} does not run on {device.key}.", model_name=config.model_name,
            hint="Use device_type auto or cpu, or another runtime_type.",
        )  # fmt: skip


def _check_files(info: ModelInfo, config: ModelConfig, settings: Settings) -> None:
    if info.format is ModelFormat.PICKLE and not settings.allow_pickle:
        raise PickleRefused(f"{info.path.name} has pickle weights, which can run code.", model_name=config.model_name)


def _devices(config: ModelConfig, settings: Settings, probe: DeviceProbe) -> tuple[list[Device], tuple[str, ...]]:
    """The devices to try in order, and what to tell the user about them."""
    warnings: tuple[str, ...] = ()
    try:
        device = select_device(config.device_type, force=settings.force_device, probe=probe)
    except DeviceUnavailable as error:
        if settings.force_device or config.requires_accelerator:
            error.model_name = config.model_name
            raise
        device, warnings = CPU, (f"This machine has no {config.device_type.value}: running on the CPU.",)
    if device.type is DeviceType.CPU:
        if config.requires_accelerator:
            raise DeviceUnavailable(
                f"{config.model_name} needs an accelerator (requires_accelerator), and this machine has none.",
                model_name=config.model_name, hint="Unset requires_accelerator to run it on the CPU.",
            )  # fmt: skip
        return [CPU], warnings
    if settings.force_device or config.requires_accelerator:
        return [device], warnings
    return [device, CPU], warnings


def _devices_of(row: EngineRow, devices: list[Device]) -> Iterator[tuple[Device, tuple[str, ...]]]:
    """The devices to try with an engine, and what to tell the user about them. There is always one."""
    first = devices[0]
    if row.runs_on(first.type) or len(devices) == 1:
        yield from ((device, ()) for device in devices)
    else:
        yield from (
            (device, (f"{row.name} does not run on {first.key}: running on the CPU.",)) for device in devices[1:]
        )


def _context_length(config: ModelConfig, info: ModelInfo) -> int:
    trained = info.context_length
    if config.context_length is None:
        return min(DEFAULT_CONTEXT, trained or DEFAULT_CONTEXT)
    if trained is not None and config.context_length > trained:
        raise InvalidInput(
            f"context_length {config.context_length:,} is more than the {trained:,} tokens the model was trained for.",
            model_name=config.model_name, hint=f"Ask for {trained:,} or less.",
        )  # fmt: skip
    return config.context_length


def _ordered(found: list[tuple[LoadPlan, int]]) -> tuple[LoadPlan, ...]:
    """The plans in the order of engines and devices, but faster ones first if they equal the first in type and device."""
    first = found[0][0]

    def key(one: tuple[LoadPlan, int]) -> int:
        plan, speed = one
        return -speed if (plan.dtype, plan.device) == (first.dtype, first.device) else 0

    return tuple(plan for plan, _ in sorted(found, key=key))
