"""The batching loop over a model that counts: fair, exact in its endings, and unharmed by one that fails."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from lfx_local_runtimes.errors import EngineFailure
from lfx_local_runtimes.runtimes.chat.answer import Answer
from lfx_local_runtimes.runtimes.chat.templates import BUILT_IN
from lfx_local_runtimes.runtimes.engines.llama_cpp import scheduler as module
from lfx_local_runtimes.runtimes.engines.llama_cpp.native import Row
from lfx_local_runtimes.runtimes.engines.llama_cpp.scheduler import Job, Scheduler
from lfx_local_runtimes.runtimes.engines.llama_cpp.sequences import BLOCK, SequenceTable, StateStore
from lfx_local_runtimes.runtimes.requests import GenerationStream, Request, RequestState, Run
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig

PIECE = 4 * BLOCK
END = 0


class CountingModel:
    """After token n comes n + 1. Its cache refuses what the sequence table got wrong."""

    n_batch = PIECE

    def __init__(self, sequences: int) -> None:
        self.cache: list[list[int]] = [[] for _ in range(sequences)]
        self.calls: list[list[Row]] = []
        self.poison: int | None = None
        self._rows: Sequence[Row] = ()

    def decode(self, rows: Sequence[Row]) -> None:
        self.calls.append(list(rows))
        for row in rows:
            if row.token == self.poison:
                raise EngineFailure("poison")
            held = self.cache[row.sequence]
            assert row.position == len(held), "positions follow each other"
            held.append(row.token)
        self._rows = rows

    def logits(self, row: int) -> int:
        assert self._rows[row].wants_logits
        return self._rows[row].token

    def cut(self, sequence: int, length: int) -> bool:
        del self.cache[sequence][length:]
        return True

    def copy(self, source: int, target: int) -> None:
        self.cache[target] = list(self.cache[source])

    def save(self, sequence: int) -> bytes:
        return b",".join(str(token).encode() for token in self.cache[sequence])

    def restore(self, sequence: int, state: bytes) -> bool:
        self.cache[sequence] = [int(token) for token in state.split(b",")]
        return True

    def piece(self, token: int) -> bytes:
        return f" {token}".encode()

    def is_end(self, token: int) -> bool:
        return token == END


class Counting:
    """In place of the sampler."""

    tells = done = False
    open = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        Counting.open += 1

    def sample(self, row: int, logits: int) -> int:
        return logits + 1

    def close(self) -> None:
        Counting.open -= 1


@pytest.fixture
def exact() -> bool:
    """Whether the stage's model is an exact one."""
    return False


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, exact: bool) -> SimpleNamespace:
    """A scheduler with three sequences; `ask` queues a request, `run` goes on to the end."""
    monkeypatch.setattr(module, "Sampler", Counting)
    model = CountingModel(3)
    table = SequenceTable(3, StateStore(2**20), exact=exact)
    scheduler = Scheduler(model, table, 60, 3, dict, exact=exact)  # type: ignore[arg-type]

    def ask(start: int, length: int = 8, **options: Any) -> GenerationStream:
        config = GenerationConfig.model_validate({"prompt": "x", "raw": True, "max_tokens": 5, **options})
        request = Request("counter", config)
        prompt = list(range(start, start + length))
        answer = Answer(request, BUILT_IN["none"])
        scheduler.add(Job(request, answer, prompt, answer.admit(length, 10_000)))
        return GenerationStream(Run(request))

    def run() -> None:
        for _ in range(10_000):
            if not scheduler.busy:
                return
            scheduler.step()
        raise AssertionError("it never ends")

    Counting.open = 0
    return SimpleNamespace(model=model, scheduler=scheduler, table=scheduler.table, ask=ask, run=run)


def counted(start: int, length: int = 8, tokens: int = 5) -> str:
    return "".join(f" {number}" for number in range(start + length, start + length + tokens))


def all_free(stage: SimpleNamespace) -> bool:
    return not any(one.busy for one in stage.table.sequences) and Counting.open == 0


def test_more_requests_than_sequences_all_get_their_answers(stage: SimpleNamespace) -> None:
    streams = [stage.ask(1000 * number) for number in range(1, 9)]
    stage.run()
    for number, stream in enumerate(streams, 1):
        result = stream.wait()
        assert (result.text, result.finish_reason) == (counted(1000 * number), "length")
    assert all_free(stage)


def test_those_who_answer_are_decoded_in_one_call(stage: SimpleNamespace) -> None:
    for number in (1000, 2000, 3000):
        stage.ask(number)
    stage.run()
    assert [len(rows) for rows in stage.model.calls] == [8, 8, 8, 3, 3, 3, 3]


def test_a_prompt_and_the_first_token_are_one_call(stage: SimpleNamespace) -> None:
    stream = stage.ask(1000, max_tokens=1)
    stage.run()
    assert stream.wait().text == counted(1000, tokens=1)
    assert [len(rows) for rows in stage.model.calls] == [8]


@pytest.mark.parametrize("exact", [True])
def test_an_exact_prompt_leaves_its_last_token_to_a_step(stage: SimpleNamespace) -> None:
    for number in (1000, 2000, 3000):
        stage.ask(number)
    stage.run()
    assert [len(rows) for rows in stage.model.calls] == [7, 7, 7, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("exact", [True])
def test_a_limit_on_rows_splits_the_step_evenly(stage: SimpleNamespace) -> None:
    stage.scheduler._rows = 2
    for number in (1000, 2000, 3000):
        stage.ask(number, max_tokens=2)
    stage.run()
    assert [len(rows) for rows in stage.model.calls] == [7, 7, 7, 2, 1, 2, 1]


def test_neighbours_are_decoded_in_their_order(stage: SimpleNamespace) -> None:
    for number in (1000, 2000, 3000):
        stage.ask(number)
    stage.run()
    for number in (3000, 1000, 2000):
        stage.ask(number)
    stage.run()
    for rows in stage.model.calls:
        assert [row.sequence for row in rows] == sorted(row.sequence for row in rows)


def test_a_long_prompt_holds_an_answer_up_for_a_piece_when_its_time_is_over(stage: SimpleNamespace) -> None:
    stage.scheduler._prompt_seconds = 0
    stage.ask(1000, max_tokens=50)
    stage.scheduler.step()
    stage.ask(5000, length=20 * PIECE)
    stage.run()
    since = 0
    for rows in stage.model.calls[1:50]:
        if any(row.position >= 7 and row.sequence == 0 for row in rows):
            since = 0
        else:
            since += len(rows)
        assert since <= PIECE


def test_a_shared_prompt_is_evaluated_once(stage: SimpleNamespace) -> None:
    streams = [stage.ask(1000, length=10 * BLOCK) for _ in range(3)]
    stage.run()
    assert {stream.wait().text for stream in streams} == {counted(1000, 10 * BLOCK)}
    evaluated = sum(len(rows) for rows in stage.model.calls if len(rows) > 3)
    assert evaluated < 15 * BLOCK
    assert sorted(stream.result.metadata["cached_tokens"] > 7 * BLOCK for stream in streams) == [False, True, True]


def test_a_prompt_that_had_to_go_comes_back_from_the_store(stage: SimpleNamespace) -> None:
    for start in (1000, 2000, 3000, 4000):
        stage.ask(start, length=10 * BLOCK + 1)
        stage.run()
    assert stage.table.store.size > 0
    stream = stage.ask(1000, length=12 * BLOCK)
    stage.run()
    result = stream.wait()
    assert result.metadata["cached_tokens"] == 10 * BLOCK + 1 + 4, "the prompt, and the answer but for its last token"
    assert result.text == counted(1000, 12 * BLOCK)


@pytest.mark.parametrize("exact", [True])
def test_an_exact_prompt_comes_back_in_blocks(stage: SimpleNamespace) -> None:
    for start in (1000, 2000, 3000, 4000):
        stage.ask(start, length=10 * BLOCK + 1)
        stage.run()
    stream = stage.ask(1000, length=12 * BLOCK)
    stage.run()
    assert stream.wait().metadata["cached_tokens"] == 10 * BLOCK


def test_the_next_turn_finds_prompt_and_answer(stage: SimpleNamespace) -> None:
    stage.ask(1000)
    stage.run()
    stream = stage.ask(1000, length=30)
    stage.run()
    assert stream.wait().text == counted(1000, 30)
    assert stream.result.metadata["cached_tokens"] == 8 + 4


def test_the_thread_count_hears_of_every_decoding_step(stage: SimpleNamespace) -> None:
    steps = []
    stage.scheduler._threads = SimpleNamespace(measured=lambda rows, start, end: steps.append((rows, end >= start)))
    stage.ask(1000)
    stage.ask(2000, max_tokens=3)
    stage.run()
    assert steps == [(2, True), (2, True), (1, True), (1, True)]


def test_a_sequence_whose_move_failed_is_not_trusted(stage: SimpleNamespace) -> None:
    for start in (1000, 2000, 3000, 4000):
        stage.ask(start, length=10 * BLOCK)
        stage.run()

    def out_of_memory(sequence: int, state: bytes) -> bool:
        stage.model.cache[sequence].clear()
        raise MemoryError

    restore, stage.model.restore = stage.model.restore, out_of_memory
    bad = stage.ask(1000, length=12 * BLOCK)
    stage.run()
    with pytest.raises(EngineFailure):
        bad.wait()
    stage.model.restore = restore
    for start in (2000, 1000, 3000, 4000):
        good = stage.ask(start, length=12 * BLOCK)
        stage.run()
        assert good.wait().text == counted(start, 12 * BLOCK)
    assert all_free(stage)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_cancel_frees_the_sequence_at_the_next_step(stage: SimpleNamespace, steps: int) -> None:
    stage.scheduler._prompt_seconds = 0
    stream = stage.ask(1000, length=3 * PIECE, max_tokens=100)
    for _ in range(steps):
        stage.scheduler.step()
    stream.cancel()
    calls = len(stage.model.calls)
    stage.scheduler.step()
    assert len(stage.model.calls) == calls
    assert stream.request.state is RequestState.CANCELLED
    assert all_free(stage)
    assert not stage.scheduler.busy


def test_a_failure_in_a_step_is_pinned_on_the_one_that_caused_it(stage: SimpleNamespace) -> None:
    good, bad, also_good = stage.ask(1000), stage.ask(2000), stage.ask(3000)
    stage.model.poison = 2010
    stage.run()
    assert good.wait().text == counted(1000)
    assert also_good.wait().text == counted(3000)
    with pytest.raises(EngineFailure, match="poison"):
        bad.wait()
    assert all_free(stage)
    again = stage.ask(2000, max_tokens=2)
    stage.run()
    assert again.wait().text == counted(2000, tokens=2)


def test_a_cache_that_cannot_be_cut_takes_the_others_down_too_but_not_the_model(stage: SimpleNamespace) -> None:
    """A recurrent model's state has no past to go back to."""
    streams = [stage.ask(1000), stage.ask(2000)]
    stage.model.poison = 2010
    stage.model.cut = lambda sequence, length: not stage.model.cache[sequence].clear() and length == 0
    stage.run()
    for stream in streams:
        with pytest.raises(EngineFailure):
            stream.wait()
    stage.model.poison = None
    again = stage.ask(1000)
    stage.run()
    assert again.wait().text == counted(1000)
    assert again.result.metadata["cached_tokens"] == 0


def test_a_failure_in_a_prompt_fails_that_request(stage: SimpleNamespace) -> None:
    stage.model.poison = 2003
    good, bad = stage.ask(1000), stage.ask(2000)
    stage.run()
    assert good.wait().finish_reason == "length"
    with pytest.raises(EngineFailure):
        bad.wait()
    assert all_free(stage)


def test_the_models_end_and_a_stop_string_end_an_answer(stage: SimpleNamespace) -> None:
    stopped = stage.ask(1000, stop=" 1010")
    ended = stage.ask(END - 10, length=10, max_tokens=50)
    stage.run()
    assert (stopped.wait().text, stopped.wait().finish_reason) == (" 1008 1009", "stop")
    assert (ended.wait().finish_reason, ended.wait().tokens_generated) == ("stop", 0)
