"""How a child process ended, in plain words, and the last lines it printed."""

import logging
import signal
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lfx_local_runtimes.runtimes.processes.frames import RawReader

MAX_LINES = 40
MAX_LINE = 1000
"""Bytes of a line. The rest of a longer one is left out."""
_CHUNK = 64 * 2**10
_NTSTATUS = 0x80000000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExitReport:
    """How a child process ended.

    Args:
        status: its exit status. Below zero: minus the number of the signal. None: the system did not say.
        how: the same in words, to follow the name of the process: "ended with exit status 3".
        last_lines: what it printed last.
        on_purpose: this program killed it.
        out_of_memory: the kernel killed it because memory ran out. None: that cannot be told.
    """

    status: int | None
    how: str
    last_lines: tuple[str, ...] = ()
    on_purpose: bool = False
    out_of_memory: bool | None = False

    @property
    def last_line(self) -> str:
        """The last line that is not empty."""
        return next((line for line in reversed(self.last_lines) if line.strip()), "")

    def __str__(self) -> str:
        return f"{self.how} ({self.last_line})" if self.last_line else self.how


class LastLines:
    """Reads what a process prints, to its end, and keeps the last lines. Each line goes to the log at debug level.

    Args:
        file: standard error of the process.
        name: of the process, for the log.
    """

    def __init__(self, file: RawReader, name: str) -> None:
        self._file = file
        self._name = name
        self._lines: deque[bytes] = deque(maxlen=MAX_LINES)
        self._partial = b""

    def read(self) -> None:
        """Read until the pipe ends."""
        with suppress(OSError, ValueError):  # the file was closed here
            while chunk := self._file.read(_CHUNK):
                self._take(chunk)

    def _take(self, chunk: bytes) -> None:
        first, *rest = chunk.split(b"\n")
        self._partial += first[: MAX_LINE - len(self._partial)]
        if not rest:
            return
        whole = [self._partial, *rest[:-1]]
        self._partial = rest[-1][:MAX_LINE]
        if logger.isEnabledFor(logging.DEBUG):
            for line in whole:
                logger.debug("%s: %s", self._name, _text(line))
        self._lines.extend(line[:MAX_LINE] for line in whole[-MAX_LINES:])

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines, oldest first."""
        partial = self._partial
        return tuple(_text(line) for line in [*self._lines, *([partial] if partial else [])][-MAX_LINES:])


def _text(line: bytes) -> str:
    return line[:MAX_LINE].decode("utf-8", "replace").rstrip("\r")


@dataclass(frozen=True)
class OomCount:
    """How many processes the kernel has killed because memory ran out. None: it does not say.

    Args:
        group: in this process's control group, to which its children belong.
        machine: on the whole machine.
    """

    group: int | None = None
    machine: int | None = None

    @classmethod
    def now(cls, root: Path = Path("/")) -> "OomCount":
        """As the kernel counts now. Only Linux does."""
        if sys.platform != "linux":
            return cls()
        return cls(_group_kills(root), _counter(root / "proc/vmstat"))


def _group_kills(root: Path) -> int | None:
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="ascii", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2; a container may see only its own part of the tree
                places = [
                    root / "sys/fs/cgroup" / path.strip("/") / "memory.events",
                    root / "sys/fs/cgroup/memory.events",
                ]
            elif "memory" in controllers.split(","):
                folder = root / "sys/fs/cgroup/memory"
                places = [folder / path.strip("/") / "memory.oom_control", folder / "memory.oom_control"]
            else:
                continue
            for place in places:
                if (kills := _counter(place)) is not None:
                    return kills
    return None


def _counter(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        for line in file.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None


def describe(
    status: int | None, last_lines: tuple[str, ...], *, on_purpose: bool, before: OomCount, after: OomCount
) -> ExitReport:
    """The report of an end.

    Args:
        status: as `subprocess` has it.
        last_lines: what the process printed last.
        on_purpose: this program killed it.
        before: the kernel's count when the process started.
        after: the count now.
    """
    if on_purpose:
        return ExitReport(status, "was killed by this program", last_lines, on_purpose=True)
    if status is None:
        return ExitReport(None, "ended, and the system did not say how", last_lines, out_of_memory=None)
    if status >= 0:
        code = f"0x{status:08X}" if status >= _NTSTATUS else str(status)
        return ExitReport(status, f"ended with exit status {code}", last_lines)
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    if name != "SIGKILL":
        return ExitReport(status, f"ended with signal {name}", last_lines)
    killed = _ran_out(before, after)
    how = {
        True: "was killed by the kernel because the machine ran out of memory",
        False: "was killed from outside (signal SIGKILL)",
        None: "was killed from outside (signal SIGKILL), perhaps because the machine ran out of memory",
    }[killed]
    return ExitReport(status, how, last_lines, out_of_memory=killed)


def _ran_out(before: OomCount, after: OomCount) -> bool | None:
    if before.group is not None and after.group is not None:
        return after.group > before.group
    if before.machine is not None and after.machine is not None and after.machine == before.machine:
        return False
    return None
