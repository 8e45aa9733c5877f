"""What a node reports to its user: the progress of downloads and loads, and what a result took."""

from typing import Any

from lfx.custom.custom_component.component import Component

from lfx_local_runtimes.nodes.waiting import Pace, PlaygroundNote
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.tasks.base import TaskResult
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult


class Reporter:
    """Tells a node's user about a request: in the node's log, and in the Playground while there is nothing else to read."""

    def __init__(self, node: Component, model_name: str = "the model") -> None:
        self._node = node
        self._model_name = model_name
        self._pace = Pace()
        self._note = PlaygroundNote(node)
        self._last: object = None

    def __call__(self, event: Progress | GenerationResult | TaskResult) -> None:
        """Log a result, and each tenth of a download or load. Show progress in the Playground."""
        if isinstance(event, GenerationResult):
            self.clear()
            self._node.log(answer_report(event), name="answer")
            return
        if isinstance(event, TaskResult):
            self.clear()
            self._node.log(task_report(event), name="result")
            return
        text = self._pace.describe(event, self._model_name)
        if event.total and event.done >= event.total:
            self.clear()
        else:
            self._note.show(text)
        step = (event.phase, 10 * event.done // event.total if event.total else None)
        if step != self._last:
            self._last = step
            self._node.log(text, name="progress")

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """There is something else to read: remove what the Playground shows about progress."""
        self._note.clear()


def answer_report(result: GenerationResult) -> dict[str, Any]:
    """What made an answer, for people: model, engine, device, tokens, seconds, tokens per second, warnings."""
    keys = ("engine", "device", "quantization", "template", "seed", "warnings")
    seconds = result.execution_time
    return {
        "model_name": result.model_name,
        **{key: result.metadata[key] for key in keys if result.metadata.get(key) not in (None, (), [])},
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "tokens": result.tokens_generated,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(result.tokens_generated / seconds, 1) if seconds > 0 else None,
    }


def task_report(result: TaskResult) -> dict[str, Any]:
    """What made a result, for people: model, engine, device, tokens, tokens cut by input, warnings."""
    keys = ("engine", "device", "dtype", "tokens", "truncated", "warnings")
    return {"model_name": result.model_name, **{key: value for key in keys if (value := result.metadata.get(key))}}


def status_of(summary: str, result: TaskResult) -> str:
    """A node's status: a summary of the result, and how much of a text was not read."""
    cut = result.metadata.get("truncated")
    return f"{summary}; too long: up to {max(cut.values()):,} tokens of a text were not read" if cut else summary
