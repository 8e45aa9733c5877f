"""Looks after a process from its start to its end: it must give signs of life, and may not fill the disk."""

import threading
import time
from collections.abc import Callable

from lfx_local_runtimes.runtimes.engines.isolated.scratch import Scratch
from lfx_local_runtimes.runtimes.processes.child import Child
from lfx_local_runtimes.runtimes.processes.frames import Frame, Outbox

_PARTS = 10
"""In this many parts of the step limit the process is asked whether its step goes on."""
_LONGEST_S = 30.0
_SCRATCH_S = 0.25
"""How often the size of the scratch folder is looked at."""
_ROOM = 2**20
"""Bytes. While more than that waits for the process, a ping would only wait behind it."""


class Guard:
    """A thread beside one process. It ends with the process.

    Args:
        child: the process.
        outbox: to it.
        scratch: the folder that it may write, if there is one.
        limit_s: seconds that a step may take, and that an answer to a ping may take.
        busy: the process has something to do. While it has nothing to do, it is not asked.
        kill: ends the process, with the reason.
    """

    def __init__(
        self, child: Child, outbox: Outbox, scratch: Scratch | None, limit_s: float, *, busy: Callable[[], bool],
        kill: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._child = child
        self._outbox = outbox
        self._scratch = scratch
        self._limit_s = limit_s
        self._busy = busy
        self._kill = kill
        self._asked: float | None = None
        """Since when a sign of life is waited for."""
        self._sent = False
        """The ping is on its way."""
        self._thread = threading.Thread(target=self._run, name=f"{child.name} guard", daemon=True)
        self._thread.start()

    def pong(self, step_s: float) -> None:
        """The process lives; its step has taken so long up to now."""
        self._asked, self._sent = None, False
        if step_s > self._limit_s:
            self._kill(f"a step ran for more than {self._limit_s:g} s (LOCAL_RUNTIMES_STEP_LIMIT_S)")

    def join(self, wait_s: float) -> None:
        """Wait for the thread. The process has ended."""
        self._thread.join(wait_s)

    def _run(self) -> None:
        wait = min(self._limit_s / _PARTS, _LONGEST_S)
        due = time.monotonic() + wait
        while self._child.wait(wait if self._scratch is None else min(wait, _SCRATCH_S)) is None:
            if self._scratch is not None and (why := self._scratch.overrun(self._child.pid)):
                self._kill(why)
            if time.monotonic() >= due:
                self._look()
                due = time.monotonic() + wait

    def _look(self) -> None:
        now = time.monotonic()
        if not self._busy():
            self._asked, self._sent = None, False
            return
        if self._asked is None:
            self._asked = now
        if not self._sent and self._outbox.waiting < _ROOM:
            self._sent = True
            try:
                self._outbox.put(Frame({"t": "ping"}))
            except BrokenPipeError:  # the process has ended
                return
        if self._asked is not None and now - self._asked > self._limit_s:
            self._kill(f"it gave no sign of life for {self._limit_s:g} s (LOCAL_RUNTIMES_STEP_LIMIT_S)")
