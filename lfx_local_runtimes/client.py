"""Asks a running server: one of `serve`, or a Langflow with this package."""

from typing import Any

from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.settings import Settings, load_settings


class ServerFault(RuntimeFault):
    """A server refuses, or does not answer in time."""

    code = "server_fault"


class NoServer(ServerFault):
    """No server answers at this address."""

    code = "no_server"


def ask_server(method: str, url: str | None, api_key: str | None, path: str, **params: Any) -> Any:
    """A server's answer, as JSON.

    Raises:
        NoServer: none answers at this address.
        ServerFault: it refuses, and the message has its reason; or it does not answer in time, and may still do what it was asked.
    """
    import httpx

    settings = load_settings()
    if api_key is None and settings.api_key is not None:
        api_key = settings.api_key.get_secret_value()
    url = url or _own_address(settings)
    address = f"{url.rstrip('/')}/api/v1/runtime/{path}"
    headers = {"x-api-key": api_key} if api_key else {}
    try:
        response = httpx.request(method, address, params=params, headers=headers, timeout=httpx.Timeout(60, connect=2))
    except (
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.UnsupportedProtocol,
        httpx.InvalidURL,
        ValueError,
    ) as error:
        raise NoServer(
            f"No server answers at {url} ({error}).", hint="Start one with: lfx-local-runtimes serve"
        ) from error
    except httpx.TransportError as error:
        raise ServerFault(
            f"The server at {url} did not answer ({error or type(error).__name__}).",
            hint="It may still do what it was asked. Look at it with: lfx-local-runtimes ps",
        ) from error
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success and isinstance(body, dict):
        return body
    detail = body if isinstance(body, dict) else {}
    problem = detail.get("error")
    if isinstance(problem, dict):
        raise ServerFault(str(problem.get("message")), hint=str(problem.get("hint", "")))
    raise ServerFault(f"{address} answered {response.status_code}: {detail.get('detail', 'not from this package')}")


def _own_address(settings: Settings) -> str:
    """The address of a server that `serve` starts on this machine with these settings."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
