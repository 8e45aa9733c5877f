"""Requests on their way through a Transformers model: one at a time, or several in a batch."""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from lfx_local_runtimes.errors import DeviceFailed, EngineFailure, RuntimeFault, as_fault
from lfx_local_runtimes.runtimes.batching import QueuedScheduler
from lfx_local_runtimes.runtimes.chat.answer import Answer
from lfx_local_runtimes.runtimes.engines.transformers.batching import PagedBatch
from lfx_local_runtimes.runtimes.engines.transformers.load import Loaded
from lfx_local_runtimes.runtimes.engines.transformers.sampling import Sampler, logprob
from lfx_local_runtimes.runtimes.engines.transformers.token_text import TokenDecoder
from lfx_local_runtimes.runtimes.engines.transformers.vision_language import Seen
from lfx_local_runtimes.runtimes.requests import Failed, Request
from lfx_local_runtimes.runtimes.tasks.generation import FinishReason, GenerationConfig

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """A request whose prompt is ready to be evaluated, and how far it has come."""

    request: Request[GenerationConfig]
    answer: Answer
    tokens: list[int]
    """The prompt's, then the answer's."""
    limit: int
    """Tokens of the answer at most."""
    sampler: Sampler
    decoder: TokenDecoder
    loaded: Loaded
    pictures: list[Seen] = field(default_factory=list)
    """Those in the prompt, in their order."""
    pixels: Any = None
    """The picture that a captioner describes."""
    forced: deque[int] = field(default_factory=deque, init=False)
    """Tokens that come next, whatever the model would say."""
    key: str = ""
    """Its name in the batch."""
    cached_tokens: int = 0
    reason: FinishReason | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)

    @property
    def ended(self) -> bool:
        """The answer is complete, or failed."""
        return self.reason is not None or self.error is not None

    def choose(self, scores: Any) -> int:
        """Choose the next token from the model's scores (a float tensor of the vocabulary, changed) and deliver it.

        What goes wrong here concerns this request alone and is kept in `error`.
        """
        try:
            return self._choose(scores)
        except Exception as error:  # noqa: BLE001 - the others in the batch go on
            self.error = error
            return 0

    def _choose(self, scores: Any) -> int:
        config = self.request.ask
        before = scores.clone() if config.logprobs else None
        token = self.forced.popleft() if self.forced else self.sampler.sample(scores)
        self.tokens.append(token)
        if token in self.loaded.end_ids:
            self.reason = "stop"
            return token
        told = None if before is None else logprob(token, before, config.top_logprobs, self.loaded.piece)
        if not self.answer.push(self.decoder.push(token), told) or self.sampler.done:
            self.reason = "stop"
        elif self.answer.tokens >= self.limit:
            self.reason = "length"
        elif text := self.answer.take_forced():
            self.forced.extend(self.loaded.tokenize(text))
        return token

    def finish(self, reason: FinishReason, metadata: dict[str, Any]) -> None:
        """Emit the result."""
        self.answer.finish(reason, self.decoder.flush(), {**metadata, "cached_tokens": self.cached_tokens})

    def fail(self, error: Exception) -> None:
        """Emit the failure."""
        if not isinstance(error, RuntimeFault):
            logger.error("request %s", self.request.id, exc_info=error)
        self.request.emit(Failed(as_fault(error, EngineFailure, "transformers failed", self.request.model_name)))


class Scheduler(QueuedScheduler[Job]):
    """Lets requests into the batch and out of it. Everything runs on the model's thread.

    A batch takes tokens only, so a request with pictures is computed alone. It keeps its place in the order: those before it
    end first, and those after it wait.

    Args:
        batch: where they are computed. None: each request is computed alone.
        sequences: how many at once.
        alone: computes a request from its first to its last token.
        metadata: the engine's share of a result's.
        faults: translates what a step raises.
    """

    def __init__(
        self,
        batch: PagedBatch | None,
        sequences: int,
        alone: Callable[[Job], None],
        metadata: Callable[[], dict[str, Any]],
        faults: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__()
        self._batch = batch
        self._sequences = sequences
        self._alone = alone
        self._metadata = metadata
        self._faults = faults

    def step(self) -> None:
        """Let out who is cancelled and in who has room, compute a step, and let out who is through."""
        for job in [job for job in self._running if job.request.cancelled]:
            self._leave(job)
            job.finish("cancelled", self._metadata())
        while self._waiting and len(self._running) < self._sequences:
            batch = None if self._waiting[0].pictures else self._batch
            if batch is not None:
                self._enter(self._waiting.popleft(), batch)
            elif self._running:
                break
            else:
                self._compute_alone(self._waiting.popleft())
                return  # requests that came meanwhile are prepared first
        if not self._running:
            return
        assert self._batch is not None
        try:
            with self._faults():
                self._batch.step()
        except DeviceFailed:
            raise  # it ends the model
        except Exception as error:  # noqa: BLE001 - the model goes on serving others
            self._recover(error)
        for job in [job for job in self._running if job.ended]:
            self._leave(job)
            if job.error is not None:
                job.fail(job.error)
            elif job.reason is not None:
                job.finish(job.reason, self._metadata())

    def _enter(self, job: Job, batch: PagedBatch) -> None:
        if job.request.start():
            job.answer.begin()
            job.key = batch.add(job.tokens, job.choose)
            self._running.append(job)

    def _compute_alone(self, job: Job) -> None:
        if not job.request.start():
            return
        job.answer.begin()
        try:
            with self._faults():
                self._alone(job)
        except DeviceFailed:
            raise
        except Exception as error:  # noqa: BLE001 - the model goes on serving others
            job.error = error
        if job.error is not None:
            job.fail(job.error)
        else:
            job.finish(job.reason or "cancelled", self._metadata())

    def _leave(self, job: Job) -> None:
        """Before anybody hears of the end."""
        assert self._batch is not None
        self._running.remove(job)
        job.cached_tokens = self._batch.reused(job.key)
        self._batch.remove(job.key)

    def _recover(self, error: Exception) -> None:
        """A step failed (it ran out of memory, say): the request that came last gives way, the others begin again from
        the tokens they have."""
        assert self._batch is not None
        self._batch.reset()
        last = self._running.pop()
        for job in self._running:
            job.key = self._batch.add(job.tokens, job.choose)
        last.fail(error)
