"""The model provider *Local Runtimes*: models for Langflow's own Language Model and Agent nodes."""

import logging
from collections.abc import Mapping
from typing import Any

from lfx.base.models.model_metadata import create_model_metadata
from lfx.base.models.model_utils import get_provider_variable_value

from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.nodes.choosing import TEMPORARY
from lfx_local_runtimes.runtimes import get_runtime_manager

logger = logging.getLogger(__name__)

PROVIDER = "Local Runtimes"
ICON = "Cpu"
BASE_ICON = "PenLine"

LISTED = "LOCAL_RUNTIMES_LISTED_MODELS"
"""The variable that a person saves on the provider's page. Langflow lists no models of the provider without it."""
INSTRUCT_ONLY = "Instruct models only"


def live_models(user_id: Any = None, model_type: str = "llm") -> list[dict[str, Any]]:
    """The catalogue rows of every local model of a kind, called by Langflow whenever it lists models.

    It reads names, and headers and configurations that have changed. It reads no weights. Models that cannot be loaded are
    left out: the lists have no mark for them. Instruct models come first. A base model has an icon of its own, because Langflow's lists show no other mark.
    `tool_calling` is what the model's chat template says. If the models cannot be listed, the list has one row that says why:
    Langflow would show an exception as an empty list.
    """
    wanted = {"llm": "llm", "embeddings": "embedding"}.get(model_type)
    try:
        models = get_runtime_manager().list_models()
    except Exception as fault:  # noqa: BLE001 - whatever it is, the person who looks for a model should read it
        logger.warning("local models cannot be listed: %s", fault)
        return [_row(f"Local models cannot be listed: {fault}", model_type, tool_calling=True)]
    rows = [model for model in models if model.model_type == wanted and model.valid and model.source not in TEMPORARY]
    if get_provider_variable_value(user_id, LISTED) == INSTRUCT_ONLY:
        rows = [model for model in rows if model.instruct is not False]
    rows.sort(key=lambda model: (model.instruct is False, model.model_name))
    return [
        _row(
            model.model_name,
            model_type,
            icon=BASE_ICON if model.instruct is False else ICON,
            tool_calling=model.tool_calling,
        )
        for model in rows
    ]


def _row(name: str, model_type: str, *, icon: str = ICON, tool_calling: bool) -> dict[str, Any]:
    tools = tool_calling and model_type == "llm"
    return dict(
        create_model_metadata(
            provider=PROVIDER, name=name, icon=icon, model_type=model_type, default=True, tool_calling=tools
        )
    )


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
