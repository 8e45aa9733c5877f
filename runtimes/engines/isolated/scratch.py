"""The one folder that a model's process may write, for models that bring code. It is watched, and always removed."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lfx_local_runtimes.runtimes.engines.isolated import cleaner
from lfx_local_runtimes.runtimes.processes import spawner

MAX_BYTES = 256 * 2**20
"""What a process may keep there."""
MAX_FILES = 10_000
_LARGEST_FILE = 64 * 2**20
"""The largest file that a confined process can write."""
_BLOCK = 512
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
        """Why the process has to end, in words that follow "was killed:"; None while it keeps to the limits.

        Files that are in no folder any more count too, if the process still has them open or mapped.
        """
        size = count = 0
        try:
            for found in self._files():
                size += found.st_blocks * _BLOCK
                count += 1
                if count > MAX_FILES:
                    return f"it made more than {MAX_FILES:,} files"
        except PermissionError:
            return "it locked a folder that it may write"
        if size + _hidden(pid, self.path) > MAX_BYTES:
            return f"it wrote more than {MAX_BYTES // 2**20} MiB"
        return None

    def _files(self) -> Iterator[os.stat_result]:
        folders = [self.path]
        while folders:
            with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(Path(entry.path))
                        yield entry.stat(follow_symlinks=False)


def _hidden(pid: int, folder: Path) -> int:
    """Bytes of files that were in the folder, have no name any more, and are kept by the process. Only Linux tells."""
    size, known = 0, set[int]()
    beneath = f"{folder}{os.sep}"
    with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as handles:
        for handle in handles:
            with suppress(OSError):
                link = Path(handle.path)
                if not str(link.readlink()).startswith(beneath):
                    continue
                found = link.stat()
                if stat.S_ISREG(found.st_mode) and not found.st_nlink and found.st_ino not in known:
                    known.add(found.st_ino)
                    size += found.st_blocks * _BLOCK
    with suppress(OSError, ValueError):
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
        for line in maps.splitlines():
            if line.endswith(" (deleted)") and beneath in line:
                inode = int(line.split(None, 5)[4])
                if inode not in known:  # its size cannot be seen from here
                    known.add(inode)
                    size += _LARGEST_FILE
    return size
