"""What a confined process can still do. Each attack runs twice: free, where it succeeds, and confined, where it fails."""

import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lfx_local_runtimes.runtimes.processes.confinement import Policy
from tests.confined import run_child, start_child

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux confines")

SECRET = "the user's secret"
MEBIBYTE = 2**20
POLICY_BYTES = 400 * MEBIBYTE

# -- attacks -------------------------------------------------------------------------------------------------------------

ATTACKS = r"""
import array, errno, fcntl, mmap, resource, shutil, signal, socket, subprocess, termios

X86 = os.uname().machine == "x86_64"
secret, outside, scratch = Path(values["secret"]), Path(values["outside"]), Path(values["scratch"])
model, victim, address, port = Path(values["model"]), values["victim"], values["address"], values["port"]
parent = os.getppid()
open_model = os.open(model, os.O_RDONLY)
open_folder = os.open(outside, os.O_RDONLY)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
abstract = values["abstract"]
FREE = "not tried, it would harm the machine" if values.get("free") else None

enter()


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def read_memory():
    size = 8
    buffer = ctypes.create_string_buffer(size)
    mine, theirs = Iovec(ctypes.addressof(buffer), size), Iovec(address, size)
    native(libc.process_vm_readv(victim, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0))
    return buffer.raw


def open_memory():
    with open(f"/proc/{victim}/mem", "rb", buffering=0) as file:
        file.seek(address)
        return file.read(8)


def own_memory():
    value = ctypes.c_long(1)
    with open("/proc/self/mem", "r+b", buffering=0) as file:
        file.seek(ctypes.addressof(value))
        file.write((7).to_bytes(8, sys.byteorder))
    return value.value


def connect(family, kind, where):
    with socket.socket(family, kind) as one:
        one.connect(where)


def send_to_path():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b"x", values["datagrams"])


def spawn_fork():
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def own_signal_to(pid):
    read, write = os.pipe()
    fcntl.fcntl(read, fcntl.F_SETOWN, pid)


def write_big():
    with open(scratch / "big", "wb") as file:
        for _ in range(3):
            file.write(bytes(2**20))
            file.flush()


def shared_file():
    path = Path("/dev/shm") / abstract
    path.write_bytes(b"x")
    path.unlink()


def attach(pid):
    native(libc.ptrace(0x4206, pid, None, None))  # PTRACE_SEIZE
    native(libc.ptrace(0x4207, pid, None, None))  # PTRACE_INTERRUPT


def raw(number, *arguments):
    return native(libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)))


def io_uring():
    return raw(425, 4, ctypes.create_string_buffer(120))


def keyring():
    return raw(248 if X86 else 217, b"user", b"name", b"data", 4, -2)


def raise_limit():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def link_to_read():
    link = scratch / "link"
    link.symlink_to(secret)
    return link.read_text()


# Reading
attempt("read a file", secret.read_text)
attempt("read through /proc/self/root", Path(f"/proc/self/root{secret}").read_text)
attempt("read through an open folder", lambda: os.open(secret.name, os.O_RDONLY, dir_fd=open_folder))
attempt("read /etc/passwd", Path("/etc/passwd").read_text)
attempt("list a folder", lambda: os.listdir(outside))
attempt("list /proc", lambda: os.listdir("/proc"))
attempt("list /tmp", lambda: os.listdir("/tmp"))
attempt("read the parent's environment", Path(f"/proc/{parent}/environ").read_bytes)
attempt("read the parent's memory", lambda: open(f"/proc/{parent}/mem", "rb").close())
attempt("read the parent's files", lambda: os.listdir(f"/proc/{parent}/fd"))
attempt("read a process's environment", Path(f"/proc/{victim}/environ").read_bytes)
attempt("read a process's memory", open_memory)
attempt("watch a folder", lambda: native(libc.inotify_init1(0)))
attempt("read by a link", link_to_read)

# Writing
attempt("write outside", lambda: (outside / "new").write_text("x"))
attempt("make a folder outside", lambda: (outside / "folder").mkdir())
attempt("write the model", lambda: open(model, "r+b").close())
attempt("open the model again to write", lambda: os.close(os.open(f"/proc/self/fd/{open_model}", os.O_WRONLY)))
attempt("append to a file", lambda: open(secret, "a").close())
attempt("delete a file", (outside / "deletable").unlink)
attempt("truncate by path", lambda: os.truncate(outside / "long1", 0))
attempt("truncate by opening", lambda: os.close(os.open(outside / "long2", os.O_RDONLY | os.O_TRUNC)))
attempt("rename out of scratch", lambda: (scratch / "here1").rename(outside / "there1"))
attempt("rename into scratch", lambda: (outside / "there2").rename(scratch / "here2"))
attempt("hard link out of scratch", lambda: os.link(scratch / "here3", outside / "there3"))
attempt("hard link into scratch", lambda: os.link(outside / "there4", scratch / "here4"))
attempt("symbolic link in scratch", lambda: (scratch / "symbolic").symlink_to(secret))
attempt("pipe in scratch", lambda: os.mkfifo(scratch / "pipe"))
attempt("change the owner", lambda: os.chown(secret, os.getuid(), os.getgid()))
attempt("one large file", write_big)
attempt("shared memory file", shared_file)
attempt("own memory by /proc", own_memory)
attempt("own oom score", lambda: Path("/proc/self/oom_score_adj").write_text("999"))
attempt("own file flags", lambda: fcntl.ioctl(open_model, 0x40086602, array.array("l", [0])))
os.chmod(outside / "mode", 0o666)
os.utime(outside / "mode", (0, 0))

# Network
attempt("internet socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close())
attempt("internet socket 6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close())
attempt("netlink socket", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close())
attempt("connect to loopback", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port)))
attempt("connect to a path", lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, values["streams"]))
attempt("connect to an abstract name", lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + abstract))
attempt("send to a path", send_to_path)
attempt("look a name up", lambda: socket.create_connection(("localhost", port)).close())

# Programs
attempt("fork", spawn_fork)
attempt("spawn", lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0))
attempt("subprocess", lambda: subprocess.run([sys.executable, "-S", "-c", ""], check=True))
attempt("shell", lambda: subprocess.run("true", shell=True, check=True))

# Other processes
attempt("signal the parent", lambda: os.kill(parent, 0))
attempt("signal its group", lambda: os.kill(0, 0))
attempt("signal everyone", lambda: os.kill(-1, 0))
attempt("signal by thread", lambda: raw(234 if X86 else 131, victim, victim, 0))
attempt("signal by thread alone", lambda: raw(200 if X86 else 130, victim, 0))
attempt("signal with a value", lambda: raw(129 if X86 else 138, victim, 0, ctypes.create_string_buffer(
    (0).to_bytes(4, "little") + bytes(4) + (-1).to_bytes(4, "little", signed=True) + bytes(116))))
attempt("signal by a handle", lambda: signal.pidfd_send_signal(os.pidfd_open(victim), 0))
attempt("signal by an owner", lambda: own_signal_to(victim))
attempt("ptrace the parent", lambda: FREE or attach(parent))
attempt("ptrace", lambda: attach(victim))
attempt("read a process's memory by call", read_memory)
attempt("limit a process", lambda: resource.prlimit(victim, resource.RLIMIT_CPU, (3600, 3600)))
attempt("priority of a process", lambda: os.setpriority(os.PRIO_PROCESS, victim, 1))
attempt("schedule a process", lambda: os.sched_setscheduler(victim, os.SCHED_BATCH, os.sched_param(0)))
attempt("tie a process", lambda: os.sched_setaffinity(victim, {min(os.sched_getaffinity(0))}))
attempt("kill a process", lambda: os.kill(victim, signal.SIGKILL))

# The kernel
attempt("io_uring", io_uring)
attempt("keyring", keyring)
attempt("mount namespace", lambda: native(libc.unshare(0x00020000)))
attempt("mount", lambda: FREE or native(libc.mount(b"none", bytes(scratch), b"tmpfs", 0, None)))
attempt("chroot", lambda: FREE or os.chroot(scratch))
attempt("bpf", lambda: raw(321 if X86 else 280, 0, ctypes.create_string_buffer(128), 128))
attempt("perf", lambda: raw(298 if X86 else 241, ctypes.create_string_buffer((112).to_bytes(8, "little") * 14), 0, -1, -1, 0))
attempt("userfaultfd", lambda: raw(323 if X86 else 282, 0))
attempt("personality", lambda: native(libc.personality(0xFFFFFFFF)))
attempt("a file by its handle", lambda: native(libc.name_to_handle_at(-100, bytes(secret), ctypes.create_string_buffer(
    (128).to_bytes(4, "little") + bytes(132)), ctypes.byref(ctypes.c_int()), 0)))
attempt("message queue", lambda: native(libc.msgget(0, 0o600)))
attempt("a call of the future", lambda: raw(468, 0, 0, 0, 0, 0))
attempt("type into the terminal", lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"))
attempt("change the terminal", lambda: termios.tcsetattr(0, termios.TCSANOW, termios.tcgetattr(0)))

# Itself
attempt("set a limit", raise_limit)
attempt("outlive the parent", lambda: native(libc.prctl(1, 0, 0, 0, 0)))
attempt("hide from the parent", lambda: native(libc.prctl(4, 0, 0, 0, 0)))
attempt("change the user", lambda: os.setresuid(os.getuid(), os.getuid(), os.getuid()))
attempt("new session", lambda: FREE or os.setpgid(0, 0))
attempt("fill memory", lambda: len(bytearray(values["memory"])))
attempt("fill shared memory", lambda: mmap.mmap(-1, values["memory"]).close())
attempt("fill a memory file", lambda: os.close(os.memfd_create("x")))

# At the end: after it, a free process is another user.
attempt("user namespace", lambda: native(libc.unshare(0x10000000)))
"""

# Attacks that need a right which a user does not always have (a container's own filter, a kernel's settings): they are
# only shown to fail.
MAY_FAIL_ANYWAY = {
    "ptrace the parent", "ptrace", "read a process's memory", "read a process's memory by call", "io_uring", "keyring",
    "user namespace", "mount namespace", "mount", "chroot", "bpf", "perf", "userfaultfd", "a file by its handle",
    "type into the terminal", "own file flags", "list /tmp", "a call of the future", "new session",
    "read the parent's memory", "internet socket 6", "personality", "connect to loopback", "look a name up",
}  # fmt: skip
PRETENDED = {"tie a process"}
"""They report success and change nothing."""
OTHER_ERRORS = {
    "one large file": "OSError: [Errno 27]",
    "fill memory": "MemoryError",
    "set a limit": "ValueError: not allowed to raise maximum limit",
    "a call of the future": "OSError: [Errno 38]",
    "rename out of scratch": ("OSError: [Errno 18]", "PermissionError"),
    "rename into scratch": ("OSError: [Errno 18]", "PermissionError"),
    "look a name up": "gaierror",
    "change the terminal": "error: (1,",
}


class Room:
    """A user's folder with a secret, a scratch folder, a model, listening sockets, and a process to attack."""

    def __init__(self, folder: Path) -> None:
        self.outside, self.scratch = folder / "outside", folder / "scratch"
        self.model = folder / "model.bin"
        for made in (self.outside, self.scratch):
            made.mkdir()
        self.model.write_bytes(b"weights")
        self.secret = self.outside / "secret"
        self.secret.write_text(SECRET)
        for name in ("deletable", "long1", "long2", "there2", "there4", "mode"):
            (self.outside / name).write_text("content")
        for name in ("here1", "here3"):
            (self.scratch / name).write_text("content")
        (self.outside / "mode").chmod(0o600)
        self.streams, self.datagrams = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.abstract, self.loopback = socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", 0))
        self.name = f"confinement-test-{os.getpid()}-{folder.name}"
        self.streams.bind(str(folder / "s"))
        self.datagrams.bind(str(folder / "d"))
        self.abstract.bind(f"\0{self.name}")
        self.streams.listen()
        self.abstract.listen()
        code = (
            "import ctypes, sys; b = ctypes.create_string_buffer(b'private!'); print(ctypes.addressof(b), flush=True)"
        )
        self.victim = subprocess.Popen(
            [sys.executable, "-c", f"{code}; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"TOKEN": SECRET},
        )
        assert self.victim.stdout is not None
        self.address = int(self.victim.stdout.readline())
        self.folder = folder

    def attacks(self, *, free: bool) -> dict[str, str]:
        policy = Policy(read=(self.model,), write=(self.scratch,), memory=POLICY_BYTES, file_size=MEBIBYTE)
        terminal, end = pty.openpty()
        try:
            return run_child(
                ATTACKS, policy, stdin=end, free=free, secret=str(self.secret), outside=str(self.outside),
                scratch=str(self.scratch), model=str(self.model), victim=self.victim.pid, address=self.address,
                port=self.loopback.getsockname()[1], abstract=self.name, streams=str(self.folder / "s"),
                datagrams=str(self.folder / "d"), memory=POLICY_BYTES + MEBIBYTE,
            )  # fmt: skip
        finally:
            os.close(terminal)
            os.close(end)

    def close(self) -> None:
        for one in (self.streams, self.datagrams, self.abstract, self.loopback):
            one.close()
        self.victim.kill()
        self.victim.communicate()


@pytest.fixture(scope="module")
def confined_room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Room, dict[str, str]]]:
    room = Room(tmp_path_factory.mktemp("c"))
    yield room, room.attacks(free=False)
    room.close()


@pytest.fixture(scope="module")
def free_report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    room = Room(tmp_path_factory.mktemp("f"))
    yield room.attacks(free=True)
    room.close()


NAMES = [line.split('"')[1] for line in ATTACKS.splitlines() if line.startswith('attempt("')]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PRETENDED])
def test_an_attack_fails(confined_room: tuple[Room, dict[str, str]], name: str) -> None:
    outcome = confined_room[1][name]
    assert outcome.startswith(OTHER_ERRORS.get(name, "PermissionError")), outcome


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MAY_FAIL_ANYWAY])
def test_the_attack_succeeds_in_a_free_process(free_report: dict[str, str], name: str) -> None:
    assert free_report[name].startswith("done"), free_report[name]


def test_the_attacks_changed_nothing(confined_room: tuple[Room, dict[str, str]]) -> None:
    room, _ = confined_room
    assert room.victim.poll() is None
    assert os.sched_getaffinity(room.victim.pid) == os.sched_getaffinity(0)
    assert room.secret.read_text() == SECRET
    assert {path.name for path in room.outside.iterdir()} == {
        "secret", "deletable", "long1", "long2", "there2", "there4", "mode",
    }  # fmt: skip
    assert all((room.outside / name).read_text() == "content" for name in ("long1", "long2", "there2"))
    assert (room.outside / "mode").stat().st_mode & 0o777 == 0o600
    assert (room.outside / "mode").stat().st_mtime > 0
    assert {path.name for path in room.scratch.iterdir()} == {"here1", "here3", "big"}
    assert (room.scratch / "big").stat().st_size == MEBIBYTE
    assert room.model.read_bytes() == b"weights"


# -- what has to work ----------------------------------------------------------------------------------------------------

WORK = r"""
import resource
enter()
import asyncio, concurrent.futures, csv, decimal, mmap, multiprocessing, queue, random, shutil, signal, socket, sqlite3, ssl
import tempfile, threading, time, uuid, zoneinfo
model, scratch = Path(values["model"]), Path(values["scratch"])


def map_file():
    with open(model, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return mapped[:]


def threads():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return sum(pool.map(lambda number: number, range(100)))


def loop():
    async def work():
        await asyncio.sleep(0.001)
        return await asyncio.get_running_loop().run_in_executor(None, lambda: 7)
    return asyncio.run(work())


def copy():
    shutil.copy2(model, scratch / "copy")
    (scratch / "copy").rename(scratch / "other")
    (scratch / "folder").mkdir()
    (scratch / "other").rename(scratch / "folder" / "moved")
    shutil.rmtree(scratch / "folder")


def temporary():
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile(dir=folder) as file:
        return folder.startswith(str(scratch))


def own_signal():
    seen = []
    signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR1)
    return len(seen)


def memory():
    return len(bytearray(values["memory"]))


attempt("read the model", lambda: model.read_bytes() == b"weights")
attempt("map the model", lambda: map_file() == b"weights")
attempt("threads", lambda: threads() == 4950)
attempt("asyncio", lambda: loop() == 7)
attempt("write scratch", lambda: (scratch / "file").write_text("text") == 4)
attempt("list scratch", lambda: os.listdir(scratch) == ["file"])
attempt("copy and move in scratch", lambda: copy() is None)
attempt("temporary files", temporary)
attempt("signals to itself", lambda: own_signal() == 2)
attempt("memory below the limit", lambda: memory() == values["memory"])
attempt("own memory use", lambda: "VmRSS" in Path("/proc/self/status").read_text())
attempt("processors", lambda: os.cpu_count() >= len(os.sched_getaffinity(0)) >= 1)
attempt("a subprocess's absence is an OSError", lambda: __import__("platform").uname().system == "Linux")
attempt("randomness", lambda: len(os.urandom(8)) == 8 and bool(uuid.uuid4()))
attempt("the null device", lambda: open(os.devnull, "w").write("x") == 1)
attempt("limits are readable", lambda: resource.getrlimit(resource.RLIMIT_CORE)[1] <= 1)
attempt("threads may change their priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0)) is None)
attempt("no terminal", lambda: not os.isatty(0))
attempt("the kernel kills it first", lambda: Path("/proc/self/oom_score_adj").read_text().strip() == "1000")
attempt("no capability but reading", lambda: int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")).split()[1], 16) in (0, 4))
"""


def test_what_an_engine_needs_works(tmp_path: Path) -> None:
    model, scratch = tmp_path / "model.bin", tmp_path / "scratch"
    model.write_bytes(b"weights")
    scratch.mkdir()
    policy = Policy(read=(model,), write=(scratch,), memory=POLICY_BYTES)
    report = run_child(WORK, policy, model=str(model), scratch=str(scratch), memory=POLICY_BYTES // 2)
    assert len(report) == WORK.count("\nattempt(")
    assert {name: outcome for name, outcome in report.items() if outcome != "done: True"} == {}


def test_without_scratch_nothing_can_be_written(tmp_path: Path) -> None:
    source = """
enter()
import tempfile
attempt("write", lambda: Path(values["path"]).write_text("x"))
attempt("ask", tempfile.gettempdir)
attempt("make", tempfile.mkdtemp)
"""
    report = run_child(source, Policy(), path=str(tmp_path / "x"))
    assert report["write"].startswith("PermissionError")
    assert report["ask"] == "done: '/proc/self'"
    assert report["make"].startswith("FileNotFoundError")
    assert run_child(source, Policy(), path=str(tmp_path / "x"), free=True)["write"] == "done: 1"


def test_the_parent_still_measures_and_ends_it() -> None:
    child = start_child("enter()\nprint('ready', flush=True)\nsys.stdin.read()")
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    assert "Pss:" in Path(f"/proc/{child.pid}/smaps_rollup").read_text()
    child.terminate()
    child.communicate()
    assert child.returncode == -15
