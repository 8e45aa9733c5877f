"""How an encoder's output is to be read: from config.json and the files sentence-transformers lays beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import InvalidModelFile, LoadFailed
from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.formats.hf_config import number
from lfx_local_runtimes.runtimes.formats.jsonfile import read_json, read_text
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.tasks.text.reading import Dense, Spec

_POSITIONS_FROM_TWO = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"})
"""Architectures that number positions from two on, and so read two tokens less than their table has."""

_POOLINGS = {
    "cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": "weightedmean", "lasttoken": "lasttoken",
}  # fmt: skip
_PLAIN = ("Transformer", "Normalize", "Pooling", "Dense", "Dropout")
_MAX_JSON = 2**20
_MAX_LABELS = 100_000


def read_spec(plan: LoadPlan, tokenizer_limit: int, pooling: str | None = None) -> Spec:
    """What a folder says.

    Args:
        plan: of the load.
        tokenizer_limit: tokens, as the tokenizer's files say.
        pooling: instead of what the files say.

    Raises:
        InvalidModelFile: a file is not what it should be.
        LoadFailed: the model needs a module that is not served here.
    """
    config = plan.info.metadata
    folder = plan.info.folder
    own = _optional(folder / "sentence_bert_config.json")
    extra = _optional(folder / "config_sentence_transformers.json")
    prompts = extra.get("prompts")
    default = extra.get("default_prompt_name")
    limits = (tokenizer_limit, _positions(config), number(own, "max_seq_length"), plan.context_length)
    modules = _modules(folder)
    own_pooling = next((path for kind, path in modules if kind == "Pooling"), None)
    return Spec(
        task=plan.task,
        max_length=min(limit for limit in limits if limit is not None),
        labels=labels_of(config),
        pooling=pooling or ("mean" if own_pooling is None else _pooling(folder / own_pooling)),
        dense=tuple(_dense(folder / path) for kind, path in modules if kind == "Dense"),
        normalize=any(kind == "Normalize" for kind, _ in modules),
        prompts={str(name): str(text) for name, text in prompts.items()} if isinstance(prompts, dict) else {},
        default_prompt=default if isinstance(default, str) else None,
        shortens=bool(config.get("matryoshka_dimensions") or config.get("is_matryoshka") is True),
        activation=activation_of(config),
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _positions(config: Mapping[str, Any]) -> int | None:
    positions = number(config, "max_position_embeddings")
    return positions - 2 if positions and str(config.get("model_type")) in _POSITIONS_FROM_TWO else positions


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels of a classifier, as config.json names them; `LABEL_0` … if it does not."""
    tags = config.get("id2label")
    if not isinstance(tags, dict):
        return tuple(f"LABEL_{index}" for index in range(min(number(config, "num_labels") or 2, _MAX_LABELS)))
    return tuple(str(tags[key]) for key in sorted(tags, key=lambda key: int(key) if str(key).isdecimal() else 0))


def activation_of(config: Mapping[str, Any]) -> str:
    """As sentence-transformers' `CrossEncoder` and Transformers' text-classification pipeline choose it."""
    own = config.get("sentence_transformers")
    named = own.get("activation_fn") if isinstance(own, dict) else config.get("sbert_ce_default_activation_function")
    if isinstance(named, str):
        return {"Identity": "identity", "Softmax": "softmax"}.get(named.rpartition(".")[2], "sigmoid")
    problem = config.get("problem_type")
    if problem == "regression":
        return "identity"
    return "sigmoid" if problem == "multi_label_classification" or len(labels_of(config)) == 1 else "softmax"


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module of a sentence-transformers model, in order."""
    import json

    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        rows = json.loads(read_text(path, _MAX_JSON))
        found = [(str(row["type"]).rpartition(".")[2], str(row["path"])) for row in rows]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InvalidModelFile(f"{path.name} is not a list of modules.") from error
    for kind, place in found:
        if kind not in _PLAIN:
            raise LoadFailed(f"{folder.name} has a module {kind}, which is not served here.")
        if place.startswith(("/", "~")) or ".." in place or "\\" in place:
            raise InvalidModelFile(f"{path.name} names {place[:60]}, outside of the model's folder.")
    return found


def _pooling(folder: Path) -> str:
    config = read_json(folder / "config.json")
    if config.get("include_prompt") is False:
        raise LoadFailed(f"{folder.parent.name} leaves its prompts out of the mean, which is not served here.")
    modes = [ours for theirs, ours in _POOLINGS.items() if config.get(f"pooling_mode_{theirs}") is True]
    named = str(config.get("pooling_mode"))
    modes = modes or [mode for mode in _POOLINGS.values() if mode == named]
    if len(modes) != 1:
        raise LoadFailed(
            f"{folder.parent.name} pools by {' and '.join(modes) or 'nothing known'}, which is not served."
        )
    return modes[0]


def _dense(folder: Path) -> Dense:
    config = read_json(folder / "config.json")
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in ("Tanh", "Identity"):
        raise LoadFailed(f"{folder.parent.name} has a dense layer with {activation}, which is not served here.")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise LoadFailed(f"{folder.parent.name} has a dense layer without {weights.name}.")
    tensors = require("safetensors.numpy", "transformers").load_file(weights)
    return Dense(tensors["linear.weight"], tensors.get("linear.bias"), activation == "Tanh")
