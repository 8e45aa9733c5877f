"""Models that are here without being registered: in the model folders, the Hugging Face cache, and packages.

A listing goes by file names and sizes and opens nothing but a small `config.json`. What a walk found is kept together
with the times of every folder and file it looked at; while those stand, the next listing costs one `stat` for each.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lfx_local_runtimes.runtimes.config import AUTO_TASK
from lfx_local_runtimes.runtimes.formats.hf_config import task_of
from lfx_local_runtimes.runtimes.formats.info import ModelFormat
from lfx_local_runtimes.runtimes.sources.hub import describe, gguf_models, gguf_tag, hub_cache, snapshot_folder
from lfx_local_runtimes.runtimes.sources.packages import carriers
from lfx_local_runtimes.settings import Settings

Source = Literal["folder", "hub cache", "package"]

logger = logging.getLogger(__name__)

_MAX_DEPTH = 4
_MAX_LOOKS = 10_000
_MAX_CONFIG_BYTES = 1 << 20
_CLOCK_TICK_NS = 100_000_000
"""File times are this coarse at most: a folder that changed later than that before a walk may change again unseen."""

_SPLIT_END = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class Discovered:
    """A model found on this machine. `size_bytes` and `format` are None where a package does not tell."""

    name: str
    model_id: str
    """What a `ModelConfig` for it says: a path, a hub id, or the packaged model's name."""
    source: Source
    path: Path | None
    """The file or folder; None for a packaged model that has not been asked for yet."""
    format: ModelFormat | None
    size_bytes: int | None
    model_type: str = AUTO_TASK
    """What it does, as its config.json says; auto where only a header tells, other where it is not served."""
    pooling: str | None = None
    """How an embedding model's tokens become one vector, where its files do not tell."""


def discover(settings: Settings, cache: Path | None = None) -> list[Discovered]:
    """Every model found, each name once: model folders come first, then the hub's cache, then packages.

    Args:
        settings: names the model folders and the data folder.
        cache: the hub's cache folder; unset is the one the environment names.
    """
    found: dict[str, Discovered] = {}
    for root in settings.model_roots:
        for model in _remembered(root, _walk_models):
            found.setdefault(model.name, model)
    for model in _remembered(cache or hub_cache(), _walk_hub_cache):
        found.setdefault(model.name, model)
    for carrier in carriers():
        model = Discovered(
            carrier.name, carrier.name, "package", carrier.there(settings.home), carrier.format, carrier.size_bytes,
            carrier.model_type, carrier.pooling,
        )  # fmt: skip
        found.setdefault(model.name, model)
    return list(found.values())


# -- remembering ---------------------------------------------------------------------------------------------------------

_State = tuple[int, int, int] | None


def _state(path: str) -> _State:
    try:
        stat = os.stat(path)  # noqa: PTH116 - thousands of times, without making a Path
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


class _Walk:
    """What one walk looked at, and the state it was in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.resolved = root.resolve()
        self.seen: dict[str, _State] = {}
        self.started = time.time_ns()
        self.cut_short = False

    def entries(self, folder: str | Path) -> list["os.DirEntry[str]"]:
        """What a folder holds, by name and without hidden ones; nothing when it cannot be read or the walk was long enough."""
        folder = os.fspath(folder)
        if len(self.seen) >= _MAX_LOOKS:
            if not self.cut_short:
                logger.warning(
                    "%s holds too many files and folders: models past the first %d are not listed",
                    self.root,
                    _MAX_LOOKS,
                )
            self.cut_short = True
            return []
        self.seen[folder] = _state(folder)  # before it is read: a change in between shows up the next time
        try:
            with os.scandir(folder) as entries:
                return sorted(
                    (entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name
                )
        except OSError:
            return []

    def size(self, path: str | Path) -> int | None:
        """The size of a file that lies within the root, links resolved; None for any other."""
        path = os.fspath(path)
        target = Path(path).resolve()
        if not target.is_relative_to(self.resolved) or not target.is_file():
            return None
        state = self.seen[path] = _state(path)
        return state[1] if state else None

    def still_true(self) -> bool:
        """Nothing that was looked at has changed."""
        return all(_state(path) == state for path, state in self.seen.items())

    def settled(self) -> bool:
        """No change can hide behind the coarse clock of the file system."""
        return all(state is None or abs(self.started - state[0]) > _CLOCK_TICK_NS for state in self.seen.values())


_known: dict[tuple[Path, Callable[[_Walk], list[Discovered]]], tuple[_Walk, list[Discovered]]] = {}
_known_lock = threading.Lock()


def _remembered(root: Path, walk_models: Callable[[_Walk], list[Discovered]]) -> list[Discovered]:
    key = (root, walk_models)
    with _known_lock:
        known = _known.get(key)
        if known is None or not known[0].still_true():
            walk = _Walk(root)
            known = (walk, walk_models(walk))
            _known.pop(key, None)
            if walk.settled():
                _known[key] = known
        return known[1]


# -- model folders -------------------------------------------------------------------------------------------------------


def _walk_models(walk: _Walk) -> list[Discovered]:
    return list(_in_folder(walk, os.fspath(walk.root), "", 0))


def _in_folder(walk: _Walk, folder: str, prefix: str, depth: int) -> list[Discovered]:
    """Models in and under a folder: GGUF files, or the folder itself. Linked folders are not entered."""
    entries = walk.entries(folder)
    files = [entry.name for entry in entries if not entry.is_dir()]
    found = []
    for first, parts in gguf_models(files).items():
        sizes = [walk.size(f"{folder}/{part}") for part in parts]
        name = prefix + _SPLIT_END.sub("", first[: -len(".gguf")])
        path = f"{folder}/{first}"
        if None not in sizes and _speakable(name, path):
            found.append(Discovered(name, path, "folder", Path(path), ModelFormat.GGUF, sum(filter(None, sizes))))
    if not {"config.json", "model_index.json"}.isdisjoint(files):
        layered = (
            "model_index.json" in files or describe(files) is None
        )  # ONNX files often lie in a folder of their own
        names = _names_under(walk, folder) if layered else files
        name = prefix.rstrip("/") or walk.root.name
        model = _folder_model(walk, Path(folder), names, name=name, model_id=folder, source="folder")
        if model is not None:
            return [*found, model]
    if depth < _MAX_DEPTH and "model_index.json" not in files:  # the parts of a pipeline are no models
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found += _in_folder(walk, entry.path, f"{prefix}{entry.name}/", depth + 1)
    return found


def _names_under(walk: _Walk, folder: str, prefix: str = "", depth: int = 0) -> list[str]:
    """The files of a folder and of the three levels below it, relative, with `/`."""
    names = []
    for entry in walk.entries(folder):
        if entry.is_dir(follow_symlinks=False):
            if depth < _MAX_DEPTH - 1:
                names += _names_under(walk, entry.path, f"{prefix}{entry.name}/", depth + 1)
        elif entry.is_file():
            names.append(prefix + entry.name)
    return names


def _folder_model(
    walk: _Walk, folder: Path, names: list[str], *, name: str, model_id: str, source: Source
) -> Discovered | None:
    description = describe(names)
    if description is None or not _speakable(name, model_id):
        return None
    kind, weights = description
    sizes = [walk.size(folder / weight) for weight in weights]
    if None in sizes:
        return None
    return Discovered(name, model_id, source, folder, kind, sum(filter(None, sizes)), _model_type(walk, folder, kind))


def _model_type(walk: _Walk, folder: Path, kind: ModelFormat) -> str:
    if kind not in (ModelFormat.SAFETENSORS, ModelFormat.PICKLE, ModelFormat.ONNX):
        return "other"
    path = folder / "config.json"
    size = walk.size(path)
    if size is None or size > _MAX_CONFIG_BYTES:
        return "llm"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return "llm"  # not told: the loader will see
    modules = walk.size(folder / "modules.json") is not None
    return task_of(config, sentence_transformer=modules) if isinstance(config, dict) else "llm"


def _speakable(name: str, model_id: str) -> bool:
    """A `ModelConfig` takes it; undecodable and control characters are out."""
    return (
        0 < len(name) <= 200
        and len(model_id) <= 1024
        and name == name.strip()
        and model_id.isprintable()
        and "\\" not in name
    )


# -- the hub's cache -----------------------------------------------------------------------------------------------------


def _walk_hub_cache(walk: _Walk) -> list[Discovered]:
    found = []
    for entry in walk.entries(walk.root):
        parts = entry.name.split("--")
        if len(parts) != 3 or parts[0] != "models" or not entry.is_dir(follow_symlinks=False):
            continue
        walk.entries(Path(entry.path, "refs"))
        walk.entries(Path(entry.path, "snapshots"))
        snapshot = snapshot_folder(Path(entry.path), None)
        if snapshot is not None:
            found += _in_snapshot(walk, snapshot, f"{parts[1]}/{parts[2]}")
    return found


def _in_snapshot(walk: _Walk, snapshot: Path, repo: str) -> list[Discovered]:
    names = _names_under(walk, os.fspath(snapshot))
    found: dict[str, Discovered] = {}
    ggufs = gguf_models(names)
    for first in sorted(
        ggufs, key=len, reverse=True
    ):  # of two with one tag, the shorter name is the one `choose` takes
        parts = ggufs[first]
        tag = gguf_tag(first)
        name = f"{repo}:{tag}" if tag else repo
        sizes = [walk.size(snapshot / part) for part in parts]
        if None not in sizes:
            found[name] = Discovered(
                name, name, "hub cache", snapshot / first, ModelFormat.GGUF, sum(filter(None, sizes))
            )
    whole = _folder_model(walk, snapshot, names, name=repo, model_id=repo, source="hub cache")
    return [*found.values(), *([whole] if whole else [])]
