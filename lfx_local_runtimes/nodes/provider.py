"""The model provider *Local Runtimes*: models for Langflow's own Language Model and Agent nodes."""

import logging
from typing import Any

from lfx.base.models.model_metadata import create_model_metadata

from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.runtimes import get_runtime_manager

logger = logging.getLogger(__name__)

PROVIDER = "Local Runtimes"
ICON = "Cpu"

_TEMPORARY = ("variant", "request")
"""Sources of models that exist only because of a node's options, or of a name in a request."""


def live_models(user_id: object = None, model_type: str = "llm") -> list[dict[str, Any]]:
    """The catalogue rows of every local model of a kind, called by Langflow whenever it lists models.

    It reads names, and headers and configurations that have changed. It reads no weights.
    Local models are the same for every user. Every text model is listed as able to call tools, because a call can be
    forced. Whether a model chooses tools well by itself depends on the model.
    """
    try:
        rows = get_runtime_manager().list_models()
    except RuntimeFault as fault:
        logger.warning("local models cannot be listed: %s", fault)
        return []
    wanted = {"llm": "llm", "embeddings": "embedding"}.get(model_type)
    names = sorted(row.model_name for row in rows if row.model_type == wanted and row.source not in _TEMPORARY)
    return [
        dict(
            create_model_metadata(
                provider=PROVIDER,
                name=name,
                icon=ICON,
                model_type=model_type,
                default=True,
                tool_calling=model_type == "llm",
            )
        )
        for name in names
    ]
