"""A runtime that says what it is told to: for tests, without a model."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from lfx_local_runtimes.errors import LoadFailed
from lfx_local_runtimes.runtimes.base import LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.chat.answer import Answer
from lfx_local_runtimes.runtimes.chat.templates import choose_template
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.devices import CPU
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import DEFAULT_CONTEXT, LoadPlan
from lfx_local_runtimes.runtimes.requests import Request
from lfx_local_runtimes.runtimes.tasks.generation import FinishReason, GenerationConfig
from lfx_local_runtimes.runtimes.tasks.multimodal.caption import CaptionAsk
from lfx_local_runtimes.runtimes.tasks.multimodal.vqa import VqaAsk

_POLL_S = 0.005
"""How often a closed gate lets the engine look at the cancel flag."""


class Gate(Protocol):
    """Anything that waits as `threading.Event` does."""

    def wait(self, timeout: float, /) -> bool:
        """True once it is open."""


Step: TypeAlias = str | Exception | Gate
"""A token of the answer, a failure at this point, or a gate to wait at."""

Script: TypeAlias = Sequence[Step] | Callable[[GenerationConfig], Iterable[Step]]
"""The steps of every answer, or how to make them from the request, whose `seed` is the one in use."""


class ScriptedRuntime(ModelRuntime):
    """Answers by a script and otherwise behaves as a real engine: own thread, templates, stop strings, `max_tokens`,
    cancel, errors and memory.

    A word of the prompt counts as one token of it.

        runtime = ScriptedRuntime(ModelConfig(model_id="none", model_name="parrot"), script=["Hel", "lo"])
        await runtime.load()
        result = await runtime.generate(GenerationConfig(prompt="Say hello"))
        assert (result.text, result.tokens_generated, result.finish_reason) == ("Hello", 2, "stop")
        await runtime.unload()

    As an engine of a manager: `register_engine("scripted", ScriptedRuntime)`, or a `functools.partial` of it, and
    `runtime_type="scripted"` in the model's configuration. A subclass sets the defaults below.

    Args:
        config: the model; nothing of it needs to exist.
        plan: the manager's decision.
        script: see `Script`.
        load_error: raised by the load.
        load_gate: the load waits for it.
        memory_bytes: what the model is to take on its device.
    """

    engine = "scripted"

    script: Script = ("Hello", ",", " world", "!")
    load_error: Exception | None = None
    load_gate: Gate | None = None
    memory_bytes: int = 2**20
    vision: bool = False
    """The model reads pictures. In its prompts `<image>` stands for one."""

    def __init__(
        self,
        config: ModelConfig,
        plan: LoadPlan | None = None,
        *,
        script: Script | None = None,
        load_error: Exception | None = None,
        load_gate: Gate | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        super().__init__(config, plan or self._own_plan(config))
        if script is not None:
            self.script = script
        if load_error is not None:
            self.load_error = load_error
        if load_gate is not None:
            self.load_gate = load_gate
        if memory_bytes is not None:
            self.memory_bytes = memory_bytes
        self.loads = 0
        """Loads begun."""
        self.closes = 0
        self.tokens = 0
        """Generated in all answers, those of cancelled requests included."""

    @classmethod
    def _own_plan(cls, config: ModelConfig) -> LoadPlan:
        info = ModelInfo(Path(config.model_id), ModelFormat.UNKNOWN, files=(), size_bytes=0)
        return LoadPlan(info, cls.engine, CPU, "none", config.context_length or DEFAULT_CONTEXT)

    @property
    def tasks(self) -> frozenset[str]:
        """Text, and if the model reads pictures what can be asked about one."""
        return frozenset({"llm", "caption", "vqa"} if self.vision else {"llm"})

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        self.loads += 1
        if self.load_gate is not None and not _pass(self.load_gate, lambda: context.cancelled):
            raise LoadFailed("The load was cancelled.")
        if self.load_error is not None:
            raise self.load_error
        self._template = choose_template(plan.info, self.config.chat_template)

    def _close(self) -> None:
        self.closes += 1

    def _measure(self) -> dict[str, int]:
        assert self._plan is not None
        return {self._plan.device.key: self.memory_bytes}

    def _serve(self, request: Request[Any]) -> None:
        assert self._plan is not None
        if isinstance(request.ask, CaptionAsk | VqaAsk):
            request.ask = request.ask.conversation()
        answer = Answer(request, self._template, picture="<image>" if self.vision else None)
        limit = answer.admit(len(answer.prompt.split()), self._plan.context_length)
        config = request.ask.model_copy(update={"seed": answer.seed})
        steps = self.script(config) if callable(self.script) else self.script
        reason = self._play(steps, request, answer, limit)
        answer.finish(reason, "", {
            "engine": self.engine, "device": self._plan.device.key, "quantization": self._plan.dtype,
            "context_length": self._plan.context_length, "warnings": list(self.warnings),
        })  # fmt: skip

    def _play(
        self, steps: Iterable[Step], request: Request[GenerationConfig], answer: Answer, limit: int
    ) -> FinishReason:
        for step in steps:
            self._step()
            if request.cancelled:
                return "cancelled"
            if isinstance(step, Exception):
                raise step
            if not isinstance(step, str):
                if not _pass(step, lambda: request.cancelled):
                    return "cancelled"
                continue
            self.tokens += 1
            if not answer.push(step) or ((forced := answer.take_forced()) and not answer.push(forced)):
                return "stop"
            if answer.tokens >= limit:
                return "length"
        return "stop"


def _pass(gate: Gate, cancelled: Callable[[], bool]) -> bool:
    """Wait at a gate. False when it was left because of a cancel."""
    while not cancelled():
        if gate.wait(_POLL_S):
            return True
    return False
