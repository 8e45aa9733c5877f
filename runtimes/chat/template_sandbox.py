"""Chat templates that came with a model or a request, rendered where they can do no harm.

Jinja's sandbox stops code, but neither endless loops nor unbounded memory. So a template runs in a process of its own
(`template_worker`), which is confined, and killed when its time is up. There are few such processes. They stay for the next template
and end with this program.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Protocol

from lfx_local_runtimes.errors import TemplateFault
from lfx_local_runtimes.runtimes.processes.child import Child, ChildDied, ChildNotStarted, ChildOverdue
from lfx_local_runtimes.runtimes.processes.frames import Frame, ProtocolError

TIME_LIMIT_S = 2.0
"""For one template, compiling included."""

START_LIMIT_S = 30.0
MAX_OUTPUT_CHARS = 4 * 2**20
"""More than the conversation itself."""

_WORKER = "lfx_local_runtimes.runtimes.chat.template_worker"
_HINT = "Set chat_template in the model's configuration: Jinja text, or one of gemma, chatml, llama3, dialogue, none."


class TemplateRefusal(TemplateFault):
    """The template itself refused the conversation (`raise_exception`)."""


class TemplateOverrun(TemplateFault):
    """The template took too long, or its process ended."""


class _Worker:
    """One process. One thread at a time uses it."""

    def __init__(self) -> None:
        try:
            self.child = Child(_WORKER, name="The process for chat templates")
        except ChildNotStarted as error:
            raise TemplateFault(str(error)) from error
        self._ready = False

    def ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            TemplateOverrun: there is none within the limit. The process is gone then.
        """
        if not self._ready:
            self._exchange(None, START_LIMIT_S)
            self._ready = True
        return self._exchange(Frame({**request, "abandon_s": 2 * limit_s + 1}), limit_s)

    def _exchange(self, frame: Frame | None, limit_s: float) -> dict[str, Any]:
        try:
            return self.child.ask(frame, limit_s).header
        except ChildOverdue as error:
            raise TemplateOverrun(f"The chat template took longer than {limit_s:g} s.", hint=_HINT) from error
        except (ChildDied, ProtocolError) as error:
            raise TemplateOverrun(str(error), hint=_HINT) from error


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
            TemplateOverrun: it took too long, or its process ended.
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
        threading.Thread(target=self.warm_now, args=(source or "",), name="warm chat template", daemon=True).start()

    def warm_now(self, source: str) -> None:
        """The same, and wait for it."""
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
                worker.child.close(0)
                raise
            with self._lock:
                self._busy.discard(worker)
                self._idle.append(worker)

    def _take(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.child.alive:
                return worker
            worker.child.close(0)  # somebody killed it: the system, short of memory, say
        return _Worker()

    def close(self) -> None:
        """End every process; one that renders fails its render. A later render starts anew."""
        with self._lock:
            idle, self._idle = self._idle, []
            for worker in self._busy:
                worker.child.kill()
        for worker in idle:
            worker.child.close(0)


class Renderer(Protocol):
    """What renders templates for this process."""

    def render(self, source: str, variables: Mapping[str, Any], *, max_chars: int = MAX_OUTPUT_CHARS) -> str: ...

    def warm(self, source: str | None = None) -> None: ...


_renderer: Renderer | None = None


def use_renderer(renderer: Renderer) -> None:
    """Render templates by this from now on: a confined process cannot start processes of its own."""
    global _renderer  # noqa: PLW0603 - one for the process
    _renderer = renderer


def get_renderer() -> Renderer:
    """What renders templates here: the sandbox, unless `use_renderer` has named something else."""
    return _renderer or get_sandbox()


@lru_cache(maxsize=1)
def get_sandbox() -> TemplateSandbox:
    """The sandbox of this process; it ends with it."""
    sandbox = TemplateSandbox()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=sandbox._forget)  # the processes belong to the parent
    return sandbox
