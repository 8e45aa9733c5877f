"""Removes a folder when the program that made it has ended, however it ended. Run as a script: `python -I cleaner.py FOLDER`.

The script imports nothing of this package.
"""

import os
import shutil
import sys
import time
from contextlib import suppress

_TRIES = 200
_PAUSE_S = 0.05


def remove(folder: str) -> None:
    """Remove a folder, also where a process has taken away the rights to it."""
    for place, names, _ in os.walk(folder):  # it looks into a folder after this has opened it
        for path in (os.path.join(place, name) for name in names):  # noqa: PTH118 - pathlib takes time to import
            with suppress(OSError):
                if not os.path.islink(path):  # noqa: PTH114
                    os.chmod(path, 0o700)  # noqa: PTH101
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Wait until nobody holds the other end of standard input, then remove the folder."""
    sys.stdin.read()
    for _ in range(_TRIES):  # its process may still be ending
        remove(sys.argv[1])
        if not os.path.exists(sys.argv[1]):  # noqa: PTH110
            break
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()
