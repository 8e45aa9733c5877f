"""The bodies of the tasks' routes: the fields of the `Ask`, with a limit for the inputs of one request."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar, Union

from pydantic import BaseModel, Field, PlainValidator, ValidationInfo, field_validator
from starlette.concurrency import run_in_threadpool

from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.media.sources import fetched, has_sources
from lfx_local_runtimes.runtimes.tasks.base import Ask, TaskRow

MAX_INPUTS = 2048
"""The most inputs in one request; OpenAI's limit."""

AskT = TypeVar("AskT", bound=Ask[Any])


class Limited(BaseModel):
    """A base class to put before an `Ask`: at most `MAX_INPUTS` inputs. They are counted before other checks.

    A zero-shot classifier may read every text with every label, so the product counts.
    """

    @field_validator("texts", "documents", "images", mode="before", check_fields=False)
    @classmethod
    def _few(cls, value: object) -> object:
        if isinstance(value, list) and len(value) > MAX_INPUTS:
            raise ValueError(f"{len(value):,} inputs; the limit of one request is {MAX_INPUTS:,}")
        return value

    @field_validator("labels", check_fields=False)
    @classmethod
    def _few_pairs(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        pairs = len(value) * len(info.data.get("texts", ()))
        if pairs > MAX_INPUTS:
            raise ValueError(f"{pairs:,} text–label pairs; the limit of one request is {MAX_INPUTS:,}")
        return value


class Streamable(BaseModel):
    """A base class for the body of a task that streams."""

    stream: bool = Field(
        default=False,
        description="Answer with server-sent events: `delta` for each part, then `done` with the result, or `error`.",
    )


def body_of(row: TaskRow, head: type[BaseModel], prefix: str = "") -> type[BaseModel]:
    """The body of a task's route: the fields of `head`, which name the model, then those of its ask."""
    name = f"{prefix}{row.ask.__name__.removesuffix('Ask')}Body"
    bases = (head, Limited, Streamable, row.ask) if row.delta else (head, Limited, row.ask)
    return type(name, bases, {"__doc__": row.ask.__doc__, "__module__": __name__})


def ask_of(body: BaseModel, ask: type[AskT]) -> AskT:
    """The part of a validated body for the engine room."""
    fields = {name: getattr(body, name) for name in ask.model_fields}
    return ask.model_construct(body.model_fields_set & fields.keys(), **fields)


async def at_hand(ask: AskT, manager: RuntimeManager) -> AskT:
    """The ask with the pictures and documents that it names by a path or a URL.

    Raises:
        RuntimeFault: one of them cannot be read, or may not be.
    """
    return await run_in_threadpool(fetched, ask, manager.settings) if has_sources(ask) else ask


def read_ask(row: TaskRow, fields: dict[str, Any]) -> Ask[Any]:
    """The ask of a task from its fields alone, with the limits of a request.

    Raises:
        ValidationError: a field is wrong or missing.
    """
    return ask_of(_limited(row.ask).model_validate(fields), row.ask)


@lru_cache(maxsize=64)
def _limited(ask: type[Ask[Any]]) -> type[BaseModel]:
    return type(ask.__name__, (Limited, ask), {"__module__": __name__})


def chosen(rows: Sequence[TaskRow], fields: dict[str, Any]) -> TaskRow:
    """The task that is meant, of several with the same path."""
    for row in rows:
        if row.needed and fields.get(row.needed) is not None:
            return row
    return next(row for row in rows if row.needed is None)


def one_of(rows: Sequence[TaskRow], bodies: Sequence[type[BaseModel]]) -> Any:
    """The type of a body for one of several tasks with the same path.

    A task with a `needed` field is chosen if the body has that field. Errors are those of the chosen task only.
    """
    if len(bodies) == 1:
        return bodies[0]

    def read(value: Any) -> BaseModel:
        row = chosen(rows, value if isinstance(value, dict) else {})
        return bodies[rows.index(row)].model_validate(value)

    either: Any = Union[tuple(bodies)]  # noqa: UP007 - the types are known at run time only
    reader: Callable[[Any], Any] = read
    return PlainValidator(reader, json_schema_input_type=either)


def by_path() -> dict[str, list[TaskRow]]:
    """By path, the tasks whose routes are made from their rows."""
    from lfx_local_runtimes.runtimes.tasks import task_rows

    found: dict[str, list[TaskRow]] = {}
    for row in task_rows().values():
        if row.path:
            found.setdefault(row.path, []).append(row)
    return found
