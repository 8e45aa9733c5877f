"""The Gemma family over llama.cpp or Transformers. The names load at first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfx_local_runtimes.runtimes.engines.gemma.offer import size_hint
    from lfx_local_runtimes.runtimes.engines.gemma.runtime import GemmaLocalRuntime, GemmaStreamingRuntime

_WHERE = {"GemmaLocalRuntime": "runtime", "GemmaStreamingRuntime": "runtime", "size_hint": "offer"}

__all__ = ["GemmaLocalRuntime", "GemmaStreamingRuntime", "size_hint"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
