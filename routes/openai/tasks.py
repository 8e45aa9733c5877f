"""The routes of tasks other than text, in the forms of OpenAI, Jina and Cohere.

A task without such a form has its native form, with the model in `model` and the request's id in a header.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from lfx_local_runtimes.routes.access import Manager
from lfx_local_runtimes.routes.delivery import EventStream, disconnected, wait_for_all
from lfx_local_runtimes.routes.openai.route import OpenAIRoute, RequestId
from lfx_local_runtimes.routes.openai.task_bodies import EmbeddingsBody, ImageEmbeddingsBody, Named, RerankBody
from lfx_local_runtimes.routes.tasks.bodies import ask_of, at_hand, body_of, by_path
from lfx_local_runtimes.routes.tasks.native import body_annotation
from lfx_local_runtimes.routes.tasks.streaming import TaskDelivery, responses_of
from lfx_local_runtimes.runtimes.tasks.base import TaskRow


@dataclass(frozen=True)
class Form:
    """A task in an API: its path, its body, its answer as JSON, and its documentation."""

    path: str
    bodies: Sequence[type[BaseModel]]
    """One for each task that shares the path."""
    write: Callable[[Any, Any, str], bytes]
    """Called off the event loop with the body, the result and the request's id."""
    about: str
    response: Any = None
    """The answer's type, for the documentation."""


def _write_embeddings(body: EmbeddingsBody | ImageEmbeddingsBody, result: Any, request_id: str) -> bytes:
    from lfx_local_runtimes.routes.openai.vectors import embeddings_json

    return embeddings_json(body.model, result, base64=body.encoding_format == "base64")


def _write_ranking(body: RerankBody, result: Any, request_id: str) -> bytes:
    return to_json(body.answer(request_id, result))


FORMS: Mapping[str, Form] = {
    "embedding": Form(
        "embeddings", [EmbeddingsBody, ImageEmbeddingsBody], _write_embeddings,
        "A vector for each input. In addition to OpenAI's fields: prompt, normalize, overflow, keep_alive. Token ids are those "
        "of the model. Too long an input is refused; with `overflow` it is cut, and `truncated` says which ones and by how many "
        "tokens. `warnings` says if the model was not made for `dimensions`. With `images` also of pictures, before those of `input`.",
    ),
    "rerank": Form(
        "rerank", [RerankBody], _write_ranking,
        "The documents, best first, in the form of Jina and Cohere. OpenAI has none.",
    ),
}  # fmt: skip
"""By task."""


def add_routes(router: APIRouter) -> None:
    """Add a route for each path of the tasks' rows."""
    for path, rows in by_path().items():
        _add(router, rows, FORMS.get(rows[0].name) or _native_form(path, rows))


def _native_form(path: str, rows: Sequence[TaskRow]) -> Form:
    writers = {row.result: TypeAdapter(row.result) for row in rows}

    def write(body: Any, result: Any, request_id: str) -> bytes:
        return writers[type(result)].dump_json(result)

    bodies = [body_of(row, Named, "OpenAI") for row in rows]
    response: Any = Union[tuple(writers)]  # noqa: UP007 - the types are known at run time only
    about = "\n\n".join([*(row.summary for row in rows), "Like the native route."])
    return Form(path, bodies, write, about, response)


def _add(router: APIRouter, rows: Sequence[TaskRow], form: Form) -> None:
    asks = dict(zip(form.bodies, (row.ask for row in rows), strict=True))

    async def serve(body: Any, request: Request, manager: Manager, request_id: RequestId) -> Response:
        ask = await at_hand(ask_of(body, asks[type(body)]), manager)
        run = manager.start(body.model, ask, request_id=request_id)
        gone = disconnected(request.receive)
        if getattr(body, "stream", False):
            return await EventStream.begin(TaskDelivery(run, gone), manager.settings)
        (result,) = await wait_for_all([run], gone)
        return Response(await run_in_threadpool(form.write, body, result, request_id), media_type="application/json")

    serve.__annotations__["body"] = body_annotation(rows, form.bodies)
    serve.__doc__ = form.about
    router.add_api_route(
        f"/{form.path}", serve, methods=["POST"], name=form.path, response_model=form.response, responses=responses_of(rows),
        route_class_override=OpenAIRoute.with_body(max(row.body_bytes for row in rows)),
    )  # fmt: skip
