"""How much a confined process has written to the one folder that it may write. The kernel limits single files only."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MAX_FILES = 10_000
_BLOCK = 512


def overrun(folder: Path, pid: int, max_bytes: int, largest: int) -> str | None:
    """Why a process has to end, in words that follow "was killed:"; None while it keeps to the limits.

    Files that are in no folder any more count too, if the process still has them open or mapped.

    Args:
        folder: that it may write.
        pid: of the process.
        max_bytes: that it may keep there.
        largest: bytes of the largest file that it can write.
    """
    size = count = 0
    try:
        for found in _files(folder):
            size += found.st_blocks * _BLOCK
            count += 1
            if count > MAX_FILES:
                return f"it made more than {MAX_FILES:,} files"
    except PermissionError:
        return "it locked a folder that it may write"
    if size + _hidden(pid, folder, largest) > max_bytes:
        return f"it wrote more than {max_bytes // 2**20:,} MiB"
    return None


def _files(folder: Path) -> Iterator[os.stat_result]:
    folders = [folder]
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    yield entry.stat(follow_symlinks=False)


def _hidden(pid: int, folder: Path, largest: int) -> int:
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
                    size += largest
    return size
