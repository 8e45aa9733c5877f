"""Landlock: which files this process can open from now on. A thread that exists already is not restricted."""

import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from lfx_local_runtimes.runtimes.processes import linux

# The same numbers on every processor.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = (1 << bit for bit in range(6, 13))
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FOR_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""The rights that a rule for a single file may name."""

_READ = _READ_FILE | _READ_DIR
_DEVICE = _READ | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
_WRITE = _READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER
"""No links, pipes, sockets or devices: whoever reads the folder afterwards must not be led elsewhere by them."""

_ALL_NETWORK = 3
_ALL_SCOPES = 3

TRUNCATION_ABI = 3
"""From this version on Landlock also decides who may shorten a file."""

_pinned: list[int] = []
"""Open handles. The kernel forgets files of /proc when memory is short, and a rule for one with it, unless it is open."""


def version() -> int:
    """The version of Landlock's interface (ABI).

    Raises:
        OSError: the kernel has none, or it is switched off.
    """
    return linux.syscall("landlock_create_ruleset", _CREATE_RULESET, None, 0, _VERSION_FLAG)


def why_missing(error: OSError) -> str:
    """Plain words for the error of `version`."""
    if error.errno == errno.EOPNOTSUPP:
        return "Landlock is switched off in this kernel (boot option lsm=): files are not restricted"
    if error.errno == errno.ENOSYS:
        return "the kernel has no Landlock (Linux 5.13 or newer has it): files are not restricted"
    return f"Landlock cannot be used here ({os.strerror(error.errno or 0)}): files are not restricted"


def restrict(read: Iterable[Path], write: Iterable[Path], devices: Iterable[Path]) -> int:
    """Give up every file but these, for good; returns Landlock's version.

    Args:
        read: files, and folders with all they contain.
        write: folders in which files and folders may be made, changed and deleted, and files that may be written.
        devices: device files, and folders of them.

    Raises:
        OSError: a path does not exist, or the kernel refused a step. Nothing is restricted then.
    """
    abi = version()
    handled = _handled(abi)
    attributes = struct.pack("=Q", handled)
    if abi >= 4:
        attributes += struct.pack("=Q", _ALL_NETWORK)
    if abi >= 6:
        attributes += struct.pack("=Q", _ALL_SCOPES)  # signals and abstract sockets of other processes
    rules = linux.syscall("landlock_create_ruleset", _CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for paths, rights in ((read, _READ), (write, _WRITE), (devices, _DEVICE)):
            for path in paths:
                _add(rules, path, rights & handled)
        linux.forbid_new_privileges()
        linux.syscall("landlock_restrict_self", _RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return abi


def _handled(abi: int) -> int:
    rights = _REFER - 1
    for right, since in ((_REFER, 2), (_TRUNCATE, TRUNCATION_ABI), (_IOCTL_DEV, 5)):
        if abi >= since:
            rights |= right
    return rights


def _add(rules: int, path: Path, rights: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not path.is_dir():
            rights &= _FOR_FILES
        rule = struct.pack("=Qi", rights, handle)
        linux.syscall(f"landlock_add_rule {path}", _ADD_RULE, rules, _RULE_PATH_BENEATH, rule, 0)
    except BaseException:
        os.close(handle)
        raise
    if path.is_relative_to("/proc"):
        _pinned.append(handle)
    else:
        os.close(handle)
