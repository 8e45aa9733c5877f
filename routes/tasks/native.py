"""The native route of every task that has a path in its row."""

from collections.abc import Sequence
from typing import Annotated, Any, Union

from fastapi import APIRouter, Body, Request, Response
from pydantic import BaseModel, TypeAdapter
from starlette.concurrency import run_in_threadpool

from lfx_local_runtimes.routes.access import Manager
from lfx_local_runtimes.routes.delivery import EventStream, disconnected, wait_for_all
from lfx_local_runtimes.routes.faults import FaultRoute
from lfx_local_runtimes.routes.schemas import Addressed
from lfx_local_runtimes.routes.tasks.bodies import ask_of, at_hand, body_of, by_path, one_of
from lfx_local_runtimes.routes.tasks.streaming import TaskDelivery, responses_of
from lfx_local_runtimes.runtimes.tasks.base import TaskRow

_LOADS = "The model is loaded if necessary. If the client leaves, the computation ends."


def make_router() -> APIRouter:
    """A route for each path; tasks with the same path share it."""
    router = APIRouter(route_class=FaultRoute)
    for path, rows in by_path().items():
        _add(router, path, rows)
    return router


def _add(router: APIRouter, path: str, rows: Sequence[TaskRow]) -> None:
    bodies = [body_of(row, Addressed) for row in rows]
    asks = dict(zip(bodies, (row.ask for row in rows), strict=True))
    writers = {row.result: TypeAdapter(row.result) for row in rows}

    async def serve(body: Any, request: Request, manager: Manager) -> Response:
        ask = await at_hand(ask_of(body, asks[type(body)]), manager)
        run = manager.start(body.model_name, ask, request_id=body.request_id)
        gone = disconnected(request.receive)
        if getattr(body, "stream", False):
            return await EventStream.begin(TaskDelivery(run, gone), manager.settings)
        (result,) = await wait_for_all([run], gone)
        written = await run_in_threadpool(writers[type(result)].dump_json, result)  # it may contain many numbers
        return Response(written, media_type="application/json")

    serve.__annotations__["body"] = body_annotation(rows, bodies)
    serve.__doc__ = "\n\n".join([*(row.summary for row in rows), _LOADS])
    response: Any = Union[tuple(writers)]  # noqa: UP007 - the types are known at run time only
    router.add_api_route(
        f"/{path}", serve, methods=["POST"], name=path, response_model=response, responses=responses_of(rows),
        route_class_override=FaultRoute.with_body(max(row.body_bytes for row in rows)),
    )  # fmt: skip


def body_annotation(rows: Sequence[TaskRow], bodies: Sequence[type[BaseModel]]) -> Any:
    """The annotation by which FastAPI reads a body."""
    if len(bodies) == 1:
        return Annotated[bodies[0], Body()]
    either: Any = Union[tuple(bodies)]  # noqa: UP007
    return Annotated[either, one_of(rows, bodies), Body()]
