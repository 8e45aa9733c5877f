"""`RuntimeManager`: the one door to local models, callable from any thread and any number of event loops at once."""

import asyncio
import atexit
import contextlib
import gc
import logging
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfx_local_runtimes.errors import (
    InvalidInput,
    ModelBusy,
    ModelConflict,
    PickleRefused,
    RemoteCodeRefused,
    RequestNotFound,
    RuntimeFault,
)
from lfx_local_runtimes.runtimes.base import LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.config import ModelConfig, ModelKey
from lfx_local_runtimes.runtimes.devices import MACHINE, DeviceProbe, device_capabilities
from lfx_local_runtimes.runtimes.downloads import Downloads
from lfx_local_runtimes.runtimes.formats.info import ModelInfo
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.health import Facts, assess, check_machine, describe, free_disk
from lfx_local_runtimes.runtimes.inventory import Inventory
from lfx_local_runtimes.runtimes.memory.ledger import MemoryLedger
from lfx_local_runtimes.runtimes.memory.residency import ADMISSION_WAIT_S, Prepared, Residency
from lfx_local_runtimes.runtimes.memory.slots import IN_MEMORY, LeaseWaiter, RequestWaiter, Slot
from lfx_local_runtimes.runtimes.planning import Inspection, plan_loads
from lfx_local_runtimes.runtimes.planning.servable import Fit, check_servable
from lfx_local_runtimes.runtimes.registrar import Registrar, Removed
from lfx_local_runtimes.runtimes.requests import GenerationStream, Progress, Request, RequestState, Run
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.runtimes.status import DownloadStatus, ModelStatus
from lfx_local_runtimes.runtimes.tasks.base import Ask, ResultT
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, GenerationResult
from lfx_local_runtimes.runtimes.trust.gate import log_refusal
from lfx_local_runtimes.settings import Settings, get_settings

if TYPE_CHECKING:
    from lfx_local_runtimes.runtimes.sources.download import Transfer

logger = logging.getLogger(__name__)

ProgressCallback = Callable[[Progress], Any]


class RuntimeManager:
    """Local models by name: register, load, generate, unload, and what they take.

    Registering loads nothing; the first request does. Methods that are not `async` return without waiting for a model;
    those that tell about models (`list_models`, `model_status`, `validate_model`, `stats`) may read the disk, and
    `download_model` asks the hub. Its jobs are in `downloads`.

    Args:
        settings: the operator's decisions; by default the environment's.
        catalog: where models come from.
        probe: what is asked of the machine.
        admission_wait: seconds a load waits for models in use to be released.

    Raises:
        SettingsFault: impossible settings, a device of FORCE_DEVICE that is not there, or errors in the rules file.
    """

    def __init__(
        self, settings: Settings | None = None, *, catalog: Catalog | None = None, probe: DeviceProbe = MACHINE,
        admission_wait: float = ADMISSION_WAIT_S,
    ) -> None:  # fmt: skip
        self.settings = settings or get_settings()
        self.catalog = catalog or Catalog(self.settings, probe=probe)
        self._probe = probe
        self._device, self._rules = check_machine(self.settings, probe)
        self._devices = frozenset(device.key for device in probe.accelerators())
        logger.info("Models run on %s, unless they name a device.", describe(self._device, probe))
        self._checker = ThreadPoolExecutor(1, "check of model files")
        """One thread: glibc keeps what a check took for the thread that took it, and a load's own thread is a new one."""
        self._residency = Residency(
            MemoryLedger(self.settings, probe), self._prepare, keep_alive=self.settings.keep_alive_s,
            admission_wait=admission_wait, settings=self.settings,
        )  # fmt: skip
        self._requests: dict[str, Request[Any]] = {}
        self._requests_lock = threading.Lock()
        self.downloads = Downloads(self.catalog, self._inspect_remote)
        self._inventory = Inventory(self.catalog, self._residency, self._rules, self.settings, probe)
        self._registrar = Registrar(self.catalog, self._residency)
        self._started = time.monotonic()
        _managers.add(self)

    # -- names -------------------------------------------------------------------------------------------------------

    def register_model(self, config: ModelConfig, *, restrict_paths: bool = False) -> bool:
        """Remember a model under its name, across restarts. Loads nothing.

        Args:
            config: the model.
            restrict_paths: refuse a local `model_id` outside the allowed model roots; set for input from outside.

        Returns:
            True when it is new, False when this very configuration was registered already.

        Raises:
            ModelConflict: the name has another configuration.
            PathNotAllowed: see `restrict_paths`.
            InvalidInput: a model type that does not exist.
        """
        return self._registrar.register(config, restrict_paths=restrict_paths)

    async def replace_model(self, config: ModelConfig, *, restrict_paths: bool = False, force: bool = False) -> bool:
        """Register a model, whatever its name stood for before. It leaves memory first.

        Returns:
            False when this very configuration was registered already.

        Raises:
            ModelBusy: it is in use, and `force` (which cancels its requests) is not set.
            ModelConflict: the models file has the name with another configuration.
            PathNotAllowed, InvalidInput: as `register_model`.
        """
        return await self._registrar.replace(config, restrict_paths=restrict_paths, force=force)

    def unregister_model(self, model_name: str) -> None:
        """Forget a registered model. Its files stay.

        Raises:
            ModelNotFound: it is not registered.
            ModelBusy: it is in memory.
        """
        self._registrar.unregister(model_name)

    async def remove_model(self, model_name: str, *, files: bool = False, force: bool = False) -> Removed:
        """Take a model out of memory and forget its registration. With `files`, also delete its files.

        Files are deleted in the data folder and in the hub's cache, and nowhere else.

        Raises:
            ModelNotFound: it is not registered; with `files`, it is not on this machine.
            ModelBusy: it is in use, and `force` (which cancels its requests) is not set.
            ModelConflict: other models need the same files.
            NotAllowed: the files belong to a package, or are somewhere else.
        """
        return await self._registrar.remove(model_name, files=files, force=force)

    def _key(self, model: str | ModelKey) -> ModelKey:
        """The copy that is meant. A text is a model's name, or a copy's in memory as lists show it."""
        if isinstance(model, ModelKey):
            return model
        slot = self._residency.find(model)
        return ModelKey(model) if slot is None else slot.key

    def _config(self, key: ModelKey) -> ModelConfig:
        """Raises ModelNotFound if there is no such model."""
        with self._residency.slots() as slots:
            slot = slots.get(key)
            if slot is not None and slot.config is not None:
                return slot.config
        return self.catalog.resolve(key.name).config

    def _prepare(self, slot: Slot, context: LoadContext) -> Prepared:
        resolved = self.catalog.resolve(slot.key.name)
        base = resolved.config
        try:
            config = slot.key.options.applied_to(base)
        except ValueError as error:
            raise InvalidInput(f"These options do not go together: {error}", model_name=slot.name) from error
        key = ModelKey(base.model_name) if config is base else ModelKey(base.model_name, slot.key.options)
        if key != slot.key:
            return Prepared(key, config, resolved.source, ())
        threads, slot.threads = slot.threads, None
        if threads is not None:
            config = config.model_copy(update={"threads": threads})
        source = resolved.source if key.plain else "variant"
        slot.config, slot.source = config.model_copy(update={"model_name": slot.name}), source
        path = self.downloads.fetch(config, context.report, lambda: context.cancelled, first_use=True)
        info = self._read_model(path)
        try:
            plans = plan_loads(
                config,
                info,
                settings=self.settings,
                rules=self._rules,
                probe=self._probe,
                rooms=self._residency.rooms(),
            )
        except (PickleRefused, RemoteCodeRefused) as refusal:
            log_refusal(refusal, key.name, info, self.settings)
            raise
        return Prepared(key, slot.config, source, plans)

    def _read_model(self, path: Path) -> ModelInfo:
        return self._checker.submit(read_model, path, thorough=True).result()

    # -- downloads ---------------------------------------------------------------------------------------------------

    def download_model(self, model_name: str, revision: str | None = None, *, limited: bool = False) -> DownloadStatus:
        """Begin to download a model, or join the download that runs. `downloads` has its progress, and ends it.

        Returns once it is known that this machine can serve the model, and what it takes, before the first byte of it.

        Args:
            model_name: a known name, or a repository on the hub.
            revision: branch, tag or commit; unset, the configuration's.
            limited: refuse a model over `max_download_gb`; set for input from outside.

        Raises:
            ModelNotFound: no such model.
            DownloadTooLarge: see `limited`.
            RuntimeFault: it cannot be served, does not fit in memory or on the disk, or cannot be reached.
        """
        config = self.catalog.resolve(model_name).config
        if revision is not None:
            config = ModelConfig.model_validate({**config.model_dump(), "revision": revision})
        return self.downloads.start(config, limited=limited)

    def _inspect_remote(self, config: ModelConfig, transfer: "Transfer") -> Fit:
        """How a model that would be downloaded would be loaded. Raises the reason if it would not."""
        from lfx_local_runtimes.runtimes.sources.preview import preview  # httpx is slow to import

        with preview(transfer, self._read_model) as info:
            return check_servable(config, info, settings=self.settings, rules=self._rules, probe=self._probe)

    # -- lifecycle ---------------------------------------------------------------------------------------------------

    async def load_model(
        self, model_name: str | ModelKey, progress: ProgressCallback | None = None, *, threads: int | None = None
    ) -> bool:
        """Bring a model into memory, if it is not there already, and wait for it. Returns True: the model is ready.

        A caller that is cancelled leaves; the load goes on for the others.

        Args:
            model_name: the model.
            progress: called on this event loop.
            threads: CPU threads at most, until the model leaves memory. Unset: as its configuration says.

        Raises:
            ModelConflict: it is in memory with another number of threads.
            RuntimeFault: it cannot be loaded, with the reason.
        """
        if threads is not None:
            await asyncio.to_thread(self._limit_threads, self._key(model_name), threads)
        async with self.lease(model_name, progress):
            return True

    def _limit_threads(self, key: ModelKey, threads: int) -> None:
        """Set the threads of the next load."""
        config = self._config(key)
        if key.plain:
            key = ModelKey(config.model_name)
        with self._residency.slots() as slots:
            slot = slots.setdefault(key, Slot(key))
            if slot.state not in IN_MEMORY:
                slot.threads = threads
            elif slot.config is None or slot.config.threads != threads:
                raise ModelConflict(
                    f"{slot.name} is in memory with another number of threads.", model_name=slot.name,
                    hint="Unload it first, or leave threads unset.",
                )  # fmt: skip

    async def unload_model(self, model_name: str | ModelKey, *, force: bool = False) -> bool:
        """Take a model out of memory and wait until it is. Returns False when it was not there.

        Raises:
            ModelBusy: it is in use, and `force` (which cancels its requests) is not set.
            ModelNotFound: no such model.
        """
        key = self._key(model_name)
        if await asyncio.wrap_future(self._residency.unload(key, force=force)):
            return True
        await asyncio.to_thread(self._config, key)  # an unknown name is an error, not "was not there"
        return False

    async def unload_all(self, *, force: bool = False) -> list[str]:
        """Take every model out of memory; those in use stay unless `force` is set. Returns the names unloaded."""
        with self._residency.slots() as slots:
            keys = [slot.key for slot in slots.values() if slot.state in IN_MEMORY]
        futures: dict[str, Future[bool]] = {}
        for key in keys:
            with contextlib.suppress(ModelBusy):
                futures[str(key)] = self._residency.unload(key, force=force)
        for future in futures.values():
            await asyncio.wrap_future(future)
        return list(futures)

    def loaded_models(self) -> list[str]:
        """Names of the models in memory, or on their way there."""
        with self._residency.slots() as slots:
            return [slot.name for slot in slots.values() if slot.state in IN_MEMORY]

    @contextlib.asynccontextmanager
    async def lease(
        self, model_name: str | ModelKey, progress: ProgressCallback | None = None
    ) -> AsyncIterator[ModelRuntime]:
        """The loaded runtime, which stays loaded until the block ends. `progress` is called on this event loop.

        Raises:
            RuntimeFault: it cannot be loaded.
        """
        loop = asyncio.get_running_loop()

        def report(event: Progress) -> None:
            if progress is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear
                    loop.call_soon_threadsafe(progress, event)

        waiter = LeaseWaiter(report)
        self._residency.join(self._key(model_name), waiter)
        try:
            runtime = await asyncio.wrap_future(waiter.future)
        except asyncio.CancelledError:
            # the lease may have been granted in the same instant: then it is given back as soon as it is there
            waiter.future.add_done_callback(self._give_back)
            raise
        try:
            yield runtime
        finally:
            self._residency.release(runtime)

    def _give_back(self, future: "Future[ModelRuntime]") -> None:
        if not future.cancelled() and future.exception() is None:
            self._residency.release(future.result())

    def pin(self, model_name: str, pinned: bool = True) -> None:
        """Keep a model in memory (once it is loaded) whatever else wants the room, or stop doing so.

        Raises:
            ModelNotFound: no such model.
        """
        key = self._key(model_name)
        config = self._config(key)
        key = ModelKey(config.model_name) if key.plain else key
        with self._residency.slots() as slots:
            slots.setdefault(key, Slot(key, config, "registered")).pinned = pinned
        self._residency.wake()

    # -- requests ----------------------------------------------------------------------------------------------------

    def start(
        self, model_name: str | ModelKey, ask: Ask[ResultT], *, request_id: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> Run[Any, ResultT]:  # fmt: skip
        """Start a request, whatever the task, and return at once; the model loads if it must. From any thread.

        A `ModelKey` asks for a copy of the model with other load options. Faults arrive when the run is iterated or
        waited for.

        Raises:
            InvalidInput: a running request has this id.
        """
        key = self._key(model_name)
        request = Request(str(key), ask, request_id)
        with self._requests_lock:
            if request.id in self._requests:
                raise InvalidInput(
                    f"request_id {request.id} is running already.", model_name=str(key), hint="Choose another."
                )
            self._requests[request.id] = request
        request.on_end(lambda: self._ended(request))
        self._residency.join(key, RequestWaiter(request, self._residency.release))
        return Run(request, progress)

    def _ended(self, request: Request[Any]) -> None:
        with self._requests_lock:
            self._requests.pop(request.id, None)
        self._residency.counters[f"requests_{request.state.value}"] += 1

    async def run(self, model_name: str | ModelKey, ask: Ask[ResultT]) -> ResultT:
        """The result of a request. Cancelling the caller cancels the computation.

        Raises:
            WrongTask: the model does something else.
            RuntimeFault: the model cannot be loaded, or the request failed.
        """
        return await self.start(model_name, ask)

    def stream(
        self, model_name: str | ModelKey, config: GenerationConfig, *, request_id: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> GenerationStream:  # fmt: skip
        """`start` for text: iterating it gives the text.

        Raises:
            InvalidInput: a running request has this id.
        """
        return GenerationStream(self.start(model_name, config, request_id=request_id, progress=progress))

    async def generate(self, model_name: str | ModelKey, config: GenerationConfig) -> GenerationResult:
        """`run` for text: the whole answer.

        Raises:
            RuntimeFault: the model cannot be loaded, or the request failed.
        """
        return await self.run(model_name, config)

    async def generate_streaming(self, model_name: str | ModelKey, config: GenerationConfig) -> AsyncIterator[str]:
        """The answer piece by piece; leaving early cancels the computation.

        Raises:
            RuntimeFault: the model cannot be loaded, or the request failed.
        """
        async with contextlib.aclosing(aiter(self.stream(model_name, config))) as pieces:  # type: ignore[type-var]
            async for text in pieces:
                yield text

    def cancel(self, request_id: str) -> RequestState:
        """End a request. Returns the state it was in.

        Raises:
            RequestNotFound: no running request has this id.
        """
        with self._requests_lock:
            request = self._requests.get(request_id)
        if request is None:
            raise RequestNotFound(f"No running request has the id {request_id}.", hint="It may have ended already.")
        return request.cancel()

    # -- what there is -----------------------------------------------------------------------------------------------

    def list_models(self) -> list[ModelStatus]:
        """Every known model: registered, discovered, and whatever else is in memory."""
        return self._inventory.list()

    def models_in_memory(self) -> list[ModelStatus]:
        """The models in memory, or on their way there or out."""
        found: list[ModelStatus] = []
        for name in self.loaded_models():
            with contextlib.suppress(RuntimeFault):  # it has left meanwhile; or its load is about to say what is wrong
                found.append(self.model_status(name))
        return found

    def model_status(self, model_name: str) -> ModelStatus:
        """One model.

        Raises:
            ModelNotFound: no such model.
        """
        return self._inventory.status(model_name)

    def model_facts(self, model_name: str) -> Inspection | None:
        """What a model's files say; None if they are not on this machine. Cheap: they are read again only if they changed.

        Raises:
            RuntimeFault: the name is not valid.
        """
        return self._inventory.facts(model_name)

    def validate_model(self, model_name: str) -> Inspection:
        """Inspect a model's files thoroughly, loading nothing. `problems` says what is wrong.

        Raises:
            ModelNotFound: no such model, or its files are not on this machine.
        """
        return self._inventory.validate(self._config(self._key(model_name)))

    def stats(self) -> dict[str, Any]:
        """The ledger per device, counters since the start, uptime in seconds and the process id."""
        self._residency.measure_again()
        with self._residency.slots():
            ledger = self._residency.ledger.report()
            counters = {"deaths": 0, **self._residency.counters}
        with self._requests_lock:
            running = len(self._requests)
        return {
            "memory": ledger, "counters": counters, "running_requests": running,
            "uptime_s": round(time.monotonic() - self._started, 1), "pid": os.getpid(),
        }  # fmt: skip

    def health(self) -> dict[str, Any]:
        """A summary: the state with its reasons, counts, the devices, and each model in memory.

        `status` is `healthy`; `degraded` if something does not work; `unhealthy` if nothing new can be served.
        """
        capabilities = device_capabilities(self._probe)
        there = {device.key for device in self._probe.accelerators()}
        models = self.models_in_memory()
        home = self.settings.home
        status, reasons = assess(
            Facts(
                free_disk(home), home, lost=self._devices - there, needed=self.settings.force_device,
                resting=self._residency.resting(),
            )
        )  # fmt: skip
        return {
            "status": status,
            "reasons": reasons,
            "registered_models": len(self.catalog.list()),
            "loaded_models": sum(model.state == "ready" for model in models),
            "device": self._device.key,
            "device_info": capabilities,
            "models": {
                model.model_name: {
                    "status": model.state,
                    "device": model.device,
                    "memory_used_mb": model.memory_used_mb,
                    "pid": model.pid,
                    "uptime_s": model.uptime_s,
                    "restarts": model.restarts,
                }
                for model in models
            },
        }

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel every request, unload every model and stop every thread; the manager serves no more."""
        with self._requests_lock:
            requests = list(self._requests.values())
        for request in requests:
            request.cancel()
        self._residency.close()
        self.downloads.close()
        self._checker.shutdown(wait=False)


# -- one manager per process ---------------------------------------------------------------------------------------------

_managers: "weakref.WeakSet[RuntimeManager]" = weakref.WeakSet()
_shared: RuntimeManager | None = None
_shared_lock = threading.Lock()


def get_runtime_manager() -> RuntimeManager:
    """The manager of this process, made at the first call."""
    global _shared  # noqa: PLW0603 - the one manager of this process
    with _shared_lock:
        if _shared is None:
            _shared = RuntimeManager()
        return _shared


@atexit.register
def _close_all() -> None:
    """End native work before the interpreter goes: its threads are daemons and must not outlive it.

    What the process holds goes back to the system with it. Frozen, the objects of torch and Langflow are spared the
    last garbage collections, which otherwise make up most of the seconds from an answer to the end of the process.
    """
    if _managers:
        gc.freeze()
    for manager in list(_managers):
        manager.close()


def _forget() -> None:
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # threads and models stay with the parent
