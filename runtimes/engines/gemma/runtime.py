"""The Gemma family over llama.cpp or Transformers.

`templates` knows Gemma's prompts and ends of turn, for every engine. `offer` checks the family and the type. Here is the
rest: one runtime over either engine, and one that is warmed up at load.
"""

import queue
from dataclasses import replace

from lfx_local_runtimes.runtimes.base import Inbox, LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.llama_cpp.runtime import LlamaCppRuntime
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime
from lfx_local_runtimes.runtimes.formats.info import ModelFormat
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Request
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig


class GemmaLocalRuntime(ModelRuntime):
    """A Gemma, on llama.cpp (GGUF) or Transformers (safetensors)."""

    engine = "gemma_local"

    def __init__(self, config: ModelConfig, plan: LoadPlan | None = None) -> None:
        super().__init__(config, plan)
        self._inner: LlamaCppRuntime | TransformersRuntime | None = None

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        inner_type = LlamaCppRuntime if plan.info.format is ModelFormat.GGUF else TransformersRuntime
        self._inner = inner_type(self.config, replace(plan, engine=inner_type.engine))
        self._inner.warnings = self.warnings  # one list: what is added later shows in every result
        self._inner._load(plan, context)

    def _work(self, inbox: Inbox) -> None:
        assert self._inner is not None
        self._inner._work(inbox)

    @property
    def step_age(self) -> float:
        return 0.0 if self._inner is None else self._inner.step_age

    def _close(self) -> None:
        if self._inner is not None:
            self._inner._close()
            self._inner = None

    def _measure(self) -> dict[str, int]:
        assert self._inner is not None
        return self._inner._measure()


class GemmaStreamingRuntime(GemmaLocalRuntime):
    """A Gemma for token-by-token use: warmed up at load, so that the first token comes as fast as on later requests."""

    engine = "gemma_streaming"

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        super()._load(plan, context)
        request = Request(
            self.config.model_name, GenerationConfig(prompt="Hello", raw=True, max_tokens=1, temperature=0)
        )
        inbox: Inbox = queue.SimpleQueue()
        inbox.put(request)
        inbox.put(None)
        self._work(inbox)
