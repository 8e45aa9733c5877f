"""OpenAI's endpoints: read the body, start the requests, pass them to the code that writes the answer."""

import importlib
import time
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from lfx_local_runtimes.routes.access import Manager, PathName
from lfx_local_runtimes.routes.delivery import EventStream, disconnected, wait_for_all
from lfx_local_runtimes.routes.openai.bodies import ChatBody, CompletionBody
from lfx_local_runtimes.routes.openai.responses_body import ResponsesBody
from lfx_local_runtimes.routes.openai.route import OpenAIRoute, RequestId
from lfx_local_runtimes.routes.openai.tasks import add_routes
from lfx_local_runtimes.routes.openai.wire import About
from lfx_local_runtimes.routes.tasks.bodies import at_hand
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.media.sources import has_sources
from lfx_local_runtimes.runtimes.requests import GenerationStream
from lfx_local_runtimes.runtimes.status import ModelStatus
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES

_WRITERS = tuple(f"lfx_local_runtimes.routes.openai.{name}" for name in ("chunks", "output", "vectors"))
_STARTED = int(time.time())

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

_imported: list[str] = []


async def _import_writers() -> None:
    """Import the modules that import the `openai` package. This happens in a thread, so that running streams go on."""
    if not _imported:
        _imported.extend([(await run_in_threadpool(importlib.import_module, name)).__name__ for name in _WRITERS])


router = APIRouter(route_class=OpenAIRoute.with_body(MEDIA_BODY_BYTES), dependencies=[Depends(_import_writers)])

_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "JSON, or server-sent events with `stream`", "content": {"text/event-stream": {}}}
}


async def _start(
    manager: RuntimeManager, model: str, request_id: str, configs: list[GenerationConfig]
) -> list[GenerationStream]:
    """Start one request for each answer, so that the engine computes them together. The first has the id itself."""
    if has_sources(configs[0]):  # all have the same messages
        messages = (await at_hand(configs[0], manager)).messages
        configs = [config.model_copy(update={"messages": messages}) for config in configs]
    streams: list[GenerationStream] = []
    try:
        for index, config in enumerate(configs):
            name = f"{request_id}.{index}" if index else request_id
            streams.append(manager.stream(model, config, request_id=name))
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return streams


def _about(kind: str, request_id: str, model: str) -> About:
    return About(f"{kind}{request_id}", int(time.time()), model)


@router.get("/models")
def list_models(manager: Manager) -> Response:
    """The models that this machine knows and can load, in OpenAI's form: those that write text first, as some clients take the
    first one. `GET models` of the native API has the others too.
    """
    models = sorted((one for one in manager.list_models() if one.valid), key=lambda one: one.model_type != "llm")
    return JSONResponse({"object": "list", "data": [_model(one) for one in models]})


@router.get("/models/{model_name:any_text}")
def retrieve_model(model_name: PathName, manager: Manager) -> Response:
    """One model."""
    return JSONResponse(_model(manager.model_status(model_name)))


def _model(status: ModelStatus) -> dict[str, object]:
    """OpenAI's fields, and vLLM's `max_model_len`: the tokens that the model takes, if that is known."""
    from openai.types import Model

    owner, slash, _ = status.model_id.partition("/")
    local = not (slash and owner) or status.source in ("folder", "package")
    row = Model(id=status.model_name, object="model", created=_STARTED, owned_by="local" if local else owner)
    return {**row.model_dump(), **({"max_model_len": status.context_length} if status.context_length else {})}


@router.post("/chat/completions", responses=_EVENTS)
async def chat_completions(body: ChatBody, request: Request, manager: Manager, request_id: RequestId) -> Response:
    """An answer to a conversation. The model is loaded if necessary. If the client leaves, the computation ends.

    In addition to OpenAI's fields: top_k, min_p, repetition_penalty, min_tokens, ignore_eos, truncate, keep_alive, grammar, regex,
    reasoning_budget, continue_final_message. The model's reasoning is in `reasoning_content`.
    """
    from lfx_local_runtimes.routes.openai.chunks import ChatChunks, chat_completion

    streams = await _start(manager, body.model, request_id, body.configs())
    about = _about("chatcmpl-", request_id, body.model)
    gone = disconnected(request.receive)
    if not body.stream:
        return JSONResponse(chat_completion(about, await wait_for_all(streams, gone)))
    chunks = ChatChunks(streams, gone, about, per_prompt=len(streams), usage=body.wants_usage)
    return await EventStream.begin(chunks, manager.settings)


@router.post("/completions", responses=_EVENTS)
async def completions(body: CompletionBody, request: Request, manager: Manager, request_id: RequestId) -> Response:
    """A continuation of a text, without a chat template. The additional options are those of chat/completions."""
    from lfx_local_runtimes.routes.openai.chunks import CompletionChunks, completion

    streams = await _start(manager, body.model, request_id, body.configs())
    about, per_prompt = _about("cmpl-", request_id, body.model), body.n or 1
    gone = disconnected(request.receive)
    if not body.stream:
        return JSONResponse(completion(about, await wait_for_all(streams, gone), per_prompt))
    chunks = CompletionChunks(streams, gone, about, per_prompt=per_prompt, usage=body.wants_usage)
    return await EventStream.begin(chunks, manager.settings)


@router.post("/responses", responses=_EVENTS)
async def responses(body: ResponsesBody, request: Request, manager: Manager, request_id: RequestId) -> Response:
    """Like chat/completions, in the form of OpenAI's Responses API. Nothing is stored: send the whole conversation."""
    from lfx_local_runtimes.routes.openai.output import Output, ResponseEvents, complete_response

    config = body.config()
    (stream,) = await _start(manager, body.model, request_id, [config])
    output = Output(_about("resp_", request_id, body.model), body, config.tool_choice)
    gone = disconnected(request.receive)
    if not body.stream:
        (result,) = await wait_for_all([stream], gone)
        return JSONResponse(complete_response(output, result))
    return await EventStream.begin(ResponseEvents(stream, gone, output), manager.settings)


add_routes(router)


@router.api_route("/{path:any_text}", methods=_METHODS, include_in_schema=False)
async def unknown(path: str, request: Request) -> None:
    """Refuse any other path or method in OpenAI's form, which clients read. It is the last route."""
    known = [
        route for route in router.routes[:-1] if isinstance(route, APIRoute) and route.path_regex.match(f"/{path}")
    ]
    if not known:
        raise HTTPException(404, f"There is no route {request.method} /v1/{path[:200]}.")
    allowed = ", ".join(sorted({method for route in known for method in route.methods or ()}))
    raise HTTPException(405, f"{request.method} is not allowed here, only {allowed}.", {"Allow": allowed})
