"""Linux system calls that Python has no function for, by ctypes."""

import ctypes
import os
import platform
import sys
from functools import lru_cache
from pathlib import Path

PR_SET_NO_NEW_PRIVS = 38

_CAPABILITY_VERSION = 0x20080522
_CAP_DAC_READ_SEARCH = 1 << 2
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPGET = {"x86_64": 125, "aarch64": 90}


def is_linux() -> bool:
    """This process runs on a Linux kernel."""
    return sys.platform.startswith("linux")


def machine() -> str | None:
    """`x86_64` or `aarch64`; None for any other processor and for 32-bit programs, whose numbers are others."""
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    return name if name in _CAPSET and sys.maxsize > 2**32 else None


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _argument(value: int | bytes | ctypes.Array[ctypes.c_char] | None) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


def syscall(what: str, number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make a system call.

    Args:
        what: its name, for the error.
        number: its number on this machine.
        arguments: integers are passed as 64 bits, the others as addresses.

    Raises:
        OSError: the kernel refused it.
    """
    result = int(_libc().syscall(ctypes.c_long(number), *map(_argument, arguments)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def prctl(what: str, option: int, *arguments: int) -> int:
    """Change an attribute of this process.

    Raises:
        OSError: the kernel refused it.
    """
    values = (*arguments, 0, 0, 0, 0)[:4]
    result = int(_libc().prctl(ctypes.c_int(option), *map(ctypes.c_ulong, values)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def thread_names() -> list[str]:
    """The names of all threads of this process, also of those that Python did not start."""
    threads = Path("/proc/self/task").iterdir()
    return [(thread / "comm").read_text(encoding="utf-8", errors="replace").strip() for thread in threads]


def forbid_new_privileges() -> None:
    """No program that this process starts can have more rights than it: the kernel asks for this before a filter."""
    prctl("no_new_privs", PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up the powers of root, if this process has them.

    One stays: reading files without permission. A container often runs as root and reads models of another user.
    Landlock still decides which files these can be.
    """
    name = machine()
    if name is None:
        return
    header = _CAPABILITY_VERSION.to_bytes(4, sys.byteorder) + bytes(4)
    buffer = ctypes.create_string_buffer(24)
    syscall("capget", _CAPGET[name], ctypes.create_string_buffer(header), buffer)
    if not any(buffer.raw):
        return  # an ordinary user has none
    effective, permitted = (int.from_bytes(buffer.raw[at : at + 4], sys.byteorder) for at in (0, 4))
    kept_effective = (effective & _CAP_DAC_READ_SEARCH).to_bytes(4, sys.byteorder)
    kept_permitted = (permitted & _CAP_DAC_READ_SEARCH).to_bytes(4, sys.byteorder)
    data = kept_effective + kept_permitted + bytes(16)  # inheritable: none; then the upper 32 of each
    syscall("capset", _CAPSET[name], ctypes.create_string_buffer(header), ctypes.create_string_buffer(data))
