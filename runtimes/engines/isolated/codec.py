"""What the two halves of an isolated engine say to each other, as frames.

Every frame has a type `t`. Asks, deltas and results are written and read by pydantic, by the types that the task's row
names; arrays and bytes travel as attachments. Nothing is ever unpickled, and what the child sends is checked as a
stranger's input is: a model file may have taken it over.

To the child: `load`, `start`, `cancel`, `feed`, `ping`, `rendered`, `stop`.
From the child: `confined`, `progress`, `loaded`, `refused`, `started`, `delta`, `finished`, `failed`, `died`, `pong`,
`render`.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from lfx_local_runtimes import errors
from lfx_local_runtimes.errors import EngineFailure, RuntimeFault
from lfx_local_runtimes.runtimes.base import ModelRuntime
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.processes.frames import Attachment, Frame, ProtocolError
from lfx_local_runtimes.runtimes.requests import Event, Failed, Finished, Progress
from lfx_local_runtimes.runtimes.tasks import task_row, task_rows
from lfx_local_runtimes.runtimes.tasks.base import Ask, Delta
from lfx_local_runtimes.runtimes.trust.report import Clearance
from lfx_local_runtimes.settings import Settings

_SECRETS = {"hf_token", "api_key"}
_MAX_MESSAGE = 10_000
"""Characters of a fault's text that comes from the child."""
_MAX_NAME = 100
_MAX_NOTES = 50


@lru_cache(maxsize=256)
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def write(value: Any, attachments: list[Attachment], kind: Any = None) -> Any:
    """A value as JSON has it. Its binary parts are added to the attachments."""
    named: Any = kind or type(value)
    chosen: Hashable = named
    return _adapter(chosen).dump_python(value, mode="json", context=attachments)


def read(data: Any, kind: Any, attachments: tuple[Attachment, ...] = ()) -> Any:
    """Back from `write`.

    Raises:
        ProtocolError: the data are not of this kind.
    """
    try:
        return _adapter(kind).validate_python(data, context=attachments)
    except Exception as error:
        why = _first_problem(error) if isinstance(error, ValidationError) else type(error).__name__
        name = getattr(kind, "__name__", str(kind))
        raise ProtocolError(f"What was sent is no {name}: {why}."[:_MAX_MESSAGE]) from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def loaded_frame(runtime: ModelRuntime) -> Frame:
    """What the parent has to know of a model that is loaded."""
    plan = runtime.plan
    assert plan is not None
    return Frame({
        "t": "loaded", "tasks": sorted(runtime.tasks), "memory": runtime.get_memory_usage()["devices"],
        "sequences": plan.sequences, "warnings": runtime.warnings,
    })  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """Back from `loaded_frame`."""

    tasks: frozenset[str]
    memory: dict[str, Annotated[int, Field(ge=0)]]
    """Bytes by device, as the process says."""
    sequences: Annotated[int, Field(ge=1)]
    warnings: tuple[str, ...]


def read_loaded(header: dict[str, Any]) -> Loaded:
    """What a model says that is loaded. The names of tasks that this program does not have are left out.

    Raises:
        ProtocolError: the frame is something else.
    """
    said: Loaded = read({name: value for name, value in header.items() if name != "t"}, Loaded)
    notes = tuple(note[:_MAX_MESSAGE] for note in said.warnings[:_MAX_NOTES])
    return replace(said, tasks=said.tasks & set(task_rows()), warnings=notes)


def text(header: dict[str, Any], name: str) -> str:
    """A field of a frame that must be a text.

    Raises:
        ProtocolError: it is not.
    """
    value = header.get(name)
    if not isinstance(value, str):
        raise ProtocolError(f"A frame has no text in {name}.")
    return value


# -- to the child ----------------------------------------------------------------------------------------------------


def load_frame(
    factory: str,
    config: ModelConfig,
    plan: LoadPlan,
    settings: Settings,
    *,
    policy: Any,
    clearance: Clearance,
    environment: Mapping[str, str],
) -> Frame:
    """Load a model: what makes its runtime (`"module:attribute"`), how, and what it may use. No secret goes along."""
    return Frame({
        "environment": dict(environment),
        "t": "load", "factory": factory, "config": write(config, []), "plan": write(plan, []),
        "settings": settings.model_dump(mode="json", exclude=_SECRETS), "policy": policy,
        "clearance": write(clearance, []),
    })  # fmt: skip


def start_frame(number: str, request_id: str, ask: Ask[Any]) -> Frame:
    """Serve a request. All frames about it carry the number: callers may use the id of a request again."""
    attachments: list[Attachment] = []
    asked = ask.model_dump(mode="json", exclude_defaults=True, context=attachments)
    return Frame(
        {"t": "start", "id": number, "request_id": request_id, "task": ask.task, "ask": asked}, tuple(attachments)
    )


def read_ask(frame: Frame) -> Ask[Any]:
    """The ask of a `start` frame."""
    row = task_row(text(frame.header, "task"))
    ask: Ask[Any] = read(frame.header.get("ask"), row.ask, frame.attachments)
    return ask


def feed_frame(number: str, task: str, chunk: Any) -> Frame:
    """More input for a running request."""
    attachments: list[Attachment] = []
    return Frame(
        {"t": "feed", "id": number, "chunk": write(chunk, attachments, task_row(task).chunk)}, tuple(attachments)
    )


# -- from the child --------------------------------------------------------------------------------------------------


def event_frame(number: str, event: Event) -> Frame:
    """An event of a request."""
    attachments: list[Attachment] = []
    head: dict[str, Any] = {"id": number}
    if isinstance(event, Delta):
        head |= {"t": "delta", "delta": write(event, attachments)}
    elif isinstance(event, Finished):
        head |= {"t": "finished", "result": write(event.result, attachments)}
    elif isinstance(event, Failed):
        head |= {"t": "failed", "fault": write_fault(event.error)}
    else:
        head |= {"t": "progress", "progress": write(event, attachments)}
    return Frame(head, tuple(attachments))


def read_event(frame: Frame, task: str) -> Event:
    """The event of a frame, of the kinds that the task has.

    Raises:
        ProtocolError: it is none.
    """
    head, row = frame.header, task_row(task)
    kind = text(head, "t")
    if kind == "delta" and row.delta is not None:
        delta: Delta = read(head.get("delta"), row.delta, frame.attachments)
        return delta
    if kind == "finished":
        return Finished(read(head.get("result"), row.result, frame.attachments))
    if kind == "failed":
        return Failed(read_fault(head.get("fault")))
    if kind == "progress":
        progress: Progress = read(head.get("progress"), Progress)
        return progress
    raise ProtocolError(f"A request of the task {task} has no event {kind[:_MAX_NAME]!r}.")


def write_fault(fault: RuntimeFault) -> dict[str, Any]:
    """A fault without its cause."""
    return {"code": fault.code, "message": fault.message, "model_name": fault.model_name, "hint": fault.hint}


@lru_cache(maxsize=1)
def _faults() -> dict[str, type[RuntimeFault]]:
    def tree(kind: type[RuntimeFault]) -> Iterator[type[RuntimeFault]]:
        yield kind
        for below in kind.__subclasses__():
            yield from tree(below)

    return {kind.code: kind for kind in tree(RuntimeFault) if kind.__module__ == errors.__name__}


def read_fault(data: Any) -> RuntimeFault:
    """Back from `write_fault`. A code that is not known here becomes `EngineFailure`.

    Raises:
        ProtocolError: the data are no fault.
    """
    if not isinstance(data, dict) or not isinstance(data.get("message"), str):
        raise ProtocolError("A frame has no fault.")
    code, name, hint = data.get("code"), data.get("model_name"), data.get("hint")
    return _faults().get(code if isinstance(code, str) else "", EngineFailure)(
        data["message"][:_MAX_MESSAGE],
        model_name=name[:_MAX_MESSAGE] if isinstance(name, str) else None,
        hint=hint[:_MAX_MESSAGE] if isinstance(hint, str) else None,
    )
