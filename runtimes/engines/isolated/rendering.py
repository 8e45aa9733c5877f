"""Chat templates of an isolated model: rendered by the parent's sandbox, because a confined process starts no other."""

import itertools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from lfx_local_runtimes.errors import TemplateFault
from lfx_local_runtimes.runtimes.chat.template_sandbox import (
    MAX_OUTPUT_CHARS,
    TemplateOverrun,
    TemplateRefusal,
    get_sandbox,
)
from lfx_local_runtimes.runtimes.engines.isolated import codec
from lfx_local_runtimes.runtimes.processes.frames import Frame, Outbox

MAX_WAITING = 64
"""Renders of one model that may wait. A model's process prepares one prompt at a time, so more is an attack."""

_KINDS: Mapping[str, type[TemplateFault]] = {
    "refusal": TemplateRefusal, "overrun": TemplateOverrun, "fault": TemplateFault,
}  # fmt: skip


class Rendering:
    """The parent's side, for one process.

    Args:
        outbox: of the process.
        kill: ends the process, with the reason.
    """

    def __init__(self, outbox: Outbox, kill: Callable[[str], None]) -> None:
        self._outbox = outbox
        self._kill = kill
        self._jobs: SimpleQueue[Frame | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def answer(self, frame: Frame) -> None:
        """Render what a `render` frame asks for, on a thread of its own."""
        if self._jobs.qsize() >= MAX_WAITING:
            self._kill("it asked for too many chat templates at once")
            return
        self._jobs.put(frame)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="chat templates", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Answer no more: the process has ended."""
        self._jobs.put(None)

    def _run(self) -> None:
        with suppress(BrokenPipeError):  # the process has ended
            while (frame := self._jobs.get()) is not None:
                self._outbox.put(Frame({"t": "rendered", **_rendered(frame.header)}))


def _rendered(head: Mapping[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"call": head.get("call")}
    source, variables = str(head.get("source")), head.get("variables")
    limit = head.get("max_chars")
    try:
        if not isinstance(variables, dict):
            get_sandbox().warm_now(source)  # on this thread: a process that asks often must not make many threads
            return {**answer, "text": ""}
        max_chars = min(limit, MAX_OUTPUT_CHARS) if isinstance(limit, int) else MAX_OUTPUT_CHARS
        return {**answer, "text": get_sandbox().render(source, variables, max_chars=max_chars)}
    except Exception as error:  # noqa: BLE001 - the model's process waits for an answer
        fault = error if isinstance(error, TemplateFault) else TemplateFault(f"The chat template fails ({error}).")
        kind = next(name for name, kind in _KINDS.items() if isinstance(fault, kind))
        return {**answer, "kind": kind, "fault": codec.write_fault(fault)}


class RemoteRenderer:
    """The child's side; callable from any thread.

    Args:
        send: writes a frame to the parent.
    """

    def __init__(self, send: Callable[[Frame], None]) -> None:
        self._send = send
        self._calls = itertools.count()
        self._waiting: dict[int, Future[dict[str, Any]]] = {}

    def render(self, source: str, variables: Mapping[str, Any], *, max_chars: int = MAX_OUTPUT_CHARS) -> str:
        """As `TemplateSandbox.render`."""
        answer = self._ask({"source": source, "variables": dict(variables), "max_chars": max_chars}).result()
        if "fault" in answer:
            fault = answer["fault"]
            raise _KINDS[answer["kind"]](fault["message"], model_name=fault["model_name"], hint=fault["hint"])
        return str(answer["text"])

    def warm(self, source: str | None = None) -> None:
        """As `TemplateSandbox.warm`."""
        self._ask({"source": source or "", "variables": None, "max_chars": 0})

    def _ask(self, asked: dict[str, Any]) -> "Future[dict[str, Any]]":
        call = next(self._calls)
        answer = self._waiting[call] = Future()
        self._send(Frame({"t": "render", "call": call, **asked}))
        return answer

    def take(self, head: Mapping[str, Any]) -> None:
        """The parent's answer to a call."""
        waiting = self._waiting.pop(head["call"], None)
        if waiting is not None:
            waiting.set_result(dict(head))
