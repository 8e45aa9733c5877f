"""The parent's half: a `ModelRuntime` that stands for a process.

The engine's own runtime runs in the child, unchanged. What it emits comes back as frames, which the model's thread here
reads at once, whether or not the callers keep up: their channels join deltas that nobody has read. A second thread sends
requests. A third one, the guard, looks whether the child still makes progress.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NoReturn

from lfx_local_runtimes.errors import EngineDied, EngineFailure, LoadFailed, NotAllowed, RuntimeFault
from lfx_local_runtimes.runtimes.base import Inbox, LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.devices import gpu_memory_of
from lfx_local_runtimes.runtimes.engines.isolated import codec
from lfx_local_runtimes.runtimes.engines.isolated.guard import Guard
from lfx_local_runtimes.runtimes.engines.isolated.rendering import Rendering
from lfx_local_runtimes.runtimes.engines.isolated.scratch import Scratch
from lfx_local_runtimes.runtimes.engines.isolated.spares import Spares, start_child
from lfx_local_runtimes.runtimes.engines.registry import EngineRow, engine_row
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.processes.child import Child, ChildDied, ChildFailure
from lfx_local_runtimes.runtimes.processes.confinement import Confinement, Policy, available
from lfx_local_runtimes.runtimes.processes.environment import scratch_environment
from lfx_local_runtimes.runtimes.processes.frames import Frame, Outbox, ProtocolError
from lfx_local_runtimes.runtimes.processes.paths import files_of
from lfx_local_runtimes.runtimes.requests import Finished, Progress, Request, RequestState
from lfx_local_runtimes.runtimes.trust.gate import confirm, log_refusal
from lfx_local_runtimes.settings import Settings

logger = logging.getLogger(__name__)

UNLOAD_S = 10.0
"""How long a process may take to end what it has in hand and close the model, before it is killed."""
_MARGIN = 2 * 2**30
"""Bytes of private memory that a process may take beyond twice its reservation."""
_GUARD_S = 1.0
_LAST_LINES = 3
"""So many of the last lines of a process that died go into the message."""
_OFF = Confinement("none", missing=("LOCAL_RUNTIMES_CONFINE is off",))
_HINT = "The next request loads it again. If that ends in the same way, fetch its files again, or use another engine."
_UNFIT_HINT = "Something starts a thread in every Python process: a sitecustomize, a profiler. Remove it, or set LOCAL_RUNTIMES_CONFINE=off."
_MEMORY_HINT = (
    "The next request loads it again. Use a smaller quantization or a shorter context, or unload other models."
)


def make_runtime(config: ModelConfig, plan: LoadPlan, settings: Settings, spares: Spares | None = None) -> ModelRuntime:
    """The runtime for a plan: in a process of its own, unless the settings or the engine say otherwise.

    Args:
        config: the model.
        plan: the manager's decision.
        settings: the operator's.
        spares: processes that wait; without them one is started at the load.

    Raises:
        InvalidInput: there is no such engine.
        LoadFailed: the engine cannot be imported.
    """
    row = engine_row(plan.engine)
    if _inline(row, settings):
        return row.make_runtime(config, plan)
    return IsolatedRuntime(row, config, plan, settings, spares)


def memory_of(plan: LoadPlan, settings: Settings) -> Mapping[str, int]:
    """Bytes that a load will take by device, as they are reserved: the model, and a process of its own if it gets one."""
    row = engine_row(plan.engine)
    return plan.memory if _inline(row, settings) else _with_process(plan, row)


def _inline(row: EngineRow, settings: Settings) -> bool:
    return settings.isolation == "inline" or not row.isolated


def _with_process(plan: LoadPlan, row: EngineRow) -> Mapping[str, int]:
    return {**plan.memory, "cpu": plan.memory.get("cpu", 0) + row.overhead}


class IsolatedRuntime(ModelRuntime):
    """A model in a process.

    Args:
        row: its engine.
        config: the model.
        plan: the manager's decision.
        settings: the operator's.
        spares: processes that wait; without them one is started at the load.
    """

    engine = "isolated"

    def __init__(
        self, row: EngineRow, config: ModelConfig, plan: LoadPlan, settings: Settings, spares: Spares | None = None
    ) -> None:
        super().__init__(config, plan)
        self.engine = row.name  # type: ignore[misc]  # the engine is the one in the process
        self._row = row
        self._settings = settings
        self._spares = spares
        self._child: Child | None = None
        self._outbox: Outbox | None = None
        self._rendering: Rendering | None = None
        self._guard: Guard | None = None
        self._scratch: Scratch | None = None
        self._tasks: frozenset[str] = frozenset()
        self._confinement = Confinement("none", missing=("the process has not started",))
        self._confining = False
        """The process will say what it has given up. It says so once, before it reads the model."""
        self._numbers = itertools.count(1)
        self._sent: dict[str, Request[Any]] = {}
        """Requests that the child has, by number."""
        self._killed: str | None = None
        """Why this half killed the process."""
        self._measured: dict[str, int] = {}
        self._overdue: threading.Timer | None = None
        """Kills a process that does not end when it should."""

    # -- what the manager asks -----------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return 0 if self._child is None else self._child.pid

    @property
    def isolation(self) -> Literal["process", "inline"]:
        return "process"

    @property
    def confinement(self) -> Confinement:
        return self._confinement

    @property
    def tasks(self) -> frozenset[str]:
        return self._tasks

    def reservation(self, plan: LoadPlan) -> Mapping[str, int]:
        """The plan's, and what Python and the engine's libraries take in a process of their own."""
        return _with_process(plan, self._row)

    def measure_again(self) -> Mapping[str, int]:
        """As the system counts it now. An engine keeps buffers for the largest request that it has served."""
        if self._ready:
            self._memory = self._measure()
        return dict(self._memory)

    # -- loading -------------------------------------------------------------------------------------------------------

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        reference = self._row.factory_reference
        assert reference is not None  # else the row would not be isolated
        self._killed, self._sent = None, {}
        self._check_can_confine()
        if self.config.trust_remote_code:  # Transformers copies such code before it imports it
            self._scratch = Scratch()
        clearance = context.clearance
        assert clearance is not None  # the gate was asked before
        policy = self._policy(plan, reference)
        if policy is None:
            confirm(clearance, plan.info, context.settings, self._confinement)
        folder = None if self._scratch is None else self._scratch.path
        frame = codec.load_frame(
            reference, self.config, plan, context.settings, policy=policy and policy.to_json(),
            clearance=clearance, environment={**self._row.environment, **scratch_environment(folder)},
        )  # fmt: skip
        try:
            try:
                self._load_in(self._take_process(self._spares, context), frame, context)
            except _Unfit:
                if self._spares is None:
                    raise
                self._close_process()  # what a spare has imported ahead has started a thread: begin with a new process
                self._confining = policy is not None
                self._load_in(self._take_process(None, context), frame, context)
        except (ChildDied, ProtocolError) as error:
            if context.cancelled:
                raise LoadFailed("The load was cancelled.") from error
            raise self._death(error) from error
        if self._spares is not None:
            self._spares.refill(self._row)

    def _load_in(self, child: Child, frame: Frame, context: LoadContext) -> None:
        """Have a process load the model."""
        self._put(frame)
        self._watch(child)  # after that frame: it must be the first one
        while not self._loaded(child.receive(), context):
            pass

    def _check_can_confine(self) -> None:
        if self._settings.confine == "require" and (can := available()).level != "full":
            raise LoadFailed(
                f"LOCAL_RUNTIMES_CONFINE is require, and this machine confines {can.level}ly: {'; '.join(can.missing)}.",
                hint="Set it to auto, or use a Linux kernel with Landlock and seccomp.",
            )

    def _take_process(self, spares: Spares | None, context: LoadContext) -> Child:
        try:
            # The libraries of a spare read where the home folder is when they were imported, before there was a scratch.
            warm = self._scratch is None
            child = self._child = start_child() if spares is None else spares.take(self._row, warm=warm)
        except ChildFailure as error:
            raise EngineFailure(str(error), hint="The machine may be out of processes or of memory.") from error
        child.name = f"The process of {self.config.model_name}"
        context.on_cancel(child.kill)
        self._outbox = outbox = Outbox(child.writer)
        self._rendering = Rendering(outbox, self.kill)
        return child

    def _watch(self, child: Child) -> None:
        assert self._outbox is not None
        limit = self._settings.step_limit_s
        self._guard = Guard(child, self._outbox, self._scratch, limit, busy=self._is_busy, kill=self.kill)

    def _is_busy(self) -> bool:
        return not self._ready or bool(self._requests)

    def _policy(self, plan: LoadPlan, reference: str) -> Policy | None:
        self._confining = self._settings.confine != "off"
        if not self._confining:
            self._confinement = _OFF
            return None
        on_card = plan.device.type is DeviceType.CUDA
        return Policy(
            read=(*files_of(plan.info, self._settings.model_roots), *_package(reference)),
            write=() if self._scratch is None else (self._scratch.path,),
            devices=("cuda",) if on_card else (),
            memory=None if on_card else self._most(plan),
        )

    def _most(self, plan: LoadPlan) -> int:
        """Bytes of private memory that the process may take."""
        return 2 * sum(self.reservation(plan).values()) + _MARGIN

    def _loaded(self, frame: Frame, context: LoadContext) -> bool:
        """Take a frame of the load; True for the last one."""
        head = frame.header
        kind = codec.text(head, "t")
        if kind == "confined" and self._confining:
            self._take_confinement(head, context)
        elif kind == "unfit" and self._confining:
            raise _Unfit(f"The process cannot be confined: {codec.text(head, 'why')}", hint=_UNFIT_HINT)
        elif self._confining:
            raise ProtocolError("It does not say what it has given up.")
        elif kind == "progress":
            context.report(codec.read(head.get("progress"), Progress))
        elif kind == "render":
            self._render(frame)
        elif kind == "pong":
            self._take_pong(head)
        elif kind == "refused":
            self._refuse(codec.read_fault(head.get("fault")), context)
        elif kind == "loaded":
            self._take_loaded(codec.read_loaded(head))
            return True
        else:
            raise ProtocolError(f"A model that loads says nothing of {kind[:100]!r}.")
        return False

    def _refuse(self, fault: RuntimeFault, context: LoadContext) -> NoReturn:
        """Raise the engine's refusal. One of the model's code is in the audit log then, as those of the gate are."""
        if isinstance(fault, NotAllowed):
            assert self._plan is not None
            log_refusal(fault, self.config.model_name, self._plan.info, context.settings)
        raise fault

    def _take_confinement(self, head: Mapping[str, Any], context: LoadContext) -> None:
        self._confining = False
        self._confinement = codec.read(head.get("confinement"), Confinement)
        if self._settings.confine == "require" and self._confinement.level != "full":
            raise LoadFailed(f"The process could not be confined in full: {'; '.join(self._confinement.missing)}.")
        assert self._plan is not None
        assert context.clearance is not None
        confirm(context.clearance, self._plan.info, context.settings, self._confinement)

    def _take_loaded(self, said: codec.Loaded) -> None:
        """What the process says of itself, as far as it could be true."""
        plan = self._plan
        assert plan is not None
        self._plan = replace(plan, sequences=min(said.sequences, plan.sequences))
        self.warnings += [one for one in said.warnings if one not in self.warnings]
        self._tasks = said.tasks
        most = self._most(plan) + plan.info.size_bytes
        devices = {"cpu", plan.device.key, *plan.memory}
        self._measured = {device: min(size, most) for device, size in said.memory.items() if device in devices}

    def _measure(self) -> dict[str, int]:
        """What the process and the device really took; at least what the engine knows of and will touch later."""
        child, taken = self._child, dict(self._measured)
        if child is None:  # it has just ended
            return taken
        taken["cpu"] = max(taken.get("cpu", 0), child.memory())
        for device, size in gpu_memory_of(child.pid).items():
            taken[device] = max(taken.get(device, 0), size)
        return taken

    # -- requests ------------------------------------------------------------------------------------------------------

    def _work(self, inbox: Inbox) -> None:
        child = self._child
        assert child is not None
        sender = threading.Thread(
            target=self._send_all, args=(inbox,), name=f"to {self.config.model_name}", daemon=True
        )
        sender.start()
        try:
            while True:
                self._take(child.receive())
        except (ChildDied, ProtocolError) as error:
            if not self._stopping:
                raise self._death(error) from error
        finally:
            child.kill()
            inbox.put(None)
            sender.join()

    def _take(self, frame: Frame) -> None:
        head = frame.header
        kind = codec.text(head, "t")
        if kind == "pong":
            self._take_pong(head)
        elif kind == "render":
            self._render(frame)
        elif kind == "died":
            fault = codec.read_fault(head.get("fault"))
            raise EngineFailure(fault.message, model_name=self.config.model_name, hint=fault.hint)
        elif (request := self._sent.get(codec.text(head, "id"))) is not None:  # one that has ended is of no interest
            if kind == "started":
                request.start()
            else:
                event = codec.read_event(frame, request.task)
                if isinstance(event, Finished):
                    self._add_warnings(event.result.metadata)
                request.emit(event)

    def _add_warnings(self, metadata: Any) -> None:
        """The manager's warnings, such as a fallback to another device, which the process does not know."""
        own = codec.read(metadata.get("warnings") or (), tuple[str, ...])
        metadata["warnings"] = [*self.warnings, *(one for one in own if one not in self.warnings)]

    def _take_pong(self, head: Mapping[str, Any]) -> None:
        assert self._guard is not None
        self._guard.pong(codec.read(head.get("step_s"), float))

    def _render(self, frame: Frame) -> None:
        assert self._rendering is not None
        self._rendering.answer(frame)

    def _send_all(self, inbox: Inbox) -> None:
        """Send requests as they come, and what follows them. None is the end."""
        while (work := inbox.get()) is not None:
            if not isinstance(work, Request):
                work()
                continue
            with self._answering(work):
                self._send(work, inbox)
        self._put(Frame({"t": "stop"}))

    def _send(self, request: Request[Any], inbox: Inbox) -> None:
        number = str(next(self._numbers))
        request.on_cancel(lambda: self._cancel(number, request, inbox))  # first: a cancel from now on follows the start
        if request.cancelled:
            request.emit(request.empty())
            return
        self._sent[number] = request
        request.on_end(lambda: self._forget_sent(number))
        self._put(codec.start_frame(number, request.id, request.ask))
        request.on_feed(lambda: inbox.put(lambda: self._feed(number, request)))

    def _forget_sent(self, number: str) -> None:
        self._sent.pop(number, None)

    def _cancel(self, number: str, request: Request[Any], inbox: Inbox) -> None:
        """Tell the child, and kill it if the request has not ended in time. Waits for nothing: any thread may cancel."""
        inbox.put(lambda: self._put(Frame({"t": "cancel", "id": number})))
        if request.state is RequestState.QUEUED:  # it ends here and now, whenever the child gets to it
            return
        limit, child = self._settings.cancel_limit_s, self._child
        why = f"it did not answer a cancel within {limit:g} s"
        request.on_end(_later(limit, lambda: None if request.ended else self._kill(child, why)).cancel)

    def _feed(self, number: str, request: Request[Any]) -> None:
        with self._answering(request):
            for chunk in request.fed():
                self._put(codec.feed_frame(number, request.task, chunk))

    def _put(self, frame: Frame) -> None:
        outbox = self._outbox
        assert outbox is not None
        with suppress(BrokenPipeError):  # the process has ended: the reader reports that
            outbox.put(frame)

    # -- the end -------------------------------------------------------------------------------------------------------

    def stop(self) -> threading.Thread | None:
        child, thread = self._child, super().stop()
        if thread is not None and self._overdue is None:
            self._overdue = _later(UNLOAD_S, lambda: self._kill(child, f"it did not end within {UNLOAD_S:g} s"))
            if not thread.is_alive():
                self._forget_overdue()
        return thread

    def _forget_overdue(self) -> None:
        """The model's thread has ended: there is nothing left to kill."""
        timer, self._overdue = self._overdue, None
        if timer is not None:
            timer.cancel()

    def kill(self, why: str) -> None:
        self._kill(self._child, why)

    def _kill(self, child: Child | None, why: str) -> None:
        if child is not None and child is self._child and child.alive:
            self._killed = self._killed or why
            logger.warning("%s is killed: %s", child.name, why)
            child.kill()

    def _death(self, error: Exception) -> RuntimeFault:
        """What the end of the process means for those who waited for it."""
        child, name = self._child, self.config.model_name
        assert child is not None
        if isinstance(error, ProtocolError):
            self._killed = f"it sent something that is not allowed ({error})"
        child.kill()
        report = child.wait(UNLOAD_S)
        how = f"was killed: {self._killed}" if self._killed else str(report.how if report else "does not end")
        lines = [line.strip() for line in report.last_lines if line.strip()][-_LAST_LINES:] if report else []
        said = f" It said last: {' | '.join(lines).rstrip('.')}." if lines else ""
        hint = _MEMORY_HINT if report and report.out_of_memory else _HINT
        return EngineDied(
            f"The process of {name} ({self.engine}, {child.pid}) {how}.{said}", model_name=name, hint=hint
        )

    def _close(self) -> None:
        self._forget_overdue()
        self._close_process()
        if self._scratch is not None:
            self._scratch.close()
        self._scratch = None
        self._tasks, self._measured = frozenset(), {}

    def _close_process(self) -> None:
        child, self._child = self._child, None
        outbox, self._outbox = self._outbox, None
        if child is not None:
            child.close(0)
        if self._rendering is not None:
            self._rendering.close()
        if outbox is not None:
            outbox.close(0)
        if self._guard is not None:
            self._guard.join(_GUARD_S)
        self._rendering = self._guard = None


class _Unfit(LoadFailed):
    """A process has threads already, so that not all of it can be confined."""


def _later(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    return timer


def _package(reference: str) -> Iterator[Path]:
    """The package that an engine's factory is in: it need not lie where packages are installed."""
    with suppress(ImportError, ValueError):
        spec = find_spec(reference.partition(":")[0].partition(".")[0])
        if spec is not None and spec.submodule_search_locations is not None:
            yield from (Path(folder) for folder in spec.submodule_search_locations if Path(folder).is_dir())
        elif spec is not None and spec.has_location and spec.origin is not None:
            yield Path(spec.origin)
