"""What hostile code tries, in the standard library alone. It runs as code of a model, in other confined processes, and free.

A model brings this file beside its own: its source must not name this package. Run as a program, it reads what to attack
as JSON from standard input, prints the outcomes, and then replaces itself by `echo`:

    python attack_code.py < given.json
"""

import ctypes
import json
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Given = dict[str, Any]
Attack = Callable[[Given], object]

_PTRACE_SEIZE = 0x4206
_BLOCK = 2**28
_BLOCKS = 32
"""8 GiB in all: address space, of which no page is touched."""
_LARGE_FILE = 65 * 2**20
_LINES = 1_000_000


def attacks(given: Given) -> dict[str, str]:
    """The outcome of every attack: what it got, or the error that stopped it."""
    return {name: _outcome(attack, given)[:200] for name, attack in ATTACKS.items()}


def _outcome(attack: Attack, given: Given) -> str:
    try:
        return f"done: {attack(given)!r}"
    except BaseException as error:  # noqa: BLE001 - every end is an outcome
        return f"{type(error).__name__}: {error}"


def given_for(
    folder: Path, scratch: Path, model: Path, victim: int, port: int, path: str, *, free: bool = False
) -> Given:
    """What is attacked.

    Args:
        folder: the user's, with a file `secret`.
        scratch: may be written.
        model: a file of the model.
        victim: another process.
        port: on which somebody listens.
        path: of a Unix socket on which somebody listens.
        free: nothing confines the attacks: leave out what would really harm.
    """
    return {
        "home": str(Path("~").expanduser()), "folder": str(folder), "scratch": str(scratch), "model": str(model), "victim": victim, "port": port,
        "path": path, "free": free,
    }  # fmt: skip


def _connect(family: int, where: Any) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.connect(where)


def _fork(given: Given) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def _execute(given: Given) -> None:
    if given["free"]:
        raise NotImplementedError("at the end")
    os.execv("/bin/echo", ["echo", "executed"])


def _trace_parent(given: Given) -> None:
    if given["free"]:
        raise NotImplementedError("it could stop the tests")
    _trace(os.getppid())


def _trace(process: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(_PTRACE_SEIZE, process, None, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _fill_memory(given: Given) -> int:
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return len([mmap.mmap(-1, _BLOCK, flags=private) for _ in range(_BLOCKS)])


def _large_file(given: Given) -> None:
    file = Path(given["scratch"], "large")
    try:
        with file.open("wb") as opened:
            opened.truncate(_LARGE_FILE)
    finally:
        file.unlink(missing_ok=True)


class _Evil:
    """Unpickled, it is a call."""

    def __reduce__(self) -> Any:
        return subprocess.check_output, (["/bin/echo", "unpickled"],)


def _print_lines(given: Given) -> str:
    if given["free"]:
        return "a million lines can always be printed"
    block = b"a line of noise\n" * 1000
    for handle in (1, 2):
        for _ in range(_LINES // 2000):
            os.write(handle, block)
    return "printed"


ATTACKS: dict[str, Attack] = {
    "read a file of the user": lambda given: Path(given["folder"], "secret").read_text(),
    "list a folder of the user": lambda given: [*Path(given["folder"]).iterdir()],
    "list the home": lambda given: len([*Path(given["home"]).iterdir()]),
    "read /etc/passwd": lambda given: len(Path("/etc/passwd").read_text()),
    "read the parent's environment": lambda given: len(Path(f"/proc/{os.getppid()}/environ").read_bytes()),
    "write outside": lambda given: Path(given["folder"], "new").write_text("x"),
    "change the model": lambda given: Path(given["model"]).open("ab").close(),
    "delete a file of the user": lambda given: Path(given["folder"], "deletable").unlink(),
    "internet socket": lambda given: _connect(socket.AF_INET, ("127.0.0.1", given["port"])),
    "Unix socket": lambda given: _connect(socket.AF_UNIX, given["path"]),
    "fork": _fork,
    "start a program": lambda given: subprocess.check_output(["/bin/echo", "started"]),
    "become a program": _execute,
    "unpickle a call": lambda given: pickle.loads(pickle.dumps(_Evil())),
    "signal the parent": lambda given: os.kill(os.getppid(), 0),
    "signal everyone": lambda given: os.kill(-1, 0),
    "trace the parent": _trace_parent,
    "trace a process": lambda given: _trace(given["victim"]),
    "kill a process": lambda given: os.kill(given["victim"], signal.SIGKILL),
    "fill the memory": _fill_memory,
    "fill shared memory": lambda given: mmap.mmap(-1, 2**30).close(),
    "one large file": _large_file,
    "print a million lines": _print_lines,
}


if __name__ == "__main__":
    print(json.dumps(attacks(json.loads(sys.stdin.read()))), flush=True)
    os.execv("/bin/echo", ["echo", "executed"])
