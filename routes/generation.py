"""Text over REST: in one answer, as server-sent events; and cancelling."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from lfx_local_runtimes.routes.access import Manager
from lfx_local_runtimes.routes.delivery import Delivery, EventStream, disconnected, wait_for_all
from lfx_local_runtimes.routes.faults import FaultRoute
from lfx_local_runtimes.routes.schemas import Cancelled, GenerateBody
from lfx_local_runtimes.routes.tasks.bodies import at_hand
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES

router = APIRouter(route_class=FaultRoute.with_body(MEDIA_BODY_BYTES))


@router.post(
    "/generate",
    response_model=GenerationResult,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def generate(body: GenerateBody, request: Request, manager: Manager) -> GenerationResult | Response:
    """The complete answer. The model is loaded if necessary. If the client leaves, the computation ends.

    With `"stream": true` the answer is that of `generate/stream`.
    """
    if body.stream:
        return await generate_stream(body, request, manager)
    stream = manager.stream(body.model_name, await at_hand(body.generation, manager), request_id=body.request_id)
    (result,) = await wait_for_all([stream], disconnected(request.receive))
    return result


@router.post(
    "/generate/stream",
    response_class=Response,  # no schema for 200 in OpenAPI; the errors keep their JSON
    responses={
        200: {
            "description": "Server-sent events: `token` …, then `done` or `error`",
            "content": {"text/event-stream": {}},
        }
    },
)
async def generate_stream(body: GenerateBody, request: Request, manager: Manager) -> Response:
    """The answer while it is generated, as server-sent events with JSON data.

    - `token`: request_id, index, text; reasoning, tool_calls and logprobs if there are any
    - `done`: request_id, the complete result, first_token_latency_ms (since the request arrived, a load included) and
      tokens_per_second (of the computation)
    - `error`: request_id and the error envelope, for example with the code `engine_died`

    Comments report the progress of downloads and loads. A request that fails before anything was sent is answered with
    the status of its error. Closing the stream ends the computation.
    """
    stream = manager.stream(body.model_name, await at_hand(body.generation, manager), request_id=body.request_id)
    return await EventStream.begin(Delivery(stream, disconnected(request.receive)), manager.settings)


@router.post("/requests/{request_id}/cancel")
async def cancel_request(
    request_id: Annotated[str, Path(description="The request's id: the client's own, or that in its events.")],
    manager: Manager,
) -> Cancelled:
    """End a running or waiting request. The answer says in which state it was."""
    return Cancelled(request_id=request_id, state=manager.cancel(request_id).value)
