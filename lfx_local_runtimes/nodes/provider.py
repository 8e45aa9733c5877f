"""The model provider *Local Runtimes*: models for Langflow's own Language Model and Agent nodes."""

import logging
from typing import Any

from lfx.base.models.model_metadata import create_model_metadata

from lfx_local_runtimes.runtimes import get_runtime_manager

logger = logging.getLogger(__name__)

PROVIDER = "Local Runtimes"
ICON = "Cpu"

_TEMPORARY = ("variant", "request")
"""Sources of models that exist only because of a node's options, or of a name in a request."""


def live_models(user_id: object = None, model_type: str = "llm") -> list[dict[str, Any]]:
    """The catalogue rows of every local model of a kind, called by Langflow whenever it lists models.

    It reads names, and headers and configurations that have changed. It reads no weights.
    Local models are the same for every user. `tool_calling` is what the model's chat template says. If the models cannot be
    listed, the list has one row that says why: Langflow would show an exception as an empty list.
    """
    wanted = {"llm": "llm", "embeddings": "embedding"}.get(model_type)
    try:
        models = get_runtime_manager().list_models()
    except Exception as fault:  # noqa: BLE001 - whatever it is, the person who looks for a model should read it
        logger.warning("local models cannot be listed: %s", fault)
        return [_row(f"Local models cannot be listed: {fault}", model_type, tool_calling=True)]
    rows = [model for model in models if model.model_type == wanted and model.source not in _TEMPORARY]
    rows.sort(key=lambda model: model.model_name)
    return [_row(model.model_name, model_type, tool_calling=model.tool_calling) for model in rows]


def _row(name: str, model_type: str, *, tool_calling: bool) -> dict[str, Any]:
    tools = tool_calling and model_type == "llm"
    return dict(
        create_model_metadata(
            provider=PROVIDER, name=name, icon=ICON, model_type=model_type, default=True, tool_calling=tools
        )
    )
