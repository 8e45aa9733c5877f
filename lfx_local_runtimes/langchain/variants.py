"""A model with load options of one's own: the name to ask the manager by."""

import asyncio
from collections.abc import Mapping
from typing import Any

from lfx_local_runtimes.runtimes import get_runtime_manager

LOADING = ("runtime_type", "device_type", "quantization", "context_length")
"""The options that make another copy of a model."""


def variant(model: str, overrides: Mapping[str, Any]) -> str:
    """The name of the model with these options; those that are None are the model's own."""
    return get_runtime_manager().ensure_variant(model, **overrides)


async def avariant(model: str, overrides: Mapping[str, Any]) -> str:
    """As `variant`, off the event loop."""
    if all(value is None for value in overrides.values()):
        return model
    return await asyncio.to_thread(variant, model, overrides)  # it may look for the model on disk
