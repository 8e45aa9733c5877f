"""Safetensors models, and GGUF where nothing else takes it, in Hugging Face Transformers."""

from typing import Any

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.base import LoadContext, ModelRuntime
from lfx_local_runtimes.runtimes.config import FinishReason, ModelConfig
from lfx_local_runtimes.runtimes.engines.host import physical_cores, release_memory
from lfx_local_runtimes.runtimes.engines.transformers.load import Loaded, faults, libraries, load
from lfx_local_runtimes.runtimes.engines.transformers.sampling import Sampler
from lfx_local_runtimes.runtimes.engines.transformers.token_text import TokenDecoder
from lfx_local_runtimes.runtimes.formats.memory import estimate_memory
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Request
from lfx_local_runtimes.runtimes.text.answer import Answer
from lfx_local_runtimes.runtimes.text.templates import choose_template, warm
from lfx_local_runtimes.settings import get_settings

PREFILL_CHUNK = 512
"""Tokens of a prefill chunk: a cancel lands between two of them."""


class TransformersRuntime(ModelRuntime):
    """A causal language model, one request at a time."""

    engine = "transformers"

    def __init__(self, config: ModelConfig, plan: LoadPlan | None = None) -> None:
        super().__init__(config, plan)
        self._loaded: Loaded | None = None
        self._request: Request | None = None
        """The one being computed."""

    # -- life --------------------------------------------------------------------------------------------------------

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        self._template = choose_template(plan.info, self.config.chat_template)
        warm(self._template)
        torch, _ = libraries()
        torch.set_num_threads(self.config.threads or physical_cores())  # counts for this thread
        self._loaded = load(plan, self.config, get_settings(), context)
        self._loaded.model.register_forward_pre_hook(self._before_forward)

    def _close(self) -> None:
        if self._loaded is not None:
            self._loaded = None
            release_memory()

    def _measure(self) -> dict[str, int]:
        assert self._loaded is not None
        assert self._plan is not None
        taken = tensor_bytes(self._loaded.model)
        plan = self._plan
        cache = estimate_memory(plan.info, plan.context_length, dtype=self._loaded.compute_dtype).kv_cache
        taken[plan.device.key] = taken.get(plan.device.key, 0) + cache
        return taken

    # -- requests ----------------------------------------------------------------------------------------------------

    def _serve(self, request: Request) -> None:
        loaded, plan = self._loaded, self._plan
        assert loaded is not None
        assert plan is not None
        tokenizer = loaded.tokenizer
        answer = Answer(request, self._template, bos=tokenizer.bos_token or "", eos=tokenizer.eos_token or "")
        prompt = _tokenize(tokenizer, answer)
        limit = answer.admit(len(prompt), plan.context_length)
        decoder = TokenDecoder(lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)), prompt[-8:])
        listener = _Listener(answer, decoder, loaded.end_ids, limit)
        self._request = request
        try:
            with faults(plan):
                _generate(loaded.model, prompt, limit, Sampler(request.config, answer.seed), listener)
        except _Cancelled:
            pass
        finally:
            self._request = None
        answer.finish(listener.reason or "cancelled", decoder.flush(), {
            "engine": self.engine, "engine_version": libraries()[1].__version__, "device": plan.device.key,
            "dtype": loaded.compute_dtype, "quantization": plan.dtype, "context_length": plan.context_length,
            "warnings": list(self.warnings),
        })  # fmt: skip

    def _before_forward(self, model: Any, inputs: Any) -> None:
        if self._request is not None and self._request.cancelled:
            raise _Cancelled


class _Cancelled(Exception):
    """Ends `generate` before its next forward pass."""


class _Listener:
    """Hears every token, as the stopping criterion of `generate`, and says when to end."""

    def __init__(self, answer: Answer, decoder: TokenDecoder, end_ids: frozenset[int], limit: int) -> None:
        self._answer, self._decoder, self._end_ids, self._limit = answer, decoder, end_ids, limit
        self.reason: FinishReason | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        token = int(input_ids[0, -1])
        if token in self._end_ids or not self._answer.push(self._decoder.push(token)):
            self.reason = "stop"
        elif self._answer.tokens >= self._limit:
            self.reason = "length"
        return input_ids.new_full((1,), self.reason is not None, dtype=libraries()[0].bool)


def _generate(model: Any, prompt: list[int], limit: int, sampler: Sampler, listener: _Listener) -> None:
    torch, transformers = libraries()
    ids = torch.tensor([prompt], device=model.device)
    chunked = len(prompt) > PREFILL_CHUNK and model._supports_default_dynamic_cache()
    config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=limit, use_cache=True, prefill_chunk_size=PREFILL_CHUNK if chunked else None
    )
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=[sampler],
            stopping_criteria=[listener],
        )


def _tokenize(tokenizer: Any, answer: Answer) -> list[int]:
    """The prompt's tokens: one BOS where it, the template or the tokenizer wants one, no end token it did not write.

    Raises:
        InvalidInput: nothing is left to continue.
    """
    ids: list[int] = list(tokenizer(answer.prompt).input_ids)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if ids and eos is not None and ids[-1] == eos and not answer.prompt.endswith(tokenizer.eos_token):
        ids.pop()
    if bos is not None and ids[:2] == [bos, bos]:
        ids.pop(0)
    if bos is not None and ids[:1] != [bos] and (answer.had_bos or not ids):
        ids.insert(0, bos)
    if not ids:
        raise InvalidInput("The prompt is empty.", hint="Give the model at least one word to continue.")
    return ids


def tensor_bytes(model: Any) -> dict[str, int]:
    """Bytes of a torch module's parameters and buffers per device; shared ones count once, quantized ones as packed."""
    taken: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()

    def add(tensor: Any) -> None:
        if hasattr(tensor, "__tensor_flatten__"):  # torchao keeps data and scales in a tensor of tensors
            for name in tensor.__tensor_flatten__()[0]:
                add(getattr(tensor, name))
            return
        state = getattr(tensor, "quant_state", None)  # bitsandbytes keeps the scales beside
        for part in vars(state).values() if state is not None else ():
            if hasattr(part, "untyped_storage"):
                add(part)
        key = (str(tensor.device), tensor.data_ptr())
        if key not in seen:
            seen.add(key)
            device = tensor.device.type if tensor.device.type != "cuda" else str(tensor.device)
            taken[device] = taken.get(device, 0) + tensor.numel() * tensor.element_size()

    for tensor in (*model.parameters(), *model.buffers()):
        add(tensor)
    return taken
