"""One child process: it talks in frames, cannot hurt its parent, and is gone when it should be. With real processes."""

import asyncio
import ctypes
import gc
import logging
import os
import select
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lfx_local_runtimes.runtimes.processes import bootstrap, endings, spawner, windows
from lfx_local_runtimes.runtimes.processes import child as room
from lfx_local_runtimes.runtimes.processes.child import (
    Child,
    ChildDied,
    ChildNotStarted,
    ChildOverdue,
    import_path,
)
from lfx_local_runtimes.runtimes.processes.endings import ExitReport, LastLines, OomCount, describe
from lfx_local_runtimes.runtimes.processes.environment import child_environment
from lfx_local_runtimes.runtimes.processes.frames import Frame, Outbox, ProtocolError

MODULE = "tests.child_modules"
DEADLINE_S = 60
GONE_S = 60
"""A process that was left over would stay for ten minutes."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and fork")

Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts children that do what the first frame says, and ends them after the test."""
    started: list[Child] = []

    def start(do: str | None = None, *, options: dict[str, Any] | None = None, **wishes: Any) -> Child:
        child = Child(MODULE, **(options or {}))
        started.append(child)
        if do is not None:
            child.send(Frame({"do": do, **wishes}))
        return child

    yield start
    for child in started:
        child.close(0)


def gone(pid: int) -> bool:
    """The process ends soon; a zombie has ended."""
    try:
        process = psutil.Process(pid)
        deadline = time.monotonic() + GONE_S
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    except psutil.NoSuchProcess:
        pass
    return True


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# -- talking ---------------------------------------------------------------------------------------------------------


def test_frames_go_there_and_back(start: Start) -> None:
    child = start("echo")
    frame = Frame({"text": "größe", "n": [1, 2.5, None]}, (b"\x00\xff" * 3 * 2**20, b"", b"x"))
    answer = child.ask(frame, DEADLINE_S)
    assert answer.header == frame.header
    assert [bytes(one) for one in answer.attachments] == list(frame.attachments)


def test_what_the_child_prints_does_not_get_between_frames(start: Start) -> None:
    child = start("prints")
    for number in range(20):
        assert child.receive() == Frame({"n": number}, (b"\n" * number,))
    assert child.receive() == Frame({"stdin": "", "descriptor": ""})
    assert child.wait(DEADLINE_S) is not None
    for text in ("python 19", "descriptor 1", "native puts", "a program"):
        assert text in child.last_lines


def test_events_of_an_outbox_all_arrive(start: Start) -> None:
    child = start("events", count=5000)
    assert [child.receive().header["n"] for _ in range(5000)] == list(range(5000))


def test_a_limit_of_frames_holds_in_the_parent(start: Start) -> None:
    child = start("echo", options={"max_header": 1000})
    with pytest.raises(ProtocolError):
        child.send(Frame({"text": "x" * 1000}))
    assert child.ask(Frame({"a": 1}), DEADLINE_S) == Frame({"a": 1})


def test_a_false_frame_ends_the_child(start: Start) -> None:
    child = start("ends", how="false frame")
    with pytest.raises(ProtocolError, match="starts with"):
        child.receive()
    assert child.wait(DEADLINE_S) is not None


# -- what it prints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("do", "wishes"), [("floods", {"lines": 1_000_000, "length": 20}), ("one_line", {"size": 64 * 2**20})]
)
def test_a_flood_of_prints_takes_no_memory(start: Start, do: str, wishes: dict[str, int]) -> None:
    child = start()
    tracemalloc.start()
    try:
        child.ask(Frame({"do": do, **wishes}), DEADLINE_S)
        assert child.wait(DEADLINE_S) is not None
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    lines = child.last_lines
    assert len(lines) <= endings.MAX_LINES
    assert max(map(len, lines)) <= endings.MAX_LINE
    assert lines[-1] == ("the last line" if do == "floods" else "y" * endings.MAX_LINE)
    if do == "floods":
        assert lines[-2] == "999 " + "x" * 20


def test_lines_go_to_the_log(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger=endings.__name__):
        child = start("ends", how="exit", options={"name": "the engine"})
        assert child.wait(DEADLINE_S) is not None
    assert "the engine: The last words." in caplog.messages


class Pieces:
    """What `LastLines` reads, in pieces of any form."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [*pieces]

    def read(self, size: int, /) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def readinto(self, buffer: memoryview, /) -> int:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ((), ()),
        ((b"a\nb",), ("a", "b")),
        ((b"a", b"b\n", b"\n", b"c"), ("ab", "", "c")),
        ((b"a\r\nb\r\n",), ("a", "b")),
        ((b"\xff\n",), ("\N{REPLACEMENT CHARACTER}",)),
        ((b"x" * 3000 + b"\n" + b"y" * 3000, b"y" * 9), ("x" * 1000, "y" * 1000)),
        ((b"".join(b"%d\n" % n for n in range(100)),), tuple(map(str, range(60, 100)))),
    ],
)
def test_lines_are_put_together_from_pieces(pieces: tuple[bytes, ...], lines: tuple[str, ...]) -> None:
    said = LastLines(Pieces(*pieces), "x")
    said.read()
    assert said.lines == lines


def test_of_many_lines_only_the_last_are_kept() -> None:
    said = LastLines(Pieces(*[b"x" * 900 + b"\n"] * 50_000), "x")
    tracemalloc.start()
    try:
        said.read()
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert len(said.lines) == endings.MAX_LINES


# -- what it starts with ---------------------------------------------------------------------------------------------


@posix
def test_a_child_starts_isolated(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("LC_TIME", "C")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    there = start("about", options={"folder": tmp_path}).receive().header
    assert there["isolated"] == 1
    assert there["session"] == there["pid"] != os.getpid(), "Ctrl-C reaches only the terminal's group"
    assert there["folder"] == str(tmp_path)
    assert "HF_TOKEN" not in there["environment"]
    assert there["environment"]["LC_TIME"] == "C"
    assert there["environment"]["PATH"] == os.environ["PATH"]
    assert "lfx_local_runtimes.runtimes.processes.child" not in there["modules"], "the parent's half"
    if sys.platform == "linux":
        assert there["oom"].strip() == "1000"
        assert len(there["descriptors"]) == 6, "0, 1, 2, two for frames, one for this listing"


def test_the_environment_can_be_given(start: Start) -> None:
    wanted = child_environment({"MINE": "1"})
    there = start("about", options={"environment": wanted}).receive().header["environment"]
    assert there.items() >= wanted.items()
    assert set(there) - set(wanted) <= {"LC_CTYPE"}, "Python sets it in a C locale"


def test_a_child_imports_from_where_its_parent_does(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plugins, here = tmp_path / "plugins", tmp_path / "here"
    for folder in (plugins, here):
        folder.mkdir()
    (here / "json.py").write_text("raise RuntimeError('the file in the working directory was imported')")
    monkeypatch.chdir(here)
    monkeypatch.setattr(
        sys, "path", ["", str(here), "relative", str(tmp_path / "missing"), str(plugins), *sys.path, str(plugins)]
    )
    path = import_path()
    assert path[0] == str(plugins)
    assert path[-1] == str(here)
    assert path.count(str(plugins)) == 1
    assert not {"", "relative", str(tmp_path / "missing")} & set(path)
    child = start("about")
    assert child.receive().header["path"][: len(path)] == path


def test_a_module_that_is_missing_is_named() -> None:
    child = Child("tests.no_such_module")
    try:
        with pytest.raises(
            ChildDied, match=r"exit status 1 \(ModuleNotFoundError: No module named 'tests.no_such_module'\)"
        ):
            child.receive()
    finally:
        child.close(0)


def test_a_process_that_cannot_be_started_is_a_fault_that_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    others = {*spawner._children}
    with pytest.raises(ChildNotStarted, match="did not start"):
        Child(MODULE, folder=tmp_path / "missing")
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(ChildNotStarted, match="where its Python is"):
        Child(MODULE)
    assert spawner._children <= others


def test_no_threads_left_for_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    others = {*spawner._children}
    start_process = spawner.start_process
    monkeypatch.setattr(spawner, "start_process", lambda job: (started.append(start_process(job)), started[-1])[1])

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ChildNotStarted, match="can't start new thread"):
        Child(MODULE)
    assert started[0].returncode is not None
    assert spawner._children <= others


# -- ending ----------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("return", "ended with exit status 3"),
        ("exit", "ended with exit status 4"),
        ("raise", "ended with exit status 1"),
        ("SIGSEGV", "ended with signal SIGSEGV"),
        ("SIGABRT", "ended with signal SIGABRT"),
        ("SIGTERM", "ended with signal SIGTERM"),
        ("native", "ended with signal SIGSEGV"),
        ("cut", "ended with exit status 3"),
    ],
)
def test_how_it_ended_is_said_in_words(start: Start, how: str, words: str) -> None:
    child = start("ends", how=how, options={"name": "the engine"})
    with pytest.raises(ChildDied) as caught:
        child.receive()
    report = caught.value.report
    assert report is child.report
    assert report.how == words
    assert str(caught.value).startswith(f"the engine {words} (")
    assert report.last_line == ("ValueError: something is wrong" if how == "raise" else "The last words.")
    assert not report.on_purpose
    assert not child.alive
    with pytest.raises(ChildDied):
        child.send(Frame({}))
    with pytest.raises(ChildDied):
        child.ask(Frame({}), DEADLINE_S)


@linux
def test_a_kill_from_outside_is_told_from_one_of_ours(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([OomCount(group=1), OomCount(group=1), OomCount(group=1), OomCount(group=2), OomCount(group=1)])
    monkeypatch.setattr(OomCount, "now", lambda: next(counts))
    for expected in (
        "was killed from outside (signal SIGKILL)",
        "was killed by the kernel because the machine ran out of memory",
    ):
        child = start("deaf")
        child.receive()
        os.kill(child.pid, 9)
        report = child.wait(DEADLINE_S)
        assert report is not None
        assert report.how == expected
        child.kill()
        child.close()
        assert child.report is report


def test_a_kill_of_ours_is_on_purpose(start: Start) -> None:
    child = start("deaf")
    child.receive()
    child.kill()
    report = child.wait(DEADLINE_S)
    assert report is not None
    assert report.on_purpose
    assert report.how == "was killed by this program"


@posix
def test_a_kill_that_comes_too_late_is_not_the_reason(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    noticed, await_end = threading.Event(), room._await_end
    monkeypatch.setattr(room, "_await_end", lambda process: noticed.wait(DEADLINE_S) and await_end(process))
    child = start("ends", how="return")
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.kill()
    noticed.set()
    report = child.wait(DEADLINE_S)
    assert report is not None
    assert (report.how, report.on_purpose) == ("ended with exit status 3", False)


@pytest.mark.parametrize(
    ("before", "after", "out_of_memory"),
    [
        (OomCount(3, 10), OomCount(4, 11), True),
        (OomCount(3, 10), OomCount(3, 11), False),
        (OomCount(None, 10), OomCount(None, 10), False),
        (OomCount(None, 10), OomCount(None, 11), None),
        (OomCount(), OomCount(), None),
        (OomCount(3, 10), OomCount(None, 10), False),
    ],
)
def test_what_the_kernel_counts_says_whether_memory_ran_out(
    before: OomCount, after: OomCount, out_of_memory: bool | None
) -> None:
    report = describe(-9, (), on_purpose=False, before=before, after=after)
    assert report.out_of_memory is out_of_memory
    assert ("memory" in report.how) is (out_of_memory is not False)
    assert ("perhaps" in report.how) is (out_of_memory is None)


@pytest.mark.parametrize(
    ("status", "how"),
    [
        (0, "ended with exit status 0"),
        (None, "ended, and the system did not say how"),
        (0xC0000005, "ended with exit status 0xC0000005"),
        (-200, "ended with signal 200"),
    ],
)
def test_every_status_has_words(status: int | None, how: str) -> None:
    assert describe(status, (), on_purpose=False, before=OomCount(), after=OomCount()) == ExitReport(
        status, how, (), out_of_memory=None if status is None else False
    )


@linux
@pytest.mark.parametrize(
    ("files", "group"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.events": "oom 7\noom_kill 5\n"}, 5),
        ({"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/memory.events": "oom_kill 4\n"}, 4),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n3:memory:/a\n0::/\n",
                "sys/fs/cgroup/memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({}, None),
    ],
)
def test_the_kernel_s_count_is_found(files: dict[str, str], group: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert OomCount.now(tmp_path) == OomCount(group, None)
    (tmp_path / "proc").mkdir(exist_ok=True)
    (tmp_path / "proc/vmstat").write_text("nr_free 1\noom_kill 9\n")
    assert OomCount.now(tmp_path) == OomCount(group, 9)


@linux
def test_this_machine_counts() -> None:
    assert OomCount.now().machine is not None


def test_closing_lets_the_child_finish(start: Start) -> None:
    child = start("slow_end")
    child.receive()
    child.close(grace_s=DEADLINE_S)
    assert child.report is not None
    assert child.report.status == 5
    assert child.last_lines == ("finished in peace",)


@pytest.mark.parametrize("do", ["deaf", "spins", "holds_interpreter"])
def test_closing_kills_a_child_that_does_not_end(start: Start, do: str) -> None:
    child = start(do)
    child.receive()
    child.close(grace_s=0.05)
    assert child.report is not None
    assert child.report.on_purpose
    assert gone(child.pid)


def test_closing_and_killing_again_is_nothing(start: Start) -> None:
    child = start("echo")
    threads = [threading.Thread(target=child.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    child.kill()
    child.close()
    assert child.report is not None
    assert child.report.status == 0


@pytest.mark.parametrize("do", ["deaf", "spins", "holds_interpreter"])
def test_a_child_that_never_answers_is_killed(start: Start, do: str) -> None:
    child = start(do, options={"name": "the engine"})
    child.receive()
    with pytest.raises(ChildOverdue, match=r"the engine did not answer within 0\.1 s"):
        child.ask(Frame({"never": "answered"}), 0.1)
    assert not child.alive


def test_a_child_that_never_reads_is_killed(start: Start) -> None:
    child = start("deaf")
    child.receive()
    with pytest.raises(ChildOverdue):
        child.ask(Frame({}, (b"x" * 10 * 2**20,)), 0.2)


def test_a_child_that_closes_its_pipe_is_ended(start: Start) -> None:
    child = start("ends", how="closes")
    with pytest.raises(ChildDied):
        child.receive()
    assert not child.alive


def test_a_reader_hears_of_the_end_at_once(start: Start) -> None:
    child = start("deaf")
    child.receive()
    heard: list[ExitReport] = []

    def read() -> None:
        with pytest.raises(ChildDied) as caught:
            child.receive()
        heard.append(caught.value.report)

    thread = threading.Thread(target=read)
    thread.start()
    child.close(0)
    thread.join(DEADLINE_S)
    assert heard == [child.report]


@posix
def test_a_writer_that_is_stuck_does_not_hold_up_the_end(start: Start) -> None:
    child = start("deaf")
    child.receive()
    outbox = Outbox(child.writer)
    outbox.put(Frame({}, (b"x" * 10 * 2**20,)))
    while select.select([], [child._process.stdin], [], 0)[1]:  # until the pipe is full
        time.sleep(0.01)
    child.close(0.05)
    assert not child.alive
    assert child.writer.close()
    outbox.close(DEADLINE_S)


@posix
def test_what_the_child_started_goes_with_it(start: Start) -> None:
    child = start("has_children")
    pid = child.receive().header["pid"]
    assert psutil.pid_exists(pid)
    child.close(0)
    assert gone(pid)
    child = start("has_children")
    pid = child.receive().header["pid"]
    child.close(DEADLINE_S)  # by itself
    assert child.report is not None
    assert child.report.status == 0
    assert gone(pid)


@posix
def test_an_exit_status_that_the_program_throws_away_is_not_made_up() -> None:
    code = f"""
import signal
from lfx_local_runtimes.runtimes.processes.child import Child, ChildDied
from lfx_local_runtimes.runtimes.processes.frames import Frame
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
child = Child("{MODULE}")
child.send(Frame({{"do": "ends", "how": "exit"}}))
try:
    child.receive()
except ChildDied as fault:
    print(fault)
child.close()
"""
    done = run(code)
    assert done.stdout == "child_modules ended, and the system did not say how (The last words.).\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_without_waitid(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has none before Python 3.13."""
    monkeypatch.delattr(os, "waitid")
    child = start("ends", how="return")
    with pytest.raises(ChildDied, match="exit status 3"):
        child.receive()
    child = start("deaf")
    child.receive()
    child.close(0.01)
    assert child.report is not None
    assert child.report.on_purpose


# -- many ------------------------------------------------------------------------------------------------------------


@linux
def test_two_hundred_rounds_leave_nothing(start: Start) -> None:
    start("echo").close()
    gc.collect()
    files, threads, others = descriptors(), threading.active_count(), {*spawner._children}
    for number in range(200):
        child = Child(MODULE)
        if number % 10 == 0:
            child.send(Frame({"do": "echo"}))
            child.ask(Frame({}), DEADLINE_S)
        child.close(0 if number % 5 else DEADLINE_S)
    assert descriptors() == files
    assert threading.active_count() == threads
    assert not [process for process in psutil.Process().children() if process.status() == psutil.STATUS_ZOMBIE]
    assert spawner._children <= others


def test_fifty_children_at_once(start: Start) -> None:
    children = [start("echo") for _ in range(50)]
    for number, child in enumerate(children):
        child.send(Frame({"n": number}))
    assert [child.receive().header["n"] for child in children] == list(range(50))
    assert len({child.pid for child in children}) == 50
    for child in children:
        child.kill()
    for child in children:
        assert child.wait(DEADLINE_S) is not None


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["proc", "uss", "rss"])
def test_memory_is_what_the_child_took(start: Start, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    if by == "proc" and sys.platform != "linux":
        pytest.skip("there is no /proc")
    if by != "proc":
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: "")
    if by == "rss":

        def denied(process: psutil.Process) -> None:
            raise psutil.AccessDenied

        monkeypatch.setattr(psutil.Process, "memory_full_info", denied)
    size = 100 * 2**20
    child = start("grows", size=size)
    child.receive()
    assert size < child.memory() < size + 100 * 2**20
    child.close(0)
    assert child.memory() == 0


def test_pid_and_start_are_known(start: Start) -> None:
    before = time.time()
    child = start("about")
    assert child.receive().header["pid"] == child.pid
    assert before <= child.started_at <= time.time()


# -- threads, loops, forks -------------------------------------------------------------------------------------------


@posix
def test_a_child_outlives_the_thread_that_started_it(start: Start) -> None:
    started: list[Child] = []

    def begin() -> None:
        child = start("echo")
        child.ask(Frame({}), DEADLINE_S)  # it runs, and has asked the kernel to end it with its parent
        started.append(child)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join(DEADLINE_S)
    (child,) = started
    for _ in range(3):
        assert child.ask(Frame({"a": 1}), DEADLINE_S) == Frame({"a": 1})
    assert not [t for t in threading.enumerate() if t is thread]


def test_children_work_from_any_event_loop(start: Start) -> None:
    child = start("echo")

    async def ask(number: int) -> int:
        answer = await asyncio.to_thread(child.ask, Frame({"n": number}), DEADLINE_S)
        other = await asyncio.to_thread(start, "echo")
        await asyncio.to_thread(other.ask, Frame({"n": number}), DEADLINE_S)
        return int(answer.header["n"])

    assert [asyncio.run(ask(number)) for number in range(2)] == [0, 1]


def test_whoever_is_interrupted_while_starting_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import Future

    started: list[subprocess.Popen[bytes]] = []
    interrupted, done = threading.Event(), threading.Event()
    result, discard = Future.result, spawner._discard

    def interrupt(future: Any, timeout: Any = None) -> Any:
        if threading.current_thread() is threading.main_thread():
            interrupted.set()
            raise KeyboardInterrupt
        return result(future, timeout)

    def begin() -> subprocess.Popen[bytes]:
        assert interrupted.wait(DEADLINE_S)
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.PIPE))
        return started[0]

    monkeypatch.setattr(Future, "result", interrupt)
    monkeypatch.setattr(spawner, "_discard", lambda future: (discard(future), done.set()))
    with pytest.raises(KeyboardInterrupt):
        spawner.start_process(begin)
    assert done.wait(DEADLINE_S)
    assert started[0].returncode is not None
    assert started[0].stdin is not None
    assert started[0].stdin.closed


PARENT = f"""
import os, signal, sys, threading
from lfx_local_runtimes.runtimes.processes import child as room
from lfx_local_runtimes.runtimes.processes.child import Child, ChildDied
from lfx_local_runtimes.runtimes.processes.frames import Frame

how, do, death_signal = sys.argv[1:]
room._DEATH_SIGNAL = death_signal == "True"
children = []

def begin():
    for _ in range(2):
        child = Child("{MODULE}")
        child.send(Frame({{"do": do}}))
        child.receive()
        children.append(child)

thread = threading.Thread(target=begin)
thread.start()
thread.join()
def read():
    try:
        children[0].receive()
    except ChildDied:
        pass

if how == "reading":
    threading.Thread(target=read, daemon=True).start()
print(*[child.pid for child in children], flush=True)
if how == "SIGKILL":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "SIGTERM":
    os.kill(os.getpid(), signal.SIGTERM)
if how == "raise":
    raise SystemExit("on purpose")
if how == "exec":
    os.execv(sys.executable, [sys.executable, "-c", "print()"])
"""


def run(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """In a fresh interpreter, where warnings are errors."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False, env=environment, input="",
    )  # fmt: skip


@posix
@pytest.mark.parametrize(
    ("how", "do", "death_signal"),
    [
        ("SIGKILL", "deaf", True),
        ("SIGKILL", "spins", True),
        pytest.param("SIGKILL", "holds_interpreter", True, marks=linux),
        ("SIGTERM", "deaf", True),
        pytest.param("exec", "deaf", True, marks=linux),
        ("return", "deaf", True),
        ("reading", "deaf", True),
        ("raise", "spins", True),
        ("SIGKILL", "deaf", False),
        ("SIGKILL", "spins", False),
        ("SIGKILL", "slow_end", False),
        ("return", "deaf", False),
    ],
)
def test_no_child_is_left_after_its_parent(how: str, do: str, death_signal: bool) -> None:
    """Without the signal it is as on macOS: the child looks for itself."""
    done = run(PARENT, how, do, str(death_signal))
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    assert all(gone(pid) for pid in pids)
    expected = {"SIGKILL": -9, "SIGTERM": -15, "raise": 1}.get(how, 0)
    assert done.returncode == expected, done.stderr
    assert done.stderr == ("on purpose\n" if how == "raise" else "")


@linux
def test_only_where_the_kernel_does_not_do_it_a_thread_looks_for_the_parent(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start("threads").receive().header["threads"] == ["MainThread"]
    monkeypatch.setattr(room, "_DEATH_SIGNAL", False)
    assert start("threads").receive().header["threads"] == ["MainThread", "parent watch"]


@linux
def test_a_parent_that_ended_before_the_kernel_was_asked_is_noticed() -> None:
    code = (
        "import sys; from lfx_local_runtimes.runtimes.processes.bootstrap import die_with; die_with(1); print('lives')"
    )
    done = run(code)
    assert (done.returncode, done.stdout) == (1, "")
    code = (
        "import os; from lfx_local_runtimes.runtimes.processes.bootstrap import die_with; print(die_with(os.getppid()))"
    )
    assert run(code).stdout == "True\n"


@pytest.mark.parametrize("sent", [b"", b"\x00\x00", b"\x00\x00\x00\x09{"])
def test_a_child_whose_parent_ended_at_its_start_ends(sent: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-I", bootstrap.__file__, MODULE],
        input=sent,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


FORK = f"""
import os, threading
from lfx_local_runtimes.runtimes.processes import spawner
from lfx_local_runtimes.runtimes.processes.child import Child, ChildDied
from lfx_local_runtimes.runtimes.processes.frames import Frame

def begin(do):
    child = Child("{MODULE}")
    child.send(Frame({{"do": do}}))
    return child

child = begin("echo")
assert child.ask(Frame({{"n": 1}}), 30).header == {{"n": 1}}
def read():
    try:
        child.receive()
    except ChildDied:
        pass

threading.Thread(target=read, daemon=True).start()  # it reads while the process forks
held = child._lock.acquire()  # a thread of the parent has it
pid = os.fork()
if pid == 0:
    assert not child.alive
    for use in (child.receive, lambda: child.send(Frame({{}}))):
        try:
            use()
        except ChildDied as fault:
            assert "belongs to the process that was forked" in str(fault)
        else:
            raise AssertionError
    child.kill()
    child.close()
    own = begin("echo")
    assert own.pid != child.pid
    assert own.ask(Frame({{"n": 2}}), 30).header == {{"n": 2}}
    raise SystemExit(7)  # its own goes, the parent's stays
child._lock.release()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert child.alive
pid = os.fork()  # this one lives on, and must not keep the child's input open
if pid == 0:
    import time
    time.sleep(600)
child.close(30)
assert child.report.status == 0, child.report
os.kill(pid, 9)
os.waitpid(pid, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_leaves_the_children_to_its_parent() -> None:
    done = run("import warnings; warnings.filterwarnings('ignore', '.*fork', DeprecationWarning)\n" + FORK)
    assert (done.returncode, done.stderr) == (0, "")


FORK_WHILE_STARTING = """
import os, subprocess, sys, threading, time
from lfx_local_runtimes.runtimes.processes import spawner

entered, forking, done = threading.Event(), threading.Event(), threading.Event()

def begin():
    entered.set()
    forking.wait()
    time.sleep(0.2)  # a fork that did not wait would be over by now
    process = subprocess.Popen([sys.executable, "-c", ""])
    done.set()
    return process

def fork():
    entered.wait()
    forking.set()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if done.is_set() else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

thread = threading.Thread(target=fork)
thread.start()
spawner.start_process(begin).wait()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_fork_waits_for_a_start_that_is_under_way() -> None:
    """It would keep the new pipes open."""
    done = run(
        "import warnings; warnings.filterwarnings('ignore', '.*fork', DeprecationWarning)\n" + FORK_WHILE_STARTING
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_at_the_interpreter_s_exit_no_child_is_started() -> None:
    code = f"""
import atexit
def late():
    from lfx_local_runtimes.runtimes.processes.child import Child, ChildNotStarted
    try:
        Child("{MODULE}")
    except ChildNotStarted as fault:
        print(fault)
atexit.register(late)
import lfx_local_runtimes.runtimes.processes.child
"""
    done = run(code)
    assert done.stdout == "child_modules did not start: the interpreter is about to exit.\n"
    assert (done.returncode, done.stderr) == (0, "")


# -- Windows, replaced -----------------------------------------------------------------------------------------------


class Kernel32:
    """Windows' functions, which note what they are asked."""

    def __init__(self, refuses: str = "") -> None:
        self._refuses = refuses
        self.calls: list[tuple[Any, ...]] = []

    def _note(self, name: str, *arguments: Any) -> int:
        self.calls.append((name, *arguments))
        return 0 if name == self._refuses else 77

    def CreateJobObjectW(self, *arguments: Any) -> int:  # noqa: N802
        return self._note("create", *arguments)

    def SetInformationJobObject(self, job: int, kind: int, limits: Any, size: int) -> int:  # noqa: N802
        flags = ctypes.cast(limits, ctypes.POINTER(windows._ExtendedLimits)).contents.basic.limit_flags
        return self._note("limit", job, kind, flags, size)

    def AssignProcessToJobObject(self, *arguments: Any) -> int:  # noqa: N802
        return self._note("assign", *arguments)

    def TerminateJobObject(self, *arguments: Any) -> int:  # noqa: N802
        return self._note("terminate", *arguments)

    def CloseHandle(self, *arguments: Any) -> int:  # noqa: N802
        return self._note("close", *arguments)


def test_a_job_ends_its_process_when_the_handle_is_closed() -> None:
    kernel32 = Kernel32()
    job = windows.Job(5, kernel32)
    job.kill()
    job.close()
    job.close()
    job.kill()
    size = 144 if ctypes.sizeof(ctypes.c_size_t) == 8 else 112  # JOBOBJECT_EXTENDED_LIMIT_INFORMATION
    assert kernel32.calls == [
        ("create", None, None), ("limit", 77, 9, 0x2000, size), ("assign", 77, 5), ("terminate", 77, 1), ("close", 77),
    ]  # fmt: skip


@pytest.mark.parametrize("refuses", ["create", "limit", "assign"])
def test_a_job_that_windows_refuses_leaves_no_handle(refuses: str) -> None:
    kernel32 = Kernel32(refuses)
    with pytest.raises(OSError, match="Windows did not"):
        windows.Job(5, kernel32)
    assert (("close", 77) in kernel32.calls) is (refuses != "create")


def test_on_windows_a_job_holds_the_child_before_it_does_anything(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    class FakeJob:
        def __init__(self, process: int) -> None:
            calls.append(process)

        def kill(self) -> None:
            calls.append("kill")

        def close(self) -> None:
            calls.append("close")

    hand_over = Child._hand_over
    monkeypatch.setattr(Child, "_hand_over", lambda child: (calls.append("hand over"), hand_over(child)))
    monkeypatch.setattr(room, "Job", FakeJob)
    monkeypatch.setattr(subprocess.Popen, "_handle", 5, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    child = start("deaf")
    child.receive()
    child.close(0)
    monkeypatch.undo()
    assert calls[:3] == [5, "hand over", "kill"]
    assert calls[-1] == "close"
    assert child.report is not None
    assert child.report.on_purpose


def test_a_job_that_windows_refuses_is_said(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(process: int) -> None:
        raise OSError("Windows did not create a job object.")

    monkeypatch.setattr(room, "Job", refuse)
    monkeypatch.setattr(subprocess.Popen, "_handle", 5, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    child = start("deaf")
    child.receive()
    child.close(0)
    monkeypatch.undo()
    assert "may outlive this process: Windows did not create a job object." in caplog.text
    assert not child.alive
