"""Langflow's authentication. It uses the database only while it looks up the caller.

`get_current_active_user` keeps its session open until the endpoint returns. With an API key that session has an
uncommitted write. On SQLite, a generation of one minute would block all other writes for one minute.
"""

from typing import Annotated

from fastapi import Security, WebSocket, WebSocketException
from langflow.services.auth.utils import (
    api_key_header,
    api_key_query,
    get_current_user_for_websocket,
    get_current_user_for_workflow,
    oauth2_login,
)
from langflow.services.deps import session_scope
from starlette.requests import HTTPConnection
from starlette.status import WS_1008_POLICY_VIOLATION

from lfx_local_runtimes.routes.access import Caller, set_caller

_API_KEY_PREFIX = "sk-"


async def http_user(
    connection: HTTPConnection,
    token: Annotated[str | None, Security(oauth2_login)],
    query_key: Annotated[str | None, Security(api_key_query)],
    header_key: Annotated[str | None, Security(api_key_header)],
) -> None:
    """Bearer token, session cookie, or `x-api-key` as header or query parameter.

    OpenAI's clients send their key as a bearer token: a Langflow API key is taken there too.

    Raises:
        HTTPException: none of them is valid, or the account is inactive.
    """
    if token is not None and token.startswith(_API_KEY_PREFIX) and not (query_key or header_key):
        token, header_key = None, token
    user = await get_current_user_for_workflow(token, query_key, header_key)
    denied = "" if user.is_superuser else "In Langflow only superusers may."
    set_caller(connection, Caller(f"{user.username} ({user.id})", denied, denied))


async def websocket_user(websocket: WebSocket) -> None:
    """Session cookie, `token` in the query, or `x-api-key` as header or query parameter.

    Raises:
        WebSocketException: none of them is valid, or the account is inactive.
    """
    refusal: WebSocketException | None = None
    async with session_scope() as session:  # leave it without an exception, which it would log as a database error
        try:
            user = await get_current_user_for_websocket(websocket, session)
            if not user.is_active:
                refusal = WebSocketException(WS_1008_POLICY_VIOLATION, "User account is inactive")
        except WebSocketException as error:
            refusal = error
    if refusal is not None:
        raise refusal
