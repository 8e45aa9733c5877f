"""The first lines of every child process, run as a script: `python -I bootstrap.py MODULE`.

Python starts isolated (`-I`): neither the environment nor the working directory adds to `sys.path`. The parent sends its
own `sys.path` over standard input, before any other module of this package is imported here.
"""

import json
import os
import signal
import site
import sys
from typing import Any

LENGTH_BYTES = 4
_PR_SET_PDEATHSIG = 1


def _receive() -> dict[str, Any]:
    """What the parent hands over. It is trusted."""
    size = int.from_bytes(_exactly(LENGTH_BYTES), "big")
    handover: dict[str, Any] = json.loads(_exactly(size))
    return handover


def _exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:  # the parent has ended
            os._exit(1)
        data += piece
    return data


def die_with(parent: int) -> bool:
    """Ask Linux to kill this process when its parent ends. False: that is not possible here.

    The kernel does it. So it works while native code holds the interpreter, and if nobody reads standard input.
    """
    if sys.platform != "linux":
        return False
    import ctypes

    try:
        asked = bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)
    return asked


def offer_to_oom_killer() -> None:
    """If memory runs out, the kernel shall kill this process rather than its parent."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - pathlib takes time to import
            file.write("1000")
    except OSError:  # not Linux
        pass


def private_pipes() -> tuple[int, int]:
    """Descriptors for the frames: to read, to write. Nothing else uses them.

    After this a native library that prints writes to standard error, and one that reads finds an empty input.
    """
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def main() -> None:
    """Run the module that is named on the command line."""
    handover = _receive()
    bound = die_with(handover["parent"]) if handover["death_signal"] else False
    offer_to_oom_killer()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    requests, answers = private_pipes()
    if sys.stdout is not None:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a text file here
    sys.path[:] = [*handover["path"], *(entry for entry in sys.path if entry not in handover["path"])]
    for folder in handover["site_folders"]:  # editable installs of a user live in files that only `site` reads
        site.addsitedir(folder)

    from lfx_local_runtimes.runtimes.processes.inside import child_main

    child_main(sys.argv[1], requests, answers, None if bound else handover["parent"])


if __name__ == "__main__":
    main()
