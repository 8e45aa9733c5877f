"""The models of this machine: the lists that nodes offer, and the work of Model Manager and Runtime Status."""

import asyncio
from textwrap import shorten
from typing import Any

from lfx.custom.custom_component.component import Component
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput, ModelNotFound
from lfx_local_runtimes.langchain.messages import first_problem
from lfx_local_runtimes.nodes.choosing import largest_budget
from lfx_local_runtimes.nodes.inputs import LOADING_FIELDS, loading_options, value_of
from lfx_local_runtimes.nodes.reports import Reporter
from lfx_local_runtimes.nodes.suggestions import suggested
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.status import ModelStatus, state_in_words

PROVIDER_ID = "local-runtimes"

# -- models to choose from -----------------------------------------------------------------------------------------------


TASKS = {
    "llm": "text", "embedding": "embedding", "rerank": "reranking", "classification": "classification",
    "zero_shot": "NLI", "ner": "entity", "ocr": "OCR",
    "image_classification": "image label", "object_detection": "detection", "depth_estimation": "depth",
    "zero_shot_image_classification": "image and text", "image_embedding": "image vector",
    "image_segmentation": "segmentation", "vqa": "question answering",
}  # fmt: skip
"""What a list calls the models of a task."""
HERE, TO_FETCH = "on this machine", "to fetch"
_MARKS = {"on disk": HERE, "ready": "loaded"}
"""What a list says instead of a model's state in words."""
_ICONS = {HERE: "HardDrive", TO_FETCH: "CloudDownload", "failed": "TriangleAlert", "cannot be loaded": "TriangleAlert"}


async def model_choices(
    *also: str, model_type: str = "llm", gated: bool = False, vision: bool = False
) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of models for a task, and for each what a list shows beside it.

    The models of this machine come first. If models can be downloaded, suggestions that fit the machine follow.

    Args:
        also: further tasks, whose models come after those of `model_type`.
        model_type: the task.
        gated: also suggest models whose licence has to be accepted on the hub.
        vision: of the text models only those that read pictures.
    """
    from lfx_local_runtimes.runtimes import get_runtime_manager

    wanted = (model_type, *also)
    manager = await asyncio.to_thread(get_runtime_manager)
    models = [one for one in await asyncio.to_thread(manager.list_models) if one.model_type in wanted]
    # a variant is a copy that another node's options made; base models answer worst, broken ones not at all
    models = [
        one for one in models if one.source != "variant" and (one.vision or not vision or one.model_type != "llm")
    ]
    models.sort(
        key=lambda one: (one.error is not None, wanted.index(one.model_type), one.instruct is False, one.model_name)
    )
    choices = {one.model_name: _facts(one) for one in models}
    if manager.settings.downloads != "off" and not vision:
        for one in suggested(wanted, await asyncio.to_thread(largest_budget, manager)):
            if gated or not one.gated:
                kind = "instruct text" if one.model_type == "llm" else TASKS[one.model_type]
                marks = (TO_FETCH, "gated") if one.gated else (TO_FETCH,)
                choices.setdefault(one.name, _beside(kind, one.size_gb * 1e9, *marks))
    return list(choices), list(choices.values())


def _facts(model: ModelStatus) -> dict[str, Any]:
    """What a list shows beside a model on this machine, or one that is registered."""
    kind = "" if model.instruct is None else "instruct " if model.instruct else "base "
    size = model.memory_used_mb or model.memory_estimate_mb
    state = _state(model)
    kind = f"{kind}{TASKS.get(model.model_type, model.model_type)}"
    return _beside(kind, size and size * 2**20, _MARKS.get(state, state))


def _beside(kind: str, size: float | None, *marks: str) -> dict[str, Any]:
    """The facts as Langflow shows them: an icon, then each value before its key. Little fits beside a name."""
    return {"icon": _ICONS.get(marks[0], "Zap"), kind: _gb(size) if size else "", **dict.fromkeys(marks, "✓")}


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def list_models_in(build_config: dict[str, Any], names: list[str], details: list[dict[str, Any]]) -> dict[str, Any]:
    """Offer models in a node's list. The chosen one stays in it: Langflow only shows values that are in the list."""
    field = build_config["model_name"]
    chosen = value_of(field.get("value"))
    if chosen is not None and chosen not in names:
        names, details = [*names, chosen], [*details, {}]
    field["options"], field["options_metadata"] = names, details
    field["placeholder"] = "" if names else "No model for this task is here"
    return build_config


def named_model(node: Component) -> str | None:
    """The model that a node names: the text in Other Model, else the choice in the list. None: neither, or auto."""
    # nodes of older flows have no Other Model
    name = value_of(str(getattr(node, "other_model", None) or "").strip()) or value_of(node.model_name)
    return None if name is None else str(name)


def chosen_model(node: Component) -> str:
    """The same, for nodes that need a name.

    Raises:
        ModelNotFound: none is chosen.
    """
    if (name := named_model(node)) is None:
        raise ModelNotFound(
            "No model is chosen.", hint="Choose one in the node's Model field, or write its name into Other Model."
        )
    return name


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

    name, action = chosen_model(node), node.action
    manager = await asyncio.to_thread(get_runtime_manager)
    changed = False
    if action == "Load":
        there = manager.loaded_models()
        with Reporter(node, name) as report:
            await manager.load_model(name, report)
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
    name, values = chosen_model(node), loading_options(node)
    if (source := value_of(node.model_id)) is not None:
        values["model_id"] = source
    if "model_id" not in values:
        raise InvalidInput("There is no source to register.", model_name=name, hint="Fill in the node's Source field.")
    try:
        return ModelConfig(
            model_name=name, pinned=bool(node.pinned), parallel=value_of(node.parallel) or None, **values
        )
    except ValidationError as error:
        raise InvalidInput(first_problem(error), model_name=name) from error


def show_fields_of(action: str, build_config: dict[str, Any]) -> dict[str, Any]:
    """Show the fields of a Model Manager node that its action uses."""
    for field in REGISTER_FIELDS:
        if field in build_config:  # nodes of older flows do not have all of them
            build_config[field]["show"] = action == "Register"
    build_config["force"]["show"] = action in ("Unload", "Register", "Unregister")
    return build_config


_PROBLEM_CHARS = 40


async def model_rows(*, loaded_only: bool) -> list[dict[str, Any]]:
    """One row per known model; the state in words, sizes in MiB. Columns that would be empty in every row are left out."""
    from lfx_local_runtimes.runtimes import get_runtime_manager

    models = await asyncio.to_thread(lambda: get_runtime_manager().list_models())
    rows = [
        _cells(model)
        for model in sorted(models, key=lambda model: model.model_name)
        if model.state in ("loading", "ready", "unloading") or not loaded_only
    ]
    filled = [column for column in (rows[0] if rows else ()) if any(row[column] not in ("", 0) for row in rows)]
    return [{column: row[column] for column in filled} for row in rows]


def _cells(model: ModelStatus) -> dict[str, Any]:
    """What Runtime Status shows of a model. A chat has room for six columns; `GET models` has everything.

    None would be shown as nan, and a long text would make a tall row.
    """
    return {
        "model_name": model.model_name,
        "state": _state(model),
        "engine": model.engine or "",
        "device": model.device or "",
        "memory_used_mb": model.memory_used_mb or "",
        "problem": shorten(model.error or model.last_exit or "", _PROBLEM_CHARS, placeholder=" …"),
    }


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
