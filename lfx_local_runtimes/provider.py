"""The model provider *Local Runtimes*: what Langflow's own Language Model and Agent nodes may pick."""

import logging
from typing import Any

from lfx.base.models.model_metadata import create_model_metadata

from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager, get_runtime_manager
from lfx_local_runtimes.runtimes.config import AUTO_TASK

logger = logging.getLogger(__name__)

PROVIDER = "Local Runtimes"
ICON = "Cpu"


def live_models(user_id: object = None, model_type: str = "llm") -> list[dict[str, Any]]:
    """The catalogue rows of every local model of a kind, called by Langflow whenever it lists models.

    Reads names, and the configuration of registered models that leave their task to it, when it has changed: no weights.
    Local models are the same for every user. Every model that writes can be offered tools, and be made to call one;
    whether it chooses well by itself is up to the model.
    """
    manager = get_runtime_manager()
    try:
        rows = manager.catalog.list()
    except RuntimeFault as fault:
        logger.warning("local models cannot be listed: %s", fault)
        return []
    wanted = {"llm": "llm", "embeddings": "embedding"}.get(model_type)
    names = sorted(row.config.model_name for row in rows if _task(manager, row.config) == wanted)
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


def _task(manager: RuntimeManager, config: ModelConfig) -> str:
    if config.model_type != AUTO_TASK:
        return config.model_type
    try:
        return manager.model_status(config.model_name).model_type
    except RuntimeFault:  # it went in this moment
        return ""
