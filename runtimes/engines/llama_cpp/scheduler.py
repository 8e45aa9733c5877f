"""Continuous batching: one loop that computes every running request of a model together.

A step decodes one token for each sequence that is answering, in one `llama_decode`, and then evaluates prompts in small
pieces for a limited time, so that a long prompt holds running answers up for no longer than that and one piece. Prompts
are evaluated one sequence at a time, and the call with a prompt's last token gives the answer's first token.

For an exact model (`deterministic`) prompts are cut at fixed places, and their last token is left to the next decoding
step: whether a request is alone, with others, or finds its prompt's beginning in the cache, its prompt is evaluated to the
same numbers, bit for bit.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lfx_local_runtimes.errors import EngineFailure, RuntimeFault, as_fault
from lfx_local_runtimes.runtimes.batching import QueuedScheduler
from lfx_local_runtimes.runtimes.chat.answer import Answer
from lfx_local_runtimes.runtimes.chat.filters import Utf8Decoder
from lfx_local_runtimes.runtimes.engines.constraints import Constraint
from lfx_local_runtimes.runtimes.engines.llama_cpp.native import LlamaModel, Row
from lfx_local_runtimes.runtimes.engines.llama_cpp.sampling import Sampler
from lfx_local_runtimes.runtimes.engines.llama_cpp.sequences import Cached, Placement, SequenceTable, next_piece
from lfx_local_runtimes.runtimes.engines.llama_cpp.threads import Threads
from lfx_local_runtimes.runtimes.requests import Failed, Request
from lfx_local_runtimes.runtimes.tasks.generation import FinishReason, GenerationConfig, TokenLogprob

logger = logging.getLogger(__name__)

READER_SECONDS = 0.00005
"""Pause after the first token of an answer, so that whoever reads it gets a core: otherwise it waits 2 to 8 ms, while
llama.cpp's threads compute the second token on all of them."""


def _sequence_id(job: "Job") -> int:
    """llama.cpp computes neighbouring sequences in one go, in their order, and splits the batch wherever one is missing."""
    assert job.sequence is not None
    return job.sequence.id


@dataclass(eq=False)
class Job:
    """A request whose prompt is ready to be evaluated, and how far it has come."""

    request: Request[GenerationConfig]
    answer: Answer
    prompt: list[int]
    limit: int
    """Tokens of the answer at most."""
    constraint: Constraint | None = None
    """What the answer has to look like."""
    sequence: Cached | None = None
    sampler: Sampler | None = None
    next_token: int | None = None
    """To be evaluated next: the prompt's last, or the one sampled and delivered; None while more of the prompt is left."""
    cached_tokens: int = 0
    decoder: Utf8Decoder = field(default_factory=Utf8Decoder)
    shown: Mapping[int, bytes] = field(default_factory=dict)
    """Control tokens whose text belongs to the answer."""
    forced: deque[int] = field(default_factory=deque)
    """Tokens that come next, whatever the model would say."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the prompt's tokens so far, if they are wanted."""

    @property
    def scores_prompt(self) -> bool:
        """The log-probabilities of the prompt's tokens are wanted."""
        return self.request.ask.echo and self.request.ask.logprobs


class Scheduler(QueuedScheduler[Job]):
    """The loop's state and its steps. Everything runs on the model's thread.

    Args:
        model: the loaded model.
        table: its sequences.
        prompt_seconds: spent on prompts between two decoding steps at most, not counting the call under way then.
        rows: sequences decoded in one call at most.
        metadata: the engine's share of a result's.
        exact: evaluate every prompt in the same calls, whatever else runs.
        threads: hears of every decoding step, and chooses the threads of the next calls.
    """

    def __init__(
        self,
        model: LlamaModel,
        table: SequenceTable,
        prompt_seconds: float,
        rows: int,
        metadata: Callable[[], dict[str, Any]],
        *,
        exact: bool = False,
        threads: Threads | None = None,
    ) -> None:
        super().__init__()
        self._model = model
        self.table = table
        self._prompt_seconds = prompt_seconds
        self._rows = rows
        self._metadata = metadata
        self._exact = exact
        self._threads = threads
        self.steps = 0
        """Calls of `llama_decode` so far."""

    def step(self) -> None:
        """Admit what has room, decode once, evaluate prompts for a while."""
        for job in [job for job in self._running if job.request.cancelled]:
            self._finish(job, "cancelled")
        self._admit()
        answering = sorted((job for job in self._running if job.next_token is not None), key=_sequence_id)
        size = math.ceil(len(answering) / math.ceil(len(answering) / self._rows)) if answering else 1
        for first in range(0, len(answering), size):
            self._decode(answering[first : first + size])
        self._evaluate_prompts()

    # -- admission ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give waiting requests sequences, in order; one that waits for another's prompt lets those behind it pass."""
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            placement = None
            if not job.request.cancelled:
                placement = self.table.place_whole() if job.scores_prompt else self.table.place(job.prompt)
            if placement is not None and job.request.start():
                self._place(job, placement)
            elif not job.request.cancelled:
                self._waiting.append(job)

    def _place(self, job: Job, placement: Placement) -> None:
        job.answer.begin()
        target, keep = placement.target, placement.keep
        try:
            if self.table.is_worth_saving(placement):
                self._save(target)
            if placement.source is not None:
                self._model.copy(placement.source.id, target.id)
            elif placement.saved is not None and not self._model.restore(
                target.id, self.table.store.get(placement.saved)
            ):
                keep = 0
            if not self._model.cut(target.id, keep):
                keep = 0
            # a prompt whose scores are wanted is evaluated in other pieces: an exact model reuses nothing of it
            self.table.take(target, [] if job.scores_prompt else job.prompt, keep)
            job.sequence, job.cached_tokens = target, keep
            self._running.append(job)
            job.sampler = Sampler(self._model, job.request.ask, job.answer.seed, job.prompt, job.constraint)
        except Exception as error:  # noqa: BLE001 - this request's alone
            if job.sequence is None:  # half-way between two prompts: what it holds is not known
                self._model.cut(target.id, 0)
                self.table.empty(target)
            self._fail(job, error)

    def _save(self, sequence: Cached) -> None:
        held = tuple(self.table.held(sequence))
        if self._model.cut(sequence.id, len(held)):
            self.table.store.put(held, self._model.save(sequence.id))

    # -- computing ---------------------------------------------------------------------------------------------------

    def _decode(self, jobs: Sequence[Job]) -> None:
        rows = [self._next_row(job) for job in jobs]
        start = time.perf_counter()
        try:
            self._compute(rows)
        except EngineFailure as error:
            for job in jobs:  # one of them may be to blame: each for itself
                if self._recover(job) and len(jobs) > 1:
                    self._decode([job])
                else:
                    self._fail(job, error)
            return
        if self._threads is not None:
            self._threads.measured(len(rows), start, time.perf_counter())
        for index, job in enumerate(jobs):
            assert job.sequence is not None
            assert job.next_token is not None
            job.sequence.tokens.append(job.next_token)
            self._sample(job, index)

    @staticmethod
    def _next_row(job: Job) -> Row:
        assert job.sequence is not None
        assert job.next_token is not None
        return Row(job.next_token, len(job.sequence.tokens), job.sequence.id, True)

    def _evaluate_prompts(self) -> None:
        """Evaluate prompts in the order of their requests, until their share of the step is over.

        Those whose tokens are scored come last: that is slow.
        """
        deadline = time.monotonic() + self._prompt_seconds
        waiting = [job for job in self._running if job.next_token is None]
        for job in sorted(waiting, key=lambda job: job.scores_prompt):
            while job in self._running and job.next_token is None:
                if job.request.cancelled:
                    self._finish(job, "cancelled")
                    break
                self._evaluate_piece(job)
                if time.monotonic() >= deadline:
                    return

    def _evaluate_piece(self, job: Job) -> None:
        """Go on with a prompt. The call that has its last token also gives the scores for the answer's first one.

        An exact model leaves the last token to the next decoding step, where a row rounds the same in any company.
        """
        assert job.sequence is not None
        start, last = len(job.sequence.tokens), len(job.prompt) - 1
        left = (last if self._exact else last + 1) - start
        if job.scores_prompt:  # the context has room for as many rows of scores as it has sequences
            end = start + min(left, len(self.table.sequences))
        else:
            end = start + next_piece(left, self._model.n_batch)
        piece = job.prompt[start:end]
        wanted = range(last if job.scores_prompt else 0)
        try:
            if piece:
                rows = enumerate(piece, start)
                self._compute([Row(token, at, job.sequence.id, at == last or at in wanted) for at, token in rows])
        except EngineFailure as error:
            self._recover(job)
            self._fail(job, error)
            return
        job.sequence.tokens += piece
        if job.request.ask.echo and not self._echo(job, range(start, end)):
            return
        if end == last:
            job.next_token = job.prompt[last]
        elif end > last:
            self._sample(job, len(piece) - 1)
            time.sleep(READER_SECONDS)

    def _echo(self, job: Job, evaluated: range) -> bool:
        """Keep the scores of the prompt's tokens that follow those just `evaluated`. At the prompt's end, deliver it.

        False if the request has failed.
        """
        assert job.sampler is not None
        prompt, last = job.prompt, len(job.prompt) - 1
        try:
            if job.scores_prompt and not job.logprobs:
                job.logprobs.append(job.sampler.first(prompt[0]))
            for row, at in enumerate(evaluated):
                if job.scores_prompt and at < last:
                    job.logprobs.append(job.sampler.logprob(prompt[at + 1], self._model.logits(row)))
            if evaluated.stop >= last:
                text = job.request.ask.prompt
                whole = b"".join(map(self._model.piece, prompt)).decode("utf-8", "replace") if text is None else text
                job.answer.echo(whole, job.logprobs)
        except Exception as error:  # noqa: BLE001 - this request's alone
            self._fail(job, error)
            return False
        return True

    def _compute(self, rows: Sequence[Row]) -> None:
        self.steps += 1
        self._model.decode(rows)

    def _recover(self, job: Job) -> bool:
        """After a failed call: drop what the sequence holds beyond what we know. False when that leaves nothing."""
        assert job.sequence is not None
        if self._model.cut(job.sequence.id, len(job.sequence.tokens)):
            return True
        self.table.empty(job.sequence)
        return False

    def _sample(self, job: Job, row: int) -> None:
        assert job.sampler is not None
        try:
            scores = self._model.logits(row)
            before = scores.copy() if job.sampler.tells else None
            token = job.forced.popleft() if job.forced else job.sampler.sample(row, scores)
            logprob = None if before is None else job.sampler.logprob(token, before)
            piece = job.shown.get(token) or self._model.piece(token)
            if self._model.is_end(token) or not job.answer.push(job.decoder.push(piece), logprob) or job.sampler.done:
                self._finish(job, "stop")
            elif job.answer.tokens >= job.limit:
                self._finish(job, "length")
            else:
                job.next_token = token
                if text := job.answer.take_forced():
                    job.forced.extend(self._model.tokenize(text, add_special=False))
        except Exception as error:  # noqa: BLE001 - this request's alone
            self._fail(job, error)

    # -- endings -----------------------------------------------------------------------------------------------------

    def _finish(self, job: Job, reason: FinishReason) -> None:
        self._leave(job)
        job.answer.finish(reason, job.decoder.flush(), {**self._metadata(), "cached_tokens": job.cached_tokens})

    def _fail(self, job: Job, error: Exception) -> None:
        self._leave(job)
        if not isinstance(error, RuntimeFault):
            logger.error("request %s", job.request.id, exc_info=error)
        job.request.emit(Failed(as_fault(error, EngineFailure, "llama_cpp failed", job.request.model_name)))

    def _leave(self, job: Job) -> None:
        """Free the sequence and the sampler, before anybody hears of the end."""
        if job in self._running:
            self._running.remove(job)
        if job.sequence is not None:
            self.table.release(job.sequence)
        if job.sampler is not None:
            job.sampler.close()
