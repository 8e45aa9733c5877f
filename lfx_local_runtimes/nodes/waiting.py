"""What a person reads while a model is fetched or loaded, while a request waits for its turn, and while pages are read."""

import time
import uuid
from collections.abc import Callable
from typing import Any

from lfx.custom.custom_component.component import Component
from lfx.graph.utils import has_chat_output
from lfx.schema.message import Message

from lfx_local_runtimes.runtimes.requests import Progress

_WORK = {
    "download": "Downloading {name}",
    "assemble": "Putting the files of {name} together",
    "load": "Loading {name}",
    "export": "Exporting {name} to ONNX",
    "quantize": "Quantizing {name}",
}
_PATIENCE_S = 1.0
"""A phase has to last this long before its speed says how much time is left."""
_PAUSE_S = 0.25
"""Between two changes of the message in the Playground."""


class Pace:
    """Describes progress: percent, size, speed and the time that is left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._phase = ""
        self._began = 0.0
        self._done_before = 0

    def describe(self, event: Progress, name: str) -> str:
        """One line for a person."""
        if event.phase == "queue":
            requests = "1 request is" if event.total == 1 else f"{event.total} requests are"
            return f"{name} is busy: {requests} before this one"
        if event.phase == "memory":
            return f"Waiting for memory for {name}: other models have to finish their requests first"
        if event.phase == "read":
            return f"Reading page {event.done + 1} of {event.total}"
        if event.phase != self._phase or event.done < self._done_before:
            self._phase, self._began, self._done_before = event.phase, self._clock(), event.done
        what = _WORK.get(event.phase, f"{event.phase}: {{name}}").format(name=name)
        if not event.total:
            return what
        parts = [f"{100 * event.done // event.total} % of {_size(event.total)}"]
        seconds, done = self._clock() - self._began, event.done - self._done_before
        if seconds >= _PATIENCE_S and done > 0:
            parts += [f"{_size(done / seconds)}/s", f"{_time((event.total - event.done) * seconds / done)} left"]
        return f"{what}: {', '.join(parts)}"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class PlaygroundNote:
    """A message in the Playground that goes away again. It is not stored.

    A caller who cannot be told to remove a message gets none: a client of the streaming API would take it for an answer.
    """

    def __init__(self, node: Component, clock: Callable[[], float] = time.monotonic) -> None:
        self._node = node
        self._clock = clock
        self._fields: dict[str, Any] | None = None
        self._changed = 0.0

    def show(self, text: str) -> None:
        """Show this text, unless the last one has just appeared."""
        events = getattr(self._node, "_event_manager", None)
        if events is None or "on_remove_message" not in events.events or not self._has_chat():
            return
        if self._fields is not None and self._clock() - self._changed < _PAUSE_S:
            return
        self.clear()  # the UI appends the text of an unfinished message to the text it shows
        graph = self._node.graph
        self._fields = {"id": str(uuid.uuid4()), "flow_id": str(graph.flow_id), "session_id": graph.session_id}
        message = Message(text=f"*{text}*", sender="Machine", sender_name="AI", properties={"state": "partial"})
        self._changed = self._clock()
        events.on_message(data={**message.model_dump(mode="json"), **self._fields})

    def clear(self) -> None:
        """Remove the message, if there is one."""
        if self._fields is not None:
            fields, self._fields = self._fields, None
            self._node._event_manager.on_remove_message(data=fields)

    def _has_chat(self) -> bool:
        vertex = self._node._vertex
        return vertex is not None and bool(vertex.graph.session_id) and has_chat_output(vertex.graph.vertices)
