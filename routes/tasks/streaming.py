"""The deltas of any task as server-sent events."""

from collections.abc import Awaitable, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from lfx_local_runtimes.routes.delivery import Feed, ProgressComments, Tagged
from lfx_local_runtimes.routes.faults import envelope
from lfx_local_runtimes.runtimes.requests import Failed, Finished, Progress, Run
from lfx_local_runtimes.runtimes.tasks.base import TaskRow
from lfx_local_runtimes.runtimes.tasks.registry import task_row


def responses_of(rows: Sequence[TaskRow]) -> dict[int | str, dict[str, Any]]:
    """What a route answers besides JSON, for its documentation."""
    return {200: {"content": {"text/event-stream": {}}}} if any(row.delta for row in rows) else {}


class TaskDelivery(Feed):
    """The events of one request: `delta` …, then `done` with the whole result, or `error`. Progress is in comments.

    Args:
        run: of a task that streams.
        gone: completes when the client has left.
    """

    def __init__(self, run: Run[Any, Any], gone: Awaitable[None] | None = None) -> None:
        super().__init__([run], gone)
        row = task_row(run.request.task)
        self._about = {"request_id": run.request.id}
        self._delta: TypeAdapter[Any] = TypeAdapter(row.delta)
        self._result: TypeAdapter[Any] = TypeAdapter(row.result)
        self._progress = ProgressComments()

    def write(self, events: list[Tagged]) -> str:
        """Named events with JSON."""
        return "".join(self._event(event) for _, event in events)

    def _event(self, event: Any) -> str:
        if isinstance(event, Progress):
            return self._progress.comment(event)
        if isinstance(event, Failed):
            return self._frame("error", envelope(event.error))
        if isinstance(event, Finished):
            return self._frame("done", self._result.dump_python(event.result, mode="json"))
        return self._frame("delta", self._delta.dump_python(event, mode="json"))

    def _frame(self, name: str, data: dict[str, Any]) -> str:
        return f"event: {name}\ndata: {to_json({**self._about, **data}).decode()}\n\n"
