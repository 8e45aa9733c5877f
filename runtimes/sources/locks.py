"""Locks between processes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import filelock

from lfx_local_runtimes.errors import DownloadFailed

_POLL_S = 0.2


def lock_folder(repo: Path) -> Path:
    """The locks of a repository in the hub's cache: `<digest>.lock` for each file. The hub's client uses the same ones."""
    return repo.parent / ".locks" / repo.name


@contextmanager
def locks_without_waiting(paths: Iterable[Path]) -> Iterator[None]:
    """Hold several lock files.

    Raises:
        filelock.Timeout: somebody else holds one of them.
    """
    with ExitStack() as held:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(filelock.FileLock(path).acquire(timeout=0))
        yield


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
