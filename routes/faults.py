"""Faults as HTTP: one table from type to status, and two JSON envelopes: the native one and OpenAI's."""

import logging
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.status import HTTP_429_TOO_MANY_REQUESTS
from starlette.types import Message, Receive

from lfx_local_runtimes import errors
from lfx_local_runtimes.errors import ContextOverflow, EngineFailure, InvalidInput, ModelNotFound, RuntimeFault

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 * 2**20
MAX_MESSAGE_CHARS = 4000
_SHOWN_ERRORS = 5


class BodyTooLarge(InvalidInput):
    """A request body over its route's limit."""

    code = "body_too_large"

    def __init__(self, limit: int = MAX_BODY_BYTES) -> None:
        super().__init__(f"The body is larger than {limit // 2**20} MiB.", hint="Send less at once.")


class InvalidField(InvalidInput):
    """A request with a wrong field. `param` is its place, as in `messages.0.content`; None if it is the body as a whole."""

    def __init__(self, message: str, *, param: str | None = None, hint: str = "Correct the fields named.") -> None:
        super().__init__(message, hint=hint)
        self.param = param


class Unsupported(InvalidField):
    """A known field that is not supported. If it were ignored, the answer would mean something else."""

    code = "unsupported_parameter"

    def __init__(self, param: str, hint: str, value: str = "") -> None:
        super().__init__(f"{param}{' ' if value else ''}{value[:40]} is not supported.", param=param, hint=hint)


class ClientGone(Exception):
    """The client left before its answer was ready."""


STATUS: dict[type[RuntimeFault], int] = {
    RuntimeFault: 500,
    InvalidInput: 422,
    BodyTooLarge: 413,
    errors.RequestCancelled: 499,
    errors.ModelNotFound: 404,
    errors.RequestNotFound: 404,
    errors.DownloadNotFound: 404,
    errors.ModelConflict: 409,
    errors.ModelBusy: 409,
    errors.QueueFull: 429,
    errors.DoesNotFit: 507,
    errors.NotAllowed: 403,
    errors.MissingExtra: 501,
    errors.DeviceUnavailable: 422,
    errors.DownloadFailed: 502,
    errors.DiskFull: 507,
    errors.NotDownloaded: 404,
    errors.Offline: 404,
    errors.EngineFailure: 500,
    errors.EngineDied: 503,
    errors.DeviceFailed: 503,
    errors.SettingsFault: 500,
}
"""A type that is not in the table has the status of its nearest base class."""


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
    403: "Not allowed: a path outside the model folders, pickle weights, remote code, a download over the limit; or not "
    "authenticated",
    404: "Unknown model, request or download; or the model is not on this machine",
    409: "The name has another configuration, or the model is in use",
    413: "The body is too large",
    422: "Invalid input; the message names the field",
    429: "Too many requests wait for the model",
    500: "The engine failed; the message says why",
    501: "An optional dependency is missing; the hint says how to install it",
    502: "A download failed",
    503: "The process of the model died (code `engine_died`), or its accelerator failed (`device_failed`). The message says how; "
    "the next request loads the model again",
    507: "The model does not fit in memory, or on the disk",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorEnvelope, "description": meaning} for status, meaning in _MEANINGS.items()
}


def status_of(fault: RuntimeFault) -> int:
    """The HTTP status of a fault, found along its type's MRO."""
    return next(STATUS[kind] for kind in type(fault).__mro__ if kind in STATUS)


def retry_headers(status: int) -> dict[str, str]:
    """Says when to try again, in seconds, if too many requests wait."""
    return {"retry-after": "1"} if status == HTTP_429_TOO_MANY_REQUESTS else {}


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


# -- OpenAI's form -------------------------------------------------------------------------------------------------------

_OPENAI_STATUS = {422: 400}
_OPENAI_CODES = {ContextOverflow.code: "context_length_exceeded"}


class OpenAIError(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The field at fault.")
    code: str | None = Field(examples=["model_not_found"])


class OpenAIEnvelope(BaseModel):
    """The body of every error of the OpenAI routes."""

    error: OpenAIError


OPENAI_RESPONSES: dict[int | str, dict[str, Any]] = {
    _OPENAI_STATUS.get(status, status): {"model": OpenAIEnvelope, "description": meaning}
    for status, meaning in _MEANINGS.items()
}


def openai_status(fault: RuntimeFault) -> int:
    """The status in OpenAI's API, where invalid input is 400."""
    status = status_of(fault)
    return _OPENAI_STATUS.get(status, status)


def openai_envelope(fault: RuntimeFault) -> dict[str, Any]:
    """The envelope that OpenAI's clients read."""
    param = getattr(fault, "param", None)
    message = fault.message if fault.message.endswith((".", "?", "!")) else f"{fault.message}."
    return openai_error(
        openai_status(fault), f"{message} {fault.hint}".strip(), "model" if isinstance(fault, ModelNotFound) else param,
        _OPENAI_CODES.get(fault.code, fault.code),
    )  # fmt: skip


def openai_error(status: int, message: str, param: str | None, code: str | None) -> dict[str, Any]:
    """An error in OpenAI's envelope. Its type follows from the status."""
    kind = "server_error" if status >= 499 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": _printable(message), "type": kind, "param": param and _printable(param), "code": code}}


def _printable(text: str) -> str:
    """The text, cut to a limit and without lone surrogates: JSON can contain them, UTF-8 cannot."""
    return text[:MAX_MESSAGE_CHARS].encode("utf-8", "replace").decode()


def validation_fault(problems: Sequence[Any]) -> InvalidField:
    """One fault that names the fields in pydantic's list of problems."""
    lines, first = [], None
    for problem in problems[:_SHOWN_ERRORS]:
        field = ".".join(str(part) for part in problem["loc"])
        first = first or field[:200]
        reason = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{field[:200]}: {reason}" if field else reason)
    if len(problems) > _SHOWN_ERRORS:
        lines.append(f"and {len(problems) - _SHOWN_ERRORS} more")
    return InvalidField("; ".join(lines), param=first or None)


def as_fault(error: Exception) -> RuntimeFault:
    """A fault for any exception. An unexpected exception is logged, and its reason is in the message."""
    if isinstance(error, RuntimeFault):
        return error
    if isinstance(error, RequestValidationError):
        inside = [{**problem, "loc": problem["loc"][1:]} for problem in error.errors()]  # of the body, query or path
        return validation_fault(inside)
    logger.error("unexpected %s", type(error).__name__, exc_info=error)
    return EngineFailure(f"{type(error).__name__}: {error}", hint="The server's log has the details.")


class FaultRoute(APIRoute):
    """A route that limits the body and answers faults with the envelope. Exceptions of authentication pass through."""

    max_body_bytes = MAX_BODY_BYTES

    @classmethod
    def with_body(cls, limit: int) -> type["FaultRoute"]:
        """The same kind of route with another limit for the body, in bytes."""
        return cls if limit == cls.max_body_bytes else type(cls.__name__, (cls,), {"max_body_bytes": limit})

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(Request(request.scope, _bounded(request, self.max_body_bytes)))
            except ClientGone:
                return Response(status_code=499)  # nobody reads this
            except HTTPException as error:
                if isinstance(error.__cause__, RuntimeFault):
                    fault: RuntimeFault = error.__cause__
                elif error.status_code == 400:  # FastAPI's "There was an error parsing the body"
                    fault = InvalidInput(str(error.detail), hint="Send JSON as application/json.")
                else:
                    return self.refused(error)
            except RequestValidationError as error:
                fault = (self.body_field is not None and _not_json(request)) or as_fault(error)
            except Exception as error:  # noqa: BLE001 - as_fault logs what is not ours
                fault = as_fault(error)
            return self.answer(fault)

        return guarded

    def answer(self, fault: RuntimeFault) -> Response:
        """The envelope."""
        status = status_of(fault)
        return JSONResponse(envelope(fault), status, retry_headers(status))

    def refused(self, error: HTTPException) -> Response:
        """Answer an exception of authentication."""
        raise error


def _not_json(request: Request) -> InvalidInput | None:
    """The fault of a body that its header does not call JSON. FastAPI takes such a body for a text."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if re.fullmatch(r"application/([\w.-]+\+)?json", kind, re.IGNORECASE):
        return None
    said = f"is declared as {kind[:100]}" if kind else "has no content type"
    return InvalidInput(f"The body {said}, not as JSON.", hint="Send the header content-type: application/json.")


def _bounded(request: Request, limit: int) -> Receive:
    """The request's `receive`. It raises `BodyTooLarge` if the body is too large by its header or by its chunks."""
    announced = request.headers.get("content-length", "")
    received = 0

    async def receive() -> Message:
        nonlocal received
        if announced.isdecimal() and int(announced) > limit:
            raise BodyTooLarge(limit)
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise BodyTooLarge(limit)
        return message

    return receive
