"""What OpenAI's routes share: the error envelope, and the request's id as a header."""

import re
import uuid
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.routes.faults import (
    FaultRoute,
    InvalidField,
    openai_envelope,
    openai_error,
    openai_status,
    retry_headers,
)

HEADER = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CODES = {401: "invalid_api_key", 403: "invalid_api_key", 404: "unknown_url", 405: "method_not_allowed"}
_WORTH_A_RETRY = (409, 429, 502)
"""Not 503: a request that ends the model's process may do so again. Sent three times, it would keep the model away from
everybody for a while."""


class OpenAIRoute(FaultRoute):
    """Answers all faults in OpenAI's envelope, also those of authentication. Every answer has the request's id."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler."""
        handle = super().get_route_handler()

        async def named(request: Request) -> Response:
            wanted = request.headers.get(HEADER)
            request_id = request.state.local_runtimes_request_id = wanted or uuid.uuid4().hex
            if not _ID.fullmatch(request_id):
                fault = InvalidField(
                    f"{HEADER} is not a valid id.", param=HEADER, hint="Use up to 64 letters, digits, dots, _ and -."
                )
                return self.answer(fault)
            response = await handle(request)
            response.headers[HEADER] = request_id
            return response

        return named

    def answer(self, fault: RuntimeFault) -> Response:
        """The envelope, and a header that says whether to try again. Without it, clients repeat a request after every 5xx."""
        status = openai_status(fault)
        headers = retry_headers(status)
        if status >= 500 and status not in _WORTH_A_RETRY:
            headers["x-should-retry"] = "false"
        return JSONResponse(openai_envelope(fault), status, headers)

    def refused(self, error: HTTPException) -> Response:
        """Answer an exception of authentication, or an unknown route."""
        code = _CODES.get(error.status_code)
        body = openai_error(error.status_code, str(error.detail), None, code)
        return JSONResponse(body, error.status_code, error.headers)


async def _request_id(request: Request) -> str:
    named: str = request.state.local_runtimes_request_id
    return named


RequestId = Annotated[str, Depends(_request_id)]
