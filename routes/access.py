"""What every endpoint receives: the manager, a model's name, the caller."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Query, Request, WebSocketException
from pydantic import StringConstraints
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import HTTPConnection
from starlette.status import WS_1011_INTERNAL_ERROR

from lfx_local_runtimes.errors import InvalidInput, RuntimeFault
from lfx_local_runtimes.runtimes.manager import RuntimeManager

MAX_NAME_CHARS = 1024
_MAX_REASON = 40
"""Characters of the reason of a closed socket: at most 123 bytes of UTF-8."""

ModelRef = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True,
        min_length=1,
        max_length=MAX_NAME_CHARS,
        pattern=r"^\s*[^\x00-\x1f\x7f\s][^\x00-\x1f\x7f]*$",
    ),
]
"""How a request names a model."""

MODEL_REF = "The model: its name, a path inside a model folder, or a Hugging Face id."


class _AnyText(Convertor[str]):
    """Any text in a path, as `{name:any_text}`.

    Starlette's `path` matches no line breaks, so a name with one would get the framework's answer and not ours.
    """

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any_text", _AnyText())


def provider(manager_getter: Callable[[], RuntimeManager]) -> Callable[[HTTPConnection], None]:
    """A dependency that stores the manager for a request's endpoint. It runs in a thread.

    If there is no manager, because of impossible settings, the fault answers the request or closes the socket.
    """

    def provide(connection: HTTPConnection) -> None:
        try:
            connection.state.local_runtimes_manager = manager_getter()
        except RuntimeFault as fault:
            if connection.scope["type"] == "websocket":
                raise WebSocketException(WS_1011_INTERNAL_ERROR, str(fault)[:_MAX_REASON]) from fault
            raise

    return provide


async def _provided(connection: HTTPConnection) -> RuntimeManager:
    manager: RuntimeManager = connection.state.local_runtimes_manager
    return manager


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. The other fields say why they may not do something; empty if they may."""

    name: str
    denied: str = ""
    """Approve a model's code."""
    may_not_delete: str = ""
    """Delete a model's files."""


_NOBODY = "The application that serves these routes does not say who may."
_UNKNOWN = Caller("unknown", _NOBODY, _NOBODY)


def set_caller(connection: HTTPConnection, caller: Caller) -> None:
    """Say who sent a request; an authentication calls it. Nobody else may approve a model's code or delete its files."""
    connection.state.local_runtimes_caller = caller


async def _caller(connection: HTTPConnection) -> Caller:
    caller: Caller = getattr(connection.state, "local_runtimes_caller", _UNKNOWN)
    return caller


KnownCaller = Annotated[Caller, Depends(_caller)]
Manager = Annotated[RuntimeManager, Depends(_provided)]


async def _name_in_query(request: Request, model_name: Annotated[ModelRef, Query(description="The model.")]) -> str:
    """Join the name again: Langflow splits query values at commas, and a name may contain one."""
    name = ",".join(request.query_params.getlist("model_name")).strip()
    if len(name) > MAX_NAME_CHARS:
        raise InvalidInput(f"model_name: more than {MAX_NAME_CHARS} characters ({model_name[:40]}…).")
    return name


QueryName = Annotated[str, Depends(_name_in_query)]
PathName = Annotated[ModelRef, Path(description="The model; may contain slashes.")]
