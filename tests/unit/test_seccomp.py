"""The filter of system calls, run by a small interpreter: both processors, and calls that no test may try."""

import errno

import pytest

from lfx_local_runtimes.runtimes.processes import seccomp, syscalls

ALLOW, KILL, PRETEND = "allow", "kill", "error 0"
DENY, NO_SUCH_CALL = f"error {errno.EPERM}", f"error {errno.ENOSYS}"
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PID = 4711


def decide(machine: str, call: str | int, *arguments: int, arch: int | None = None, **exceptions: bool) -> str:
    """What the filter answers to a call."""
    every = {**syscalls.DENIED, **syscalls.CONDITIONAL, **syscalls.PRETENDED}
    number = syscalls.number(every[call], machine) if isinstance(call, str) else call
    assert number is not None
    data = number.to_bytes(4, "little") + (arch or ARCHITECTURES[machine]).to_bytes(4, "little") + bytes(8)
    data += b"".join((argument % 2**64).to_bytes(8, "little") for argument in (*arguments, *[0] * 6)[:6])
    program = seccomp.build(machine, PID, seccomp.Exceptions(**exceptions))
    assert len(program) < 4096
    register = at = 0
    while True:
        operation, if_true, if_false, value = program[at]
        at += 1
        if operation == 0x20:
            register = int.from_bytes(data[value : value + 4], "little")
        elif operation == 0x54:
            register &= value
        elif operation == 0x06:
            kind, code = value & 0xFFFF0000, value & 0xFFFF
            return {0x7FFF0000: ALLOW, 0x80000000: KILL}.get(kind, f"error {code}")
        else:
            test = {0x15: register == value, 0x35: register >= value, 0x45: bool(register & value)}[operation]
            at += if_true if test else if_false


@pytest.mark.parametrize("machine", syscalls.MACHINES)
def test_every_denied_call_is_denied(machine: str) -> None:
    for table, answer in ((syscalls.DENIED, DENY), (syscalls.PRETENDED, PRETEND)):
        for name, numbers in table.items():
            if syscalls.number(numbers, machine) is not None:
                assert decide(machine, name) == answer, name


@pytest.mark.parametrize("machine", syscalls.MACHINES)
@pytest.mark.parametrize(
    ("call", "arguments", "answer"),
    [
        ("clone", (0x3D0F00,), ALLOW),  # a thread of glibc
        ("clone", (0x11,), DENY),  # fork
        ("clone", (0x4111,), DENY),  # vfork
        ("clone", (0x3D0F00 | 0x10000000,), DENY),  # a thread in a namespace of its own
        ("clone3", (), NO_SUCH_CALL),
        ("socket", (1, 1), DENY),
        ("socket", (2, 1), DENY),
        ("bind", (), DENY),
        ("socketpair", (1, 1 | 0o2000000), ALLOW),
        ("socketpair", (1, 2), DENY),
        ("socketpair", (2, 1), DENY),
        ("sendto", (3, 4, 5, 0, 0), ALLOW),
        ("sendto", (3, 4, 5, 0, 2**40), DENY),
        ("sendto", (3, 4, 5, 0, 8), DENY),
        ("kill", (PID, 9), ALLOW),
        ("kill", (1, 9), DENY),
        ("kill", (0, 9), DENY),
        ("kill", (-1, 9), DENY),
        ("kill", (-PID, 9), DENY),
        ("tgkill", (PID, 9, 9), ALLOW),
        ("tgkill", (9, PID, 9), DENY),
        ("prctl", (15,), ALLOW),
        ("prctl", (1,), DENY),
        ("prctl", (4,), DENY),
        ("prctl", (0x59616D61,), DENY),
        ("prlimit64", (0, 7, 0), ALLOW),
        ("prlimit64", (0, 7, 8), DENY),
        ("prlimit64", (0, 7, 2**33), DENY),
        ("fcntl", (3, 2), ALLOW),
        ("fcntl", (3, 8), DENY),
        ("fcntl", (3, 10), DENY),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), DENY),
        ("ioctl", (0, 0x5412 + 2**32), DENY),  # the kernel reads 32 bits only
        ("sched_setaffinity", (0,), ALLOW),
        ("sched_setaffinity", (9,), PRETEND),
        ("sched_setscheduler", (PID,), ALLOW),
        ("sched_setscheduler", (9,), DENY),
        ("setpriority", (0, 0), ALLOW),
        ("setpriority", (0, 9), DENY),
        ("setpriority", (2, 0), DENY),
        ("ioprio_set", (1, 0), ALLOW),
        ("ioprio_set", (1, 9), DENY),
        ("mmap", (0, 1, 3, 0x22), ALLOW),
        ("mmap", (0, 1, 1, 0x01), ALLOW),
        ("mmap", (0, 1, 3, 0x21), DENY),
        ("mmap", (0, 1, 3, 0x23), DENY),
        ("memfd_create", (), DENY),
        ("truncate", (), ALLOW),
        ("openat", (3, 4, 0o1000), ALLOW),
        ("openat2", (), ALLOW),
    ],
)
def test_arguments_decide(machine: str, call: str, arguments: tuple[int, ...], answer: str) -> None:
    assert decide(machine, call, *arguments) == answer


@pytest.mark.parametrize("machine", syscalls.MACHINES)
def test_exceptions(machine: str) -> None:
    assert decide(machine, "socket", 1, 5, devices=True) == ALLOW
    assert decide(machine, "socket", 2, 1, devices=True) == DENY
    assert decide(machine, "bind", devices=True) == ALLOW
    assert decide(machine, "connect", devices=True) == DENY
    assert decide(machine, "ioctl", 0, 0xC020462A, devices=True) == ALLOW
    assert decide(machine, "ioctl", 0, 0x5412, devices=True) == DENY
    assert decide(machine, "mmap", 0, 1, 3, 0x21, shared_memory=True) == ALLOW
    assert decide(machine, "memfd_create", shared_memory=True) == ALLOW
    assert decide(machine, "truncate", truncation=False) == DENY
    assert decide(machine, "openat", 3, 4, 0o1000, truncation=False) == DENY
    assert decide(machine, "openat", 3, 4, 0o1001, truncation=False) == ALLOW
    assert decide(machine, "openat2", truncation=False) == NO_SUCH_CALL


@pytest.mark.parametrize("machine", syscalls.MACHINES)
def test_other_call_tables_are_refused(machine: str) -> None:
    assert decide(machine, 0, arch=0x40000003) == KILL  # 32-bit calls on a 64-bit processor
    assert decide(machine, 0x40000000) == NO_SUCH_CALL  # x32
    assert decide(machine, syscalls.NEWEST + 1) == NO_SUCH_CALL
    assert decide(machine, 2**32 - 1) == NO_SUCH_CALL


def test_ordinary_calls_are_allowed() -> None:
    for number in (0, 1, 3, 5, 8, 10, 11, 12, 13, 35, 39, 60, 186, 202, 228, 231, 318, 334):  # x86_64: read … rseq
        assert decide("x86_64", number) == ALLOW
    for number in (57, 62, 63, 64, 93, 94, 98, 113, 178, 214, 215, 226, 233, 278, 293):  # aarch64: close … rseq
        assert decide("aarch64", number) == ALLOW


@pytest.mark.parametrize("machine", syscalls.MACHINES)
def test_no_number_stands_for_two_calls(machine: str) -> None:
    tables = (syscalls.DENIED, syscalls.PRETENDED, syscalls.CONDITIONAL)
    numbers = [syscalls.number(entry, machine) for table in tables for entry in table.values()]
    there = [number for number in numbers if number is not None]
    assert len(there) == len(set(there))
    assert max(there) <= syscalls.NEWEST
