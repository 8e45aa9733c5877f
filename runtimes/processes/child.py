"""`Child`: one process that runs a module of ours, with frames to talk to it and a killer.

What holds for every child:

- It ends with this process, however this one ends. On Linux the kernel does that, on Windows a job object. On macOS the
  child looks whether its parent still runs.
- What it prints cannot get between the frames. The last lines are kept.
- If memory runs out, Linux kills the child rather than this process.
- It starts with an isolated Python and a short list of environment variables.
"""

import json
import logging
import os
import signal
import site
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lfx_local_runtimes.runtimes.processes import bootstrap, spawner
from lfx_local_runtimes.runtimes.processes.endings import ExitReport, LastLines, OomCount, describe
from lfx_local_runtimes.runtimes.processes.environment import child_environment
from lfx_local_runtimes.runtimes.processes.frames import (
    MAX_ATTACHMENTS,
    MAX_HEADER,
    Frame,
    FrameReader,
    FrameWriter,
    ProtocolError,
    Truncated,
)
from lfx_local_runtimes.runtimes.processes.windows import Job

logger = logging.getLogger(__name__)

_DRAIN_S = 0.3
"""How long the end of standard error is waited for. A process that the child started may keep it open."""
_REAP_S = 10.0
"""How long a killed process may take to end. The kernel first frees its memory."""
_PIPE_BYTES = 2**20
_F_SETPIPE_SZ = 1031
_DEATH_SIGNAL = sys.platform == "linux"


class ChildFailure(Exception):
    """A child process did not do its part."""


class ChildNotStarted(ChildFailure):
    """The system did not start the process."""


class ChildDied(ChildFailure):
    """The process has ended.

    Args:
        name: of the child.
        report: how it ended.
    """

    def __init__(self, name: str, report: ExitReport) -> None:
        super().__init__(f"{name} {report}.")
        self.report = report


class ChildOverdue(ChildFailure):
    """The process did not answer in time, so it was killed."""


class Child:
    """A process that runs `main(link)` of a module; see `inside.Link`. It is started at once.

    Any thread may use it. One thread at a time reads.

    Args:
        module: the full name of the module.
        name: for people, in messages and in the log.
        environment: all variables of the process. Unset: `child_environment()`.
        folder: its working directory. Unset: that of this process.
        max_header: bytes of the longest header of a frame, in both directions.
        max_attachments: bytes of all attachments of a frame together.

    Raises:
        ChildNotStarted: the system did not start it.
    """

    def __init__(
        self,
        module: str,
        *,
        name: str | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        max_header: int = MAX_HEADER,
        max_attachments: int = MAX_ATTACHMENTS,
    ) -> None:
        self.name = name or module.rpartition(".")[2]
        self.started_at = time.time()
        """In seconds since 1970."""
        self._lock = threading.Lock()
        self._closing = threading.Lock()
        self._ended = threading.Event()
        self._reaped = False
        self._on_purpose = False
        self._report: ExitReport | None = None
        self._job: Job | None = None
        self._kills_before = OomCount.now()
        self._process = _start(module, child_environment() if environment is None else environment, folder, self.name)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.pid = self._process.pid
        self.reader = FrameReader(self._process.stdout, max_header, max_attachments)  # type: ignore[arg-type]  # it is raw
        self.writer = FrameWriter(self._process.stdin, max_header, max_attachments)
        self._said = LastLines(self._process.stderr, self.name)  # type: ignore[arg-type]  # it is raw
        self._listener = threading.Thread(target=self._said.read, name=f"{self.name} prints", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name=f"{self.name} watch", daemon=True)
        spawner.adopt(self)
        try:
            self._listener.start()
            self._watcher.start()
            if sys.platform == "win32":
                self._bind_to_job()
            self._hand_over()
        except BaseException as error:
            self._give_up()
            if isinstance(error, RuntimeError):  # no more threads
                raise ChildNotStarted(f"{self.name} did not start: {error}.") from error
            raise

    # -- starting ----------------------------------------------------------------------------------------------------

    def _bind_to_job(self) -> None:
        try:
            self._job = Job(int(self._process._handle))  # type: ignore[attr-defined]  # only there on Windows
        except OSError as error:
            logger.warning("%s may outlive this process: %s", self.name, error)

    def _hand_over(self) -> None:
        handover = {
            "parent": os.getpid(),
            "death_signal": _DEATH_SIGNAL,
            "path": import_path(),
            "site_folders": [site.getusersitepackages()] if site.ENABLE_USER_SITE else [],
        }
        data = json.dumps(handover).encode()
        with suppress(OSError):  # it has ended: whoever asks it hears of that
            self.writer.write_pieces([len(data).to_bytes(bootstrap.LENGTH_BYTES, "big") + data])

    def _give_up(self) -> None:
        """After a start that failed half-way."""
        if self._watcher.is_alive():
            self.close(0)
            return
        self._process.kill()
        self._process.wait()
        self._reaped = True
        self._ended.set()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        spawner.release(self)

    # -- talking -----------------------------------------------------------------------------------------------------

    def send(self, frame: Frame) -> None:
        """Write a frame; from any thread. It blocks while the pipe is full; an `Outbox` on `writer` does not.

        Raises:
            ChildDied: the process has ended.
            ProtocolError: the frame is over a limit. Nothing was written.
        """
        pieces = self.writer.encode(frame)
        try:
            self.writer.write_pieces(pieces)
        except (OSError, ValueError) as error:
            raise self._died() from error

    def receive(self) -> Frame:
        """The child's next frame.

        Raises:
            ChildDied: the process has ended.
            ProtocolError: what it wrote is not a frame. It was killed.
        """
        try:
            frame = self.reader.read()
        except (Truncated, OSError, ValueError) as error:
            raise self._died() from error
        except ProtocolError:
            self.kill()
            raise
        if frame is None:
            raise self._died()
        return frame

    def ask(self, frame: Frame | None, limit_s: float) -> Frame:
        """Send a frame and return the next one that comes. None: only wait for the next one.

        Raises:
            ChildOverdue: nothing came within the limit. The process is gone.
            ChildDied: it has ended.
            ProtocolError: what it wrote is not a frame. It was killed.
        """
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            self.kill()

        timer = threading.Timer(limit_s, end)
        timer.daemon = True
        timer.start()
        try:
            if frame is not None:
                self.send(frame)
            return self.receive()
        except ChildDied as error:
            if overdue.is_set():
                raise ChildOverdue(f"{self.name} did not answer within {limit_s:g} s.") from error
            raise
        finally:
            timer.cancel()
            timer.join()  # so that it cannot kill the process during the next exchange

    def _died(self) -> ChildDied:
        """It no longer reads or writes, so there is nothing left to wait for."""
        if not self._ended.wait(_DRAIN_S):
            self.kill()
        report = self.wait(_REAP_S)
        return ChildDied(self.name, report or ExitReport(None, "was killed, but does not end"))

    # -- looking -----------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """The process has not ended."""
        return not self._ended.is_set()

    @property
    def report(self) -> ExitReport | None:
        """How it ended; None before."""
        return self._report

    @property
    def last_lines(self) -> tuple[str, ...]:
        """What it printed last."""
        return self._said.lines

    def memory(self) -> int:
        """Bytes of memory that are this process's own, with its part of what it shares (PSS). 0 after its end."""
        if not self.alive:
            return 0
        with suppress(OSError, ValueError):
            for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
        return _memory_by_psutil(self.pid)

    # -- ending ------------------------------------------------------------------------------------------------------

    def wait(self, timeout_s: float | None = None) -> ExitReport | None:
        """Wait for the end. None: the time is over."""
        self._ended.wait(timeout_s)
        return self._report

    def kill(self) -> None:
        """End the process and those it started, now. Returns at once."""
        with self._lock:
            if self._reaped:
                return
            self._on_purpose = self._on_purpose or not self._is_zombie()
            self._kill_group()

    def close(self, grace_s: float = 2.0) -> None:
        """End the process and give everything back: pipes, threads, exit status.

        Standard input is closed, so that the child reads its end and can finish. It is killed after the grace.
        """
        deadline = time.monotonic() + grace_s
        with self._closing:
            asked = grace_s > 0 and self.writer.close(grace_s)
            if not asked or not self._ended.wait(max(0.0, deadline - time.monotonic())):
                self.kill()
                if not self._ended.wait(_REAP_S):
                    logger.warning("%s (process %d) was killed, but does not end.", self.name, self.pid)
                    return
            self.writer.close()
            self.reader.close()
            self._watcher.join()
            self._listener.join(_DRAIN_S)
            if not self._listener.is_alive() and self._process.stderr is not None:
                self._process.stderr.close()
            spawner.release(self)

    def abandon(self) -> None:
        """In a forked process: the child belongs to the parent. Only this copy of the pipes is closed."""
        self._lock = threading.Lock()
        self._closing = threading.Lock()
        self._ended = threading.Event()
        self._ended.set()
        self._reaped = True
        self._report = ExitReport(None, "belongs to the process that was forked")
        self._process.returncode = 0
        self.reader.abandon()
        self.writer.abandon()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _watch(self) -> None:
        """Wait for the end, end what the process started, and report. On a thread of its own."""
        known = _await_end(self._process)
        with self._lock:
            if known:
                self._kill_group()
            status = self._process.wait()
            self._reaped = True
        self._listener.join(_DRAIN_S)
        self._report = describe(
            status if known else None,
            self._said.lines,
            on_purpose=self._on_purpose,
            before=self._kills_before,
            after=OomCount.now(),
        )
        if self._job is not None:
            self._job.close()
        logger.debug("%s (process %d) %s", self.name, self.pid, self._report.how)
        self._ended.set()

    def _kill_group(self) -> None:
        """The process has a group of its own. Its number cannot be in use again before the process was waited for."""
        if sys.platform == "win32":
            if self._job is not None:
                self._job.kill()
            self._process.kill()
            return
        with suppress(ProcessLookupError, PermissionError):  # macOS refuses a group that has ended
            os.killpg(self.pid, signal.SIGKILL)

    def _is_zombie(self) -> bool:
        """It has ended by itself, and nobody has waited for it yet."""
        if not hasattr(os, "waitid"):
            return False
        with suppress(ChildProcessError):
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        return False


def import_path() -> list[str]:
    """The folders a child imports from: those of this process that exist.

    A relative one is left out: it means another folder there. The working directory comes last, so that no file in it
    can stand in for a module of Python or of a package.
    """
    here = os.path.realpath(os.curdir)
    path = [entry for entry in dict.fromkeys(sys.path) if Path(entry).is_absolute() and Path(entry).exists()]
    return sorted(path, key=lambda entry: os.path.realpath(entry) == here)


def _start(module: str, environment: Mapping[str, str], folder: Path | None, name: str) -> "subprocess.Popen[bytes]":
    if not sys.executable:
        raise ChildNotStarted(f"{name} did not start: this program does not know where its Python is.")
    command = [
        sys.executable,
        "-I",
        "-X",
        "utf8",
        *(["-B"] if sys.dont_write_bytecode else []),
        bootstrap.__file__,
        module,
    ]
    flags = getattr(subprocess, "CREATE_NO_WINDOW", 0) | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C at the terminal does not reach it
            creationflags=flags,
        )

    try:
        process = spawner.start_process(start)
    except (OSError, RuntimeError) as error:
        raise ChildNotStarted(f"{name} did not start: {error}.") from error
    if sys.platform == "linux" and process.stdout is not None:
        import fcntl

        with suppress(OSError):  # a user may have only so much of this
            fcntl.fcntl(process.stdout, _F_SETPIPE_SZ, _PIPE_BYTES)
    return process


def _await_end(process: "subprocess.Popen[bytes]") -> bool:
    """Wait for the end. The process is not waited for (reaped) yet where that can be had.

    Returns:
        False: somebody else has taken the exit status.
    """
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return False
    else:
        process.wait()
    return True


def _memory_by_psutil(pid: int) -> int:
    import psutil

    try:
        process = psutil.Process(pid)
        try:
            return int(process.memory_full_info().uss)
        except psutil.AccessDenied:
            return int(process.memory_info().rss)
    except psutil.Error:
        return 0
