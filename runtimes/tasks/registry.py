"""Tasks by name. A new one plugs in without touching the manager, the routes or another task.

A package adds one with an entry point in the group `lfx_local_runtimes.tasks` (name → `TaskRow`), a program with
`register_task`. An engine that serves the task's family finds it here.
"""

from functools import lru_cache

from lfx_local_runtimes.errors import WrongTask
from lfx_local_runtimes.runtimes.tasks import generation
from lfx_local_runtimes.runtimes.tasks.base import TaskRow
from lfx_local_runtimes.runtimes.tasks.documents import document, ocr
from lfx_local_runtimes.runtimes.tasks.multimodal import caption, vqa
from lfx_local_runtimes.runtimes.tasks.text import classification, embedding, ner, rerank, zero_shot
from lfx_local_runtimes.runtimes.tasks.vision import classification as image_classification
from lfx_local_runtimes.runtimes.tasks.vision import depth, detection, segmentation
from lfx_local_runtimes.runtimes.tasks.vision import embedding as image_embedding
from lfx_local_runtimes.runtimes.tasks.vision import zero_shot as image_zero_shot

ENTRY_POINT_GROUP = "lfx_local_runtimes.tasks"

_SHIPPED = (
    generation, embedding, rerank, classification, zero_shot, ner, caption, vqa,
    image_classification, detection, image_zero_shot, depth, image_embedding, segmentation,
    ocr, document,
)  # fmt: skip
_registered: dict[str, TaskRow] = {}


def register_task(row: TaskRow) -> None:
    """Add a task, or replace one."""
    _registered[row.name] = row


@lru_cache(maxsize=1)
def _found() -> dict[str, TaskRow]:
    from importlib.metadata import entry_points

    rows = {module.ROW.name: module.ROW for module in _SHIPPED}
    rows |= {point.name: point.load() for point in entry_points(group=ENTRY_POINT_GROUP)}
    return rows


def task_rows() -> dict[str, TaskRow]:
    """Every task by its name."""
    return {**_found(), **_registered}


def task_row(name: str) -> TaskRow:
    """One task.

    Raises:
        WrongTask: there is no such task.
    """
    rows = task_rows()
    if name not in rows:
        raise WrongTask(f"There is no task called {name}.", hint=f"Tasks are {', '.join(rows)}.")
    return rows[name]


def family_of(name: str) -> str:
    """The family of a task; a name that is no task here belongs to `text`, as every model did before there were others."""
    row = task_rows().get(name)
    return "text" if row is None else row.family
