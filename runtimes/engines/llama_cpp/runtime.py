"""`LlamaCppRuntime`: a GGUF model that answers several requests at once."""

import re
from typing import Any

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.base import Inbox, LoadContext
from lfx_local_runtimes.runtimes.batching import BatchingRuntime
from lfx_local_runtimes.runtimes.chat.answer import Answer
from lfx_local_runtimes.runtimes.chat.templates import choose_template, warm
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.devices import CPU, device_of
from lfx_local_runtimes.runtimes.engines.constraints import Constraint, compile_constraint, llama_tokenizer
from lfx_local_runtimes.runtimes.engines.host import physical_cores, release_memory
from lfx_local_runtimes.runtimes.engines.llama_cpp.native import LlamaModel, Options
from lfx_local_runtimes.runtimes.engines.llama_cpp.scheduler import Job, Scheduler
from lfx_local_runtimes.runtimes.engines.llama_cpp.sequences import SequenceTable, StateStore
from lfx_local_runtimes.runtimes.engines.llama_cpp.threads import Threads
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Progress, Request
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, Grammar

PIECE = 256
"""Tokens of a prompt evaluated in one call: a cancel lands between two of them."""

PROMPT_SECONDS = 1.0
"""For prompts between two decoding steps. Longer, and running streams falter; shorter, and the first token of eight at
once waits for decoding steps that are not full yet."""

_ALIKE = 7
"""Rows of a decoding step that llama.cpp's CPU kernels for Q4_K to Q8_0 round as they round one row, as long as weights
are not repacked. Found by comparing every tensor of the graph: from 8 rows on K-quants go through its tiled kernels."""


class LlamaCppRuntime(BatchingRuntime):
    """A GGUF model with continuous batching and reuse of what prompts have in common."""

    engine = "llama_cpp"

    def __init__(self, config: ModelConfig, plan: LoadPlan | None = None) -> None:
        super().__init__(config, plan)
        self._model: LlamaModel | None = None
        self._grammar_tokenizer: Any = None
        """llguidance's view of the vocabulary, made when the first request needs it."""
        self._scheduler: Scheduler | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        self._template = choose_template(plan.info, self.config.chat_template)
        warm(self._template)
        size = plan.info.size_bytes

        def progress(share: float) -> bool:
            context.report(Progress("load", int(share * size), size))
            return not context.cancelled

        options = Options(
            n_ctx=plan.context_length,
            n_seq=plan.sequences,
            n_batch=max(min(PIECE, plan.context_length), plan.sequences),
            n_threads=self.config.threads or physical_cores(),
            gpu=None if plan.device.type is DeviceType.CPU else plan.device.index,
            gpu_layers=self.config.gpu_layers,
            split=split(plan),
            exact=self.config.deterministic,
        )
        self._model = model = LlamaModel(plan.info.files[0], options, progress)
        follows = options.gpu is None and not options.exact
        threads = Threads(options.n_threads, model.use_threads) if follows else None
        table = SequenceTable(plan.sequences, StateStore(plan.state_bytes), exact=options.exact)
        self._scheduler = Scheduler(
            model, table, PROMPT_SECONDS, self._rows_at_once(plan), self._about, exact=options.exact, threads=threads
        )

    def _close(self) -> None:
        self._scheduler = None
        if self._model is not None:
            self._grammar_tokenizer = None
            self._model.close()
            self._model = None
            release_memory()

    def _measure(self) -> dict[str, int]:
        assert self._model is not None
        assert self._plan is not None
        return self._model.memory(self._plan.device.key, {"cpu": self._plan.state_bytes})

    # -- requests ----------------------------------------------------------------------------------------------------

    def _work(self, inbox: Inbox) -> None:
        assert self._scheduler is not None
        self._batch_work(inbox, self._scheduler)

    def _rows_at_once(self, plan: LoadPlan) -> int:
        if not self.config.deterministic:
            return plan.sequences
        return _ALIKE if plan.device.type is DeviceType.CPU and re.search("Q[5-8]_|Q4_K", plan.dtype) else 1

    def _prepare(self, request: Request[GenerationConfig]) -> Job:
        """The request's tokens.

        Raises:
            RuntimeFault: the prompt cannot be evaluated.
        """
        model, plan = self._model, self._plan
        assert model is not None
        assert plan is not None
        bos, eos = model.bos, model.eos
        answer = Answer(
            request,
            self._template,
            bos=bos[1] if bos else "",
            eos=eos[1] if eos else "",
            fills_in=model.fim is not None,
            echoes=True,
        )
        answer.check_size(plan.context_length, lambda text: len(model.tokenize(text, add_special=False)))
        answer.check_ids(model.n_vocab)
        given, suffix = request.ask.prompt_ids, request.ask.suffix
        if suffix is not None:
            prompt = model.tokenize_gap(answer.prompt, suffix)
        else:
            prompt = model.tokenize(answer.prompt, add_special=True) if given is None else list(given)
        if answer.had_bos and bos and prompt[:1] != [bos[0]]:
            prompt.insert(0, bos[0])
        if not prompt:
            raise InvalidInput("The prompt is empty.", hint="Give the model at least one word to continue.")
        prompt = answer.fit(prompt, plan.context_length)
        limit = answer.admit(len(prompt), plan.context_length)
        constraint = self._compile(answer.grammar)
        marks = ((model.tokenize(mark, add_special=False), mark.encode()) for mark in answer.marks)
        return Job(
            request, answer, prompt, limit, constraint, shown={ids[0]: text for ids, text in marks if len(ids) == 1}
        )

    def _compile(self, grammar: Grammar | None) -> Constraint | None:
        if grammar is None:
            return None
        assert self._model is not None
        if self._grammar_tokenizer is None:
            self._grammar_tokenizer = llama_tokenizer(self._model.vocabulary, self._model.end_tokens())
        return compile_constraint(grammar, self._grammar_tokenizer)

    def _about(self) -> dict[str, Any]:
        assert self._model is not None
        assert self._plan is not None
        return {
            "engine": self.engine, "engine_version": self._model.lib.__version__, "device": self._plan.device.key,
            "quantization": self._plan.dtype, "context_length": self._plan.context_length,
            "warnings": list(self.warnings),
        }  # fmt: skip


def split(plan: LoadPlan) -> dict[int, int]:
    """How many layers each card gets, by its index. llama.cpp counts the output as one more, on the last of them."""
    cards = {device_of(key).index: count for key, count in plan.layers.items() if key != CPU.key and count}
    if cards:
        cards[max(cards)] += 1
    return cards
