"""`BatchingRuntime`: a model that computes several requests at once, with a second thread that prepares them."""

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, Generic, Protocol, TypeVar

from lfx_local_runtimes.runtimes.base import Inbox, ModelRuntime

JobT = TypeVar("JobT")


class Scheduler(Protocol):
    """What carries prepared requests to their ends, a step at a time, on the model's thread."""

    @property
    def busy(self) -> bool:
        """Something is left to do."""

    def add(self, job: Any) -> None:
        """Queue a prepared request."""

    def step(self) -> None:
        """Go on by one token of every running request. Raises nothing that one request is to blame for."""


class QueuedScheduler(ABC, Generic[JobT]):
    """A scheduler whose jobs wait in order until they have room, and then run until they end."""

    def __init__(self) -> None:
        self._waiting: deque[JobT] = deque()
        self._running: list[JobT] = []

    @property
    def busy(self) -> bool:
        """Something is left to do."""
        return bool(self._waiting or self._running)

    def add(self, job: JobT) -> None:
        """Queue a prepared request."""
        self._waiting.append(job)

    @abstractmethod
    def step(self) -> None:
        """Go on by one token of every running request. Raises nothing that one request is to blame for."""


class BatchingRuntime(ModelRuntime):
    """A model with a scheduler.

    Requests are prepared (rendered, tokenized) on a thread beside the loop, so that they hold no running answer up.
    """

    _preparing_since: float | None = None

    @property
    def step_age(self) -> float:
        """The preparation of a request counts as a step too."""
        began = self._preparing_since
        return max(super().step_age, 0.0 if began is None else time.monotonic() - began)

    @abstractmethod
    def _prepare(self, request: Any) -> Any:
        """The request as the scheduler takes it.

        Raises:
            RuntimeFault: this request cannot be served.
        """

    def _batch_work(self, inbox: Inbox, scheduler: Scheduler) -> None:
        """Serve requests until None comes."""
        ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        preparing = threading.Thread(  # a daemon: an executor's thread would hold the end of the process up
            target=self._prepare_all, args=(inbox, ready), name=f"prompts {self.config.model_name}", daemon=True
        )
        preparing.start()
        try:
            open_ = True
            while open_ or scheduler.busy:
                while open_ and not (scheduler.busy and ready.empty()):  # blocks only when there is nothing to do
                    self._rest()
                    job = ready.get()
                    if job is None:
                        open_ = False
                    else:
                        scheduler.add(job)
                self._step()
                scheduler.step()
        finally:
            inbox.put(None)  # where the loop failed
            preparing.join()

    def _prepare_all(self, inbox: Inbox, ready: "queue.SimpleQueue[Any]") -> None:
        while (request := inbox.get()) is not None:
            with self._answering(request):
                if request.cancelled:
                    request.emit(request.empty())
                else:
                    self._preparing_since = time.monotonic()
                    ready.put(self._prepare(request))
            self._preparing_since = None
        ready.put(None)
