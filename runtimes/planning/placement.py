"""Where a model may be loaded: the engines asked on each device, and the order of their offers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from lfx_local_runtimes.errors import DeviceUnavailable, InvalidInput, LoadFailed, MissingExtra, PickleRefused
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.devices import CPU, Device, DeviceProbe, select_device
from lfx_local_runtimes.runtimes.engines.registry import EngineRow
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.memory.ledger import device_budget
from lfx_local_runtimes.runtimes.planning.estimates import DEFAULT_CONTEXT
from lfx_local_runtimes.runtimes.planning.forms import Form
from lfx_local_runtimes.runtimes.planning.load_plan import LoadPlan, Refusal
from lfx_local_runtimes.runtimes.planning.offers import Offer, Terms
from lfx_local_runtimes.runtimes.tasks import family_of
from lfx_local_runtimes.settings import Settings

_SIXTEEN_BITS = ("bf16", "fp16")

_SHORTEST = 2048
"""Tokens: a context that nobody asked for is not made shorter than that to fit."""


_FILLED = 0.95
"""Share of a card's room that the layers of a divided model may fill. The libraries take some memory there for themselves."""


class _Made(NamedTuple):
    plan: LoadPlan
    speed: int


class _Way(NamedTuple):
    """How an engine is asked."""

    config: ModelConfig
    why_type: str = ""
    """Why it is not the usual type."""
    rooms: Mapping[str, int] | None = None
    """For layers on several devices."""


class Placement:
    """The loads of a model in one form and one type.

    Args:
        config: the model's, with the type that is wanted.
        form: the files.
        rows: the engines to ask, in order.
        task: what the model does.
        settings: the operator's.
        probe: facts about the machine.
        narrows: nobody asked for a type: weights that fit on no accelerator in 16 bits may get 8.
        rooms: bytes that models may take by accelerator, if other programs use it too.

    Raises:
        DeviceUnavailable: the device is forced, or required, and not there.
    """

    def __init__(
        self, config: ModelConfig, form: Form, rows: Sequence[EngineRow], *, task: str, settings: Settings, probe: DeviceProbe,
        narrows: bool, rooms: Mapping[str, int],
    ) -> None:  # fmt: skip
        self._config, self._form, self._task, self._rows = config, form, task, rows
        self._settings, self._probe, self._narrows, self._rooms = settings, probe, narrows, rooms
        self._devices, self._warnings = _devices(config, settings, probe)
        self.refusals: list[Refusal] = []
        """What engines refused, and why."""

    def plans(self) -> list[LoadPlan]:
        """The loads, best first."""
        return _ordered([made for row in self._rows for made in self._plans_of(row)])

    def _plans_of(self, row: EngineRow) -> list[_Made]:
        """On each accelerator; if it fits on none of them over several, in 8 bits, and partly on the CPU; on the CPU."""
        devices, told = _devices_of(row, self._devices)
        cards = [device for device in devices if device.type is not DeviceType.CPU]
        before = len(self.refusals)
        made = self._asked(row, cards, told)
        skipped = [refusal.fault.message for refusal in self.refusals[before:]][-1:]
        if made and not any(map(self._fits, made)):
            divides = family_of(self._task) == "text" and self._config.gpu_layers is None
            over = sorted(
                (card for card in cards if divides and card.type is DeviceType.CUDA), key=lambda card: card.index
            )
            made += self._divided(row, over) if len(over) > 1 else []
            made += self._in_eight_bits(row, cards, made[0].plan)
            made += self._divided(row, [*over, CPU]) if over and CPU in devices else []
        others = [device for device in devices if device.type is DeviceType.CPU]
        return made + self._asked(row, others, (*told, *skipped))

    def _in_eight_bits(self, row: EngineRow, cards: Sequence[Device], full: LoadPlan) -> list[_Made]:
        if not self._narrows or full.dtype not in _SIXTEEN_BITS or self._form.info.format is ModelFormat.GGUF:
            return []
        narrow = self._config.model_copy(update={"quantization": "int8"})
        why = f"16 bits do not fit on {' or '.join(card.key for card in cards)}"
        return [made for made in self._asked(row, cards, (), _Way(narrow, why)) if self._fits(made)]

    def _divided(self, row: EngineRow, devices: Sequence[Device]) -> list[_Made]:
        """With its layers on all of these devices, one request at a time. Engines fill cards in the order of their numbers."""
        shares = {device.key: 1.0 if device.type is DeviceType.CPU else _FILLED for device in devices}
        rooms = {device.key: int(shares[device.key] * self._room(device)) for device in devices}
        config = self._config if self._config.parallel else self._config.model_copy(update={"parallel": 1})
        plans = [made.plan for made in self._asked(row, devices[:1], (), _Way(config, rooms=rooms)) if made.plan.layers]
        return [
            _Made(replace(plan, why=f"{plan.why} It fits on no card alone, so it is divided."), 0) for plan in plans
        ]

    def _room(self, device: Device) -> int:
        """Bytes that the model may take if no other model is loaded."""
        return min(device_budget(device, self._settings, self._probe), self._rooms.get(device.key, 2**63))

    def _fits(self, made: _Made) -> bool:
        """Whether it, or the same with a shorter context, has room on its device."""
        device = made.plan.device
        return any(plan.memory.get(device.key, 0) <= self._room(device) for plan in (made.plan, *made.plan.smaller))

    def _asked(
        self, row: EngineRow, devices: Sequence[Device], told: tuple[str, ...] = (), way: _Way | None = None
    ) -> list[_Made]:
        """The engine's loads on these devices."""
        way = way or _Way(self._config)
        found: list[_Made] = []
        skipped: tuple[str, ...] = ()
        for device in devices:
            try:
                found.append(self._ask(row, device, (*told, *skipped), way))
                skipped = ()
            except (InvalidInput, DeviceUnavailable, PickleRefused, LoadFailed, MissingExtra) as fault:  # noqa: PERF203
                place = " and ".join(way.rooms or (device.key,))
                self.refusals.append(Refusal(row.name, place, fault, way.config.quantization))
                skipped = (fault.message,)
        return found

    def _ask(self, row: EngineRow, device: Device, told: tuple[str, ...], way: _Way) -> _Made:
        info, config = self._form.info, way.config
        context = _context_length(config, info)
        budget = device_budget(device, self._settings, self._probe)
        unset = config.context_length is None
        terms = Terms(row.name, self._task, context, budget, self._probe, shortens=unset, rooms=way.rooms or {})
        _check_device(row, device, config)
        offers = list(_offers(row, config, info, device, terms))
        check_files(offers[0].files, config, self._settings)
        why = self._why(config, row, device, offers[0].dtype, way.why_type)
        first, *smaller = [
            LoadPlan(
                offer.files, row.name, device, offer.dtype, offer.context_length or context, offer.memory, offer.sequences,
                offer.state_bytes, (*self._warnings, *told, *offer.warnings), self._task, why, offer.layers,
            )
            for offer in offers
        ]  # fmt: skip
        return _Made(replace(first, smaller=tuple(smaller)), offers[0].speed)

    def _why(self, config: ModelConfig, row: EngineRow, device: Device, dtype: str, why_type: str) -> str:
        """Why the load has this engine, this device and this type, in one line."""
        info, first = self._form.info, self._rows[0].name
        if config.runtime_type != RuntimeType.AUTO:
            engine = "is the configured engine"
        elif row.name == first:
            engine = f"is the first engine for {info.format.value} files"
        else:
            engine = f"comes after {first} for {info.format.value} files"
        if not why_type and dtype == config.quantization:
            why_type = "as configured"
        elif not why_type:
            why_type = (
                "as the file is stored" if dtype == info.quantization else f"usual there for the task {self._task}"
            )
        told = f"{row.name} {engine}; {device.key}: {self._why_there(device)}; {dtype}: {why_type}."
        return f"{self._form.why} {told}".strip()

    def _why_there(self, device: Device) -> str:
        wanted, forced = self._config.device_type, self._settings.force_device
        if forced:
            return f"FORCE_DEVICE is {forced}"
        if device != self._devices[0]:
            return f"it is tried after {self._devices[0].key}"
        if wanted not in (DeviceType.AUTO, device.type):
            return f"this machine has no {wanted.value}"
        if wanted is not DeviceType.AUTO:
            return f"device_type is {wanted.value}"
        return "this machine has no accelerator" if device.type is DeviceType.CPU else "it is the best accelerator"


def _offers(row: EngineRow, config: ModelConfig, info: ModelInfo, device: Device, terms: Terms) -> Iterator[Offer]:
    """An engine's offer, and then smaller ones if nobody set the sizes: they are tried when the first one does not fit.

    First a single request at once, then half of the context, and so on. An offer that saves less than a tenth is left out.

    Raises:
        InvalidInput: the engine refuses the first one.
    """
    offer = row.make_offer(config, info, device, terms)
    yield offer
    if terms.rooms:
        return
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


def _check_device(row: EngineRow, device: Device, config: ModelConfig) -> None:
    if not row.runs_on(device.type):
        raise DeviceUnavailable(
            f"{row.name} does not run on {device.key}.", model_name=config.model_name,
            hint="Use device_type auto or cpu, or another runtime_type.",
        )  # fmt: skip


def check_files(info: ModelInfo, config: ModelConfig, settings: Settings) -> None:
    """Raises PickleRefused for weights that can run code and may not."""
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


def _devices_of(row: EngineRow, devices: list[Device]) -> tuple[list[Device], tuple[str, ...]]:
    """The devices to try with an engine, and what to tell the user about them. There is always one."""
    first = devices[0]
    if row.runs_on(first.type) or len(devices) == 1:
        return devices, ()
    there = [device for device in devices[1:] if row.runs_on(device.type)] or devices[:1]
    return there, (f"{row.name} does not run on {first.key}: running on the CPU.",)


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


def _ordered(found: list[_Made]) -> list[LoadPlan]:
    """The plans in the order of engines and devices, but faster ones first if they equal the first in type and device."""
    if not found:
        return []
    first = found[0].plan

    def key(one: _Made) -> int:
        plan, speed = one
        return -speed if (plan.dtype, plan.device) == (first.dtype, first.device) else 0

    ordered = [plan for plan, _ in sorted(found, key=key)]
    if ordered[0].engine != first.engine:
        faster = f"{ordered[0].engine} is faster than {first.engine} in {first.dtype} on {first.device.key}."
        ordered[0] = replace(ordered[0], why=f"{faster} {ordered[0].why}")
    return ordered
