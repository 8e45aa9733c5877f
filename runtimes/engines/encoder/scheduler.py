"""Dynamic batching: rows of whoever waits are computed together, as many as a budget holds.

Nobody waits for company: a step takes what is there. The job that has got least so far goes first (least attained
service), so that a query does not stand behind the rest of a large job. Only rows of one shape share a batch: texts with
texts, pictures with pictures of the same size. Texts of like length go together, which saves padding.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lfx_local_runtimes.errors import DeviceFailed, EngineFailure, RuntimeFault, as_fault
from lfx_local_runtimes.runtimes.requests import Failed, Finished, Request, RequestState
from lfx_local_runtimes.runtimes.tasks.base import TaskResult
from lfx_local_runtimes.runtimes.tasks.text.reading import Reading, Spec

logger = logging.getLogger(__name__)


class Input(Protocol):
    """What a model computes at once: a text in tokens, a picture in pixels."""

    unit: str
    """What is counted for the result's metadata: tokens, pixels."""
    cut: int
    """Units that were left out because the input is too long."""

    @property
    def amount(self) -> int:
        """How many units it has."""

    @property
    def cost(self) -> int:
        """How much of a batch's budget it takes, in tokens or what takes as long to compute."""

    @property
    def shape(self) -> Hashable:
        """Inputs of one shape can be computed together."""


Compute = Callable[[Sequence[Any]], Any]
"""The model: inputs of one shape to a float32 array whose first axis is the rows, or to a list with something for each row."""


@dataclass(eq=False)
class Job:
    """A request under way: its pieces, and the values of those that are done."""

    request: Request[Any]
    reading: Reading[Any, Any]
    pieces: Sequence[Any]
    started: bool = False
    arrived: int = 0
    """Pieces whose rows have come."""
    attained: int = 0
    """The cost of what has been computed so far."""
    counts: Counter[str] = field(default_factory=Counter)
    """The units of what has been computed so far, by their names."""
    truncated: dict[int, int] = field(default_factory=dict)
    """Units cut, by piece."""
    parts: dict[int, list[tuple[Any, int]]] = field(default_factory=dict)
    """Values of pieces that are not complete, with their costs."""
    values: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = [None] * len(self.pieces)


@dataclass(eq=False, slots=True)
class Row:
    """A piece, or one of the `parts` it is read in."""

    input: Any
    """An `Input`."""
    piece: int
    parts: int = 1


@dataclass(eq=False)
class Slice:
    """The next rows of a job, up to the piece before `end`."""

    job: Job
    rows: list[Row]
    end: int


class EncoderScheduler:
    """The loop's state and its steps. Everything runs on the model's thread.

    Args:
        compute: the model.
        spec: how to read its output.
        budget: what the rows of a batch may cost, padding included; one row may cost more.
        more: asks for a job's next slice, when one has come.
        metadata: the engine's share of a result's.
    """

    def __init__(
        self, compute: Compute, spec: Spec, budget: int, more: Callable[[Job], None],
        metadata: Callable[[], Mapping[str, Any]],
    ) -> None:  # fmt: skip
        self._compute = compute
        self._spec = spec
        self._budget = budget
        self._more = more
        self._metadata = metadata
        self._rows: dict[Job, list[Row]] = {}
        """What waits, by job in the order of their arrival."""
        self.batches = 0
        """Calls of the model so far."""

    @property
    def busy(self) -> bool:
        """Something is left to do."""
        return any(self._rows.values())

    def add(self, piece: Slice) -> None:
        """Queue the next rows of a job, and have those after them prepared meanwhile."""
        job = piece.job
        job.started = job.started or job.request.start()
        if not job.started or job.request.state is not RequestState.RUNNING:
            return
        job.arrived = piece.end
        self._rows.setdefault(job, []).extend(piece.rows)
        if job.arrived < len(job.pieces):
            self._more(job)

    def step(self) -> None:
        """Drop jobs whose callers have left, or whose later texts could not be prepared, and compute one batch."""
        for job in [job for job in self._rows if job.request.cancelled or job.request.state is RequestState.FAILED]:
            del self._rows[job]
            job.request.emit(job.request.empty())
        batch = self._take()
        if batch:
            self._run(batch)

    def _take(self) -> list[tuple[Job, Row]]:
        """The next batch: the job that has got least so far, then the others in that order, up to the budget.

        Of those that have got the same, the first to come is always among them, with rows that are like its own in cost.
        """
        waiting = [(job, row) for job, rows in self._rows.items() for row in rows]
        if not waiting:
            return []
        first = min((job for job, _ in waiting), key=lambda job: job.attained)
        lead = max((row.input for row in self._rows[first]), key=lambda one: one.cost)
        waiting = [(job, row) for job, row in waiting if row.input.shape == lead.shape]
        waiting.sort(key=lambda pair: (pair[0].attained, abs(pair[1].input.cost - lead.cost)))
        batch: list[tuple[Job, Row]] = []
        largest = 0
        for job, row in waiting:
            largest = max(largest, row.input.cost)
            if batch and largest * (len(batch) + 1) > self._budget:
                break
            batch.append((job, row))
            self._rows[job].remove(row)
        return batch

    def _run(self, batch: Sequence[tuple[Job, Row]]) -> None:
        jobs = list(dict.fromkeys(job for job, _ in batch))
        try:
            self.batches += 1
            self._deliver(batch, self._compute([row.input for _, row in batch]))
        except DeviceFailed:
            raise  # it ends the model
        except Exception as error:  # noqa: BLE001 - the model goes on serving others
            if len(jobs) == 1:
                self._fail(jobs[0], error)
                return
            for own in jobs:  # one of them may be to blame: each for itself
                self._run([(job, row) for job, row in batch if job is own])

    def _deliver(self, batch: Sequence[tuple[Job, Row]], output: Any) -> None:
        if not _finite(output):
            raise EngineFailure(
                "The model's output is not numbers: its weights are broken, or its activations overflowed.",
                hint="Load it in fp32, or fetch its files again.",
            )
        readings = dict.fromkeys(job.reading for job, _ in batch)
        values: dict[int, Any] = {}  # all of them before any is kept: a batch that fails is computed again
        for reading in readings:
            places = [index for index, (job, _) in enumerate(batch) if job.reading is reading]
            theirs = output if len(readings) == 1 else _rows_of(output, places)
            found = reading.values(theirs, [batch[index][1].input for index in places], self._spec)
            for index, value in zip(places, found, strict=True):
                job, row = batch[index]
                values[index] = reading.keep(job.request.ask, value, row.input, self._spec)
        for index, value in values.items():
            self._keep(*batch[index], value)
        for job in dict.fromkeys(job for job, _ in batch):
            if not self._rows[job] and job.arrived == len(job.pieces):
                self._finish(job)

    @staticmethod
    def _keep(job: Job, row: Row, value: Any) -> None:
        job.attained += row.input.cost
        job.counts[row.input.unit] += row.input.amount
        if row.input.cut:
            job.truncated[row.piece] = row.input.cut
        if row.parts == 1:
            job.values[row.piece] = value
            return
        parts = job.parts.setdefault(row.piece, [])
        parts.append((value, row.input.cost))
        if len(parts) == row.parts:
            del job.parts[row.piece]
            job.values[row.piece] = job.reading.join([value for value, _ in parts], [length for _, length in parts])

    def _finish(self, job: Job) -> None:
        request = job.request
        try:
            about = TaskResult(
                request.model_name,
                {
                    **self._metadata(), "request_id": request.id, **job.counts,
                    "truncated": dict(sorted(job.truncated.items())),
                },
            )  # fmt: skip
            result = job.reading.result(request.ask, job.values, self._spec, about)
        except Exception as error:  # noqa: BLE001 - this request's alone
            self._fail(job, error)
            return
        del self._rows[job]
        request.emit(Finished(result))

    def _fail(self, job: Job, error: Exception) -> None:
        self._rows.pop(job, None)
        request = job.request
        if not isinstance(error, RuntimeFault):
            logger.error("request %s", request.id, exc_info=error)
        request.emit(Failed(as_fault(error, EngineFailure, "The model failed", request.model_name)))


def _finite(output: Any) -> bool:
    """Whether all numbers of an output are finite."""
    import numpy as np

    if isinstance(output, Mapping):
        return all(_finite(part) for part in output.values())
    if isinstance(output, list):
        return all(_finite(part) for part in output)
    return bool(np.isfinite(output).all())


def _rows_of(output: Any, places: list[int]) -> Any:
    return [output[place] for place in places] if isinstance(output, list) else output[places]
