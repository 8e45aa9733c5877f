"""Where child processes are started, and what happens to them if this process forks or exits.

One thread starts all children and lives as long as this process. Linux can end a child together with its parent
(`PR_SET_PDEATHSIG`), but the parent there is the *thread* that started the child. A model is loaded on a thread that ends
soon, so a child that was started there would be killed in the middle of its work.
"""

import atexit
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from subprocess import Popen
from typing import Protocol

Start = Callable[[], "Popen[bytes]"]


class Owned(Protocol):
    """A child of this process."""

    def kill(self) -> None: ...

    def close(self, grace_s: float) -> None: ...

    def abandon(self) -> None: ...


_starting = threading.Lock()
"""Held while a process is started. A fork waits for it: the fork would keep the new pipes open."""
_lock = threading.Lock()
_jobs: "SimpleQueue[tuple[Future[Popen[bytes]], Start]] | None" = None
_children: set[Owned] = set()
_exiting = False


def start_process(start: Start) -> "Popen[bytes]":
    """Call `start` on the long-lived thread.

    Raises:
        OSError: what `start` raises.
        RuntimeError: the interpreter is about to exit.
    """
    global _jobs  # noqa: PLW0603 - one thread for the process
    future: Future[Popen[bytes]] = Future()
    with _lock:
        if _exiting:
            raise RuntimeError("the interpreter is about to exit")
        if _jobs is None:
            jobs: SimpleQueue[tuple[Future[Popen[bytes]], Start]] = SimpleQueue()
            threading.Thread(target=_serve, args=(jobs,), name="process spawner", daemon=True).start()
            _jobs = jobs
        _jobs.put((future, start))
    try:
        return future.result()
    except BaseException:  # Ctrl-C while waiting: nobody will own the process
        future.add_done_callback(_discard)
        raise


def _serve(jobs: "SimpleQueue[tuple[Future[Popen[bytes]], Start]]") -> None:
    while True:
        future, start = jobs.get()
        try:
            with _starting:
                process = start()
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            future.set_exception(error)
        else:
            future.set_result(process)
            del process
        del future, start


def _discard(future: "Future[Popen[bytes]]") -> None:
    if future.exception() is None:
        process = future.result()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def adopt(child: Owned) -> None:
    """Remember a child until `release`: it ends with this process."""
    _children.add(child)


def release(child: Owned) -> None:
    """Forget a child that has ended."""
    _children.discard(child)


def _exit() -> None:
    """Before the interpreter exits: end all children. First all are killed, then all are waited for."""
    global _exiting  # noqa: PLW0603
    with _lock:
        _exiting = True
    children = [*_children]
    for child in children:
        child.kill()
    for child in children:
        child.close(0)


def _after_fork() -> None:
    """In a forked process: there is no thread but this one, and the children belong to the parent."""
    global _jobs, _lock  # noqa: PLW0603
    _jobs = None
    _lock = threading.Lock()
    children = [*_children]
    _children.clear()
    for child in children:
        child.abandon()
    _starting.release()


atexit.register(_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_after_fork)
