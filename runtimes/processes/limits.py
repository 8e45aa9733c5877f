"""Limits that the kernel keeps for a process: memory, size of a file, open files, threads, core dumps."""

from contextlib import suppress
from pathlib import Path

OPEN_FILES = 4096
SPARE_THREADS = 4096
"""What the user may still start when the engine has reached its limit of threads. Root has no such limit."""

MAX_STACK = 64 * 2**20
OOM_SCORE = 1000

_CORE_BYTES = 1
"""One byte, not 0: a core dump that goes to a program ignores a limit of 0."""


def offer_to_oom_killer() -> None:
    """If the machine runs out of memory, the kernel ends this process first."""
    with suppress(OSError):  # there is no /proc, or a container forbids it
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")


def restrict(memory: int | None, file_size: int) -> None:
    """Lower this process's limits, for good.

    Args:
        memory: bytes of private memory, all libraries included. The kernel refuses more: MemoryError in Python. None
            sets no limit.
        file_size: bytes of one written file.

    Raises:
        OSError, ValueError: the kernel refused a limit.
    """
    import resource

    core = _smaller(resource.getrlimit(resource.RLIMIT_CORE)[1], _CORE_BYTES)
    resource.setrlimit(resource.RLIMIT_CORE, (core, core))
    _lower(resource.RLIMIT_FSIZE, file_size)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)
    _lower(resource.RLIMIT_NPROC, _threads_of_all() + SPARE_THREADS)
    if memory is not None:
        _lower(resource.RLIMIT_DATA, memory)
        _lower(resource.RLIMIT_STACK, MAX_STACK)  # the limit above does not count the stack


def _lower(limit: int, value: int) -> None:
    import resource

    now, highest = resource.getrlimit(limit)
    resource.setrlimit(limit, (_smaller(now, value), _smaller(highest, value)))


def _smaller(limit: int, value: int) -> int:
    import resource

    return value if limit == resource.RLIM_INFINITY else min(limit, value)


def _threads_of_all() -> int:
    """Threads on this machine now, of every user."""
    try:
        return int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[2])
    except (OSError, IndexError, ValueError):
        return 2**15
