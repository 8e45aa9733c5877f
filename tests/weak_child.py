"""A model's process on a kernel without Landlock, for tests."""

import errno

from lfx_local_runtimes.runtimes.engines.isolated import child
from lfx_local_runtimes.runtimes.processes import landlock
from lfx_local_runtimes.runtimes.processes.inside import Link


def main(link: Link) -> int:
    """As a model's process."""
    landlock.version = _no_landlock
    return child.main(link)


def _no_landlock() -> int:
    raise OSError(errno.ENOSYS, "Function not implemented")
