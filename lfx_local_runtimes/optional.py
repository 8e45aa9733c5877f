"""The one door to optional dependencies."""

import importlib
from importlib.util import find_spec
from typing import Any

from lfx_local_runtimes.errors import MissingExtra


def require(module: str, extra: str) -> Any:
    """Import `module`, which the extra `extra` installs.

    Raises:
        MissingExtra: it is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name != module.partition(".")[0]:
            reason = f"{module} is installed but cannot be imported ({error})."
        elif isinstance(error, ModuleNotFoundError):
            reason = f"{module} is not installed."
        else:
            reason = f"{module} cannot be imported ({error})."
        raise MissingExtra(reason, hint=_hint(extra)) from error


def require_installed(module: str, extra: str) -> None:
    """Check that the top-level `module` is installed, without importing it: another process will.

    Raises:
        MissingExtra: it is not installed; the message names the command that installs it.
    """
    if find_spec(module) is None:
        raise MissingExtra(f"{module} is not installed.", hint=_hint(extra))


def _hint(extra: str) -> str:
    return f"Run: pip install 'lfx-local-runtimes[{extra}]'"
