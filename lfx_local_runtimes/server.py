"""The routes without Langflow: an application of their own, and the server that runs it."""

import asyncio
import ipaddress
import secrets
import socket
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, WebSocketException
from fastapi.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.status import WS_1008_POLICY_VIOLATION

from lfx_local_runtimes import __version__
from lfx_local_runtimes.errors import SettingsFault
from lfx_local_runtimes.routes import build_openai_router, build_router
from lfx_local_runtimes.routes.access import Caller, set_caller
from lfx_local_runtimes.runtimes.manager import RuntimeManager

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 11540
_GRACE_S = 2
"""Seconds that requests have to end after Ctrl-C. They are cancelled at once."""

_HAS_KEY = Caller("API key")
_HAS_NONE = Caller(
    "this machine", "This server has no API key, so every program here could. Use the command line, or --api-key."
)

Guard = Callable[[HTTPConnection], str | None]
"""Returns why a caller is refused, or None."""


def create_app(
    manager: RuntimeManager,
    api_key: str | None = None,
    *,
    allowed_hosts: Collection[str] = (),
    cors_origins: Collection[str] = (),
) -> FastAPI:
    """The native routes at `/api/v1/runtime`, OpenAI's at `/v1`, and `/health`.

    Args:
        manager: the manager to serve. The caller closes it.
        api_key: clients send it as `Authorization: Bearer …` or `x-api-key`. Without a key, only programs and pages of this
            machine are served. A website that makes its visitor's browser call here is refused.
        allowed_hosts: more names of this machine, for callers without a key.
        cors_origins: origins of pages whose scripts may call and read the answers. `*` is every page, if there is a key.
    """
    guard = _with_key(api_key) if api_key is not None else _without_key(allowed_hosts, cors_origins)

    async def http_guard(connection: HTTPConnection) -> None:
        if (reason := guard(connection)) is not None:
            raise HTTPException(401 if api_key is not None else 403, reason)
        set_caller(connection, _HAS_KEY if api_key is not None else _HAS_NONE)

    async def socket_guard(connection: HTTPConnection) -> None:
        if (reason := guard(connection)) is not None:
            raise WebSocketException(WS_1008_POLICY_VIOLATION, reason)

    app = FastAPI(title="lfx-local-runtimes", version=__version__, description="Local models over REST.")
    if cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )  # fmt: skip
    app.include_router(build_router(lambda: manager, http_guard, socket_guard))
    app.include_router(build_openai_router(lambda: manager, http_guard))

    @app.get("/health", tags=["Server"], dependencies=[Depends(_everybody)])
    async def health() -> dict[str, str]:
        """Whether the server answers. Needs no key."""
        return {"status": "ok"}

    return app


async def _everybody() -> None:
    """A guard that lets everybody in."""


def _with_key(api_key: str) -> Guard:
    expected = api_key.encode()

    def guard(connection: HTTPConnection) -> str | None:
        scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
        key = bearer if scheme.lower() == "bearer" else connection.headers.get("x-api-key", "")
        if secrets.compare_digest(key.strip().encode(), expected):
            return None
        return "The API key is missing or wrong. Send it as Authorization: Bearer … or x-api-key."

    return guard


def _without_key(allowed_hosts: Collection[str], cors_origins: Collection[str]) -> Guard:
    """The requested host must be this machine, and so must the page that sends the request, if one does."""
    hosts = {host.lower() for host in allowed_hosts}

    def guard(connection: HTTPConnection) -> str | None:
        host = _hostname(f"//{connection.headers.get('host', '')}")
        if not is_loopback(host) and host not in hosts:
            return (
                "This server has no API key, so it serves this machine only. Start it with --api-key, or add the host to "
                "LOCAL_RUNTIMES_ALLOWED_HOSTS if it is a name of this machine."
            )
        origin = connection.headers.get("origin")
        if origin is not None and not is_loopback(_hostname(origin)) and origin not in cors_origins:
            return (
                "This server has no API key, so it serves pages of this machine only. Start it with --api-key, or add the "
                "page's origin to LOCAL_RUNTIMES_CORS_ORIGINS."
            )
        return None

    return guard


def _hostname(url: str) -> str:
    """The host's name, lower-case; empty if the URL is broken."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine and other machines cannot reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Server(uvicorn.Server):
    """Cancels the manager's requests when it stops, so that no stream delays the end."""

    def __init__(self, config: uvicorn.Config, manager: RuntimeManager) -> None:
        super().__init__(config)
        self._manager = manager

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cancel requests and unload models, and close the connections at the same time."""
        closing = asyncio.create_task(asyncio.to_thread(self._manager.close))
        await super().shutdown(sockets)
        await closing


def make_server(
    manager: RuntimeManager,
    host: str,
    port: int,
    api_key: str | None,
    *,
    allowed_hosts: Collection[str] = (),
    cors_origins: Collection[str] = (),
) -> Server:
    """A server that `run()` starts. The last two arguments are those of `create_app`.

    Raises:
        SettingsFault: other machines could reach it, and it has no key.
    """
    if api_key is None and not is_loopback(host):
        raise SettingsFault(
            f"Other machines can reach {host}, and there is no API key.",
            hint=f"Give --api-key or set LOCAL_RUNTIMES_API_KEY, or serve on {DEFAULT_HOST}.",
        )
    app = create_app(manager, api_key, allowed_hosts=allowed_hosts, cors_origins=cors_origins)
    config = uvicorn.Config(
        app, host=host, port=port, log_level="info", access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
    )  # fmt: skip
    return Server(config, manager)
