"""What the children of `test_child` run: each function is a child's `main`, chosen by the first frame."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.processes.frames import Frame, Outbox
from lfx_local_runtimes.runtimes.processes.inside import Link

FOREVER_S = 600


def main(link: Link) -> int | None:
    """Do what the first frame says."""
    first = link.receive()
    if first is None:
        return 0
    does = globals()[first.header["do"]]
    status: int | None = does(link, **{name: value for name, value in first.header.items() if name != "do"})
    return status


def echo(link: Link) -> None:
    """Each frame goes back."""
    while (frame := link.receive()) is not None:
        link.send(frame)


def prints(link: Link) -> None:
    """Prints in every way there is, between frames."""
    for number in range(20):
        print("python", number)
        os.write(1, b"descriptor 1\n")
        libc = ctypes.CDLL(None)
        libc.puts(b"native puts")
        libc.fflush(None)
        subprocess.run(["echo", "a program"], check=True)
        link.send(Frame({"n": number}, (b"\n" * number,)))
    link.send(Frame({"stdin": sys.stdin.read(), "descriptor": os.read(0, 10).decode()}))


def floods(link: Link, lines: int, length: int) -> None:
    """Prints much, at once."""
    block = b"".join(b"%d %s\n" % (number, b"x" * length) for number in range(1000))
    for _ in range(lines // 1000):
        os.write(2, block)
    os.write(2, b"the last line\n")
    link.send(Frame({}))


def one_line(link: Link, size: int) -> None:
    """Prints much without a line's end."""
    for _ in range(size // 2**16):
        os.write(2, b"y" * 2**16)
    link.send(Frame({}))


def about(link: Link) -> None:
    """What this process is."""
    link.send(
        Frame(
            {
                "pid": os.getpid(),
                "session": os.getsid(0),
                "path": sys.path,
                "environment": dict(os.environ),
                "folder": str(Path.cwd()),
                "isolated": sys.flags.isolated,
                "oom": Path("/proc/self/oom_score_adj").read_text() if sys.platform == "linux" else None,
                "descriptors": [path.name for path in Path("/proc/self/fd").iterdir()]
                if sys.platform == "linux"
                else None,
                "modules": sorted(sys.modules),
            }
        )
    )


def ends(link: Link, how: str) -> int:
    """Ends in one way or another, after a word."""
    print("The last words.", flush=True)
    if how == "raise":
        raise ValueError("something is wrong")
    if how == "exit":
        sys.exit(4)
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
    if how == "native":
        ctypes.string_at(0)
    if how == "cut":
        os.write(link.writer._file.fileno(), b"\xf5L\x00\x00\x00\x00\x00\x09{")  # type: ignore[attr-defined]
    if how == "false frame":
        os.write(link.writer._file.fileno(), b"no frame")  # type: ignore[attr-defined]
        time.sleep(FOREVER_S)
    if how == "closes":
        link.writer.close()
        time.sleep(FOREVER_S)
    return 3


def deaf(link: Link) -> None:
    """Neither reads nor answers, nor looks at the end of its input."""
    print("deaf", flush=True)
    link.send(Frame({}))
    time.sleep(FOREVER_S)


def holds_interpreter(link: Link) -> None:
    """Native code that never lets another Python thread run."""
    link.send(Frame({}))
    ctypes.PyDLL(None).sleep(FOREVER_S)


def spins(link: Link) -> None:
    """Python code that never ends."""
    link.send(Frame({}))
    while True:
        pass


def slow_end(link: Link) -> int:
    """Finishes in peace when its input ends."""
    link.send(Frame({}))
    while link.receive() is not None:
        pass
    print("finished in peace", end="")
    return 5


def has_children(link: Link) -> None:
    """Starts a process of its own that would stay."""
    process = subprocess.Popen(["sleep", str(FOREVER_S)])
    link.send(Frame({"pid": process.pid}))
    link.receive()


def grows(link: Link, size: int) -> None:
    """Takes memory."""
    memory = bytearray(os.urandom(2**20) * (size // 2**20))
    link.send(Frame({"size": len(memory)}))
    link.receive()


def events(link: Link, count: int) -> None:
    """Sends many small frames through an outbox."""
    outbox = Outbox(link.writer)
    for number in range(count):
        outbox.put(Frame({"n": number, "text": " token"}))
    outbox.close(FOREVER_S)


def threads(link: Link) -> None:
    """The threads it has at its start."""
    found: list[Any] = [thread.name for thread in threading.enumerate()]
    link.send(Frame({"threads": found}))
    link.receive()
    time.sleep(FOREVER_S)
