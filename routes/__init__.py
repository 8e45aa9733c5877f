"""REST for the runtime manager, under `/api/v1/runtime`.

`register` mounts the routes into Langflow with Langflow's own authentication (plugin entry point). `build_router` makes
them for any other FastAPI application, with its authentication.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI

    from lfx_local_runtimes.runtimes.manager import RuntimeManager

PREFIX = "/api/v1/runtime"
TAG = "Local Runtimes"
OPENAI_TAG = "OpenAI"


def build_router(
    manager_getter: "Callable[[], RuntimeManager]", http_auth: Callable[..., Any], ws_auth: Callable[..., Any]
) -> "APIRouter":
    """All routes. OpenAI's are under `v1`.

    Args:
        manager_getter: returns the manager to serve. It is called once per request, off the event loop.
        http_auth: a FastAPI dependency. It raises `HTTPException` if the caller is not allowed.
        ws_auth: the same for a WebSocket, with `WebSocketException`.
    """
    from fastapi import APIRouter, Depends

    from lfx_local_runtimes.routes import downloads, generation, inference, manual, models, socket, trust
    from lfx_local_runtimes.routes.access import provider
    from lfx_local_runtimes.routes.faults import RESPONSES
    from lfx_local_runtimes.routes.tasks.native import make_router

    give_manager = Depends(provider(manager_getter))
    guards = [Depends(http_auth), give_manager]
    router = APIRouter(prefix=PREFIX, tags=[TAG])
    router.include_router(manual.router)
    router.include_router(generation.router, dependencies=guards, responses=RESPONSES)
    router.include_router(inference.router, dependencies=guards, responses=RESPONSES)
    router.include_router(make_router(), dependencies=guards, responses=RESPONSES)
    router.include_router(build_openai_router(manager_getter, http_auth))  # before models/{model_name:path}
    router.include_router(downloads.router, dependencies=guards, responses=RESPONSES)
    router.include_router(trust.router, dependencies=guards, responses=RESPONSES)
    router.include_router(models.router, dependencies=guards, responses=RESPONSES)
    router.include_router(socket.router, dependencies=[Depends(ws_auth), give_manager])
    return router


def build_openai_router(manager_getter: "Callable[[], RuntimeManager]", http_auth: Callable[..., Any]) -> "APIRouter":
    """Only OpenAI's routes, under `/v1`. The arguments are those of `build_router`."""
    from fastapi import APIRouter, Depends

    from lfx_local_runtimes.routes.access import provider
    from lfx_local_runtimes.routes.faults import OPENAI_RESPONSES
    from lfx_local_runtimes.routes.openai import endpoints

    router = APIRouter(prefix="/v1", tags=[OPENAI_TAG])
    guards = [Depends(http_auth), Depends(provider(manager_getter))]
    router.include_router(endpoints.router, dependencies=guards, responses=OPENAI_RESPONSES)
    return router


def register(app: "FastAPI") -> None:
    """Mount the routes into Langflow; the target of its plugin entry point.

    Langflow's log then has the device for models, or what is wrong with the settings. In that case every route answers with
    the same error.
    """
    from lfx.log.logger import logger

    from lfx_local_runtimes.errors import RuntimeFault
    from lfx_local_runtimes.routes.langflow_auth import http_user, websocket_user
    from lfx_local_runtimes.runtimes.devices import MACHINE
    from lfx_local_runtimes.runtimes.health import check_machine, describe
    from lfx_local_runtimes.runtimes.manager import get_runtime_manager
    from lfx_local_runtimes.settings import get_settings

    try:
        device, _ = check_machine(get_settings(), MACHINE)
        logger.info(f"Local models run on {describe(device, MACHINE)}, unless they name a device.")
    except RuntimeFault as fault:
        logger.error(f"Local models cannot be served: {fault}")
    app.include_router(build_router(get_runtime_manager, http_user, websocket_user))
