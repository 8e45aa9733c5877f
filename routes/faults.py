"""Faults as HTTP: one table from type to status, one JSON envelope."""

import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from lfx_local_runtimes import errors
from lfx_local_runtimes.errors import EngineFailure, InvalidInput, RuntimeFault

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 * 2**20
MAX_MESSAGE_CHARS = 4000
_SHOWN_ERRORS = 5


class BodyTooLarge(InvalidInput):
    """A request body over `MAX_BODY_BYTES`."""

    code = "body_too_large"

    def __init__(self) -> None:
        super().__init__(f"The body is larger than {MAX_BODY_BYTES // 2**20} MiB.", hint="Send a shorter prompt.")


class ClientGone(Exception):
    """The client left before its answer was there."""


STATUS: dict[type[RuntimeFault], int] = {
    RuntimeFault: 500,
    InvalidInput: 422,
    BodyTooLarge: 413,
    errors.ModelNotFound: 404,
    errors.RequestNotFound: 404,
    errors.ModelConflict: 409,
    errors.ModelBusy: 409,
    errors.QueueFull: 429,
    errors.DoesNotFit: 507,
    errors.NotAllowed: 403,
    errors.MissingExtra: 501,
    errors.DeviceUnavailable: 422,
    errors.DownloadFailed: 502,
    errors.Offline: 404,
    errors.EngineFailure: 500,
    errors.SettingsFault: 500,
}
"""A type that is not here has the status of its nearest base."""


class ErrorDetail(BaseModel):
    """What went wrong and what to do about it."""

    code: str = Field(description="A stable name of the kind of fault.", examples=["model_not_found"])
    message: str
    model_name: str | None
    hint: str


class ErrorEnvelope(BaseModel):
    """The body of every error."""

    error: ErrorDetail


_MEANINGS = {
    403: "Not allowed: a path outside the model roots, pickle weights, remote code; or not authenticated",
    404: "Unknown model or request",
    409: "In conflict, or in use",
    413: "The body is too large",
    422: "Invalid input; the message names the field",
    500: "The engine failed; the message says why",
    501: "An optional dependency is missing; the hint says how to install it",
    502: "A download failed",
    507: "The model does not fit in memory",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorEnvelope, "description": meaning} for status, meaning in _MEANINGS.items()
}


def status_of(fault: RuntimeFault) -> int:
    """The HTTP status of a fault, found along its type's MRO."""
    return next(STATUS[kind] for kind in type(fault).__mro__ if kind in STATUS)


def envelope(fault: RuntimeFault) -> dict[str, Any]:
    """The JSON form of a fault."""
    return {
        "error": {
            "code": fault.code,
            "message": _printable(fault.message),
            "model_name": fault.model_name and _printable(fault.model_name),
            "hint": _printable(fault.hint),
        }
    }


def _printable(text: str) -> str:
    """Bounded, and free of lone surrogates, which JSON can bring in and UTF-8 cannot carry out."""
    return text[:MAX_MESSAGE_CHARS].encode("utf-8", "replace").decode()


def validation_fault(problems: Sequence[Any]) -> InvalidInput:
    """Pydantic's list of problems as one fault that names the fields."""
    lines = []
    for problem in problems[:_SHOWN_ERRORS]:
        field = ".".join(str(part) for part in problem["loc"] if part not in ("body", "query", "path"))
        reason = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{field[:200]}: {reason}" if field else reason)
    if len(problems) > _SHOWN_ERRORS:
        lines.append(f"and {len(problems) - _SHOWN_ERRORS} more")
    return InvalidInput("; ".join(lines), hint="Correct the fields named.")


def as_fault(error: Exception) -> RuntimeFault:
    """Any exception as a fault; one that nobody foresaw is logged and its reason told."""
    if isinstance(error, RuntimeFault):
        return error
    if isinstance(error, RequestValidationError):
        return validation_fault(error.errors())
    logger.error("unexpected %s", type(error).__name__, exc_info=error)
    return EngineFailure(f"{type(error).__name__}: {error}", hint="The server's log has the details.")


class FaultRoute(APIRoute):
    """A route that bounds the body and answers faults with the envelope; what authentication raises passes through."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(Request(request.scope, _bounded(request)))
            except ClientGone:
                return Response(status_code=499)  # nobody reads it
            except HTTPException as error:
                if isinstance(error.__cause__, RuntimeFault):
                    fault: RuntimeFault = error.__cause__
                elif error.status_code == 400:  # FastAPI's "There was an error parsing the body"
                    fault = InvalidInput(str(error.detail), hint="Send JSON as application/json.")
                else:
                    raise
            except Exception as error:  # noqa: BLE001 - as_fault logs what is not ours
                fault = as_fault(error)
            return JSONResponse(envelope(fault), status_of(fault))

        return guarded


def _bounded(request: Request) -> Receive:
    """The request's `receive`, which raises `BodyTooLarge` once the body, announced or chunked, is over the limit."""
    announced = request.headers.get("content-length", "")
    received = 0

    async def receive() -> Message:
        nonlocal received
        if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
            raise BodyTooLarge
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise BodyTooLarge
        return message

    return receive
