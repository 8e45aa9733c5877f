"""The engine room: models as objects with a life, on threads of their own.

Public names load on first use, so that importing this package costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfx_local_runtimes.runtimes.base import ModelRuntime
    from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig, RuntimeType
    from lfx_local_runtimes.runtimes.devices import device_capabilities, select_device
    from lfx_local_runtimes.runtimes.engines.gemma import GemmaLocalRuntime, GemmaStreamingRuntime
    from lfx_local_runtimes.runtimes.engines.llama_cpp.runtime import LlamaCppRuntime
    from lfx_local_runtimes.runtimes.engines.registry import register_engine
    from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime
    from lfx_local_runtimes.runtimes.manager import RuntimeManager, get_runtime_manager
    from lfx_local_runtimes.runtimes.pipeline import OrchestrationPipeline, StepInput
    from lfx_local_runtimes.runtimes.planning import inspect_model
    from lfx_local_runtimes.runtimes.requests import GenerationStream
    from lfx_local_runtimes.runtimes.status import ModelStatus
    from lfx_local_runtimes.runtimes.tasks.generation import ChatMessage, GenerationConfig, GenerationResult
    from lfx_local_runtimes.runtimes.testing import ScriptedRuntime

_WHERE = {
    "ChatMessage": "tasks.generation",
    "DeviceType": "config",
    "GemmaLocalRuntime": "engines.gemma",
    "GemmaStreamingRuntime": "engines.gemma",
    "GenerationConfig": "tasks.generation",
    "GenerationResult": "tasks.generation",
    "GenerationStream": "requests",
    "LlamaCppRuntime": "engines.llama_cpp.runtime",
    "ModelConfig": "config",
    "ModelRuntime": "base",
    "ModelStatus": "status",
    "OrchestrationPipeline": "pipeline",
    "RuntimeManager": "manager",
    "RuntimeType": "config",
    "ScriptedRuntime": "testing",
    "StepInput": "pipeline",
    "TransformersRuntime": "engines.transformers.runtime",
    "device_capabilities": "devices",
    "get_runtime_manager": "manager",
    "inspect_model": "planning",
    "register_engine": "engines.registry",
    "select_device": "devices",
}

__all__ = [
    "ChatMessage",
    "DeviceType",
    "GemmaLocalRuntime",
    "GemmaStreamingRuntime",
    "GenerationConfig",
    "GenerationResult",
    "GenerationStream",
    "LlamaCppRuntime",
    "ModelConfig",
    "ModelRuntime",
    "ModelStatus",
    "OrchestrationPipeline",
    "RuntimeManager",
    "RuntimeType",
    "ScriptedRuntime",
    "StepInput",
    "TransformersRuntime",
    "device_capabilities",
    "get_runtime_manager",
    "inspect_model",
    "register_engine",
    "select_device",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
