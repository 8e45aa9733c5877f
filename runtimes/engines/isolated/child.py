"""The child's half: it gives up what the policy does not allow, makes the engine's own runtime, and serves frames."""

import logging
import os
import pkgutil
import sys
import threading
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

from lfx_local_runtimes.errors import EngineFailure, InvalidInput, LoadFailed, RuntimeFault, as_fault
from lfx_local_runtimes.runtimes.base import LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.chat.template_sandbox import use_renderer
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.isolated import codec
from lfx_local_runtimes.runtimes.engines.isolated.rendering import RemoteRenderer
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.processes.confinement import Confinement, Policy, confine
from lfx_local_runtimes.runtimes.processes.frames import Frame, Outbox, ProtocolError
from lfx_local_runtimes.runtimes.processes.inside import Link
from lfx_local_runtimes.runtimes.requests import Event, Failed, Finished, Request
from lfx_local_runtimes.runtimes.tasks import task_row
from lfx_local_runtimes.runtimes.trust.report import Clearance
from lfx_local_runtimes.settings import Settings

_FLUSH_S = 5.0

logger = logging.getLogger(__name__)


def main(link: Link) -> int:
    """Import ahead if the parent asks for it, then serve one model until the parent says stop, or ends."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")  # standard error, which the parent keeps
    while (frame := link.receive()) is not None and frame.header["t"] == "warm":
        os.environ.update(frame.header["environment"])
        if (warm := frame.header["warm"]) is not None:
            pkgutil.resolve_name(warm)()
            pkgutil.resolve_name(frame.header["factory"])
        link.send(Frame({"t": "warmed"}))
    if frame is None:
        return 0
    head = frame.header
    os.environ.update(head["environment"])
    remember(head["factory"])
    confinement = Confinement("none", missing=("nobody asked for it",))
    if head["policy"] is not None:  # before a model is read and before any other thread starts
        try:
            confinement = confine(Policy.from_json(head["policy"]))
        except RuntimeError as error:  # a library that was imported ahead has started a thread
            link.send(Frame({"t": "unfit", "why": str(error)}))
            return 0
        link.send(Frame({"t": "confined", "confinement": confinement.to_json()}))
    clearance: Clearance = codec.read(head["clearance"], Clearance)
    if clearance.needs_full and confinement.level != "full":  # code of the model would run
        fault = LoadFailed(f"The process is not confined in full: {'; '.join(confinement.missing)}.")
        link.send(Frame({"t": "refused", "fault": codec.write_fault(fault)}))
        return 0
    return Server(link, head).run()


def remember(reference: str) -> None:
    """Find the package of an engine now, while every folder can still be listed. It is imported later.

    Python lists a folder to find a package in it, and the folder may hold the user's own files too.
    """
    name = reference.partition(":")[0].partition(".")[0]
    spec = None if name in sys.modules else find_spec(name)
    if spec is not None:
        sys.meta_path.insert(0, _Found(name, spec))


class _Found(MetaPathFinder):
    def __init__(self, name: str, spec: ModuleSpec) -> None:
        self._name, self._spec = name, spec

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        del path, target
        return self._spec if fullname == self._name else None


class WireRequest(Request[Any]):
    """A request whose events go to the parent, under the number that the parent gave it."""

    def __init__(self, server: "Server", model_name: str, ask: Any, request_id: str, number: str) -> None:
        super().__init__(model_name, ask, request_id)
        self.channel = _WireChannel(server, number)  # type: ignore[assignment]
        self._server = server
        self._number = number

    def start(self) -> bool:
        """As elsewhere; the parent hears of it."""
        started = super().start()
        if started:
            self._server.put(Frame({"t": "started", "id": self._number}))
        return started


class _WireChannel:
    def __init__(self, server: "Server", number: str) -> None:
        self._server, self._number = server, number

    def put(self, event: Event) -> None:
        try:
            self._server.put(codec.event_frame(self._number, event))
        except (ProtocolError, TypeError, ValueError) as error:
            if isinstance(event, Finished | Failed):
                fault = EngineFailure(f"The result cannot be sent: {error}", hint="Ask for less at once.")
                self._server.put(codec.event_frame(self._number, Failed(fault)))
            else:
                raise


class Server:
    """One model and its requests.

    Args:
        link: to the parent.
        head: of the `load` frame.
    """

    def __init__(self, link: Link, head: dict[str, Any]) -> None:
        self._link = link
        self._outbox = Outbox(link.writer)
        self._renderer = RemoteRenderer(self.put)
        use_renderer(self._renderer)
        self._config: ModelConfig = codec.read(head["config"], ModelConfig)
        self._plan: LoadPlan = codec.read(head["plan"], LoadPlan)
        self._settings = Settings.model_validate(head["settings"])
        self._clearance: Clearance = codec.read(head["clearance"], Clearance)
        self._factory: str = head["factory"]
        self._runtime: ModelRuntime | None = None
        self._requests: dict[str, WireRequest] = {}
        self._load_moved: float | None = time.monotonic()
        """When the load last went on; None after its end."""

    def put(self, frame: Frame) -> None:
        """Send a frame; does not wait."""
        self._outbox.put(frame)

    def run(self) -> int:
        """Load, then take frames until the end. Returns the exit status."""
        threading.Thread(target=self._load, name="load", daemon=True).start()
        while (frame := self._link.receive()) is not None and frame.header["t"] != "stop":
            self._take(frame)
        if frame is None:
            return 0
        self._stop()
        return 0

    def _load(self) -> None:
        context = LoadContext(self._progress, self._settings, self._clearance)
        try:
            runtime = self._runtime = pkgutil.resolve_name(self._factory)(self._config, self._plan)
            runtime.on_death(self._died)
            runtime.start(context).result()
        except BaseException as error:  # noqa: BLE001 - whatever an engine raises ends as one of ours
            fault = as_fault(error, LoadFailed, f"{self._factory} failed", self._config.model_name)
            self.put(Frame({"t": "refused", "fault": codec.write_fault(fault)}))
            return
        self._load_moved = None
        self.put(codec.loaded_frame(runtime))

    def _progress(self, progress: Any) -> None:
        self._load_moved = time.monotonic()
        self.put(Frame({"t": "progress", "progress": codec.write(progress, [])}))

    def _died(self) -> None:
        """The loop of the model has ended by itself."""
        assert self._runtime is not None
        fault = self._runtime.death
        assert fault is not None
        self.put(Frame({"t": "died", "fault": codec.write_fault(fault)}))

    def _take(self, frame: Frame) -> None:
        head = frame.header
        kind = head["t"]
        if kind == "start":
            self._start(frame)
        elif kind == "cancel":
            if (request := self._requests.get(head["id"])) is not None:
                request.cancel()
        elif kind == "feed":
            if (request := self._requests.get(head["id"])) is not None:
                request.feed(codec.read(head["chunk"], task_row(request.task).chunk, frame.attachments))
        elif kind == "ping":
            self.put(Frame({"t": "pong", "step_s": self._step_age()}))
        elif kind == "rendered":
            self._renderer.take(head)

    def _step_age(self) -> float:
        """Seconds since the load, or the loop of the model, last went on."""
        moved = self._load_moved
        load = 0.0 if moved is None else time.monotonic() - moved
        return max(load, self._runtime.step_age if self._runtime is not None else 0.0)

    def _start(self, frame: Frame) -> None:
        number = frame.header["id"]
        try:
            ask, name = codec.read_ask(frame), frame.header["request_id"]
            request = WireRequest(self, self._config.model_name, ask, name, number)
        except Exception as error:  # noqa: BLE001 - the model goes on serving others
            fault: RuntimeFault = as_fault(
                error, InvalidInput, "The request was not understood", self._config.model_name
            )
            self.put(codec.event_frame(number, Failed(fault)))
            return
        self._requests[number] = request
        request.on_end(lambda: self._forget(number))
        assert self._runtime is not None  # requests come after the load
        self._runtime.submit(request)

    def _forget(self, number: str) -> None:
        self._requests.pop(number, None)

    def _stop(self) -> None:
        """End what is in hand, close the model, and let the last events out."""
        thread = self._runtime.stop() if self._runtime is not None else None
        if thread is not None:
            thread.join()
        self._outbox.close(_FLUSH_S)
