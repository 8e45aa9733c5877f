"""Text over a WebSocket: one request after another, cancelled by a message or by closing the socket."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput, ModelBusy
from lfx_local_runtimes.routes.access import Manager
from lfx_local_runtimes.routes.delivery import Delivery
from lfx_local_runtimes.routes.faults import (
    MAX_BODY_BYTES,
    BodyTooLarge,
    ClientGone,
    as_fault,
    envelope,
    validation_fault,
)
from lfx_local_runtimes.routes.schemas import GenerateBody
from lfx_local_runtimes.routes.tasks.bodies import at_hand
from lfx_local_runtimes.runtimes.manager import RuntimeManager

router = APIRouter()


@router.websocket("/generate/ws")
async def generate_socket(websocket: WebSocket, manager: Manager) -> None:
    """Send the body of `generate`; receive `{"event": "token" | "progress" | "done" | "error", "request_id", …}`.

    `{"type": "cancel"}` ends the running request, and so does closing the socket. A socket runs one request at a time.
    """
    await websocket.accept()
    await _Conversation(websocket, manager).run()


class _Conversation:
    """One socket. The reader never waits for an answer, so it reads a cancel at once."""

    def __init__(self, websocket: WebSocket, manager: RuntimeManager) -> None:
        self._websocket = websocket
        self._manager = manager
        self._delivery: Delivery | None = None
        self._sender: asyncio.Task[None] | None = None

    async def run(self) -> None:
        try:
            while (message := await self._websocket.receive())["type"] == "websocket.receive":
                raw = message.get("text") or message.get("bytes") or ""
                try:
                    await self._receive(raw)
                except Exception as error:  # noqa: BLE001 - as_fault logs what is not ours
                    await self._send("error", {"request_id": None, **envelope(as_fault(error))})
        except ClientGone:
            pass
        finally:
            if self._delivery is not None:
                self._delivery.close()
            if self._sender is not None:
                self._sender.cancel()

    async def _receive(self, raw: str | bytes) -> None:
        message = _parse(raw)
        if "cancel" in (message.get("type"), message.get("event")):
            if self._delivery is not None:
                self._delivery.request.cancel()
            return
        body = _body(message)
        if self._delivery is not None and not self._delivery.ended:
            raise ModelBusy(
                "A request is running on this socket.",
                model_name=body.model_name,
                hint="Cancel it, or open another socket.",
            )
        ask = await at_hand(body.generation, self._manager)
        stream = self._manager.stream(body.model_name, ask, request_id=body.request_id)
        self._delivery = Delivery(stream)
        self._sender = asyncio.create_task(self._send_messages(self._delivery))

    async def _send_messages(self, delivery: Delivery) -> None:
        try:
            while not delivery.ended:
                for name, data in delivery.messages(await delivery.take()):
                    await self._send(name, data)
        except ClientGone:  # the reader notices it too
            pass
        finally:
            delivery.close()

    async def _send(self, event: str, data: dict[str, Any]) -> None:
        try:
            await self._websocket.send_text(json.dumps({"event": event, **data}, separators=(",", ":")))
        except (WebSocketDisconnect, RuntimeError) as error:  # Starlette's answers to sending on a closed socket
            raise ClientGone from error


def _parse(raw: str | bytes) -> dict[str, Any]:
    if len(raw) > MAX_BODY_BYTES:
        raise BodyTooLarge
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"The message is not JSON: {error}", hint="Send the body of POST generate.") from error
    if not isinstance(message, dict):
        raise InvalidInput("The message is not a JSON object.", hint="Send the body of POST generate.")
    return message


def _body(message: dict[str, Any]) -> GenerateBody:
    try:
        return GenerateBody.model_validate(message)
    except ValidationError as error:
        raise validation_fault(error.errors(include_url=False)) from error
