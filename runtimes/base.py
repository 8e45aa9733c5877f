"""`ModelRuntime`: one loaded model on a thread of its own.

The native object (llama.cpp context, torch module) is created, used and closed on that thread only; everyone else sends
it requests. The async methods are a bridge that works from any event loop.
"""

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lfx_local_runtimes.errors import (
    DeviceFailed,
    EngineFailure,
    LoadFailed,
    QueueFull,
    RuntimeFault,
    WrongTask,
    as_fault,
)
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.registry import prepare_plan
from lfx_local_runtimes.runtimes.planning import LoadPlan, plan_for_engine
from lfx_local_runtimes.runtimes.processes.confinement import Confinement
from lfx_local_runtimes.runtimes.requests import Failed, GenerationStream, Progress, Request, Run
from lfx_local_runtimes.runtimes.tasks.base import Ask, ResultT
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, GenerationResult
from lfx_local_runtimes.settings import Settings, get_settings

if TYPE_CHECKING:
    from lfx_local_runtimes.runtimes.trust.report import Clearance, Kind

logger = logging.getLogger(__name__)

_INLINE = Confinement("none", missing=("the model runs inside this program",))

Inbox = queue.SimpleQueue[Any]
"""Requests for the model's thread, in order; None says that there will be no more."""


class LoadContext:
    """What a load may ask of its surroundings: the operator's settings, to report progress, and to notice that it is no
    longer wanted.

    Args:
        report: hears of the progress.
        settings: unset, the environment's.
        clearance: the gate's answer about code that comes with the model. Unset: it has not been asked.
    """

    def __init__(
        self, report: Callable[[Progress], None] | None = None, settings: Settings | None = None,
        clearance: "Clearance | None" = None,
    ) -> None:  # fmt: skip
        self.report = report or (lambda progress: None)
        self.settings = settings or get_settings()
        self.clearance = clearance
        self._cancelled = threading.Event()
        self._on_cancel: Callable[[], None] = lambda: None

    def may_run(self, kind: "Kind") -> bool:
        """The gate lets this kind of the model's code pass."""
        return self.clearance is not None and kind in self.clearance.code

    @property
    def cancelled(self) -> bool:
        """True once the load should stop."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask the load to stop; it then fails with `LoadFailed`."""
        self._cancelled.set()
        self._on_cancel()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call this when the load should stop, now if it should already. It may be called twice."""
        self._on_cancel = callback
        if self.cancelled:
            callback()


class ModelRuntime(ABC):
    """One model in one engine.

    An engine implements `_load`, `_serve`, `_close` and `_measure`; they run on the model's own thread and nowhere else.
    One that computes several requests at once implements `_work` instead of `_serve`.
    `plan` is what the manager decided (device, type, context); without one the runtime plans for itself.
    """

    engine: ClassVar[str]

    def __init__(self, config: ModelConfig, plan: LoadPlan | None = None) -> None:
        self.config = config
        self._plan = plan
        self._inbox: Inbox = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loading: Future[None] | None = None
        self._ready = False
        self._requests: set[Request[Any]] = set()
        self._memory: dict[str, int] = {}
        self._stopping = False
        self._step_began: float | None = None
        self._on_death: Callable[[], None] = lambda: None
        self.death: RuntimeFault | None = None
        """Why the model ended although nobody asked it to; None while it did not."""
        self.warnings: list[str] = []
        """What a user should know about this load (a fallback to the CPU, say); part of every result."""

    # -- the engine's part, on its own thread ------------------------------------------------------------------------

    @abstractmethod
    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        """Bring the model into memory. Look at `context.cancelled` where that is possible.

        Raises:
            RuntimeFault: it cannot be loaded; other exceptions become `LoadFailed`.
        """

    def _work(self, inbox: Inbox) -> None:
        """Serve requests until None comes: every one ends with `Finished` or `Failed`. Here, one at a time."""
        while (request := inbox.get()) is not None:
            self._step()
            with self._answering(request):
                if request.start():
                    self._serve(request)
            self._rest()

    def _serve(self, request: Request[Any]) -> None:
        """Answer one request: emit deltas and at the end `Finished`.

        At every step call `_step`, and look at `request.cancelled`. A step that takes too long ends the process.

        Raises:
            RuntimeFault: this request cannot be answered; other exceptions become `EngineFailure`.
        """
        raise NotImplementedError

    @abstractmethod
    def _close(self) -> None:
        """Give everything back. Called once after `_load`, also after one that failed half-way."""

    @abstractmethod
    def _measure(self) -> dict[str, int]:
        """Bytes really taken, per device (`cpu`, `cuda:0`, `mps`)."""

    # -- for the manager: from any thread, without waiting -----------------------------------------------------------

    @property
    def plan(self) -> LoadPlan | None:
        """What was decided for this load; None before the first."""
        return self._plan

    @property
    def loaded(self) -> bool:
        """True while the model can take requests."""
        return self._ready

    @property
    def tasks(self) -> frozenset[str]:
        """What the model can be asked for."""
        return frozenset({"llm"})

    @property
    def pid(self) -> int:
        """The process that the model runs in."""
        return os.getpid()

    @property
    def isolation(self) -> Literal["process", "inline"]:
        """`process` if the model has a process of its own, `inline` if it runs in this one."""
        return "inline"

    @property
    def confinement(self) -> Confinement:
        """What the model's process cannot reach."""
        return _INLINE

    def reservation(self, plan: LoadPlan) -> Mapping[str, int]:
        """Bytes to reserve for a load, per device."""
        return plan.memory

    def measure_again(self) -> Mapping[str, int]:
        """Bytes taken now, per device: requests may have made a model larger. From any thread."""
        return dict(self._memory)

    @property
    def step_age(self) -> float:
        """Seconds since the loop of the model last began a step; 0 while it has nothing to do."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def _step(self) -> None:
        """The loop begins a step: one that never ends is noticed by its age."""
        self._step_began = time.monotonic()

    def _rest(self) -> None:
        """The loop waits for requests."""
        self._step_began = None

    def on_death(self, callback: Callable[[], None]) -> None:
        """Call once if the loaded model ends although nobody asked it to. It is closed then, and `death` says why."""
        self._on_death = callback

    def withdraw(self) -> list[Request[Any]]:
        """Take back the requests that have shown nothing yet, so that another runtime can serve them."""
        with self._lock:
            taken = [request for request in self._requests if request.withdraw()]
            self._requests.difference_update(taken)
        return sorted(taken, key=lambda request: request.timeline.queued)

    def start(self, context: LoadContext | None = None) -> "Future[None]":
        """Start the thread and load on it, or join the load that is under way. Fails with a `RuntimeFault`."""
        with self._lock:
            if self._thread is not None and self._loading is not None:
                return self._loading
            self._stopping, self.death = False, None
            future: Future[None] = Future()
            self._loading = future
            self._inbox = queue.SimpleQueue()
            self._thread = threading.Thread(
                target=self._run,
                args=(context or LoadContext(), future, self._inbox),
                name=f"model {self.config.model_name}",
                daemon=True,
            )
            self._thread.start()
            return future

    def submit(self, request: Request[Any]) -> None:
        """Queue a request; its events arrive on its channel."""
        fault: RuntimeFault | None = None
        before = 0
        name, limit = self.config.model_name, self.config.max_queued
        with self._lock:
            if self._thread is None:
                fault = self.death or EngineFailure("The model is not loaded.", model_name=name)
            elif request.task not in self.tasks:
                served = " and ".join(sorted(self.tasks))
                fault = WrongTask(
                    f"{name} does {served}, not {request.task}.", model_name=name, hint="Use another model."
                )
            elif len(self._requests) >= limit:
                fault = QueueFull(f"{limit} requests are in hand.", model_name=name)
            else:
                request.timeline.loaded = time.monotonic()
                request.about = {} if self._plan is None else {"acceleration": self._plan.acceleration}
                before = self._before(request)
                self._requests.add(request)
                if before:
                    request.emit(Progress("queue", 0, before))
                self._inbox.put(request)
        if fault is not None:
            request.emit(Failed(fault))
        else:
            request.on_end(lambda: self._forget(request))

    def _before(self, request: Request[Any]) -> int:
        """How many requests have to end before this one can begin. Models that read compute all requests together."""
        if request.task != "llm" or self._plan is None:
            return 0
        return max(0, len(self._requests) - self._plan.sequences + 1)

    def _forget(self, request: Request[Any]) -> None:
        with self._lock:
            self._requests.discard(request)

    def stop(self) -> threading.Thread | None:
        """Cancel what is queued and running and close the model. Returns the thread to wait for, if there is one."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stopping = True
            requests = list(self._requests)
            if thread is not None:
                self._inbox.put(None)
        for request in requests:
            request.cancel()
        return thread

    def kill(self, why: str) -> None:
        """End the model's process at once, if it has one of its own."""
        logger.debug("%s runs in this process, which goes on: %s", self.config.model_name, why)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self, context: LoadContext, loaded: "Future[None]", inbox: Inbox) -> None:
        try:
            plan = self._plan or self._plan_alone(context)
            self._ask_gate(plan, context)
            self._plan = prepare_plan(plan, self.config, context)
            self.warnings = list(self._plan.warnings)
            self._load(self._plan, context)
            self._memory = self._measure()
        except BaseException as error:  # noqa: BLE001 - whatever a loader raises ends as one of ours; SystemExit too
            name = self.config.model_name
            traceback.clear_frames(error.__traceback__)  # they hold what was loaded so far
            fault = as_fault(error, LoadFailed, f"{self.engine} could not load {name}", name)
            self._end(fault)
            loaded.set_exception(fault)
            return
        self._ready = True
        loaded.set_result(None)
        fault = EngineFailure("The model was unloaded.", model_name=self.config.model_name)
        try:
            self._work(inbox)
        except BaseException as error:
            if not isinstance(error, RuntimeFault):  # else whoever hears of the death reports it
                logger.exception("%s on %s", self.engine, self.config.model_name)
            fault = as_fault(error, EngineFailure, f"{self.engine} failed", self.config.model_name)
        self._end(fault, died=not self._stopping)

    def _plan_alone(self, context: LoadContext) -> LoadPlan:
        """Without a manager: find or fetch the files as a manager does, and plan the load.

        Raises:
            RuntimeFault: there are no files, or this engine does not load them.
        """
        from lfx_local_runtimes.runtimes.sources.catalog import Catalog  # a model's process never needs it

        path = Catalog(context.settings).fetch(self.config, context.report, lambda: context.cancelled)
        return plan_for_engine(self.config, self.engine, path, context.settings)

    def _ask_gate(self, plan: LoadPlan, context: LoadContext) -> None:
        """Raises a refusal if the model brings code that may not run. A manager has asked for its loads already."""
        if context.clearance is None:
            from lfx_local_runtimes.runtimes.trust.gate import check, level_of  # a model's process never needs it

            level = level_of(self.isolation, context.settings)
            context.clearance = check(self.config, plan.info, context.settings, level)

    def _end(self, fault: RuntimeFault, *, died: bool = False) -> None:
        """Close the model, report a death, and fail what is still in hand: whoever asks again then gets a fresh load."""
        with self._lock:
            if self._thread is threading.current_thread():
                self._thread = None
            if died:
                self.death = fault  # before the model is closed, which takes time: `submit` gives this reason
        self._shut()
        if died:
            self._on_death()
        with self._lock:
            requests = list(self._requests)
        for request in requests:
            request.emit(request.empty() if request.cancelled else Failed(fault))

    def _shut(self) -> None:
        self._ready, self._memory = False, {}
        try:
            self._close()
        except Exception:
            logger.exception("closing %s", self.config.model_name)

    @contextlib.contextmanager
    def _answering(self, *requests: Request[Any]) -> Iterator[None]:
        """What goes wrong inside fails these requests; the model goes on serving others, unless its device has failed."""
        try:
            yield
        except DeviceFailed:
            raise
        except Exception as error:
            if not isinstance(error, RuntimeFault):
                logger.exception("request %s on %s", ", ".join(one.id for one in requests), self.config.model_name)
            fault = as_fault(error, EngineFailure, f"{self.engine} failed", self.config.model_name)
            for request in requests:
                request.emit(Failed(fault))

    # -- public, async -----------------------------------------------------------------------------------------------

    async def load(self) -> bool:
        """Load the model, if it is not loaded already. Returns True: the model is ready.

        Raises:
            RuntimeFault: it cannot be loaded.
        """
        if not self.loaded:
            await asyncio.shield(asyncio.wrap_future(self.start()))  # a caller who leaves does not strand the others
        return True

    async def unload(self) -> None:
        """Cancel what runs, close the model and wait until its memory is back."""
        thread = self.stop()
        if thread is not None:
            await asyncio.to_thread(thread.join)

    def run(self, ask: Ask[ResultT]) -> Run[Any, ResultT]:
        """Start a request and return the handle on it, from any thread."""
        request = Request(self.config.model_name, ask)
        self.submit(request)
        return Run(request)

    def stream(self, config: GenerationConfig) -> GenerationStream:
        """The same for text: iterating it gives the text."""
        return GenerationStream(self.run(config))

    async def generate(self, config: GenerationConfig) -> GenerationResult:
        """The whole answer. Cancelling the task cancels the computation.

        Raises:
            RuntimeFault: the request failed.
        """
        return await self.stream(config).wait_async()

    async def generate_streaming(self, config: GenerationConfig) -> AsyncIterator[str]:
        """The answer piece by piece; leaving early cancels the computation.

        Raises:
            RuntimeFault: the request failed.
        """
        async for text in self.stream(config):
            yield text

    async def health_check(self) -> dict[str, Any]:
        """Status, engine, device and requests in hand."""
        return {
            "status": "ready" if self.loaded else "unloaded",
            "model_name": self.config.model_name,
            "engine": self.engine,
            "device": self._plan.device.key if self._plan else None,
            "requests": len(self._requests),
            "warnings": list(self.warnings),
            "pid": self.pid,
        }

    def get_memory_usage(self) -> dict[str, Any]:
        """Bytes taken per device and their sum in MiB; zero when not loaded."""
        total = sum(self._memory.values())
        return {"devices": dict(self._memory), "total_mb": round(total / 2**20, 1)}
