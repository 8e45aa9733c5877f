"""Models over REST: register, load, unload, inspect. Plain `def` endpoints run in a thread, so they may read the disk."""

import asyncio
import logging
from typing import Annotated

from fastapi import APIRouter, Query, Response
from starlette.concurrency import run_in_threadpool

from lfx_local_runtimes.errors import InvalidInput, ModelConflict, NotAllowed
from lfx_local_runtimes.routes.access import KnownCaller, Manager, PathName, QueryName
from lfx_local_runtimes.routes.faults import FaultRoute
from lfx_local_runtimes.routes.schemas import Health, ModelList, ModelReport, Removal, Stats, Unloading
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.status import ModelStatus

logger = logging.getLogger(__name__)

router = APIRouter(route_class=FaultRoute)

Force = Annotated[bool, Query(description="Cancel the requests that are using it.")]

Ready = Annotated[bool, Query(description="Answer 503 if the status is unhealthy, for an orchestrator's probe.")]

Threads = Annotated[
    int | None,
    Query(ge=1, le=1024, description="CPU threads at most, until the model leaves memory. Unset: as it is registered."),
]

_unloads: set["asyncio.Task[list[str]]"] = set()


@router.post(
    "/models/register",
    status_code=201,
    responses={200: {"model": ModelStatus, "description": "It was registered already with this configuration"}},
)
def register_model(config: ModelConfig, response: Response, manager: Manager) -> ModelStatus:
    """Remember a model under its name, also after a restart. This loads nothing: the first request loads the model.

    A local `model_id` must lie inside an allowed model folder. 201: the model is new. 200: it was registered already with
    this configuration. 409: the name has another configuration; `PUT models/{name}` replaces that.
    """
    response.status_code = 201 if manager.register_model(config, restrict_paths=True) else 200
    return manager.model_status(config.model_name)


@router.post("/models/load")
async def load_model(model_name: QueryName, manager: Manager, threads: Threads = None) -> ModelStatus:
    """Load a model into memory and wait for it. If the client leaves, the load goes on."""
    await manager.load_model(model_name, threads=threads)
    return await run_in_threadpool(manager.model_status, model_name)


@router.post("/models/unload")
async def unload_model(model_name: QueryName, manager: Manager, force: Force = False) -> ModelStatus:
    """Take a model out of memory and wait for that. 409 while the model is in use, unless `force` is set."""
    await manager.unload_model(model_name, force=force)
    return await run_in_threadpool(manager.model_status, model_name)


@router.put(
    "/models/{model_name:any_text}",
    responses={201: {"model": ModelStatus, "description": "The name was not registered before"}},
)
async def replace_model(
    model_name: PathName, config: ModelConfig, response: Response, manager: Manager, force: Force = False
) -> ModelStatus:
    """Register a model, whatever its name stood for before. The body is that of `models/register`; it needs no name.

    The model leaves memory first. 409 while it is in use, unless `force` is set.
    """
    if config.model_name == config.model_id:  # it was not set
        config = config.model_copy(update={"model_name": model_name})
    if config.model_name != model_name:
        raise InvalidInput(
            f"model_name: is {config.model_name} in the body and {model_name} in the path.", model_name=model_name,
            hint="To rename a model, register it under the new name and delete the old one.",
        )  # fmt: skip
    known = await run_in_threadpool(manager.catalog.is_registered, model_name)
    await manager.replace_model(config, restrict_paths=True, force=force)
    response.status_code = 200 if known else 201
    return await run_in_threadpool(manager.model_status, model_name)


@router.delete("/models/{model_name:any_text}/files")  # before models/{model_name}, which would match it too
async def delete_files(model_name: PathName, manager: Manager, caller: KnownCaller, force: Force = False) -> Removal:
    """Delete a model's files and its registration, if it has one.

    Only files in the data folder and in the hub's cache are deleted. 403: they belong to a package, or are somewhere else.
    409: the model is in use and `force` is not set, or other models need the files. In Langflow for superusers only.
    """
    if caller.may_not_delete:
        raise NotAllowed(
            f"You may not delete the files of {model_name}.", model_name=model_name, hint=caller.may_not_delete
        )
    if await run_in_threadpool(manager.catalog.is_registered, f"{model_name}/files"):
        raise ModelConflict(
            f"This may mean the files of {model_name}, or the registration called {model_name}/files.",
            model_name=model_name, hint="Use the Model Manager node or, if no server runs, lfx-local-runtimes rm.",
        )  # fmt: skip
    removed = await manager.remove_model(model_name, files=True, force=force)
    logger.info("%s deleted the files of %s", caller.name, removed.model_name)
    return Removal.of(removed)


@router.delete("/models/{model_name:any_text}")
async def remove_model(model_name: PathName, manager: Manager, force: Force = False) -> Removal:
    """Forget a registered model. Its files stay.

    The model leaves memory first. 409 while it is in use, unless `force` is set.
    """
    return Removal.of(await manager.remove_model(model_name, force=force))


@router.post("/models/unload/{model_name:any_text}")
async def unload_model_by_path(model_name: PathName, manager: Manager, force: Force = False) -> ModelStatus:
    """The same as `models/unload?model_name=`."""
    return await unload_model(model_name, manager, force)


@router.get("/models")
def list_models(manager: Manager) -> ModelList:
    """Every known model: registered, in the model folders, in the hub cache, in packages, and what is in memory."""
    return ModelList(models=manager.list_models())


@router.get("/models/{model_name:any_text}/validate")  # before models/{model_name}, which would match it too
def validate_model(model_name: PathName, manager: Manager) -> ModelReport:
    """Inspect a model's files: their format, problems, and the engine that will serve them. Loads nothing."""
    return ModelReport.of(model_name, manager.validate_model(model_name))


@router.get("/models/status/{model_name:any_text}")
def model_status_by_path(model_name: PathName, manager: Manager) -> ModelStatus:
    """The same as `models/{model_name}`."""
    return manager.model_status(model_name)


@router.get("/models/{model_name:any_text}")
def model_status(model_name: PathName, manager: Manager) -> ModelStatus:
    """One model."""
    return manager.model_status(model_name)


@router.get("/status")
def status(manager: Manager) -> ModelList:
    """The models that are in memory, loading, unloading or failed, with engine, memory and process."""
    failed = [model for model in manager.list_models() if model.state == "failed"]
    return ModelList(models=[*manager.models_in_memory(), *failed])


@router.get("/health", responses={503: {"model": Health, "description": "Unhealthy, and `ready` is set"}})
def health(manager: Manager, response: Response, ready: Ready = False) -> Health:
    """A summary: status with reasons, counts, the devices, and each model in memory with its process."""
    found = Health.model_validate(manager.health())
    if ready and found.status == "unhealthy":
        response.status_code = 503
    return found


@router.get("/stats")
def stats(manager: Manager) -> Stats:
    """The memory ledger per model and device, counters since the start, the server's uptime and process id."""
    return Stats.model_validate(manager.stats())


@router.post("/unload-all", status_code=202)
async def unload_all(manager: Manager, force: Force = False) -> Unloading:
    """Take every model out of memory, in the background. Models in use stay, unless `force` is set."""
    models = await run_in_threadpool(manager.models_in_memory)
    in_use = [] if force else [model.model_name for model in models if model.leases]
    task = asyncio.create_task(manager.unload_all(force=force))
    _unloads.add(task)  # the loop keeps only a weak reference
    task.add_done_callback(_unloads.discard)
    return Unloading(unloading=[m.model_name for m in models if m.model_name not in in_use], in_use=in_use)
