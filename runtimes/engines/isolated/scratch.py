"""The one folder that a model's process may write, for models that bring code. It is watched, and always removed."""

import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from lfx_local_runtimes.runtimes.processes import cleaner, spawner
from lfx_local_runtimes.runtimes.processes.written import overrun

MAX_BYTES = 256 * 2**20
"""What a process may keep there."""
LARGEST_FILE = 64 * 2**20
"""The largest file that a confined process can write."""
_END_S = 5.0


class Scratch:
    """A folder for one process.

    A small program removes the folder if this one is killed. It has nothing else to do.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="lfx-local-runtimes-"))
        try:
            self._cleaner = spawner.start_process(self._start_cleaner)
        except BaseException:
            cleaner.remove(str(self.path))
            raise

    def _start_cleaner(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-I", "-S", cleaner.__file__, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.path.parent,
            start_new_session=True,
        )

    def close(self) -> None:
        """Remove the folder. The process that wrote to it has ended."""
        cleaner.remove(str(self.path))
        assert self._cleaner.stdin is not None
        with suppress(OSError):
            self._cleaner.stdin.close()
        try:
            self._cleaner.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._cleaner.kill()
            self._cleaner.wait()

    def overrun(self, pid: int) -> str | None:
        """Why the process has to end, in words that follow "was killed:"; None while it keeps to the limits."""
        return overrun(self.path, pid, MAX_BYTES, LARGEST_FILE)
