"""The process that reads a model's code for `scan`. A hostile file can make Python's parser crash or take all memory.

It reads one JSON object from stdin, `{"folder": …}` or `{"pickles": [[name, path], …]}`, writes one to stdout, and ends.
"""

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.trust.model_code import FolderCode, read_folder
from lfx_local_runtimes.runtimes.trust.pickles import read_globals
from lfx_local_runtimes.runtimes.trust.report import MAX_FINDINGS, merged, shown

MEMORY_LIMIT = 2 * 2**30
CPU_LIMIT_S = 60


def limit() -> None:
    """Bound memory and time, if the operating system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_LIMIT),
        (resource.RLIMIT_CPU, CPU_LIMIT_S),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS does not limit address space
            resource.setrlimit(kind, (most, most))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the files hold, as JSON has it."""
    code = read_folder(Path(request["folder"])) if "folder" in request else _pickles(request["pickles"])
    return {
        "files": code.files, "findings": [asdict(finding) for finding in merged(code.found)],
        "imports": sorted(code.imports)[:MAX_FINDINGS], "problems": code.problems,
    }  # fmt: skip


def _pickles(files: list[list[str]]) -> FolderCode:
    code = FolderCode()
    for name, path in files:
        looked_up = read_globals(Path(path))
        code.imports |= {shown(one) for one in looked_up.names}
        code.found += [(group, what, name, 0) for group, what in looked_up.found]
        code.problems += [shown(f"{name}: {problem}") for problem in looked_up.problems]
    return code


def main() -> None:
    """Answer one request."""
    limit()
    request = json.loads(sys.stdin.buffer.read())
    sys.stdout.write(json.dumps(answer(request), ensure_ascii=True))


if __name__ == "__main__":
    main()
