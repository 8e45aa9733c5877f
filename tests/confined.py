"""Python code run in a process that is confined, or free to compare; what its attacks came to is reported as JSON."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.processes.confinement import Policy
from lfx_local_runtimes.runtimes.processes.environment import child_environment

PRELUDE = """
import ctypes, json, os, sys
from pathlib import Path
from lfx_local_runtimes.runtimes.processes import confinement, landlock, linux, seccomp

given = json.loads(sys.argv[1])
policy = confinement.Policy.from_json(given["policy"])
values = given["values"]
report = {}
libc = ctypes.CDLL(None, use_errno=True)


def native(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def attempt(name, action):
    try:
        report[name] = f"done: {action()!r}"[:200]
    except BaseException as error:
        report[name] = f"{type(error).__name__}: {error}"


def enter():
    if values.get("free"):
        return None
    return confinement.confine(policy)

"""

LIMIT_S = 120


def run_child(source: str, policy: Policy | None = None, *, stdin: int | None = None, **values: Any) -> dict[str, str]:
    """What `source` left in `report`.

    Args:
        source: Python code that calls `enter()` and then `attempt(name, action)`.
        policy: for `enter`.
        stdin: a terminal to give to the process.
        values: for the code, as JSON. `free` turns `enter` into nothing.
    """
    process = start_child(source + "\nprint(json.dumps(report))", policy, stdin=stdin, **values)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, f"exit code {process.returncode}: {err[-4000:]}"
    result: dict[str, str] = json.loads(out.splitlines()[-1])
    return result


def start_child(
    source: str, policy: Policy | None = None, *, stdin: int | None = None, **values: Any
) -> "subprocess.Popen[str]":
    """The process, running."""
    data = json.dumps({"policy": (policy or Policy()).to_json(), "values": values})
    scratch = policy.write[0] if policy and policy.write else None
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + source, data],
        stdin=subprocess.PIPE if stdin is None else stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).anchor,
        start_new_session=True,
        env=child_environment({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}, scratch=scratch),
    )
