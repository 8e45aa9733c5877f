"""The process that reads a model's code for `scan`. A hostile file can make Python's parser crash or take all memory.

It reads one request, `{"folder": …}` or `{"pickles": [[name, path], …]}`, answers it, and ends. It is confined to reading
the files that the request names.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.processes.confinement import Policy, confine
from lfx_local_runtimes.runtimes.processes.frames import Frame
from lfx_local_runtimes.runtimes.processes.inside import Link
from lfx_local_runtimes.runtimes.trust.model_code import Enclosure, FolderCode, read_folder
from lfx_local_runtimes.runtimes.trust.pickles import read_globals
from lfx_local_runtimes.runtimes.trust.report import MAX_FINDINGS, merged, shown

MEMORY_LIMIT = 2**30


def main(link: Link) -> None:
    """Answer one request."""
    frame = link.receive()
    if frame is not None:
        confine(Policy(read=_needed(frame.header), memory=MEMORY_LIMIT))
        link.send(Frame(answer(frame.header)))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the files hold, as JSON has it."""
    code = read_folder(Path(request["folder"])) if "folder" in request else _pickles(request["pickles"])
    return {
        "files": code.files, "findings": [asdict(finding) for finding in merged(code.found)],
        "imports": sorted(code.imports)[:MAX_FINDINGS], "problems": code.problems,
    }  # fmt: skip


def _needed(request: dict[str, Any]) -> tuple[Path, ...]:
    if "folder" in request:
        return Enclosure(Path(request["folder"])).roots
    return tuple(Path(path).resolve() for _, path in request["pickles"])


def _pickles(files: list[list[str]]) -> FolderCode:
    code = FolderCode()
    for name, path in files:
        looked_up = read_globals(Path(path))
        code.imports |= {shown(one) for one in looked_up.names}
        code.found += [(group, what, name, 0) for group, what in looked_up.found]
        code.problems += [shown(f"{name}: {problem}") for problem in looked_up.problems]
    return code
