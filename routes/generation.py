"""Text over REST: whole, as server-sent events, and cancelled."""

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from lfx_local_runtimes.routes.access import Manager
from lfx_local_runtimes.routes.delivery import Delivery, disconnected, whole
from lfx_local_runtimes.routes.faults import ClientGone, FaultRoute
from lfx_local_runtimes.routes.schemas import Cancelled, GenerateBody
from lfx_local_runtimes.runtimes.config import GenerationResult
from lfx_local_runtimes.runtimes.requests import Event

KEEP_ALIVE_S = 10.0
"""Seconds of silence after which a comment keeps proxies from closing the stream."""

router = APIRouter(route_class=FaultRoute)


class EventStream(Response):
    """An answer as server-sent events. Sends what is waiting in one piece; ends the computation when the client leaves.

    It listens for the client's leave itself: Starlette's streaming response does so only for some ASGI versions.
    """

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, delivery: Delivery, first: list[Event]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._delivery = delivery
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream to the end."""
        delivery, events = self._delivery, self._first
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while True:
                frames = [_frame(name, data) for name, data in delivery.messages(events)]
                if not events:
                    frames.append(": keep-alive\n\n")
                if frames:
                    body = "".join(frames).encode("utf-8", "replace")
                    await send({"type": "http.response.body", "body": body, "more_body": not delivery.ended})
                if delivery.ended:
                    return
                events = await delivery.take(KEEP_ALIVE_S)
        except ClientGone:
            pass
        finally:
            delivery.close()


def _frame(name: str, data: dict[str, Any]) -> str:
    if name == "progress":
        return f": {data['phase']} {data['percent']}%\n\n"
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


@router.post("/generate")
async def generate(body: GenerateBody, request: Request, manager: Manager) -> GenerationResult:
    """The whole answer. The model is loaded if it must be; a client that leaves ends the computation."""
    stream = manager.stream(body.model_name, body.generation, request_id=body.request_id)
    return await whole(stream, disconnected(request.receive))


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

    - `token`: request_id, index, text
    - `done`: request_id, the whole result, first_token_latency_ms (from the request's arrival, with any load) and
      tokens_per_second (of the computation)
    - `error`: request_id and the error envelope

    Comments tell of downloads and loads on the way. What fails before anything was sent is answered with its own
    status. Closing the stream ends the computation.
    """
    stream = manager.stream(body.model_name, body.generation, request_id=body.request_id)
    delivery = Delivery(stream, disconnected(request.receive))
    try:
        return EventStream(delivery, await delivery.take_first(KEEP_ALIVE_S))
    except BaseException:
        delivery.close()
        raise


@router.post("/requests/{request_id}/cancel")
async def cancel_request(request_id: str, manager: Manager) -> Cancelled:
    """End a running or waiting request. Says what state it was in."""
    return Cancelled(request_id=request_id, state=manager.cancel(request_id).value)
