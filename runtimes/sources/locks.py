"""Locks between processes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from lfx_local_runtimes.errors import DownloadFailed

_POLL_S = 0.2


@contextmanager
def held_lock(path: Path, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock file `path` while fetching a model.

    Raises:
        DownloadFailed: cancelled while waiting for the lock.
    """
    lock = filelock.FileLock(path)
    while True:
        if cancelled():
            raise DownloadFailed("Cancelled while somebody else was fetching the same model.", hint="Fetch it again.")
        try:
            lock.acquire(timeout=_POLL_S)
            break
        except filelock.Timeout:
            continue
    try:
        yield
    finally:
        lock.release()
