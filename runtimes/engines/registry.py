"""Engines by name. New ones plug in without touching the manager.

A package adds one with an entry point in the group `lfx_local_runtimes.engines` (name → factory), a program with
`register_engine`. A factory takes the model's configuration and the load plan and returns a `ModelRuntime`; a
`ModelRuntime` class is one.
"""

import importlib
from collections.abc import Callable
from functools import lru_cache

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.base import ModelRuntime
from lfx_local_runtimes.runtimes.config import ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.planning import LoadPlan

EngineFactory = Callable[[ModelConfig, LoadPlan | None], ModelRuntime]

ENTRY_POINT_GROUP = "lfx_local_runtimes.engines"

_HERE = "lfx_local_runtimes.runtimes.engines"
_SHIPPED = {
    RuntimeType.LLAMA_CPP: (f"{_HERE}.llama_cpp.factory", "llama_cpp"),
    RuntimeType.TRANSFORMERS: (f"{_HERE}.transformers.factory", "transformers"),
    RuntimeType.ONNX: (f"{_HERE}.onnx.encoder", "OnnxEncoder"),
    RuntimeType.GEMMA_LOCAL: (f"{_HERE}.gemma", "GemmaLocalRuntime"),
    RuntimeType.GEMMA_STREAMING: (f"{_HERE}.gemma", "GemmaStreamingRuntime"),
}
_registered: dict[str, EngineFactory] = {}


def register_engine(name: str, factory: EngineFactory) -> None:
    """Add an engine, or replace one; models loaded before keep theirs."""
    _registered[RuntimeType(name)] = factory


@lru_cache(maxsize=1)
def _plugins() -> dict[str, "object"]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def engine_names() -> list[str]:
    """Every engine that can be asked for by name."""
    return sorted({*_SHIPPED, *_registered, *_plugins()})


def engine_factory(name: str) -> EngineFactory:
    """The factory of an engine.

    Raises:
        InvalidInput: there is no such engine.
    """
    if name in _registered:
        return _registered[name]
    if name in _SHIPPED:
        module, attribute = _SHIPPED[RuntimeType(name)]
        factory: EngineFactory = getattr(importlib.import_module(module), attribute)
        return factory
    if name in _plugins():
        plugin: EngineFactory = _plugins()[name].load()  # type: ignore[attr-defined]
        return plugin
    raise InvalidInput(
        f"runtime_type {name} is not an engine.", hint=f"Use auto or one of: {', '.join(engine_names())}."
    )
