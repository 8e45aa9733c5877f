"""Local models as Langflow nodes, headless flows and REST routes, on one shared runtime manager.

Importing this package imports no engine: torch, transformers and llama_cpp load when a model does.
"""

from typing import Any

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # reading it takes as long as the rest of this package

    return version("lfx-local-runtimes")
