"""The process-wide manager replaced by one with a scripted model for every task, named after it, and what they saw."""

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import ContextOverflow
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager, ScriptedRuntime, register_engine
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Finished, Request
from lfx_local_runtimes.runtimes.tasks import task_row, task_rows
from lfx_local_runtimes.runtimes.tasks.base import TaskResult
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece, Spec
from lfx_local_runtimes.settings import Settings
from tests.routes_app import write_model

TASKS = [name for name, row in task_rows().items() if row.family == "reading"]
READS = 8
"""Words of a text at most; what is more is cut."""
PROMPTS = {"question": "q: "}
LABELS = {"classification": ("good", "bad"), "zero_shot": ("contradiction", "entailment")}
ENDLESS = "endless"
"""A text that is read until the request is cancelled."""


class School:
    """A manager with one model for each task."""

    def __init__(self, folder: Path) -> None:
        self.asks: list[Any] = []
        self.texts: list[str] = []
        """What the models have read, prompts included."""
        self.begun = threading.Event()
        for task in TASKS:
            write_model(folder / "models" / task)
        register_engine("scripted", lambda config, plan: TaskPlayer(self, config, plan))
        self.manager = RuntimeManager(Settings(home=folder / "home", model_dirs=(folder / "models",), offline=True))
        for task in TASKS:
            self.manager.register_model(
                ModelConfig(
                    model_id=str(folder / "models" / task), model_name=f"my {task}", model_type=task,
                    runtime_type="scripted",
                )
            )  # fmt: skip


class TaskPlayer(ScriptedRuntime):
    """Reads words: a vector counts letters, a score counts words that are in the query, a name is a word with a capital."""

    def __init__(self, school: School, config: ModelConfig, plan: LoadPlan | None) -> None:
        super().__init__(config, plan)
        self._school = school
        self._spec = Spec(config.model_type, READS, labels=LABELS.get(config.model_type, ()), prompts=PROMPTS)

    @property
    def tasks(self) -> frozenset[str]:
        return frozenset({self.config.model_type})

    def _serve(self, request: Request[Any]) -> None:
        task = task_row(request.task).work
        self._school.asks.append(request.ask)
        pieces = task.pieces(request.ask, self._spec)
        self._school.texts += [str(piece.text) for piece in pieces]
        self._school.begun.set()
        while str(pieces[0].text) == ENDLESS and not request.cancelled:
            threading.Event().wait(0.005)
        if request.cancelled:
            request.emit(request.empty())
            return
        if request.ask.overflow == "error":
            raise ContextOverflow("An input is too long.")
        lengths = [len(str(piece.text).split()) for piece in pieces]
        metadata = {
            "engine": self.engine, "device": "cpu", "tokens": sum(lengths),
            "truncated": {index: length - READS for index, length in enumerate(lengths) if length > READS},
        }  # fmt: skip
        values = [_value(request.task, piece, self._spec) for piece in pieces]
        request.emit(
            Finished(task.result(request.ask, values, self._spec, TaskResult(self.config.model_name, metadata)))
        )


def _value(task: str, piece: Piece, spec: Spec) -> Any:
    import numpy as np

    text = str(piece.text)
    if task == "embedding":
        return np.array([text.count(letter) for letter in "abcd"], dtype=np.float32)
    if task == "rerank":
        return float(len({*text.split()} & {*str(piece.pair).split()}))
    if task == "classification":
        return np.array([text.count(label) for label in spec.labels], dtype=np.float32)
    if task == "zero_shot":
        said = str(piece.pair).rstrip(".").split()[-1] in text
        return np.array([not said, said], dtype=np.float32)
    return [
        ("PER", found.start(), found.end(), 0.5 + 0.5 * (found[0] == "Ada")) for found in re.finditer("[A-Z]\\w+", text)
    ]


@contextlib.contextmanager
def school(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[School]:
    """Let the nodes, the adapters and the provider meet the scripted models."""
    made = School(folder)
    monkeypatch.setattr("lfx_local_runtimes.runtimes.manager._shared", made.manager)
    yield made
    made.manager.close()
