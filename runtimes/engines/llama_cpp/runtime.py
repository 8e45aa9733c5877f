"""`LlamaCppRuntime`: a GGUF model that answers several requests at once."""

import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lfx_local_runtimes.errors import ContextOverflow, InvalidInput
from lfx_local_runtimes.runtimes.base import Inbox, LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.engines.host import physical_cores, release_memory
from lfx_local_runtimes.runtimes.engines.llama_cpp.native import LlamaModel
from lfx_local_runtimes.runtimes.engines.llama_cpp.scheduler import Job, Scheduler
from lfx_local_runtimes.runtimes.engines.llama_cpp.sequences import SequenceTable, StateStore
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Progress, Request
from lfx_local_runtimes.runtimes.text.answer import Answer
from lfx_local_runtimes.runtimes.text.templates import choose_template, warm

CHUNK = 256
"""Tokens of prompts evaluated between two decoding steps: a cancel lands between two of them."""

STORE_BYTES = 256 * 2**20
"""Host memory for the states of prompts that had to leave the context; never more than the context's own."""

_LONGEST_TOKEN = 512
"""Characters. A prompt with more than this per token of context cannot fit and is not tokenized."""


class LlamaCppRuntime(ModelRuntime):
    """A GGUF model with continuous batching and reuse of what prompts have in common.

    Prompts are rendered and tokenized on a thread beside the loop, so that they hold no running answer up.
    """

    engine = "llama_cpp"

    def __init__(self, config: ModelConfig, plan: LoadPlan | None = None) -> None:
        super().__init__(config, plan)
        self._model: LlamaModel | None = None
        self._store = StateStore(0)

    # -- life --------------------------------------------------------------------------------------------------------

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        self._template = choose_template(plan.info, self.config.chat_template)
        warm(self._template)
        size = plan.info.size_bytes

        def progress(share: float) -> bool:
            context.report(Progress("load", int(share * size), size))
            return not context.cancelled

        self._model = LlamaModel(
            plan.info.files[0],
            n_ctx=plan.context_length,
            n_seq=plan.sequences,
            n_batch=max(min(CHUNK, plan.context_length), plan.sequences),
            n_threads=self.config.threads or physical_cores(),
            gpu=None if plan.device.type is DeviceType.CPU else plan.device.index,
            gpu_layers=self.config.gpu_layers,
            progress=progress,
        )

    def _close(self) -> None:
        self._store.clear()
        if self._model is not None:
            self._model.close()
            self._model = None
            release_memory()

    def _measure(self) -> dict[str, int]:
        assert self._model is not None
        assert self._plan is not None
        taken: dict[str, int] = {}
        for name, size in self._model.buffers.items():
            on_device = not name.startswith("CPU") and not name.endswith("_Host")
            key = self._plan.device.key if on_device else "cpu"
            taken[key] = taken.get(key, 0) + size
        return taken

    # -- requests ----------------------------------------------------------------------------------------------------

    def _work(self, inbox: Inbox) -> None:
        model, plan = self._model, self._plan
        assert model is not None
        assert plan is not None
        self._store = StateStore(STORE_BYTES if plan.sequences > 1 else 0)
        table = SequenceTable(plan.sequences, self._store)
        scheduler = Scheduler(model, table, model.n_batch, self._about)
        ready: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        with ThreadPoolExecutor(1, f"prompts {self.config.model_name}") as preparing:
            preparing.submit(self._prepare_all, inbox, ready, model, plan)
            open_ = True
            while open_ or scheduler.busy:
                while open_ and not (scheduler.busy and ready.empty()):  # blocks only when there is nothing to do
                    job = ready.get()
                    if job is None:
                        open_ = False
                    else:
                        scheduler.add(job)
                scheduler.step()

    def _prepare_all(
        self, inbox: Inbox, ready: "queue.SimpleQueue[Job | None]", model: LlamaModel, plan: LoadPlan
    ) -> None:
        while (request := inbox.get()) is not None:
            with self._answering(request):
                if not request.cancelled:
                    ready.put(self._prepare(request, model, plan))
        ready.put(None)

    def _prepare(self, request: Request, model: LlamaModel, plan: LoadPlan) -> Job:
        """The request's tokens.

        Raises:
            RuntimeFault: the prompt cannot be evaluated.
        """
        bos, eos = model.bos, model.eos
        answer = Answer(request, self._template, bos=bos[1] if bos else "", eos=eos[1] if eos else "")
        if len(answer.prompt) > plan.context_length * _LONGEST_TOKEN and not request.config.truncate:
            raise ContextOverflow(
                f"The prompt has {len(answer.prompt):,} characters; the context holds {plan.context_length:,} tokens.",
                hint="Shorten it, or set truncate.",
            )
        prompt = model.tokenize(answer.prompt, add_special=True)
        if answer.had_bos and bos and prompt[:1] != [bos[0]]:
            prompt.insert(0, bos[0])
        if not prompt:
            raise InvalidInput("The prompt is empty.", hint="Give the model at least one word to continue.")
        prompt = answer.fit(prompt, plan.context_length)
        return Job(request, answer, prompt, answer.admit(len(prompt), plan.context_length))

    def _about(self) -> dict[str, Any]:
        assert self._model is not None
        assert self._plan is not None
        return {
            "engine": self.engine, "engine_version": self._model.lib.__version__, "device": self._plan.device.key,
            "quantization": self._plan.dtype, "context_length": self._plan.context_length,
            "warnings": list(self.warnings),
        }  # fmt: skip
