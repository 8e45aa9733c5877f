"""The Gemma family over either engine, with what Gemma needs looked after.

Templates and the end-of-turn stop come from `templates`, for every engine; here is the rest: the right family, no fp16
(its activations overflow), a word about sizes, and a runtime whose first token is as fast as its later ones.
"""

import queue
import re
from dataclasses import replace

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.base import Inbox, LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.engines.llama_cpp.runtime import LlamaCppRuntime
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime
from lfx_local_runtimes.runtimes.formats.info import ModelFormat
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Request
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig

_GEMMA = re.compile(r"gemma", re.IGNORECASE)
_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.1, "int4": 0.7}


def size_hint(parameters: int | None, dtype: str, device: DeviceType) -> str | None:
    """Advice for a Gemma that is large for where it runs; None when there is nothing to say.

    2B-class models (up to 3 billion parameters) are comfortable on a CPU in bf16, int8 or Q4; 7B-class ones and larger
    want an accelerator, or four bits.
    """
    if parameters is None or device is not DeviceType.CPU or dtype not in _BYTES:
        return None
    needed = parameters * _BYTES[dtype] / 2**30
    if parameters > 3e9 and dtype != "int4":
        return f"A {parameters / 1e9:.0f}B Gemma in {dtype} on the CPU takes {needed:.0f} GiB and is slow: use int4 or a Q4 GGUF."
    if parameters > 1.5e9 and dtype == "fp32":
        return f"A {parameters / 1e9:.0f}B Gemma in fp32 takes {needed:.0f} GiB: int8 or a Q4 GGUF takes a quarter or less."
    return None


class GemmaLocalRuntime(ModelRuntime):
    """A Gemma, on llama.cpp (GGUF) or Transformers (safetensors)."""

    engine = "gemma_local"

    def __init__(self, config: ModelConfig, plan: LoadPlan | None = None) -> None:
        super().__init__(config, plan)
        self._inner: LlamaCppRuntime | TransformersRuntime | None = None

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        if not _GEMMA.match(plan.info.architecture or ""):
            raise InvalidInput(
                f"{plan.info.path.name} is a {plan.info.architecture or 'model of unknown architecture'}, not a Gemma.",
                hint="Use runtime_type auto.",
            )
        if plan.dtype == "fp16":
            raise InvalidInput("Gemma overflows in fp16.", hint="Use bf16, fp32, int8 or int4.")
        inner_type = LlamaCppRuntime if plan.info.format is ModelFormat.GGUF else TransformersRuntime
        self._inner = inner_type(self.config, replace(plan, engine=inner_type.engine))
        hint = size_hint(plan.info.parameters, plan.dtype, plan.device.type)
        if hint:
            self.warnings.append(hint)
        self._inner.warnings = self.warnings  # one list: what is added later shows in every result
        self._inner._load(plan, context)

    def _work(self, inbox: Inbox) -> None:
        assert self._inner is not None
        self._inner._work(inbox)

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
