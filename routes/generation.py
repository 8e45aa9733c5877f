"""Text over REST: whole, as server-sent events, and cancelled."""

from fastapi import APIRouter, Request, Response

from lfx_local_runtimes.routes.access import Manager
from lfx_local_runtimes.routes.delivery import Delivery, EventStream, disconnected, whole
from lfx_local_runtimes.routes.faults import FaultRoute
from lfx_local_runtimes.routes.schemas import Cancelled, GenerateBody
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult

router = APIRouter(route_class=FaultRoute)


@router.post("/generate")
async def generate(body: GenerateBody, request: Request, manager: Manager) -> GenerationResult:
    """The whole answer. The model is loaded if it must be; a client that leaves ends the computation."""
    stream = manager.stream(body.model_name, body.generation, request_id=body.request_id)
    (result,) = await whole([stream], disconnected(request.receive))
    return result


@router.post(
    "/generate/stream",
    response_class=Response,  # none of its own in OpenAPI: the errors stay JSON
    responses={
        200: {
            "description": "Server-sent events: `token` …, then `done` or `error`",
            "content": {"text/event-stream": {}},
        }
    },
)
async def generate_stream(body: GenerateBody, request: Request, manager: Manager) -> Response:
    """The answer as it comes, as server-sent events with JSON data.

    - `token`: request_id, index, text; reasoning, tool_calls and logprobs where there are any
    - `done`: request_id, the whole result, first_token_latency_ms (from the request's arrival, with any load) and
      tokens_per_second (of the computation)
    - `error`: request_id and the error envelope

    Comments tell of downloads and loads on the way. What fails before anything was sent is answered with its own
    status. Closing the stream ends the computation.
    """
    stream = manager.stream(body.model_name, body.generation, request_id=body.request_id)
    return await EventStream.begin(Delivery(stream, disconnected(request.receive)))


@router.post("/requests/{request_id}/cancel")
async def cancel_request(request_id: str, manager: Manager) -> Cancelled:
    """End a running or waiting request. Says what state it was in."""
    return Cancelled(request_id=request_id, state=manager.cancel(request_id).value)
