"""GGUF models in llama.cpp."""

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.base import LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.config import DeviceType, FinishReason, ModelConfig
from lfx_local_runtimes.runtimes.engines.host import physical_cores, release_memory
from lfx_local_runtimes.runtimes.engines.llama_cpp.native import LlamaModel, Sampler
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Progress, Request
from lfx_local_runtimes.runtimes.text.answer import Answer
from lfx_local_runtimes.runtimes.text.filters import Utf8Decoder
from lfx_local_runtimes.runtimes.text.templates import choose_template, warm

CHUNK = 256
"""Tokens of a prefill chunk: a cancel lands between two of them, and a prefix is reused in whole ones."""


class LlamaCppRuntime(ModelRuntime):
    """A GGUF model, one request at a time; the cache of the last one is reused where the next begins the same.

    Floating-point results depend on how many tokens are evaluated together. So that an answer does not depend on what
    was asked before, prompts are always cut at the same places, and only whole chunks of an earlier prompt are reused:
    with them or without, every token is evaluated in the same company.
    """

    engine = "llama_cpp"

    def __init__(self, config: ModelConfig, plan: LoadPlan | None = None) -> None:
        super().__init__(config, plan)
        self._model: LlamaModel | None = None
        self._cached: list[int] = []
        """The tokens whose state is in the context."""
        self._reusable = 0
        """How many of them, from the first on, were evaluated in whole chunks of a prompt."""

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
            n_batch=min(CHUNK, plan.context_length),
            n_threads=self.config.threads or physical_cores(),
            gpu=None if plan.device.type is DeviceType.CPU else plan.device.index,
            gpu_layers=self.config.gpu_layers,
            progress=progress,
        )

    def _close(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None
            release_memory()
        self._cached, self._reusable = [], 0

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

    def _serve(self, request: Request) -> None:
        model, plan = self._model, self._plan
        assert model is not None
        assert plan is not None
        bos, eos = model.bos, model.eos
        answer = Answer(request, self._template, bos=bos[1] if bos else "", eos=eos[1] if eos else "")
        prompt = model.tokenize(answer.prompt, add_special=True)
        if answer.had_bos and bos and prompt[:1] != [bos[0]]:
            prompt.insert(0, bos[0])
        if not prompt:
            raise InvalidInput("The prompt is empty.", hint="Give the model at least one word to continue.")
        limit = answer.admit(len(prompt), plan.context_length)
        reused = self._prefill(model, prompt, request)
        sampler = model.sampler(request.config, answer.seed, prompt)
        try:
            reason, rest = self._decode(model, sampler, request, answer, limit)
        finally:
            sampler.close()
        answer.finish(reason, rest, {
            "engine": self.engine, "engine_version": model.lib.__version__, "device": plan.device.key,
            "quantization": plan.dtype, "context_length": plan.context_length, "cached_tokens": reused,
            "warnings": list(self.warnings),
        })  # fmt: skip

    def _prefill(self, model: LlamaModel, prompt: list[int], request: Request) -> int:
        """Bring the prompt into the context, up to a cancel. Returns how many tokens were there already."""
        reusable = self._cached[: min(self._reusable, len(prompt) - 1)]  # the last one is evaluated for its logits
        common = next((i for i, token in enumerate(reusable) if token != prompt[i]), len(reusable))
        common -= common % model.n_batch
        if not model.keep(common):
            common = 0
        del self._cached[common:]
        self._reusable = common
        for start in range(common, len(prompt), model.n_batch):
            if request.cancelled:
                break
            chunk = prompt[start : start + model.n_batch]
            self._evaluate(model, chunk)
            if len(chunk) == model.n_batch:
                self._reusable += len(chunk)
        return common

    def _decode(
        self, model: LlamaModel, sampler: Sampler, request: Request, answer: Answer, limit: int
    ) -> tuple[FinishReason, str]:
        """Sample to the end. Returns why it ended, and what an unfinished character leaves."""
        decoder = Utf8Decoder()
        reason: FinishReason = "cancelled"
        while not request.cancelled:
            token = sampler.sample()
            if model.is_end(token) or not answer.push(decoder.push(model.piece(token))):
                reason = "stop"
                break
            if answer.tokens >= limit:
                reason = "length"
                break
            self._evaluate(model, [token])
        return reason, decoder.flush()

    def _evaluate(self, model: LlamaModel, tokens: list[int]) -> None:
        try:
            model.decode(tokens, len(self._cached))
        except BaseException:
            model.keep(0)  # what a failed call leaves behind is not known
            self._cached, self._reusable = [], 0
            raise
        self._cached += tokens
