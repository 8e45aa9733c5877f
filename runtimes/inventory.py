"""What models there are and how they stand: the catalogue's rows, the files' headers and the slots, brought together."""

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lfx_local_runtimes.errors import ModelNotFound, RuntimeFault
from lfx_local_runtimes.runtimes.chat.tool_history import Support
from lfx_local_runtimes.runtimes.config import ModelConfig, ModelKey, RuntimeType
from lfx_local_runtimes.runtimes.devices import DeviceProbe
from lfx_local_runtimes.runtimes.engines.isolated.runtime import memory_of
from lfx_local_runtimes.runtimes.engines.registry import engine_row
from lfx_local_runtimes.runtimes.formats.detect import MAX_ENTRIES
from lfx_local_runtimes.runtimes.formats.inspect import is_instruct
from lfx_local_runtimes.runtimes.formats.tasks import UNKNOWN, UNSUPPORTED
from lfx_local_runtimes.runtimes.memory.ledger import MODELS
from lfx_local_runtimes.runtimes.memory.residency import Residency
from lfx_local_runtimes.runtimes.memory.slots import Slot
from lfx_local_runtimes.runtimes.planning import (
    Inspection,
    LoadPlan,
    Refusal,
    Rules,
    check_task,
    consider_loads,
    inspect_model,
    task_of_model,
)
from lfx_local_runtimes.runtimes.planning.servable import Choice, choose_load
from lfx_local_runtimes.runtimes.sources.catalog import Catalog, Resolved, invalid
from lfx_local_runtimes.runtimes.status import Acceleration, ModelStatus, RefusedLoad
from lfx_local_runtimes.settings import Settings

_NONE = Choice(None, ())


class Inventory:
    """Tells about models; changes nothing. Reads the disk: call it off the event loop."""

    def __init__(
        self, catalog: Catalog, residency: Residency, rules: Rules, settings: Settings, probe: DeviceProbe
    ) -> None:  # fmt: skip
        self._catalog = catalog
        self._residency = residency
        self._rules = rules
        self._settings = settings
        self._probe = probe
        self._inspected: dict[str, tuple[tuple[tuple[str, int, int], ...], Inspection]] = {}

    def list(self) -> list[ModelStatus]:
        """Every known model: registered, discovered, and whatever else is in memory."""
        rows = {row.config.model_name: row for row in self._catalog.list()}
        with self._residency.slots() as slots:
            for slot in slots.values():
                if slot.config is not None and slot.name not in rows:
                    rows[slot.name] = Resolved(slot.config, slot.source)
        rooms = self._residency.rooms()
        return [self._status(row, rooms) for row in rows.values()]

    def status(self, model_name: str) -> ModelStatus:
        """One model.

        Raises:
            ModelNotFound: no such model.
        """
        slot = self._residency.find(model_name)
        if slot is not None and slot.config is not None:
            return self._status(Resolved(slot.config, slot.source))
        if (problem := self._catalog.registrations.problems.get(model_name)) is not None:
            return self._status(invalid(model_name, problem))
        resolved = self._catalog.resolve(model_name)
        if resolved.source == "request" and self._catalog.locate(resolved.config) is None:
            raise ModelNotFound(
                f"{model_name} is not known here.", model_name=model_name,
                hint="Load it, or use POST downloads, to fetch it from the hub.",
            )  # fmt: skip
        return self._status(resolved)

    def validate(self, config: ModelConfig) -> Inspection:
        """Inspect a model's files thoroughly.

        Raises:
            ModelNotFound: they are not on this machine.
        """
        path = self._catalog.locate(config)
        if path is None:
            name = config.model_name
            raise ModelNotFound(
                f"The files of {name} are not on this machine.",
                model_name=name,
                hint="Load it, or use POST downloads, to fetch them.",
            )
        return inspect_model(path, config.context_length, thorough=True, rules=self._rules)

    def facts(self, model_name: str) -> Inspection | None:
        """What a model's files say; None if they are not here or cannot be read. They are read again only if they changed.

        Raises:
            RuntimeFault: the name is not valid.
        """
        return self._info(self._catalog.resolve(model_name))[0]

    def _info(self, row: Resolved) -> tuple[Inspection | None, str]:
        """A model's header, read again only if a file has changed, and why it cannot be read. None: it is not here."""
        if row.problem:
            return None, f"The registration is not valid: {row.problem}"
        config = row.config
        try:
            path = self._catalog.locate(config)
            if path is None:
                return None, ""
            stamp = _stamp(path)
            key = f"{path}@{config.context_length}"
            cached = self._inspected.get(key)
            if cached is None or cached[0] != stamp:
                cached = self._inspected[key] = (stamp, inspect_model(path, config.context_length, rules=self._rules))
            return cached[1], ""
        except (RuntimeFault, OSError) as error:  # a list goes on, and says what is wrong with this one
            return None, str(error)

    def _choice(self, config: ModelConfig, info: Inspection | None, rooms: Mapping[str, int]) -> tuple[Choice, str]:
        """How a model would be loaded now, or why it cannot be. Neither is known of a model that is not here.

        If it fits nowhere, that is the load that would be tried first.
        """
        problem = _problem(config, info)
        if problem or info is None:
            return _NONE, problem
        try:
            considered = consider_loads(
                config, info, settings=self._settings, rules=self._rules, probe=self._probe, rooms=rooms
            )
            choice = choose_load(considered, self._settings, self._probe, rooms)
            if choice.plan is None:
                there = [plan for plan in considered.plans if engine_row(plan.engine).installed]
                if not there:
                    engine_row(considered.plans[0].engine).check_installed()  # raises
                choice = replace(choice, plan=there[0])
        except RuntimeFault as fault:
            return _NONE, str(fault)
        return choice, ""

    def _status(self, row: Resolved, rooms: Mapping[str, int] | None = None) -> ModelStatus:
        """`rooms` are the residency's, if somebody has asked for them already."""
        info, problem = self._info(row)
        unreadable = bool(problem)
        choice = _NONE
        if not unreadable:
            choice, problem = self._choice(row.config, info, self._residency.rooms() if rooms is None else rooms)
        with self._residency.slots():
            slot = self._residency.find(row.config.model_name)
            slot = slot or Slot(ModelKey(row.config.model_name), row.config, row.source)
            plan = slot.plan or choice.plan
            memory = memory_of(plan, self._settings) if plan else None
            task = UNKNOWN if unreadable else task_of_model(row.config, info)
            acceleration = _profile(plan, memory, choice.refused) if plan and memory else None
            found = _row(row, info, problem, slot, self._residency, task=task, plan=plan, memory=memory)
            return found.model_copy(update={"acceleration": acceleration})


def _profile(plan: LoadPlan, memory: Mapping[str, int], refused: Iterable[Refusal]) -> Acceleration:
    others = (RefusedLoad(engine=one.engine, device=one.device, dtype=one.dtype, why=str(one.fault)) for one in refused)
    return Acceleration(
        **plan.acceleration, context_length=plan.context_length, refused=tuple(others),
        memory_mb={device: round(size / 2**20, 1) for device, size in memory.items()},
    )  # fmt: skip


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Times and sizes of the files that a model's facts are read from. If they change, the facts are read again."""
    if path.is_dir():
        files = sorted(path.iterdir())[:MAX_ENTRIES]
    else:
        files = [path, path.parent] if "-of-" in path.name else [path]  # a part that was missing may have come
    found = []
    for file in files:
        with contextlib.suppress(OSError):  # a link that leads nowhere
            stat = file.stat()
            found.append((file.name, stat.st_mtime_ns, stat.st_size))
    return tuple(found)


def _problem(config: ModelConfig, info: Inspection | None) -> str:
    """Why a model cannot be loaded, as far as its files and its configuration say."""
    if info is not None and info.problems:
        return "; ".join(info.problems)
    try:
        check_task(config)
    except RuntimeFault as fault:
        return str(fault)
    return info.unsupported if info is not None and task_of_model(config, info) == UNSUPPORTED else ""


def _row(
    row: Resolved, info: Inspection | None, problem: str, slot: Slot, residency: Residency, *,
    task: str, plan: LoadPlan | None, memory: Mapping[str, int] | None,
) -> ModelStatus:  # fmt: skip
    """`plan` is that of the load, or of the one that would be tried first; `memory` is what it reserves."""
    config, source = row.config, row.source
    progress = slot.progress
    holds = residency.ledger.holds(slot.key) if slot.runtime else {}
    estimate = memory.values() if memory else [info.memory.total] if info and info.memory else []
    named_engine = None if config.runtime_type == RuntimeType.AUTO else str(config.runtime_type)
    keep_alive = next(v for v in (slot.keep_alive, config.keep_alive, residency.keep_alive) if v is not None)
    kind = info.format if info else row.format
    size = info.size_bytes if info else row.size_bytes
    template = config.chat_template or (info.chat_template if info else None)
    runtime = slot.runtime
    confinement = runtime.confinement if runtime else None
    return ModelStatus(
        model_name=config.model_name, model_id=config.model_id, source=source,
        model_type=task, format=kind.value if kind else None,
        engine=plan.engine if plan else named_engine or (info.engine if info else None),
        architecture=info.architecture if info else None, size_mb=_mib([size or 0]),
        on_disk=info is not None or source == "package" or row.format is not None, tool_calling=Support.of(template or "").tools,
        vision=info is not None and info.vision, parameters=info.parameters if info else None, instruct=_follows_instructions(task, row, info),
        state=slot.state.value, device=plan.device.key if plan and runtime else None,
        quantization=plan.dtype if plan else config.quantization or (info.quantization if info else None),
        context_length=plan.context_length if plan else config.context_length or (info.context_length if info else None),
        memory_estimate_mb=_mib(estimate), memory_used_mb=_mib(v for k, v in holds.items() if k != MODELS),
        idle_s=round(time.monotonic() - slot.last_used, 1) if slot.idle else None,
        leases=slot.leases, pinned=slot.pinned, keep_alive_s=keep_alive,
        load_time_s=round(slot.load_time, 3) if slot.load_time is not None else None,
        progress={"phase": progress.phase, "done": progress.done, "total": progress.total} if progress else None,
        warnings=tuple(runtime.warnings) if runtime else (),
        valid=runtime is not None or not problem, error=str(slot.error) if slot.error else problem or None,
        isolation=runtime.isolation if runtime else None, pid=(runtime.pid or None) if runtime else None,
        uptime_s=None if slot.ready_since is None else round(time.monotonic() - slot.ready_since, 1),
        restarts=slot.restarts, last_exit=slot.last_exit,
        confined=confinement.level if confinement else None,
        confined_why="; ".join(confinement.missing) or None if confinement else None, server_pid=os.getpid(),
    )  # fmt: skip


def _follows_instructions(task: str, row: Resolved, info: Inspection | None) -> bool | None:
    """Whether a text model's files say so: by a chat template, or by their names. None if that is not known.

    A model in a package has no files yet. It goes by its name.
    """
    if task != "llm":
        return None
    if info is None:
        return is_instruct(row.config.model_name, row.config.model_id) if row.source == "package" else None
    return bool(info.chat_template) or info.instruct


def _mib(sizes: Iterable[int]) -> float | None:
    total = sum(sizes)
    return round(total / 2**20, 1) if total else None
