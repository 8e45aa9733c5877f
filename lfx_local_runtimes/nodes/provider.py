"""The model provider *Local Runtimes*: models for Langflow's own Language Model and Agent nodes."""

import logging
from collections.abc import Mapping
from typing import Any

from lfx.base.models.model_metadata import create_model_metadata
from lfx.base.models.model_utils import get_provider_variable_value

from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.runtimes import get_runtime_manager

logger = logging.getLogger(__name__)

PROVIDER = "Local Runtimes"
ICON = "Cpu"
BASE_ICON = "PenLine"

_TEMPORARY = ("variant", "request")
"""Sources of models that exist only because of a node's options, or of a name in a request."""


LISTED = "LOCAL_RUNTIMES_LISTED_MODELS"
"""The variable that a person saves on the provider's page. Langflow lists no models of the provider without it."""
INSTRUCT_ONLY = "Instruct models only"


def live_models(user_id: Any = None, model_type: str = "llm") -> list[dict[str, Any]]:
    """The catalogue rows of every local model of a kind, called by Langflow whenever it lists models.

    It reads names, and headers and configurations that have changed. It reads no weights.
    Instruct models come first. A base model has an icon of its own, because Langflow's lists show no other mark.
    Every text model is listed as able to call tools, because a call can be forced. Whether a model chooses tools well by
    itself depends on the model.
    """
    try:
        rows = get_runtime_manager().list_models()
    except RuntimeFault as fault:
        logger.warning("local models cannot be listed: %s", fault)
        return []
    wanted = {"llm": "llm", "embeddings": "embedding"}.get(model_type)
    rows = [row for row in rows if row.model_type == wanted and row.source not in _TEMPORARY]
    if get_provider_variable_value(user_id, LISTED) == INSTRUCT_ONLY:
        rows = [row for row in rows if row.instruct is not False]
    return [
        dict(
            create_model_metadata(
                provider=PROVIDER,
                name=row.model_name,
                icon=BASE_ICON if row.instruct is False else ICON,
                model_type=model_type,
                default=True,
                tool_calling=model_type == "llm",
            )
        )
        for row in sorted(rows, key=lambda row: (row.instruct is False, row.model_name))
    ]


def validate(provider: str, variables: Mapping[str, str], model_name: str | None = None) -> None:
    """Check what a person saves on the provider's page; called by Langflow.

    Raises:
        ValueError: there are no models yet, or they cannot be listed. The message says what to do.
    """
    try:
        manager = get_runtime_manager()
        rows = manager.list_models()
    except RuntimeFault as fault:
        raise ValueError(str(fault)) from fault
    if not rows:
        folders = " or ".join(map(str, manager.settings.model_roots))
        raise ValueError(f"There is no model on this machine yet. Put one into {folders}, or fetch one with a node.")
