"""Finds models that are not registered: in the model folders, the Hugging Face cache and packages.

A walk looks at file names and sizes, and opens no file. Its result is kept, with the times of every folder and file it
looked at. While these times stay the same, the next listing costs one `stat` for each.

A model in a model folder that lacks files is listed too: reading it says what is missing. In the hub's cache such a model
is one that is not fetched yet.
"""

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
from lfx_local_runtimes.runtimes.formats.gguf_names import gguf_tag
from lfx_local_runtimes.runtimes.formats.info import ModelFormat
from lfx_local_runtimes.runtimes.sources.hub import describe, gguf_models, hub_cache, snapshot_folder
from lfx_local_runtimes.runtimes.sources.packages import carriers
from lfx_local_runtimes.settings import Settings

Source = Literal["folder", "hub cache", "package"]

logger = logging.getLogger(__name__)

_MAX_DEPTH = 4
_MAX_LOOKS = 10_000
_CLOCK_TICK_NS = 100_000_000
"""The longest step of file times. Two changes within one step give the same time: the second would not be noticed."""

_WEIGHTS = (".safetensors", ".bin", ".onnx")
_SPLIT_END = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class Discovered:
    """A model found on this machine. `size_bytes` and `format` are None if a package does not give them."""

    name: str
    model_id: str
    """The `model_id` for its `ModelConfig`: a path, a hub id, or the packaged model's name."""
    source: Source
    path: Path | None
    """The file or folder; None for a packaged model that has not been used yet."""
    format: ModelFormat | None
    size_bytes: int | None
    model_type: str = AUTO_TASK
    """Its task, if a package gives it; auto if its files say."""
    pooling: str | None = None
    """How an embedding model's tokens become one vector; set only if its files do not say."""


def discover(settings: Settings, cache: Path | None = None) -> list[Discovered]:
    """Every model found, each name once: model folders come first, then the hub's cache, then packages.

    Args:
        settings: names the model folders and the data folder.
        cache: the hub's cache folder; if unset, the one the environment names.
    """
    found: dict[str, Discovered] = {}
    for root in settings.model_roots:
        for model in _cached_walk(root, _walk_models):
            found.setdefault(model.name, model)
    for model in _cached_walk(cache or hub_cache(settings), _walk_hub_cache):
        found.setdefault(model.name, model)
    for carrier in carriers():
        model = Discovered(
            carrier.name, carrier.name, "package", carrier.ready_path(settings.home), carrier.format, carrier.size_bytes,
            carrier.model_type, carrier.pooling,
        )  # fmt: skip
        found.setdefault(model.name, model)
    return list(found.values())


# -- cached walks --------------------------------------------------------------------------------------------------------

_State = tuple[int, int, int] | None


def _state(path: str) -> _State:
    try:
        stat = os.stat(path)  # noqa: PTH116 - called thousands of times; making a Path is slow
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


class _Walk:
    """The paths that one walk looked at, with their states."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.resolved = root.resolve()
        self.seen: dict[str, _State] = {}
        self.started = time.time_ns()
        self.cut_short = False

    def entries(self, folder: str | Path) -> list["os.DirEntry[str]"]:
        """The entries of a folder by name, without hidden ones. Empty if it cannot be read or the walk is at its limit."""
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
        self.seen[folder] = _state(folder)  # before the folder is read: a change in between is noticed next time
        try:
            with os.scandir(folder) as entries:
                return sorted(
                    (entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name
                )
        except OSError:
            return []

    def size(self, path: str | Path) -> int | None:
        """The size of a file inside the root, links resolved; None for any other path."""
        path = os.fspath(path)
        target = Path(path).resolve()
        if not target.is_relative_to(self.resolved) or not target.is_file():
            return None
        state = self.seen[path] = _state(path)
        return state[1] if state else None

    def is_current(self) -> bool:
        """Whether nothing that the walk looked at has changed."""
        return all(_state(path) == state for path, state in self.seen.items())

    def may_be_cached(self) -> bool:
        """Whether every later change will be noticed: no file time is within one clock step of the walk."""
        return all(state is None or abs(self.started - state[0]) > _CLOCK_TICK_NS for state in self.seen.values())


_walks: dict[tuple[Path, Callable[[_Walk], list[Discovered]]], tuple[_Walk, list[Discovered]]] = {}
_walks_lock = threading.Lock()


def _cached_walk(root: Path, walk_models: Callable[[_Walk], list[Discovered]]) -> list[Discovered]:
    key = (root, walk_models)
    with _walks_lock:
        known = _walks.get(key)
        if known is None or not known[0].is_current():
            walk = _Walk(root)
            known = (walk, walk_models(walk))
            _walks.pop(key, None)
            if walk.may_be_cached():
                _walks[key] = known
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
        if None not in sizes and _is_valid_name(name, path):
            found.append(Discovered(name, path, "folder", Path(path), ModelFormat.GGUF, sum(filter(None, sizes))))
    found += _incomplete_ggufs(walk, folder, prefix, files)
    if not {"config.json", "model_index.json"}.isdisjoint(files):
        layered = (
            "model_index.json" in files or describe(files) is None
        )  # ONNX files often lie in a folder of their own
        names = _names_under(walk, folder) if layered else files
        name = prefix.rstrip("/") or walk.root.name
        model = _folder_model(walk, Path(folder), names, name=name, model_id=folder, source="folder")
        if model is None and not found and describe(names) is None and _is_valid_name(name, folder):
            sizes = [walk.size(f"{folder}/{file}") for file in names if file.endswith(_WEIGHTS)]
            if sizes and None not in sizes:
                model = Discovered(name, folder, "folder", Path(folder), None, sum(filter(None, sizes)))
        if model is not None:
            return [*found, model]
    if depth < _MAX_DEPTH and "model_index.json" not in files:  # the parts of a pipeline are not models
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found += _in_folder(walk, entry.path, f"{prefix}{entry.name}/", depth + 1)
    return found


def _incomplete_ggufs(walk: _Walk, folder: str, prefix: str, files: list[str]) -> list[Discovered]:
    """Split GGUF models that lack a part, by the first part that is there."""
    complete = {part for parts in gguf_models(files).values() for part in parts}
    found: dict[str, Discovered] = {}
    for file in files:
        stem = file[: -len(".gguf")]
        name, path = prefix + _SPLIT_END.sub("", stem), f"{folder}/{file}"
        if file in complete or not file.endswith(".gguf") or not _SPLIT_END.search(stem):
            continue
        if name not in found and walk.size(path) is not None and _is_valid_name(name, path):
            found[name] = Discovered(name, path, "folder", Path(path), ModelFormat.GGUF, None)
    return list(found.values())


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
    if description is None or not _is_valid_name(name, model_id):
        return None
    kind, weights = description
    sizes = [walk.size(folder / weight) for weight in weights]
    if None in sizes:
        return None
    return Discovered(name, model_id, source, folder, kind, sum(filter(None, sizes)))


def _is_valid_name(name: str, model_id: str) -> bool:
    """Whether a `ModelConfig` accepts both; undecodable and control characters are refused."""
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
    ):  # the shorter of two names with the same tag comes last and stays, as in `choose`
        parts = ggufs[first]
        tag = gguf_tag(first)
        name = f"{repo}:{tag}" if tag else repo
        sizes = [walk.size(snapshot / part) for part in parts]
        if None not in sizes:
            found[name] = Discovered(
                name, name, "hub cache", snapshot / first, ModelFormat.GGUF, sum(filter(None, sizes))
            )
    model = _folder_model(walk, snapshot, names, name=repo, model_id=repo, source="hub cache")
    return [*found.values(), *([model] if model else [])]
