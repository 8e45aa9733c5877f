"""Langflow's authentication, holding its database only while it looks the caller up.

`get_current_active_user` keeps its session, and with an API key an uncommitted write, open until the endpoint returns;
on SQLite a generation of a minute would lock everybody else's writes out for a minute.
"""

from fastapi import WebSocket, WebSocketException
from langflow.services.auth.utils import get_current_user_for_websocket, get_current_user_for_workflow
from langflow.services.deps import session_scope
from starlette.status import WS_1008_POLICY_VIOLATION

http_user = get_current_user_for_workflow
"""Bearer token, session cookie, or `x-api-key` as header or query parameter."""


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
