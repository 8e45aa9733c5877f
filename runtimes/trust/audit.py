"""The audit log: every approval, refusal and load of code that comes with a model, one JSON line each.

Lines are only ever appended. What a stranger wrote is escaped and cut, so that it cannot end a line or make another. A
line that a full disk cut off stays as it is, and the next one begins on a line of its own.
"""

import errno
import json
import os
import threading
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import filelock

from lfx_local_runtimes.errors import RuntimeFault

Event = Literal["approved", "revoked", "refused", "loaded"]

MAX_LINE = 8192
"""Bytes, with the line's end."""

_MAX_VALUE = 900
"""Bytes of one value in JSON. Eight of them, with their names, are shorter than a line."""

_LOCK_TIMEOUT_S = 10.0
_APPEND = os.O_APPEND | os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class AuditFault(RuntimeFault):
    """The audit log cannot be written."""

    code = "audit_fault"
    default_hint = "Make room on the disk of the data folder, and see that the folder is yours."


@dataclass(frozen=True)
class Entry:
    """What happened. `None` does not apply or is not known."""

    event: Event
    model: str
    kind: str | None = None
    sha256: str | None = None
    revision: str | None = None
    """Which copy of the model: `org/name@commit`, or a folder's path."""
    who: str | None = None
    confinement: str | None = None
    reason: str | None = None


class AuditLog:
    """The log in `path`. Safe to use from any thread and from several processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def write(self, entry: Entry) -> None:
        """Append a line; it is on the disk when this returns.

        Raises:
            AuditFault: it is not.
        """
        line = line_of(entry)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, filelock.FileLock(self.path.with_name(f"{self.path.name}.lock"), timeout=_LOCK_TIMEOUT_S):
                self._append(line)
        except (OSError, filelock.Timeout) as error:
            reason = getattr(error, "strerror", None) or error
            raise AuditFault(f"The audit log {self.path} cannot be written: {reason}.") from error

    def _append(self, line: bytes) -> None:
        file = os.open(self.path, _APPEND, 0o600)
        try:
            size = os.lseek(file, 0, os.SEEK_END)
            if size and os.lseek(file, size - 1, os.SEEK_SET) == size - 1 and os.read(file, 1) != b"\n":
                line = b"\n" + line  # after one that was cut off
            if os.write(file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        finally:
            os.close(file)


def line_of(entry: Entry) -> bytes:
    """The line of an entry, with the time in UTC and the line's end."""
    values: dict[str, Any] = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds")}
    values |= {name: _cut(value) for name, value in asdict(entry).items()}
    line = json.dumps(values, ensure_ascii=True).encode("ascii") + b"\n"
    assert len(line) <= MAX_LINE
    return line


def _cut(value: str | None) -> str | None:
    """A value that takes at most `_MAX_VALUE` bytes in JSON."""
    if value is None:
        return None
    short = value[:_MAX_VALUE]
    while len(json.dumps(short)) > _MAX_VALUE:
        short = short[: len(short) * 3 // 4]
    return short
