"""Chat templates that came with a model or a request, rendered where they can do no harm.

Jinja's sandbox stops code but neither endless loops nor unbounded memory, so that a template runs in a process of its
own (`template_worker`) which is killed when its time is up. The processes are few, stay for the next template, and go
when this one does.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import TemplateFault

TIME_LIMIT_S = 2.0
"""For one template, compiling included."""

START_LIMIT_S = 30.0
MAX_OUTPUT_CHARS = 4 * 2**20
"""More than the conversation itself."""

_WORKER = Path(__file__).with_name("template_worker.py")
_LENGTH_BYTES = 4
_HINT = "Set chat_template in the model's configuration: Jinja text, or one of gemma, chatml, llama3, dialogue, none."


class TemplateRefusal(TemplateFault):
    """The template itself refused the conversation (`raise_exception`)."""


class TemplateOverrun(TemplateFault):
    """The template took too long, or its process ended."""


class _Worker:
    """One process. Used by one thread at a time."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise TemplateFault(f"The process for chat templates did not start: {error}.") from error
        self._ready = False

    def ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            TemplateOverrun: there is none within the limit; the process is gone then.
        """
        if not self._ready:
            self._exchange(None, START_LIMIT_S)
            self._ready = True
        return self._exchange(json.dumps({**request, "abandon_s": 2 * limit_s + 1}).encode(), limit_s)

    def _exchange(self, data: bytes | None, limit_s: float) -> dict[str, Any]:
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            self._process.kill()

        timer = threading.Timer(limit_s, end)
        timer.daemon = True
        timer.start()
        try:
            answer = self._talk(data)
        finally:
            timer.cancel()
            timer.join()  # so that it cannot kill the process during the next exchange
        if overdue.is_set():
            raise TemplateOverrun(f"The chat template took longer than {limit_s:g} s.", hint=_HINT)
        if answer is None:
            code = self._process.wait()
            raise TemplateOverrun(f"The process for chat templates ended (exit code {code}).", hint=_HINT)
        return answer

    def _talk(self, data: bytes | None) -> dict[str, Any] | None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        if data is not None:
            try:
                stdin.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
                stdin.flush()
            except OSError:  # it has ended
                return None
        header = stdout.read(_LENGTH_BYTES)
        size = int.from_bytes(header, "big")
        body = stdout.read(size) if len(header) == _LENGTH_BYTES else b""
        if not size or len(body) != size:
            return None
        answer: dict[str, Any] = json.loads(body)
        return answer

    @property
    def alive(self) -> bool:
        """The process has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process; the thread that uses it closes the rest."""
        self._process.kill()

    def close(self) -> None:
        """End the process and give its pipes and its exit status back."""
        self._process.kill()
        self._close_pipes()
        self._process.wait()

    def abandon(self) -> None:
        """In a forked child: the process is the parent's."""
        self._close_pipes()
        self._process.returncode = 0

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not written yet has nobody to read it
                    pipe.close()


class TemplateSandbox:
    """Renders hostile templates; callable from any thread.

    A slow template holds one process for at most `limit_s`, and there are `workers` of them.

    Args:
        limit_s: seconds for one template.
        workers: processes at once; they start when they are needed.
    """

    def __init__(self, limit_s: float = TIME_LIMIT_S, workers: int = 4) -> None:
        self._limit_s = limit_s
        self._workers = workers
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(self._workers)
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()

    def render(self, source: str, variables: Mapping[str, Any], *, max_chars: int = MAX_OUTPUT_CHARS) -> str:
        """Render a Jinja template.

        Args:
            source: the template.
            variables: what it may use; serialisable to JSON.
            max_chars: the longest text it may produce.

        Raises:
            TemplateRefusal: the template called `raise_exception`; the message is its own.
            TemplateOverrun: it took too long.
            TemplateFault: it does not compile, fails, or runs past another limit.
        """
        with self._worker() as worker:
            answer = worker.ask({"source": source, "variables": dict(variables), "max_chars": max_chars}, self._limit_s)
        if "refusal" in answer:
            raise TemplateRefusal(f"The chat template refuses this conversation: {answer['refusal']}")
        if "error" in answer:
            raise TemplateFault(f"The chat template fails ({answer['error'].rstrip('.')}).", hint=_HINT)
        return str(answer["text"])

    def warm(self, source: str | None = None) -> None:
        """Start a process ahead of the first render, and compile `source` there; returns at once."""
        threading.Thread(target=self._warm, args=(source or "",), name="warm chat template", daemon=True).start()

    def _warm(self, source: str) -> None:
        with suppress(TemplateFault), self._worker() as worker:  # the first render will say it again
            worker.ask({"source": source, "variables": None, "max_chars": 0}, self._limit_s)

    @contextmanager
    def _worker(self) -> Iterator[_Worker]:
        with self._places:
            with self._lock:
                worker = self._take()
                self._busy.add(worker)
            try:
                yield worker
            except BaseException:
                with self._lock:
                    self._busy.discard(worker)
                worker.close()
                raise
            with self._lock:
                self._busy.discard(worker)
                self._idle.append(worker)

    def _take(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
            worker.close()  # somebody killed it: the system, short of memory, say
        return _Worker()

    def close(self) -> None:
        """End every process; one that renders fails its render. A later render starts anew."""
        with self._lock:
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.kill()
        for worker in idle:
            worker.close()

    def after_fork(self) -> None:
        """In a forked child: leave the parent's processes to it."""
        for worker in self._idle:
            worker.abandon()
        self._forget()


@lru_cache(maxsize=1)
def get_sandbox() -> TemplateSandbox:
    """The sandbox of this process; it ends with it."""
    sandbox = TemplateSandbox()
    atexit.register(sandbox.close)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=sandbox.after_fork)
    return sandbox
