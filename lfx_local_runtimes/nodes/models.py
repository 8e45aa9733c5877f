"""The models of this machine: the lists that nodes offer, and the work of Model Manager and Runtime Status."""

import asyncio
from typing import Any

from lfx.custom.custom_component.component import Component
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput, ModelNotFound
from lfx_local_runtimes.langchain.messages import first_problem
from lfx_local_runtimes.nodes.inputs import LOADING_FIELDS, loading_options, value_of
from lfx_local_runtimes.nodes.reports import Reporter
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.status import ModelStatus, state_in_words

PROVIDER_ID = "local-runtimes"

# -- models to choose from -----------------------------------------------------------------------------------------------


async def model_choices(*, model_type: str = "llm") -> tuple[list[str], list[dict[str, Any]]]:
    """The names of the local models, and for each what a list shows beside it."""
    from lfx_local_runtimes.runtimes import get_runtime_manager

    models = await asyncio.to_thread(lambda: get_runtime_manager().list_models())
    models = sorted((model for model in models if model.model_type == model_type), key=lambda model: model.model_name)
    details: list[dict[str, Any]] = [{"engine": model.engine} if model.engine else {} for model in models]
    return [model.model_name for model in models], details


def list_models_in(build_config: dict[str, Any], names: list[str], details: list[dict[str, Any]]) -> dict[str, Any]:
    """Offer models in a node's list. The chosen one stays in it: Langflow only shows values that are in the list."""
    field = build_config["model_name"]
    chosen = value_of(field.get("value"))
    if chosen is not None and chosen not in names:
        names, details = [*names, chosen], [*details, {}]
    field["options"], field["options_metadata"] = names, details
    return build_config


def chosen_model(node: Component) -> str:
    """The model that is chosen in a node.

    Raises:
        ModelNotFound: none is chosen.
    """
    if (name := value_of(node.model_name)) is None:
        raise ModelNotFound("No model is chosen.", hint="Choose one in the node's Model field.")
    return str(name)


# -- Model Manager and Runtime Status ------------------------------------------------------------------------------------

ACTIONS = ("Load", "Unload", "Register", "Unregister", "Pin", "Unpin", "State")
REGISTER_FIELDS = ("model_id", *LOADING_FIELDS, "parallel", "pinned", "replace")


async def manage_model(node: Component) -> dict[str, Any]:
    """Do the action of a Model Manager node. Return the model's state, and in `changed` whether the action changed it.

    The node's status is the state in words.

    Raises:
        RuntimeFault: the action failed, with the reason.
    """
    from lfx_local_runtimes.runtimes import get_runtime_manager

    name, action = value_of(node.model_name), node.action
    if name is None:
        raise ModelNotFound("No model is named.", hint="Fill in the node's Model field.")
    manager = await asyncio.to_thread(get_runtime_manager)
    changed = False
    if action == "Load":
        there = manager.loaded_models()
        await manager.load_model(name, Reporter(node))
        changed = (await asyncio.to_thread(manager.model_status, name)).model_name not in there
    elif action == "Unload":
        changed = await manager.unload_model(name, force=bool(node.force))
    elif action == "Register":
        config = registration(node)
        name = config.model_name
        if getattr(node, "replace", False):  # nodes of older flows have no such field
            changed = await manager.replace_model(config, restrict_paths=True, force=bool(node.force))
        else:
            changed = await asyncio.to_thread(manager.register_model, config, restrict_paths=True)
    elif action == "Unregister":
        removed = await manager.remove_model(name, force=bool(node.force))
        node.status = f"{removed.model_name}: unregistered"
        return {"action": "unregister", "changed": True, "model_name": removed.model_name, "state": "unregistered"}
    elif action in ("Pin", "Unpin"):
        before = await asyncio.to_thread(manager.model_status, name)
        await asyncio.to_thread(manager.pin, name, action == "Pin")
        changed = before.pinned is not (action == "Pin")
    elif action != "State":
        raise InvalidInput(f"{action} is not an action.", model_name=name, hint=f"Use one of {', '.join(ACTIONS)}.")
    status = await asyncio.to_thread(manager.model_status, name)
    node.status = f"{status.model_name}: {_state(status)}"
    return {"action": action.lower(), "changed": changed, **status.model_dump(mode="json")}


def _state(model: ModelStatus) -> str:
    return state_in_words(model.state, on_disk=model.on_disk, error=model.error)


def registration(node: Component) -> ModelConfig:
    """The configuration that a Model Manager node describes.

    Raises:
        InvalidInput: a field is missing or out of range.
    """
    values = loading_options(node)
    if (source := value_of(node.model_id)) is not None:
        values["model_id"] = source
    if "model_id" not in values:
        raise InvalidInput(
            "There is no source to register.", model_name=node.model_name, hint="Fill in the node's Source field."
        )
    try:
        return ModelConfig(
            model_name=node.model_name, pinned=bool(node.pinned), parallel=value_of(node.parallel) or None, **values
        )
    except ValidationError as error:
        raise InvalidInput(first_problem(error), model_name=str(node.model_name)) from error


def show_fields_of(action: str, build_config: dict[str, Any]) -> dict[str, Any]:
    """Show the fields of a Model Manager node that its action uses."""
    for field in REGISTER_FIELDS:
        if field in build_config:  # nodes of older flows do not have all of them
            build_config[field]["show"] = action == "Register"
    build_config["force"]["show"] = action in ("Unload", "Register", "Unregister")
    return build_config


async def model_rows(*, loaded_only: bool) -> list[dict[str, Any]]:
    """One row per known model; the state in words, sizes in MiB, times in seconds."""
    from lfx_local_runtimes.runtimes import get_runtime_manager

    models = await asyncio.to_thread(lambda: get_runtime_manager().list_models())
    columns = (
        "model_name", "state", "format", "engine", "device", "quantization", "context_length", "size_mb",
        "memory_estimate_mb", "memory_used_mb", "leases", "pinned", "idle_s", "isolation", "pid", "uptime_s", "restarts",
        "last_exit", "confined", "confined_why", "source", "error",
    )  # fmt: skip
    return [
        {column: getattr(model, column) for column in columns} | {"state": _state(model)}
        for model in sorted(models, key=lambda model: model.model_name)
        if model.state in ("loading", "ready", "unloading") or not loaded_only
    ]


async def memory_rows() -> list[dict[str, Any]]:
    """One row per device; sizes in MiB."""
    from lfx_local_runtimes.runtimes import get_runtime_manager

    stats = await asyncio.to_thread(lambda: get_runtime_manager().stats())
    rows = []
    for device, entry in stats["memory"].items():
        sizes = {key.removesuffix("_bytes"): value for key, value in entry.items() if key.endswith("_bytes")}
        rows.append(
            {
                "device": device,
                **{f"{key}_mb": None if value is None else round(value / 2**20, 1) for key, value in sizes.items()},
                "models": ", ".join(entry["models"]),
            }
        )
    return rows
