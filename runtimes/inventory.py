"""What models there are and how they stand: the catalogue's rows, the files' headers and the slots, brought together."""

import os
import time
from collections.abc import Iterable

from lfx_local_runtimes.errors import ModelNotFound, RuntimeFault
from lfx_local_runtimes.runtimes.config import ModelConfig, ModelKey, RuntimeType
from lfx_local_runtimes.runtimes.formats.inspect import is_instruct
from lfx_local_runtimes.runtimes.memory.ledger import MODELS
from lfx_local_runtimes.runtimes.memory.residency import Residency
from lfx_local_runtimes.runtimes.memory.slots import Slot
from lfx_local_runtimes.runtimes.planning import Inspection, Rules, inspect_model, task_of_model
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.runtimes.status import ModelStatus


class Inventory:
    """Tells about models; changes nothing. Reads the disk: call it off the event loop."""

    def __init__(self, catalog: Catalog, residency: Residency, rules: Rules) -> None:
        self._catalog = catalog
        self._residency = residency
        self._rules = rules
        self._inspected: dict[str, tuple[tuple[int, int], Inspection]] = {}

    def list(self) -> list[ModelStatus]:
        """Every known model: registered, discovered, and whatever else is in memory."""
        rows = {row.config.model_name: (row.config, row.source) for row in self._catalog.list()}
        with self._residency.slots() as slots:
            for slot in slots.values():
                if slot.config is not None and slot.name not in rows:
                    rows[slot.name] = (slot.config, slot.source)
        return [self._status(config, source) for config, source in rows.values()]

    def status(self, model_name: str) -> ModelStatus:
        """One model.

        Raises:
            ModelNotFound: no such model.
        """
        slot = self._residency.find(model_name)
        known = (slot.config, slot.source) if slot is not None and slot.config is not None else None
        if known is None:
            resolved = self._catalog.resolve(model_name)
            if resolved.source == "request" and self._catalog.locate(resolved.config) is None:
                raise ModelNotFound(
                    f"{model_name} is not known here.", model_name=model_name, hint="Load it to fetch it from the hub."
                )
            known = (resolved.config, resolved.source)
        return self._status(*known)

    def validate(self, config: ModelConfig) -> Inspection:
        """Inspect a model's files thoroughly.

        Raises:
            ModelNotFound: they are not on this machine.
        """
        path = self._catalog.locate(config)
        if path is None:
            name = config.model_name
            raise ModelNotFound(
                f"The files of {name} are not on this machine.", model_name=name, hint="Load it to fetch them."
            )
        return inspect_model(path, config.context_length, thorough=True, rules=self._rules)

    def _info(self, config: ModelConfig) -> Inspection | None:
        """The model's header, read again only when the file has changed; None when it is not on this machine."""
        try:
            path = self._catalog.locate(config)
            if path is None:
                return None
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            key = f"{path}@{config.context_length}"
            cached = self._inspected.get(key)
            if cached is None or cached[0] != stamp:
                cached = self._inspected[key] = (stamp, inspect_model(path, config.context_length, rules=self._rules))
            return cached[1]
        except (RuntimeFault, OSError):
            return None  # a list goes on; loading or validating the model says what is wrong

    def _status(self, config: ModelConfig, source: str) -> ModelStatus:
        info = self._info(config)
        with self._residency.slots():
            slot = self._residency.find(config.model_name) or Slot(ModelKey(config.model_name), config, source)
            return _row(config, source, info, slot, self._residency)


def _row(config: ModelConfig, source: str, info: Inspection | None, slot: Slot, residency: Residency) -> ModelStatus:
    plan, progress = slot.plan, slot.progress
    task = task_of_model(config, info)
    holds = residency.ledger.holds(slot.key) if slot.runtime else {}
    estimate = plan.memory.values() if plan else [info.memory.total] if info and info.memory else []
    named_engine = None if config.runtime_type == RuntimeType.AUTO else str(config.runtime_type)
    keep_alive = next(v for v in (slot.keep_alive, config.keep_alive, residency.keep_alive) if v is not None)
    problems = "; ".join(info.problems) if info else ""
    runtime = slot.runtime
    confinement = runtime.confinement if runtime else None
    return ModelStatus(
        model_name=config.model_name, model_id=config.model_id, model_type=task, source=source,
        format=info.format.value if info else None,
        engine=plan.engine if plan else named_engine or (info.engine if info else None),
        architecture=info.architecture if info else None, size_mb=_mib([info.size_bytes]) if info else None,
        instruct=_instruct(config, source, info) if task == "llm" else None,
        state=slot.state.value, device=plan.device.key if plan else None,
        quantization=plan.dtype if plan else config.quantization or (info.quantization if info else None),
        context_length=plan.context_length if plan else config.context_length or (info.context_length if info else None),
        memory_estimate_mb=_mib(estimate), memory_used_mb=_mib(v for k, v in holds.items() if k != MODELS),
        idle_s=round(time.monotonic() - slot.last_used, 1) if slot.idle else None,
        leases=slot.leases, pinned=slot.pinned, keep_alive_s=keep_alive,
        load_time_s=round(slot.load_time, 3) if slot.load_time is not None else None,
        progress={"phase": progress.phase, "done": progress.done, "total": progress.total} if progress else None,
        warnings=tuple(runtime.warnings) if runtime else (),
        error=str(slot.error) if slot.error else problems or None,
        isolation=runtime.isolation if runtime else None, pid=(runtime.pid or None) if runtime else None,
        uptime_s=None if slot.ready_since is None else round(time.monotonic() - slot.ready_since, 1),
        restarts=slot.restarts, last_exit=slot.last_exit,
        confined=confinement.level if confinement else None,
        confined_why="; ".join(confinement.missing) or None if confinement else None, server_pid=os.getpid(),
    )  # fmt: skip


def _instruct(config: ModelConfig, source: str, info: Inspection | None) -> bool | None:
    """Whether a text model follows instructions: by its files, or by its name while they are still in a package."""
    if info is None:
        return is_instruct(config.model_name, config.model_id) if source == "package" else None
    return info.instruct or info.chat_template is not None


def _mib(sizes: Iterable[int]) -> float | None:
    total = sum(sizes)
    return round(total / 2**20, 1) if total else None
