"""What a model would run if it were trusted: a static scan, made in a process of its own. Nothing of the model is run."""

import contextlib
import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import InvalidModelFile
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.jsonfile import read_json
from lfx_local_runtimes.runtimes.processes.child import Child, ChildFailure
from lfx_local_runtimes.runtimes.processes.frames import Frame, ProtocolError
from lfx_local_runtimes.runtimes.trust.model_code import Enclosure, combined
from lfx_local_runtimes.runtimes.trust.report import PICKLE, REMOTE_CODE, CodeReport, Kind, findings_of, shown

TIME_LIMIT_S = 120.0
_WORKER = "lfx_local_runtimes.runtimes.trust.worker"
_INDEX = "pytorch_model.bin.index.json"
_BLOCK = 2**20
_MAX_ANSWER = 4 * 2**20
_at_once = threading.BoundedSemaphore(2)


def scan(info: ModelInfo) -> tuple[CodeReport, ...]:
    """A report for each kind of code that comes with a model: Python files, pickle weights. Often none.

    Reads the whole of pickle weights, to hash them. What is wrong is in `problems`; nothing is raised.
    """
    reports = (scan_remote_code(info), scan_pickle(info))
    return tuple(report for report in reports if report is not None)


def source_of(info: ModelInfo) -> str:
    """Which copy of a model this is: `org/name@commit` for a snapshot of the hub's cache, else the folder's path."""
    folder = info.folder.resolve()
    if folder.parent.name == "snapshots":
        repository = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
        return shown_path(f"{repository}@{folder.name}")
    return shown_path(os.fspath(folder))


def shown_path(text: str) -> str:
    """A path as it is stored and shown: whole, with what cannot be printed escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def scan_remote_code(info: ModelInfo) -> CodeReport | None:
    """The Python files that Transformers would run for a model; None if there are none."""
    if info.format is ModelFormat.GGUF:  # its metadata is all that is read
        return None
    found = _ask({"folder": os.fspath(info.folder)})
    if not found.files and not found.problems:
        return None
    return _report(REMOTE_CODE, info, found.files, found, found.problems)


def scan_pickle(info: ModelInfo) -> CodeReport | None:
    """The pickle weights of a model; None if its weights are in another format."""
    if info.format is not ModelFormat.PICKLE:
        return None
    problems: list[str] = []
    weights = _weights(info, problems)
    files = {name: digest for name, path in weights.items() if (digest := _sha256(name, path, problems)) is not None}
    found = _ask({"pickles": [[name, os.fspath(path)] for name, path in weights.items()]})
    return _report(PICKLE, info, files, found, [*problems, *found.problems])


@dataclass(frozen=True)
class _Found:
    files: dict[str, str]
    findings: list[dict[str, Any]]
    imports: list[str]
    problems: list[str]


def _report(kind: Kind, info: ModelInfo, files: dict[str, str], found: _Found, problems: list[str]) -> CodeReport:
    return CodeReport(
        kind, source_of(info), tuple(sorted(map(shown, files))),
        combined(kind, files) if not problems else "", findings_of(found.findings), tuple(found.imports),
        tuple(problems),
    )  # fmt: skip


def _ask(request: dict[str, Any]) -> _Found:
    """Have the worker read; a worker that dies or takes too long is a problem of the model's."""
    try:
        with _at_once, contextlib.closing(Child(_WORKER, name="The scan", max_header=_MAX_ANSWER)) as child:
            return _Found(**child.ask(Frame(request), TIME_LIMIT_S).header)
    except (ChildFailure, ProtocolError, TypeError) as error:
        return _Found({}, [], [], [shown(error)])


# -- weights -------------------------------------------------------------------------------------------------------------


def _weights(info: ModelInfo, problems: list[str]) -> dict[str, Path]:
    """The weight files by their name in the folder: those that were recognised, and those that the index names."""
    enclosure = Enclosure(info.folder)
    paths = [*info.files, *(info.folder / name for name in _indexed(info.folder, problems))]
    return {
        os.path.relpath(path, info.folder).replace(os.sep, "/"): path
        for path in paths
        if _belongs(enclosure, path, problems)
    }


def _indexed(folder: Path, problems: list[str]) -> list[str]:
    try:
        named = read_json(folder / _INDEX).get("weight_map")
    except FileNotFoundError:
        return []
    except (InvalidModelFile, OSError) as error:
        problems.append(shown(f"{_INDEX} cannot be read: {error}"))
        return []
    return sorted({str(value) for value in named.values()}) if isinstance(named, dict) else []


def _belongs(enclosure: Enclosure, path: Path, problems: list[str]) -> bool:
    try:
        if enclosure.holds(path):
            return True
        problem = "leads out of the model's folder"
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    problems.append(shown(f"{path.name} {problem}"))
    return False


def _sha256(name: str, path: Path, problems: list[str]) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        problems.append(shown(f"{name} cannot be read: {error.strerror or error}"))
        return None
    return digest.hexdigest()
