"""The child's side of a process: what a module that runs in one gets."""

import importlib
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import NoReturn

from lfx_local_runtimes.runtimes.processes.frames import Frame, FrameReader, FrameWriter

_WATCH_S = 0.25


class Link:
    """The pipe to the parent.

    Args:
        requests: the descriptor to read frames from.
        answers: the descriptor to write frames to.
    """

    def __init__(self, requests: int, answers: int) -> None:
        self.reader = FrameReader(open(requests, "rb", buffering=0))  # noqa: SIM115 - open until the process ends
        self.writer = FrameWriter(open(answers, "wb", buffering=0))  # noqa: SIM115

    def receive(self) -> Frame | None:
        """The parent's next frame. None: the parent wants this process to end, or has ended itself.

        Raises:
            ProtocolError: the bytes are not a frame.
        """
        return self.reader.read()

    def send(self, frame: Frame) -> None:
        """Write a frame; from any thread. It blocks while the pipe is full; an `Outbox` does not.

        Raises:
            ProtocolError: the frame is over a limit.
            OSError: the parent has ended.
        """
        self.writer.write(frame)


def child_main(module: str, requests: int, answers: int, parent: int | None) -> NoReturn:
    """Call the module's `main(link)`. What it returns is the exit status; nothing counts as 0.

    The process then ends at once: native libraries crash or hang when the interpreter takes them down.

    Args:
        module: its full name.
        requests: the descriptor to read frames from.
        answers: the descriptor to write frames to.
        parent: watch this process and end with it. None: the kernel does that.
    """
    status = 1
    try:
        if parent is not None and sys.platform != "win32":  # Windows has a job object
            threading.Thread(target=_watch, args=(parent,), name="parent watch", daemon=True).start()
        status = importlib.import_module(module).main(Link(requests, answers)) or 0
    except SystemExit as wish:
        status = wish.code if isinstance(wish.code, int) else int(wish.code is not None)
    except BaseException:  # noqa: BLE001 - the parent keeps the last lines
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(status & 0xFF)


def _watch(parent: int) -> None:
    """Where the kernel does not end this process with its parent (macOS): look every now and then."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)
