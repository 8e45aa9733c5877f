"""Dynamic batching over a model that adds up: fair, bounded, and unharmed by one that fails."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from lfx_local_runtimes.errors import DeviceFailed, EngineFailure, RequestCancelled
from lfx_local_runtimes.runtimes.engines.encoder.scheduler import EncoderScheduler, Job, Row, Slice
from lfx_local_runtimes.runtimes.requests import Failed, Request, RequestState, Run
from lfx_local_runtimes.runtimes.tasks.base import TaskResult
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece, Reading, ReadingAsk, Spec, Tokens

BUDGET = 100
POISON = -1


@dataclass(frozen=True)
class Sums(TaskResult):
    values: tuple[float, ...]


class SumAsk(ReadingAsk[Sums]):
    task: ClassVar[str] = "sum"
    lengths: tuple[int, ...]


class Sum(Reading[SumAsk, Sums]):
    """A text of n ones is worth n."""

    def pieces(self, ask: SumAsk, spec: Spec) -> Sequence[Piece]:
        return [Piece("x" * length) for length in ask.lengths]

    def values(self, output: Any, batch: Sequence[Tokens], spec: Spec) -> Sequence[Any]:
        return [float(row.sum()) for row in output]

    def join(self, values: Sequence[Any], lengths: Sequence[int]) -> Any:
        return float(sum(values))

    def result(self, ask: SumAsk, values: Sequence[Any], spec: Spec, about: TaskResult) -> Sums:
        return Sums(about.model_name, about.metadata, tuple(values))


@pytest.fixture
def stage() -> SimpleNamespace:
    """A scheduler; `ask` queues texts of these lengths, `run` goes on to the end."""
    batches: list[list[int]] = []
    wanted: list[Job] = []

    def compute(batch: Sequence[Tokens]) -> Any:
        batches.append([len(row.ids) for row in batch])
        if any(POISON in row.ids for row in batch):
            raise ValueError("poison")
        width = max(len(row.ids) for row in batch)
        return np.array([row.ids + [0] * (width - len(row.ids)) for row in batch], dtype=np.float32)

    scheduler = EncoderScheduler(compute, Spec("sum", 1000), BUDGET, wanted.append, lambda: {"engine": "adder"})

    def ask(*lengths: int, token: float = 1, slices: int = 1, parts: int = 1) -> Run[Any, Sums]:
        request = Request("adder", SumAsk(lengths=lengths))
        job = Job(request, Sum(), lengths)
        size = len(lengths) // slices
        for first in range(0, len(lengths), size):
            rows = [
                Row(Tokens([token] * (length // parts), []), first + index, parts)  # type: ignore[list-item]
                for index, length in enumerate(lengths[first : first + size])
                for _ in range(parts)
            ]
            scheduler.add(Slice(job, rows, min(first + size, len(lengths))))
        return Run(request)

    def run() -> None:
        while scheduler.busy:
            scheduler.step()

    return SimpleNamespace(scheduler=scheduler, batches=batches, wanted=wanted, ask=ask, run=run)


def test_results_come_in_the_order_of_the_texts_whatever_the_batches(stage: SimpleNamespace) -> None:
    lengths = (3, 40, 7, 90, 1, 20, 40)
    run = stage.ask(*lengths)
    stage.run()
    result = run.wait()
    assert result.values == tuple(map(float, lengths))
    assert result.metadata["tokens"] == sum(lengths)
    assert all(len(batch) == 1 or max(batch) * len(batch) <= BUDGET for batch in stage.batches)


def test_those_who_wait_are_computed_together(stage: SimpleNamespace) -> None:
    runs = [stage.ask(10) for _ in range(8)]
    stage.run()
    assert stage.batches == [[10] * 8]
    assert [run.wait().values for run in runs] == [(10.0,)] * 8


def test_texts_of_like_length_go_together(stage: SimpleNamespace) -> None:
    stage.ask(*(50, 2) * 4)
    stage.run()
    assert stage.batches == [[50, 50], [50, 50], [2, 2, 2, 2]]


def test_callers_with_texts_of_like_length_go_together_and_the_first_is_always_among_them(
    stage: SimpleNamespace,
) -> None:
    for length in (2, 50, 2, 50, 2):
        stage.ask(length)
    stage.run()
    assert stage.batches == [[2, 2, 2], [50, 50]]


def test_a_text_longer_than_the_budget_goes_alone(stage: SimpleNamespace) -> None:
    run = stage.ask(5, 500)
    stage.run()
    assert stage.batches == [[500], [5]]
    assert run.wait().values == (5.0, 500.0)


def test_a_query_waits_for_one_batch_of_a_large_job_at_most(stage: SimpleNamespace) -> None:
    large = stage.ask(*[50] * 40)
    stage.scheduler.step()
    query = stage.ask(3)
    stage.scheduler.step()
    assert query.request.state is RequestState.FINISHED
    assert large.request.state is RequestState.RUNNING
    stage.run()
    assert large.wait().values == (50.0,) * 40


def test_a_query_that_was_computed_in_part_does_not_wait_for_the_rest_of_a_large_job(stage: SimpleNamespace) -> None:
    """All came before the first batch, which had room for one of the query's texts."""
    large = stage.ask(30, *[10] * 40)
    query = stage.ask(30, 3)
    stage.scheduler.step()
    assert stage.batches == [[30, 30, 10]]
    stage.scheduler.step()
    assert query.request.state is RequestState.FINISHED
    assert large.request.state is RequestState.RUNNING


def test_the_next_slice_is_asked_for_when_one_has_come(stage: SimpleNamespace) -> None:
    run = stage.ask(*[10] * 9, slices=3)
    assert len(stage.wanted) == 2, "none after the last"
    stage.run()
    assert run.wait().values == (10.0,) * 9


def test_a_job_is_not_over_while_a_slice_is_on_its_way(stage: SimpleNamespace) -> None:
    request = Request("adder", SumAsk(lengths=(1, 2)))
    job = Job(request, Sum(), (1, 2))
    stage.scheduler.add(Slice(job, [Row(Tokens([1], []), 0)], 1))
    stage.run()
    assert request.state is RequestState.RUNNING
    stage.scheduler.add(Slice(job, [Row(Tokens([1, 1], []), 1)], 2))
    stage.run()
    assert Run(request).wait().values == (1.0, 2.0)


def test_parts_of_a_long_text_become_one_value(stage: SimpleNamespace) -> None:
    run = stage.ask(30, 60, parts=3)
    stage.run()
    assert run.wait().values == (30.0, 60.0)


def test_callers_who_left_are_dropped(stage: SimpleNamespace) -> None:
    gone, stays = stage.ask(*[50] * 10), stage.ask(50)
    stage.scheduler.step()
    gone.cancel()
    stage.run()
    with pytest.raises(RequestCancelled):
        gone.wait()
    assert stays.wait().values == (50.0,)
    assert len(stage.batches) < 5


def test_one_who_was_cancelled_before_its_turn_is_never_computed(stage: SimpleNamespace) -> None:
    request = Request("adder", SumAsk(lengths=(5,)))
    request.cancel()
    stage.scheduler.add(Slice(Job(request, Sum(), (5,)), [Row(Tokens([1] * 5, []), 0)], 1))
    stage.run()
    assert stage.batches == []
    assert request.state is RequestState.CANCELLED


def test_a_job_whose_later_texts_cannot_be_prepared_is_dropped(stage: SimpleNamespace) -> None:
    request = Request("adder", SumAsk(lengths=(50,) * 8))
    stage.scheduler.add(Slice(Job(request, Sum(), (50,) * 8), [Row(Tokens([1] * 50, []), n) for n in range(6)], 6))
    stage.scheduler.step()
    request.emit(Failed(EngineFailure("no such token")))
    stage.run()
    assert len(stage.batches) == 1
    assert not stage.scheduler._rows


def test_a_task_that_fails_leaves_the_others_results_as_they_are(stage: SimpleNamespace) -> None:
    class Broken(Sum):
        def values(self, output: Any, batch: Sequence[Tokens], spec: Spec) -> Sequence[Any]:
            raise ValueError("broken")

    good = stage.ask(10, 20, parts=2)
    bad = Request("adder", SumAsk(lengths=(5,)))
    stage.scheduler.add(Slice(Job(bad, Broken(), (5,)), [Row(Tokens([1] * 5, []), 0)], 1))
    stage.run()
    with pytest.raises(EngineFailure, match="broken"):
        Run(bad).wait()
    result = good.wait()
    assert (result.values, result.metadata["tokens"]) == ((10.0, 20.0), 30)


def test_a_failure_is_pinned_on_the_one_that_caused_it(stage: SimpleNamespace) -> None:
    good, bad, also_good = stage.ask(10), stage.ask(10, token=POISON), stage.ask(5, 5)
    stage.run()
    with pytest.raises(EngineFailure, match="poison"):
        bad.wait()
    assert good.wait().values == (10.0,)
    assert also_good.wait().values == (5.0, 5.0)


def test_a_device_that_fails_is_nobodys_own_failure(stage: SimpleNamespace) -> None:
    def compute(batch: Sequence[Tokens]) -> Any:
        raise DeviceFailed("cuda:0 failed.")

    runs = [stage.ask(4), stage.ask(4)]
    stage.scheduler._compute = compute
    with pytest.raises(DeviceFailed):
        stage.run()
    assert not any(run.request.ended for run in runs)


def test_output_that_is_no_number_is_a_failure_of_its_own(stage: SimpleNamespace) -> None:
    bad, good = stage.ask(4, token=float("nan")), stage.ask(4)
    stage.run()
    with pytest.raises(EngineFailure, match="not numbers"):
        bad.wait()
    assert good.wait().values == (4.0,)


# -- pictures beside texts -----------------------------------------------------------------------------------------------


@dataclass
class Square:
    """A picture of n × n pixels."""

    side: int
    unit: ClassVar[str] = "pixels"
    cut: ClassVar[int] = 0

    @property
    def amount(self) -> int:
        return self.side**2

    @property
    def cost(self) -> int:
        return self.side

    @property
    def shape(self) -> int:
        return self.side


def test_only_inputs_of_one_shape_share_a_batch() -> None:
    batches: list[list[Any]] = []

    def compute(batch: Sequence[Any]) -> Any:
        batches.append(list(batch))
        return [np.float32(one.cost) for one in batch]

    class Sizes(Sum):
        def values(self, output: Any, batch: Sequence[Any], spec: Spec) -> Sequence[Any]:
            return [float(one) for one in output]

        def keep(self, ask: SumAsk, value: Any, row: Any, spec: Spec) -> Any:
            return value / 2

    scheduler = EncoderScheduler(compute, Spec("sum", 1000), BUDGET, lambda job: None, dict)
    runs = []
    for rows in ([Square(30), Tokens([1] * 8, []), Square(20), Square(30)], [Square(30), Tokens([1] * 9, [])]):
        request = Request("adder", SumAsk(lengths=(1,) * len(rows)))
        job = Job(request, Sizes(), rows)
        scheduler.add(Slice(job, [Row(row, index) for index, row in enumerate(rows)], len(rows)))
        runs.append(Run(request))
    while scheduler.busy:
        scheduler.step()
    assert all(len({one.shape for one in batch}) == 1 for batch in batches)
    assert [len(batch) for batch in batches if isinstance(batch[0], Square)] in ([3, 1], [1, 3])
    first, second = (run.wait() for run in runs)
    assert first.values == (15, 4, 10, 15)  # `keep` has halved them
    assert (first.metadata["pixels"], first.metadata["tokens"]) == (2 * 900 + 400, 8)
    assert second.values == (15, 4.5)
