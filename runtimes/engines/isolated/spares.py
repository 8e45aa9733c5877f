"""Processes that wait for a model, so that a load does not wait for Python and the engine's library.

Two kinds. One has imported this package only: it is started when a load begins, while the model's files are still being
found and checked. The other has imported an engine's library too: it is started when a model of that engine has been
loaded, for the next one. Importing torch and Transformers takes seconds.

A spare has not read any model. It gives up its rights when it gets one, which works as long as it has one thread.
"""

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable

from lfx_local_runtimes.runtimes.engines.registry import EngineRow
from lfx_local_runtimes.runtimes.processes.child import Child, ChildFailure
from lfx_local_runtimes.runtimes.processes.environment import child_environment
from lfx_local_runtimes.runtimes.processes.frames import Frame, ProtocolError

logger = logging.getLogger(__name__)

CHILD = "lfx_local_runtimes.runtimes.engines.isolated.child"
WARM_S = 120.0
"""How long an import may take."""
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Large blocks of memory in huge pages, if the system gives them on request. Then the kernel takes a gigabyte back in 15 ms,
and not in 40: so much sooner callers hear of a death."""
_SOON_S = 10.0
"""How long a load waits for a process that is on its way. It began sooner than a new one would."""
_PLAIN = ""
"""The kind of a spare without an engine's library."""

Account = Callable[[str, int], None]
"""Called with a kind of spare and the bytes that all of this kind take; 0 if none waits."""


def start_child() -> Child:
    """A process for a model.

    Raises:
        ChildNotStarted: the system did not start it.
    """
    own = {
        "OPENBLAS_NUM_THREADS": "1",  # a process that has more threads cannot be confined
        "GLIBC_TUNABLES": ":".join(filter(None, (_HUGE_PAGES, os.environ.get("GLIBC_TUNABLES")))),  # the user's wins
    }
    return Child(CHILD, name="The process of a model", environment=child_environment(own))


class Spares:
    """The processes that wait. Any thread may use it.

    Args:
        per_engine: how many with an engine's library wait, for each engine that was used. With 0 none waits at all.
        account: hears what they take.
    """

    def __init__(self, per_engine: int, account: Account) -> None:
        self._per_engine = per_engine
        self._account = account
        self._changed = threading.Condition(threading.Lock())
        self._telling = threading.Lock()
        self._waiting: dict[str, list[Child]] = {}
        self._starting: Counter[str] = Counter()
        """How many are on their way, by kind."""
        self._wanted: Counter[str] = Counter()
        """How many of those a load waits for."""
        self._importing: set[Child] = set()
        """The processes of those that are started already."""
        self._closed = False

    def expect(self) -> None:
        """A load begins: start a process beside it, if none waits."""
        with self._changed:
            if any(child.alive for waiting in self._waiting.values() for child in waiting):
                return
        self._start(_PLAIN, Frame({"t": "warm", "warm": None, "environment": {}}))

    def refill(self, row: EngineRow) -> None:
        """A model of this engine was loaded: have a process wait for the next one."""
        if row.warm is not None:
            head = {"warm": row.warm, "factory": row.factory_reference, "environment": dict(row.environment)}
            self._start(row.name, Frame({"t": "warm", **head}))

    def take(self, row: EngineRow, *, warm: bool = True) -> Child:
        """A process for a model of this engine: the best that waits or is on its way, else a new one.

        Args:
            row: the engine.
            warm: its library may have been imported already.

        Raises:
            ChildNotStarted: the system did not start it.
        """
        for kind in (row.name, _PLAIN) if warm else (_PLAIN,):
            while (child := self._pop(kind)) is not None:
                if child.alive:
                    return child
                child.close(0)
        return start_child()

    def drop(self) -> bool:
        """End all that wait: their memory is wanted. False if there was none."""
        with self._changed:
            children = [child for waiting in self._waiting.values() for child in waiting]
            kinds = [kind for kind, waiting in self._waiting.items() if waiting]
            for waiting in self._waiting.values():
                waiting.clear()
        for child in children:
            child.close(0)
        for kind in kinds:
            self._tell(kind)
        return bool(children)

    def close(self) -> None:
        """End all that wait, for good."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            importing = [*self._importing]
        for child in importing:
            child.kill()
        self.drop()

    def _pop(self, kind: str) -> Child | None:
        with self._changed:
            waiting = self._waiting.setdefault(kind, [])
            if not waiting and self._starting[kind] > self._wanted[kind]:
                self._await(kind)
            child = waiting.pop() if waiting else None
        if child is not None:
            self._tell(kind)
        return child

    def _await(self, kind: str) -> None:
        """Wait for one that is on its way."""

        def over() -> bool:
            return bool(self._waiting[kind]) or self._starting[kind] < self._wanted[kind] or self._closed

        self._wanted[kind] += 1
        self._changed.wait_for(over, _SOON_S)
        self._wanted[kind] -= 1

    def _tell(self, kind: str) -> None:
        with self._telling:  # the last word must be the last count
            with self._changed:
                waiting = list(self._waiting.get(kind, ()))
            self._account(kind, sum(child.memory() for child in waiting))

    def _start(self, kind: str, frame: Frame) -> None:
        with self._changed:
            waiting = self._waiting.setdefault(kind, [])
            dead = [child for child in waiting if not child.alive]
            waiting[:] = [child for child in waiting if child not in dead]
            enough = self._closed or len(waiting) + self._starting[kind] >= self._per_engine
            if not enough:
                self._starting[kind] += 1
        for child in dead:
            child.close(0)
        if enough:
            return
        threading.Thread(target=self._warm, args=(kind, frame), name="spare process", daemon=True).start()

    def _warm(self, kind: str, frame: Frame) -> None:
        child: Child | None = None
        ready = False
        try:
            child = start_child()
            with self._changed:
                self._importing.add(child)
                if self._closed:
                    child.kill()
            child.ask(frame, WARM_S)
            ready = True
        except (ChildFailure, ProtocolError) as error:
            logger.debug("no spare process: %s", error)
        with self._changed:
            self._starting -= Counter([kind])
            if child is not None:
                self._importing.discard(child)
            keep = ready and not self._closed
            if keep and child is not None:
                self._waiting[kind].append(child)
            self._changed.notify_all()
        if keep:
            self._tell(kind)
        elif child is not None:
            child.close(0)
