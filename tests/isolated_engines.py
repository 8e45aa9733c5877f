"""Scripted engines that a process of their own can import. A request's prompt says what is to happen.

A prompt is a line of words. The first is the name of an action in `Actions`, the others are its arguments. Anything else
is answered by reciting.
"""

import ctypes
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import PickleRefused
from lfx_local_runtimes.runtimes.base import LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.isolated.runtime import IsolatedRuntime, make_runtime
from lfx_local_runtimes.runtimes.engines.isolated.spares import Spares
from lfx_local_runtimes.runtimes.engines.registry import EngineRow, register_engine
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Request
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig
from lfx_local_runtimes.runtimes.testing import ScriptedRuntime, Step
from lfx_local_runtimes.settings import Settings

CONTEXT = 256
"""Tokens: small, so that the end of it is soon reached."""
FOREVER_S = 600


def recite(config: GenerationConfig) -> Iterator[Step]:
    """Counts on when it is greedy, otherwise words by the seed.

    A model takes its time, a script does not: asked for more than the context holds, it waits for the cancel.
    """
    chance = random.Random(config.seed)
    for number in range(CONTEXT):
        if number == 10 and config.max_tokens > CONTEXT:
            yield threading.Event()
        yield from (
            (" ", str(number), ",") if config.temperature == 0 else (" ", chance.choice(("red", "green", "blue")))
        )


def end(how: str) -> None:
    """End this process, after a word."""
    print(f"the last words before {how}", file=sys.stderr, flush=True)
    if how == "SIGSEGV":
        ctypes.string_at(0)
    elif how == "SIGABRT":
        os.abort()
    elif how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(3)


def hang(how: str) -> None:
    """Never go on."""
    if how == "native":  # without the lock of the interpreter
        ctypes.CDLL(None).sleep(FOREVER_S)
    elif how == "holding":  # no other thread of Python runs meanwhile
        ctypes.PyDLL(None).sleep(FOREVER_S)


class Actions:
    """What a prompt can ask for. Each returns the steps of the answer."""

    @staticmethod
    def die(how: str, after: str = "0") -> Iterator[Step]:
        yield from (f"word{number} " for number in range(int(after)))
        end(how)

    @staticmethod
    def die_once(mark: str) -> Iterator[Step]:
        """The first process of the model does, without a word. The next one finds the mark."""
        if not Path(mark).exists():
            Path(mark).touch()
            end("SIGKILL")
        yield "alive"

    @staticmethod
    def hang(how: str) -> Iterator[Step]:
        yield "one "
        hang(how)

    @staticmethod
    def wait() -> Iterator[Step]:
        """Until it is cancelled."""
        yield "begun "
        yield threading.Event()

    @staticmethod
    def exhaust(how: str) -> Iterator[Step]:
        """Take more memory than it may: Python raises an error then, a native library aborts."""
        yield "begun "
        if how == "python":
            kept = []
            while True:
                kept.append(bytes(2**26))  # zeros that nobody has written take no memory of the machine
        take = ctypes.CDLL(None).malloc
        take.restype, take.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        while take(2**26):
            pass
        print("bad_alloc", file=sys.stderr, flush=True)
        os.abort()

    @staticmethod
    def prints(lines: str) -> Iterator[Step]:
        """In every way there is, between the tokens."""
        for number in range(3):
            yield f"token{number} "
            print("python prints")
            os.write(1, b"descriptor 1\n")
            libc = ctypes.CDLL(None)
            libc.puts(b"native puts")
            libc.fflush(None)
        block = b"a line of noise\n" * 1000
        for _ in range(int(lines) // 1000):
            os.write(2, block)
        os.write(2, b"the last line\n")
        yield "done"

    @staticmethod
    def flood(count: str) -> Iterator[Step]:
        """So many tokens, as fast as it goes."""
        yield from (f"{number} " for number in range(int(count)))

    @staticmethod
    def sends(what: str) -> Iterator[Step]:
        """Bytes on the descriptors that frames travel on."""
        yield "begun "
        data = bytes.fromhex(what)
        for handle in range(3, 20):
            with suppress(OSError):
                os.write(handle, data)
        yield threading.Event()

    @staticmethod
    def quits() -> Iterator[Step]:
        """As a program's code does."""
        yield "begun "
        sys.exit(7)

    @staticmethod
    def answers() -> Iterator[Step]:
        """The id of the process, and the folder it may write."""
        yield f"{os.getpid()} {os.environ['HOME']}"


def act(config: GenerationConfig) -> Iterable[Step]:
    """Do as the prompt says."""
    name, *arguments = (config.turns[-1].content or "recite").split()
    action: Callable[..., Iterable[Step]] | None = getattr(Actions, name, None)
    return action(*arguments) if action else recite(config)


class Actor(ScriptedRuntime):
    """Does as prompts say. The model's folder says what happens at load and at the end: a file named so holds a word."""

    engine = "actor"
    script = staticmethod(act)

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        super()._load(plan, context)
        self._do("load")

    def _close(self) -> None:
        super()._close()
        self._do("close")

    def _do(self, when: str) -> None:
        assert self._plan is not None
        file = self._plan.info.path / when
        words = file.read_text().split() if file.is_file() else []
        if words[:1] == ["die"]:
            end(words[1])
        elif words[:1] == ["hang"]:
            hang(words[1])
        elif words[:1] == ["quit"]:
            sys.exit(7)
        elif words[:1] == ["refuse"]:
            raise PickleRefused(f"{words[1]} are pickle.")


class Deaf(ModelRuntime):
    """Ignores cancels."""

    engine = "deaf"

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        pass

    def _serve(self, request: Request[Any]) -> None:
        from lfx_local_runtimes.runtimes.tasks.generation import TextDelta

        request.emit(TextDelta("begun", 1))
        time.sleep(FOREVER_S)

    def _close(self) -> None:
        pass

    def _measure(self) -> dict[str, int]:
        return {"cpu": 1}


def nothing() -> None:
    """An import that is done at once."""


def import_for_ever() -> None:
    """An import that never ends."""
    time.sleep(FOREVER_S)


def import_with_thread() -> None:
    """What some libraries do when they are imported: it makes a process unfit to be confined."""
    threading.Thread(target=time.sleep, args=(FOREVER_S,), daemon=True).start()


class Reciter(ScriptedRuntime):
    """The scripted engine of the contract."""

    script = staticmethod(recite)


def register() -> None:
    """Let a manager know the engines."""
    for kind in (Actor, Deaf):
        register_engine(EngineRow(kind.engine, f"{__name__}:{kind.__name__}"))


def runtime_of(
    kind: type[ModelRuntime], folder: Path, config: dict[str, Any] | None = None, spares: Spares | None = None,
    **settings: Any,
) -> IsolatedRuntime:  # fmt: skip
    """A runtime of an engine of this module in a process, not loaded."""
    register()
    options = {"model_id": str(folder), "model_name": folder.name, "context_length": 100_000, **(config or {})}
    model = ModelConfig.model_validate(options)
    made = make_runtime(model, scripted_plan(model, kind.engine), Settings(**settings), spares)
    assert isinstance(made, IsolatedRuntime)
    return made


def scripted_plan(config: ModelConfig, engine: str) -> LoadPlan:
    """A plan for a model that needs no files."""
    from dataclasses import replace

    plan = ScriptedRuntime._own_plan(config)
    return replace(plan, engine=engine, memory={"cpu": 2**20})
