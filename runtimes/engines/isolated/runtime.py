"""The parent's half: a `ModelRuntime` that stands for a process.

The engine's own runtime runs in the child, unchanged. What it emits comes back as frames, which the model's thread here
reads at once, whether or not the callers keep up: their channels join deltas that nobody has read. A second thread sends
requests, and looks whether the child still makes progress.
"""

import logging
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lfx_local_runtimes.errors import EngineDied, EngineFailure, LoadFailed, RuntimeFault
from lfx_local_runtimes.runtimes.base import Inbox, LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.devices import gpu_memory_of
from lfx_local_runtimes.runtimes.engines.isolated import codec
from lfx_local_runtimes.runtimes.engines.isolated.rendering import Rendering
from lfx_local_runtimes.runtimes.engines.isolated.spares import Spares, start_child
from lfx_local_runtimes.runtimes.engines.registry import EngineRow, engine_row
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.processes.child import Child, ChildDied, ChildFailure
from lfx_local_runtimes.runtimes.processes.confinement import Confinement, Policy, available
from lfx_local_runtimes.runtimes.processes.environment import scratch_environment
from lfx_local_runtimes.runtimes.processes.frames import Frame, Outbox, ProtocolError
from lfx_local_runtimes.runtimes.processes.paths import model_paths
from lfx_local_runtimes.runtimes.requests import Finished, Progress, Request
from lfx_local_runtimes.settings import Settings

logger = logging.getLogger(__name__)

UNLOAD_S = 10.0
"""How long a process may take to end what it has in hand and close the model, before it is killed."""
_MARGIN = 2 * 2**30
"""Bytes of private memory that a process may take beyond twice its reservation."""
_PINGS = 10
"""In this many parts of the step limit the child is asked whether its step goes on."""
_OFF = Confinement("none", missing=("LOCAL_RUNTIMES_CONFINE is off",))
_HINT = "The next request loads it again. If that ends in the same way, fetch its files again, or use another engine."


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
    if settings.isolation == "inline" or not row.isolated:
        return row.make_runtime(config, plan)
    return IsolatedRuntime(row, config, plan, settings, spares)


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
        self._scratch: Path | None = None
        self._tasks: frozenset[str] = frozenset()
        self._confinement = Confinement("none", missing=("the process has not started",))
        self._sent: dict[str, Request[Any]] = {}
        """Requests that the child has, by id."""
        self._pinged: float | None = None
        """When the child was asked for a sign of life that has not come yet."""
        self._killed: str | None = None
        """Why this half killed the process."""
        self._measured: dict[str, int] = {}

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
        return {**plan.memory, "cpu": plan.memory.get("cpu", 0) + self._row.overhead}

    # -- loading -------------------------------------------------------------------------------------------------------

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        reference = self._row.factory_reference
        assert reference is not None  # else the row would not be isolated
        self._killed, self._sent, self._pinged = None, {}, None
        self._check_can_confine()
        if self.config.trust_remote_code:  # Transformers copies such code before it imports it
            self._scratch = Path(tempfile.mkdtemp(prefix="lfx-local-runtimes-"))
        policy = self._policy(plan)
        environment = {**self._row.environment, **scratch_environment(self._scratch)}
        frame = codec.load_frame(
            reference, self.config, plan, context.settings, policy=policy and policy.to_json(), environment=environment
        )
        try:
            if not self._load_in(self._take_process(context), frame, context):
                self._close_process()  # a spare that cannot be confined: begin again with a new process
                self._spares = None
                self._load_in(self._take_process(context), frame, context)
        except (ChildDied, ProtocolError) as error:
            if context.cancelled:
                raise LoadFailed("The load was cancelled.") from error
            raise self._death(error) from error
        if self._spares is not None:
            self._spares.refill(self._row)

    def _load_in(self, child: Child, frame: Frame, context: LoadContext) -> bool:
        """Have a process load the model. False if it is not fit for that."""
        child.send(frame)
        while not self._loaded(answer := child.receive(), context):
            if answer.header.get("t") == "unfit":
                logger.debug("%s: %s", child.name, answer.header.get("why"))
                return False
            if answer.header.get("t") == "render":
                self._rendering.answer(answer)
        return True

    def _check_can_confine(self) -> None:
        if self._settings.confine == "require" and (can := available()).level != "full":
            raise LoadFailed(
                f"LOCAL_RUNTIMES_CONFINE is require, and this machine confines {can.level}ly: {'; '.join(can.missing)}.",
                hint="Set it to auto, or use a Linux kernel with Landlock and seccomp.",
            )

    def _take_process(self, context: LoadContext) -> Child:
        try:
            child = self._child = start_child() if self._spares is None else self._spares.take(self._row)
        except ChildFailure as error:
            raise EngineFailure(str(error), hint="The machine may be out of processes or of memory.") from error
        child.name = f"The process of {self.config.model_name}"
        context.on_cancel(child.kill)
        self._outbox = Outbox(child.writer)
        self._rendering = Rendering(self._outbox, self._kill)
        return child

    def _policy(self, plan: LoadPlan) -> Policy | None:
        if self._settings.confine == "off":
            self._confinement = _OFF
            return None
        on_card = plan.device.type is DeviceType.CUDA
        reserved = sum(self.reservation(plan).values())
        return Policy(
            read=_files(plan, self._settings),
            write=() if self._scratch is None else (self._scratch,),
            devices=("cuda",) if on_card else (),
            memory=None if on_card else 2 * reserved + _MARGIN,
        )

    def _loaded(self, frame: Frame, context: LoadContext) -> bool:
        """Take a frame of the load; True for the last one."""
        head = frame.header
        kind = head.get("t")
        if kind == "confined":
            self._take_confinement(head)
        elif kind == "progress":
            context.report(codec.read(head.get("progress"), Progress))
        elif kind == "refused":
            raise codec.read_fault(head.get("fault"))
        elif kind == "loaded":
            self._plan = codec.read(head.get("plan"), LoadPlan)
            self.warnings += [one for one in codec.read(head.get("warnings"), list[str]) if one not in self.warnings]
            self._tasks = frozenset(codec.read(head.get("tasks"), list[str]))
            self._measured = codec.read(head.get("memory"), dict[str, int])
            return True
        elif kind not in ("render", "unfit"):
            raise ProtocolError(f"A model that loads says nothing of {kind!r}.")
        return False

    def _take_confinement(self, head: Mapping[str, Any]) -> None:
        try:
            self._confinement = Confinement.from_json(head["confinement"])
        except (KeyError, TypeError) as error:
            raise ProtocolError("A frame has no confinement.") from error
        if self._settings.confine == "require" and self._confinement.level != "full":
            raise LoadFailed(f"The process could not be confined in full: {'; '.join(self._confinement.missing)}.")

    def _measure(self) -> dict[str, int]:
        """What the process and the device really took; at least what the engine knows of and will touch later."""
        assert self._child is not None
        taken = dict(self._measured)
        taken["cpu"] = max(taken.get("cpu", 0), self._child.memory())
        for device, size in gpu_memory_of(self._child.pid).items():
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
            inbox.put(None)
            sender.join()

    def _take(self, frame: Frame) -> None:
        head = frame.header
        kind = head.get("t")
        if kind == "pong":
            self._pinged = None
            if codec.read(head.get("step_s"), float) > self._settings.step_limit_s:
                self._kill(f"a step ran for more than {self._settings.step_limit_s:g} s")
        elif kind == "render":
            self._rendering.answer(frame)
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
        own = metadata.get("warnings") or ()
        metadata["warnings"] = [*self.warnings, *(one for one in own if one not in self.warnings)]

    def _send_all(self, inbox: Inbox) -> None:
        """Send requests as they come; look after the child in between. None is the end."""
        wait = min(self._settings.step_limit_s / _PINGS, 30.0)
        while True:
            try:
                request = inbox.get(timeout=wait)
            except queue.Empty:
                self._look_after()
                continue
            if request is None:
                break
            with self._answering(request), suppress(BrokenPipeError):  # the reader reports a death
                self._send(request)
        child = self._child
        assert child is not None
        if child.alive and self._killed is None:
            self._put(Frame({"t": "stop"}))
            if child.wait(UNLOAD_S) is None:
                self._kill(f"it did not end within {UNLOAD_S:g} s")

    def _send(self, request: Request[Any]) -> None:
        if request.cancelled:
            request.emit(request.empty())
            return
        name = request.id
        self._sent[name] = request
        request.on_end(partial(self._forget_sent, name))
        self._put(codec.start_frame(name, request.ask))
        request.on_cancel(partial(self._cancel, request))
        request.on_feed(partial(self._feed, request))

    def _forget_sent(self, name: str) -> None:
        self._sent.pop(name, None)

    def _cancel(self, request: Request[Any]) -> None:
        """Tell the child, and kill it if the request has not ended in time."""
        limit = self._settings.cancel_limit_s
        self._put(Frame({"t": "cancel", "id": request.id}))

        def expire() -> None:
            if not request.ended:
                self._kill(f"it did not answer a cancel within {limit:g} s")

        timer = threading.Timer(limit, expire)
        timer.daemon = True
        timer.start()
        request.on_end(timer.cancel)

    def _feed(self, request: Request[Any]) -> None:
        for chunk in request.fed():
            self._put(codec.feed_frame(request.id, request.task, chunk))

    def _put(self, frame: Frame) -> None:
        assert self._outbox is not None
        with suppress(BrokenPipeError):  # the process has ended: the reader reports that
            self._outbox.put(frame)

    def _look_after(self) -> None:
        """Ask for a sign of life while requests are in hand; kill a process that gives none."""
        if not self._requests:
            self._pinged = None
        elif self._pinged is None:
            self._pinged = time.monotonic()
            self._put(Frame({"t": "ping"}))
        elif time.monotonic() - self._pinged > self._settings.step_limit_s:
            self._kill(f"it gave no sign of life for {self._settings.step_limit_s:g} s")

    # -- the end -------------------------------------------------------------------------------------------------------

    def _kill(self, why: str) -> None:
        child = self._child
        if child is not None and child.alive:
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
        said = f" It said last: {report.last_line}" if report and report.last_line else ""
        return EngineDied(
            f"The process of {name} ({self.engine}, {child.pid}) {how}.{said}", model_name=name, hint=_HINT
        )

    def _close_process(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close(0)
        if self._outbox is not None:
            self._outbox.close(0)
            self._outbox = None

    def _close(self) -> None:
        self._close_process()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
        self._tasks, self._measured = frozenset(), {}


def _files(plan: LoadPlan, settings: Settings) -> tuple[Path, ...]:
    """What the process may read: the model's folder, or its files and the small ones that go with them."""
    info = plan.info
    found = {file for file in info.files if file.exists()}
    if info.path.is_dir():
        found |= set(model_paths(info.path, settings.model_roots))
    elif info.folder != info.path.parent:  # an ONNX file beside its model's folder
        found |= set(model_paths(info.folder, settings.model_roots))
    else:
        found |= {info.path, *info.folder.glob("*.json")}
    linked = {file.resolve() for file in found if file.is_symlink()}
    return tuple(sorted(found | linked))
