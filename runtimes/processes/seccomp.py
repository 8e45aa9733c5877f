"""seccomp: which system calls this process can make from now on.

The filter is a program for the kernel's packet-filter machine. It reads the call's number and arguments, and answers with
an action. It allows what it does not name, so that it must name everything that reaches out of the process: `syscalls`
lists it. A filter sees numbers and addresses, not what an address points to: it cannot decide about paths.
"""

import ctypes
import errno
import os
import struct
from dataclasses import dataclass

from lfx_local_runtimes.runtimes.processes import linux, syscalls

Instruction = tuple[int, int, int, int]
"""Operation, how far to jump if true, how far if false, value."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_SET_MODE_FILTER, _GET_ACTION_AVAILABLE = 1, 2
_KEEP_SPECULATION = 1 << 2
"""Without it, kernels before 5.16 slow the whole process down, against attacks within one process."""

_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_ERROR = 0x00050000

_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16

_ALLOWED: Instruction = (_RETURN, 0, 0, _ALLOW)
_DENIED: Instruction = (_RETURN, 0, 0, _ERROR | errno.EPERM)
_UNKNOWN: Instruction = (_RETURN, 0, 0, _ERROR | errno.ENOSYS)
"""As an old kernel answers: the C library then takes another way."""
_PRETENDED: Instruction = (_RETURN, 0, 0, _ERROR)
"""The call reports success and does nothing."""
_KILLED: Instruction = (_RETURN, 0, 0, _KILL)

_CLONE_THREAD = 0x00010000
_CLONE_NEW_NAMESPACES = 0x7E020000
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF
_MAP_SHARED_ANONYMOUS = 0x21
_O_ACCMODE_AND_TRUNC = 0o1003
_O_TRUNC = 0o1000
_PRIO_PROCESS, _IOPRIO_WHO_PROCESS = 0, 1

_REFUSED_PRCTL = (
    1,  # PR_SET_PDEATHSIG: it would outlive its parent
    4,  # PR_SET_DUMPABLE: the parent could not read its memory use
    8, 28, 35, 36, 47,  # KEEPCAPS, SECUREBITS, MM, CHILD_SUBREAPER, CAP_AMBIENT
    62,  # PR_SCHED_CORE: it takes another process's number
    0x59616D61,  # PR_SET_PTRACER
)  # fmt: skip
_REFUSED_FCNTL = (
    8, 10, 15,  # F_SETOWN, F_SETSIG, F_SETOWN_EX: any signal to any process of the user
    1024, 1026,  # F_SETLEASE, F_NOTIFY: holding up and watching those who open a file
)  # fmt: skip
_ALLOWED_IOCTL = (
    0x5401, 0x802C542A,  # TCGETS, TCGETS2: is it a terminal?
    0x540F, 0x5413,  # TIOCGPGRP, TIOCGWINSZ
    0x541B, 0x5421, 0x5450, 0x5451,  # FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
)  # fmt: skip
_REFUSED_IOCTL = (
    0x5402, 0x5403, 0x5404, 0x402C542B, 0x402C542C, 0x402C542D,  # TCSETS…, TCSETS2…: change the terminal
    0x540E, 0x5410, 0x5412, 0x5414, 0x541C, 0x541D, 0x5422, 0x5423,  # TIOCSCTTY, SPGRP, STI, SWINSZ, LINUX, CONS, NOTTY, SETD
    0x8901, 0x8902,  # FIOSETOWN, SIOCSPGRP: signals to others
    0x40086602, 0x40087602, 0x401C5820,  # FS_IOC_SETFLAGS, SETVERSION, FSSETXATTR
)  # fmt: skip
"""With a device allowed, whose own commands are many and not all documented."""


@dataclass(frozen=True)
class Exceptions:
    """What differs between engines."""

    devices: bool = False
    """It drives a graphics card. CUDA's driver makes a Unix socket and shared memory of its own."""

    shared_memory: bool = False
    """It may take memory that the limit of private memory does not count."""

    truncation: bool = True
    """Landlock decides who may shorten a file, so that the filter need not."""


class SeccompMissingError(Exception):
    """This machine cannot filter system calls; says why."""


def check_available() -> None:
    """Ask the kernel, and change nothing.

    Raises:
        SeccompMissingError: the filter cannot be installed.
    """
    machine = linux.machine()
    if machine is None:
        raise SeccompMissingError("there is no filter of system calls for this processor")
    action = ctypes.create_string_buffer(struct.pack("=I", _KILL))
    try:
        linux.syscall("seccomp", _seccomp_number(machine), _GET_ACTION_AVAILABLE, 0, action)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise SeccompMissingError(f"the kernel cannot filter system calls (seccomp: {reason})") from error


def install(exceptions: Exceptions) -> None:
    """Give up the system calls, for good. Threads that exist already keep them.

    Raises:
        SeccompMissingError: this machine cannot filter system calls.
        OSError: the kernel refused the filter.
    """
    check_available()
    machine = linux.machine()
    assert machine is not None
    program = build(machine, os.getpid(), exceptions)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    address = struct.pack("=H6xQ", len(program), ctypes.addressof(code))
    linux.forbid_new_privileges()
    number = _seccomp_number(machine)
    try:
        linux.syscall("seccomp", number, _SET_MODE_FILTER, _KEEP_SPECULATION, address)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 4.17 the kernel does not know the flag
            raise
        linux.syscall("seccomp", number, _SET_MODE_FILTER, 0, address)


def build(machine: str, own_pid: int, exceptions: Exceptions) -> list[Instruction]:
    """The filter for a process.

    Args:
        machine: one of `syscalls.MACHINES`.
        own_pid: the process that it may signal.
        exceptions: what this engine may do besides.
    """
    program = [
        _load(_ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        _KILLED,  # a 32-bit call: its numbers mean other calls
        _load(_NUMBER_AT),
    ]
    # On x86_64 this refuses the x32 calls too: their numbers start at 0x40000000.
    program += [(_GREATER_EQUAL, 0, 1, syscalls.NEWEST + 1), _UNKNOWN]
    conditions = _conditions(own_pid, exceptions)
    for name, numbers in {**syscalls.CONDITIONAL, **syscalls.DENIED, **syscalls.PRETENDED}.items():
        number = syscalls.number(numbers, machine)
        if number is None:
            continue
        if name in conditions:
            block = conditions[name]
        elif name in syscalls.DENIED:
            block = [_DENIED]
        elif name in syscalls.PRETENDED:
            block = [_PRETENDED]
        else:
            continue
        program += [(_EQUAL, 0, len(block), number), *block]
    return [*program, _ALLOWED]


def _conditions(own_pid: int, exceptions: Exceptions) -> dict[str, list[Instruction]]:
    """What becomes of each conditional call; one that is not named is allowed."""
    to_itself = _argument_in(0, (own_pid,))
    to_this_thread = _argument_in(0, (0, own_pid))
    found = {
        "clone": [
            _load_argument(0),
            (_ANY_BIT, 2, 0, _CLONE_NEW_NAMESPACES),
            (_ANY_BIT, 0, 1, _CLONE_THREAD),
            _ALLOWED,
            _DENIED,
        ],
        "clone3": [_UNKNOWN],  # its flags are behind an address; the C library goes back to clone
        "socket": [_DENIED],
        "bind": [_DENIED],
        "socketpair": [  # asyncio wakes its loop with one; a datagram socket could write to any other
            _load_argument(0),
            (_EQUAL, 0, 4, _AF_UNIX),
            _load_argument(1),
            (_AND, 0, 0, _SOCK_TYPE_MASK),
            (_EQUAL, 0, 1, _SOCK_STREAM),
            _ALLOWED,
            _DENIED,
        ],
        "sendto": _argument_is_null(4),
        "kill": to_itself,
        "tkill": to_itself,
        "tgkill": to_itself,
        "rt_sigqueueinfo": to_itself,
        "rt_tgsigqueueinfo": to_itself,
        "prctl": _argument_in(0, _REFUSED_PRCTL, found=_DENIED, otherwise=_ALLOWED),
        "prlimit64": _argument_is_null(2),  # asking for a limit is allowed, setting one is not
        "fcntl": _argument_in(1, _REFUSED_FCNTL, found=_DENIED, otherwise=_ALLOWED),
        "ioctl": _argument_in(1, _ALLOWED_IOCTL),
        # A library may tie its threads to processors, but their numbers cannot be told from other processes'. It is told
        # that it did: libgomp ends the process at an error.
        "sched_setaffinity": _argument_in(0, (0, own_pid), otherwise=_PRETENDED),
        "sched_setscheduler": to_this_thread,
        "sched_setparam": to_this_thread,
        "sched_setattr": to_this_thread,
        "setpriority": _arguments_are(_PRIO_PROCESS, 0),
        "ioprio_set": _arguments_are(_IOPRIO_WHO_PROCESS, 0),
    }
    if exceptions.devices:
        found["socket"] = _argument_in(0, (_AF_UNIX,))
        found["bind"] = [_ALLOWED]
        found["ioctl"] = _argument_in(1, _REFUSED_IOCTL, found=_DENIED, otherwise=_ALLOWED)
    if not exceptions.shared_memory:
        found["mmap"] = [
            _load_argument(3),
            (_AND, 0, 0, _MAP_SHARED_ANONYMOUS),
            (_EQUAL, 0, 1, _MAP_SHARED_ANONYMOUS),
            _DENIED,
            _ALLOWED,
        ]
        found["memfd_create"] = [_DENIED]
    if not exceptions.truncation:
        found["truncate"] = [_DENIED]
        found["open"] = _opens_to_read_and_truncate(1)
        found["openat"] = _opens_to_read_and_truncate(2)
        found["openat2"] = [_UNKNOWN]
    return found


def _load(offset: int) -> Instruction:
    return (_LOAD, 0, 0, offset)


def _load_argument(index: int) -> Instruction:
    """Its lower 32 bits: all that the kernel reads of a number of type int."""
    return _load(_ARGUMENTS_AT + 8 * index)


def _argument_in(
    index: int,
    values: tuple[int, ...],
    *,
    found: Instruction = _ALLOWED,
    otherwise: Instruction = _DENIED,
) -> list[Instruction]:
    tests = [(_EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)]
    return [_load_argument(index), *tests, otherwise, found]


def _arguments_are(*values: int) -> list[Instruction]:
    """The first arguments are these."""
    block: list[Instruction] = [_ALLOWED, _DENIED]
    for index, value in reversed(list(enumerate(values))):
        block = [_load_argument(index), (_EQUAL, 0, len(block) - 1, value), *block]
    return block


def _argument_is_null(index: int) -> list[Instruction]:
    low, high = _load_argument(index), _load(_ARGUMENTS_AT + 8 * index + 4)
    return [low, (_EQUAL, 0, 3, 0), high, (_EQUAL, 0, 1, 0), _ALLOWED, _DENIED]


def _opens_to_read_and_truncate(flags: int) -> list[Instruction]:
    """Landlock sees a file that is opened to be read; the kernel shortens it all the same."""
    return [
        _load_argument(flags),
        (_AND, 0, 0, _O_ACCMODE_AND_TRUNC),
        (_EQUAL, 0, 1, _O_TRUNC),
        _DENIED,
        _ALLOWED,
    ]


def _seccomp_number(machine: str) -> int:
    number = syscalls.number(syscalls.SECCOMP, machine)
    assert number is not None
    return number
