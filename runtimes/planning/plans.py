"""The loads worth trying: which engines are asked, on which devices, and in which order their offers are tried.

Each plan is one attempt. If it fails, the next one is tried.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lfx_local_runtimes.errors import (
    DeviceUnavailable,
    InvalidInput,
    InvalidModelFile,
    LoadFailed,
    ModelNotFound,
    PickleRefused,
    RemoteCodeRefused,
    RuntimeFault,
    WrongTask,
)
from lfx_local_runtimes.runtimes.config import AUTO_TASK, DeviceType, ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.devices import CPU, MACHINE, Device, DeviceProbe, select_device
from lfx_local_runtimes.runtimes.engines.registry import EngineRow, engine_row
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.formats.tasks import UNSUPPORTED
from lfx_local_runtimes.runtimes.memory.ledger import device_budget
from lfx_local_runtimes.runtimes.planning.estimates import DEFAULT_CONTEXT
from lfx_local_runtimes.runtimes.planning.offers import Offer, Terms
from lfx_local_runtimes.runtimes.planning.rules import Rules
from lfx_local_runtimes.runtimes.tasks import task_rows
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
    smaller: tuple["LoadPlan", ...] = ()
    """The same load with less memory, for one request at once and a shorter context. Tried in turn if it does not fit."""


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
    config: ModelConfig, info: ModelInfo, *, settings: Settings, rules: Rules, probe: DeviceProbe = MACHINE
) -> tuple[LoadPlan, ...]:
    """Every load worth trying, best first: each engine on the chosen device, then on others of its kind, then on the CPU.

    If the configuration asks for int8 or int4, the nearest other types follow: not every engine and device has these two.

    Raises:
        InvalidModelFile: the files have problems.
        WrongTask: nothing here serves what the model does.
        NotAllowed: pickle weights or remote code without permission.
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
    rows, unknown = _rows(engines)
    found: list[LoadPlan] = []
    refusals: list[RuntimeFault] = []
    for wanted in (config.quantization, *_NEAREST.get(config.quantization or "", ())):
        made, refused = _plans_in(config.model_copy(update={"quantization": wanted}), info, rows, settings, probe)
        if wanted != config.quantization:
            why = refusals[0].message if refusals and not found else ""
            made = [_instead(plan, config, why) for plan in made]
        found += made
        refusals += refused
    if not found:
        _check_files(info, config, settings)
        refusal = (unknown + refusals)[0]
        refusal.model_name = config.model_name
        raise refusal
    return tuple(found)


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


def _plans_in(
    config: ModelConfig, info: ModelInfo, rows: Sequence[EngineRow], settings: Settings, probe: DeviceProbe
) -> tuple[list[LoadPlan], list[RuntimeFault]]:
    """The plans in the configuration's type, best first, and why engines refused."""
    devices, warnings = _devices(config, settings, probe)
    task, context = task_of_model(config, info), _context_length(config, info)
    found: list[tuple[LoadPlan, int]] = []
    refusals: list[RuntimeFault] = []
    for row in rows:
        skipped: tuple[str, ...] = ()
        for device, told in _devices_of(row, devices):
            budget, unset = device_budget(device, settings, probe), config.context_length is None
            terms = Terms(row.name, task, context, budget, probe, shortens=unset)
            try:
                _check_device(row, device, config)
                offers = list(_offers(row, config, info, device, terms))
                _check_files(offers[0].files, config, settings)
            except (InvalidInput, DeviceUnavailable, PickleRefused, LoadFailed) as refusal:
                refusals.append(refusal)
                skipped = (refusal.message,)
                continue
            first, *smaller = [
                LoadPlan(
                    offer.files, row.name, device, offer.dtype, offer.context_length or context, offer.memory,
                    offer.sequences, offer.state_bytes, (*warnings, *told, *skipped, *offer.warnings), task,
                )
                for offer in offers
            ]  # fmt: skip
            found.append((replace(first, smaller=tuple(smaller)), offers[0].speed))
    return _ordered(found), refusals


def _offers(row: EngineRow, config: ModelConfig, info: ModelInfo, device: Device, terms: Terms) -> Iterator[Offer]:
    """An engine's offer, and then smaller ones if nobody set the sizes: they are tried when the first one does not fit.

    First a single request at once, then half of the context, and so on. An offer that saves less than a tenth is left out.

    Raises:
        InvalidInput: the engine refuses the first one.
    """
    offer = row.make_offer(config, info, device, terms)
    yield offer
    one = config if config.parallel else config.model_copy(update={"parallel": 1})
    length, smallest = offer.context_length or terms.context_length, sum(offer.memory.values())
    full = length
    while length >= _SHORTEST:
        smaller = row.make_offer(one, info, device, replace(terms, context_length=length, shortens=False))
        if sum(smaller.memory.values()) < 0.9 * smallest:
            smallest = sum(smaller.memory.values())
            less = f"the context is {length:,} tokens instead of {full:,}" if length < full else "one request at a time"
            yield replace(smaller, warnings=(*smaller.warnings, f"Memory is short: {less}."))
        if not terms.shortens:
            return
        length //= 2


_SHORTEST = 2048
"""Tokens: a context that nobody asked for is not made shorter than that to fit."""


def plan_for_engine(config: ModelConfig, engine: str) -> LoadPlan:
    """The first plan for a runtime that is used without a manager; `model_id` is a path.

    Raises:
        ModelNotFound: no such path.
        RuntimeFault: as `plan_loads`.
    """
    path = Path(config.model_id).expanduser()
    if not path.exists():
        raise ModelNotFound(
            f"{config.model_id} is not a path.", model_name=config.model_name,
            hint="A runtime without a manager loads from disk. RuntimeManager also finds hub and packaged models.",
        )  # fmt: skip
    settings = get_settings()
    info = read_model(path, thorough=True)
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
    others = [one for one in probe.accelerators() if one.type is device.type and one != device]
    last = [] if settings.force_device or config.requires_accelerator else [CPU]
    return [device, *others, *last], warnings


def _devices_of(row: EngineRow, devices: list[Device]) -> Iterator[tuple[Device, tuple[str, ...]]]:
    """The devices to try with an engine, and what to tell the user about them. There is always one."""
    first = devices[0]
    if row.runs_on(first.type) or len(devices) == 1:
        yield from ((device, ()) for device in devices)
    else:
        there = [device for device in devices[1:] if row.runs_on(device.type)] or devices[:1]
        yield from ((device, (f"{row.name} does not run on {first.key}: running on the CPU.",)) for device in there)


def _context_length(config: ModelConfig, info: ModelInfo) -> int:
    """The tokens asked for, or as many as the model was trained for."""
    trained = info.context_length
    if config.context_length is None:
        return trained or DEFAULT_CONTEXT
    if trained is not None and config.context_length > trained:
        raise InvalidInput(
            f"context_length {config.context_length:,} is more than the {trained:,} tokens the model was trained for.",
            model_name=config.model_name, hint=f"Ask for {trained:,} or less.",
        )  # fmt: skip
    return config.context_length


def _ordered(found: list[tuple[LoadPlan, int]]) -> list[LoadPlan]:
    """The plans in the order of engines and devices, but faster ones first if they equal the first in type and device."""
    if not found:
        return []
    first = found[0][0]

    def key(one: tuple[LoadPlan, int]) -> int:
        plan, speed = one
        return -speed if (plan.dtype, plan.device) == (first.dtype, first.device) else 0

    return [plan for plan, _ in sorted(found, key=key)]
