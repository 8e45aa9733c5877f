"""Safetensors models, and GGUF where nothing else takes it, in Hugging Face Transformers."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lfx_local_runtimes.errors import InvalidInput, RequestCancelled
from lfx_local_runtimes.runtimes.base import Inbox, LoadContext
from lfx_local_runtimes.runtimes.batching import BatchingRuntime
from lfx_local_runtimes.runtimes.chat.answer import Answer
from lfx_local_runtimes.runtimes.chat.templates import choose_template, warm
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.constraints import Constraint, compile_constraint, hf_tokenizer
from lfx_local_runtimes.runtimes.engines.host import physical_cores, release_memory
from lfx_local_runtimes.runtimes.engines.transformers.batching import PagedBatch, paged_batch
from lfx_local_runtimes.runtimes.engines.transformers.load import Loaded, faults, libraries, load
from lfx_local_runtimes.runtimes.engines.transformers.offer import KEPT_PICTURES
from lfx_local_runtimes.runtimes.engines.transformers.sampling import Sampler
from lfx_local_runtimes.runtimes.engines.transformers.scheduler import Job, Scheduler
from lfx_local_runtimes.runtimes.engines.transformers.token_text import TokenDecoder
from lfx_local_runtimes.runtimes.engines.transformers.vision_language import Seen, Sight, make_sight
from lfx_local_runtimes.runtimes.planning import LoadPlan, estimate_memory
from lfx_local_runtimes.runtimes.requests import Request
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, Grammar
from lfx_local_runtimes.runtimes.tasks.multimodal.caption import CaptionAsk
from lfx_local_runtimes.runtimes.tasks.multimodal.vqa import VqaAsk

PREFILL_CHUNK = 512
"""Tokens of a prompt evaluated at once by a model that is not batched: a cancel lands between two chunks."""


class TransformersRuntime(BatchingRuntime):
    """A causal language model: continuous batching where the library can batch it, else one request at a time."""

    engine = "transformers"

    def __init__(self, config: ModelConfig, plan: LoadPlan | None = None) -> None:
        super().__init__(config, plan)
        self._loaded: Loaded | None = None
        self._batch: PagedBatch | None = None
        self._grammar_tokenizer: Any = None
        """llguidance's view of the vocabulary, made when the first request needs it."""
        self._sight: Sight | None = None
        """What reads pictures; None for a model that reads text only."""
        self._request: Request[Any] | None = None
        """The one that is computed alone."""

    @property
    def tasks(self) -> frozenset[str]:
        """Text, and if the model reads pictures what can be asked about one."""
        return frozenset({"llm"} if self._sight is None else {"llm", "caption", "vqa"})

    # -- life --------------------------------------------------------------------------------------------------------

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        self._template = choose_template(plan.info, self.config.chat_template)
        warm(self._template)
        torch, _ = libraries()
        torch.set_num_threads(self.config.threads or physical_cores())  # counts for this thread
        # The model stays as it is loaded: requires_grad_(False) made prefill in bf16 ten times slower on the CPU.
        loaded = self._loaded = load(plan, context)
        if loaded.processor is not None:
            self._sight = make_sight(loaded.model, loaded.processor)
            if self._sight is None:
                self.warnings.append(
                    f"{type(loaded.model).__name__} reads text only here; its pictures are not supported."
                )
        exact = self.config.deterministic  # what a row's neighbours are shows in its last bits
        if exact:
            plan = replace(plan, sequences=1)
        if not plan.layers:  # the paged cache is on one device
            with faults(plan):
                self._batch = paged_batch(loaded, plan, share=not exact)
        if self._batch is None and plan.sequences > 1:
            warning = f"{type(loaded.model).__name__} answers one request at a time."
            plan = replace(plan, sequences=1, warnings=(*plan.warnings, warning))
            self.warnings.append(warning)
        loaded.model.register_forward_pre_hook(self._before_forward)
        self._plan = plan

    def _close(self) -> None:
        self._batch = self._grammar_tokenizer = self._sight = None
        if self._loaded is not None:
            self._loaded = None
            release_memory()

    def _measure(self) -> dict[str, int]:
        assert self._loaded is not None
        assert self._plan is not None
        taken, plan = tensor_bytes(self._loaded.model), self._plan
        if self._batch is not None:
            cache = self._batch.memory
        else:
            cache = estimate_memory(plan.info, plan.context_length, dtype=self._loaded.compute_dtype).kv_cache
        if self._sight is not None:
            cache += KEPT_PICTURES
        taken[plan.device.key] = taken.get(plan.device.key, 0) + cache
        return taken

    # -- requests ----------------------------------------------------------------------------------------------------

    def _work(self, inbox: Inbox) -> None:
        plan = self._plan
        assert plan is not None
        scheduler = Scheduler(self._batch, plan.sequences, self._generate, self._about, lambda: faults(plan))
        self._batch_work(inbox, scheduler)

    def _prepare(self, request: Request[Any]) -> Job:
        """The request's tokens and pictures, and what chooses the tokens of its answer.

        Raises:
            RuntimeFault: the prompt cannot be evaluated.
        """
        loaded, plan = self._loaded, self._plan
        assert loaded is not None
        assert plan is not None
        if isinstance(request.ask, CaptionAsk | VqaAsk):
            request.ask = request.ask.conversation()
        tokenizer, config, length, sight = loaded.tokenizer, request.ask, plan.context_length, self._sight
        answer = Answer(
            request, self._template, bos=tokenizer.bos_token or "", eos=tokenizer.eos_token or "",
            picture=None if sight is None else sight.mark,
        )  # fmt: skip
        answer.check_size(length, lambda text: len(loaded.tokenize(text)))
        answer.check_ids(len(tokenizer))
        given = config.prompt_ids
        text = answer.prompt
        pictures: list[Seen] = []
        if sight is not None and config.pictures:
            pictures = self._look(sight, request)
            text = sight.expand(text, pictures)
        prompt = _tokenize(tokenizer, answer, text) if given is None else list(given)
        if not pictures:  # a part of a picture is of no use
            prompt = answer.fit(prompt, length)
        limit = answer.admit(len(prompt), length)
        sampler = Sampler(config, answer.seed, prompt, loaded.end_ids, self._compile(answer.grammar))
        shown = {ids[0] for ids in map(loaded.tokenize, answer.marks) if len(ids) == 1}
        silent = loaded.silent - shown
        decoder = TokenDecoder(lambda ids: loaded.text([token for token in ids if token not in silent]), prompt[-8:])
        return Job(request, answer, prompt, limit, sampler, decoder, loaded, pictures)

    def _look(self, sight: Sight, request: Request[GenerationConfig]) -> list[Seen]:
        """The pictures of a request. Each counts as a step; a cancel lands between two.

        Raises:
            RequestCancelled: nobody wants the answer any more.
            RuntimeFault: a picture cannot be decoded.
        """
        pictures = []
        for place, picture in enumerate(request.ask.pictures):
            if request.cancelled:
                raise RequestCancelled.of(request.id)
            self._preparing_since = time.monotonic()
            pictures.append(sight.look(picture, f"images.{place}"))
        return pictures

    def _compile(self, grammar: Grammar | None) -> Constraint | None:
        if grammar is None:
            return None
        assert self._loaded is not None
        if self._grammar_tokenizer is None:
            self._grammar_tokenizer = hf_tokenizer(self._loaded.tokenizer, sorted(self._loaded.end_ids))
        return compile_constraint(grammar, self._grammar_tokenizer)

    def _about(self) -> dict[str, Any]:
        assert self._loaded is not None
        assert self._plan is not None
        return {
            "engine": self.engine, "engine_version": libraries()[1].__version__, "device": self._plan.device.key,
            "dtype": self._loaded.compute_dtype, "quantization": self._plan.dtype,
            "context_length": self._plan.context_length, "warnings": list(self.warnings),
        }  # fmt: skip

    # -- alone -------------------------------------------------------------------------------------------------------

    def _generate(self, job: Job) -> None:
        """Compute a request from its first to its last token, by the library's `generate`."""
        assert self._loaded is not None
        with self._watched(job.request):
            _generate(self._loaded.model, job, self._sight)

    @contextlib.contextmanager
    def _watched(self, request: Request[Any]) -> Iterator[None]:
        """Look at the request before every forward pass in here, and leave if it is cancelled."""
        self._request = request
        try:
            yield
        except _Cancelled:
            pass
        finally:
            self._request = None

    def _before_forward(self, model: Any, inputs: Any) -> None:
        if self._request is not None:
            self._step()
        if self._request is not None and self._request.cancelled:
            raise _Cancelled


class _Cancelled(Exception):
    """Ends `generate` before its next forward pass."""


def _generate(model: Any, job: Job, sight: Sight | None) -> None:
    """`generate`, run greedy and made to take the job's choice, as often as it takes one."""
    torch, transformers = libraries()
    ids = torch.tensor([job.tokens], device=model.device)
    pictures = sight.features(ids, job.pictures) if sight is not None and job.pictures else {}
    # A chunk may not end inside a picture: some models let its tokens see each other.
    chunked = len(job.tokens) > PREFILL_CHUNK and not pictures and model._supports_default_dynamic_cache()
    config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=job.limit, use_cache=True,
        prefill_chunk_size=PREFILL_CHUNK if chunked else None,
    )  # fmt: skip
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, **steering(job), **pictures)


def steering(job: Job) -> dict[str, Any]:
    """The arguments of a greedy `generate` that let the job choose each token, and end with it."""
    torch, _ = libraries()

    def choose(input_ids: Any, scores: Any) -> Any:
        scores[0, job.choose(scores[0])] = math.inf
        return scores

    def ended(input_ids: Any, scores: Any) -> Any:
        return input_ids.new_full((1,), job.ended, dtype=torch.bool)

    return {"logits_processor": [choose], "stopping_criteria": [ended]}


def _tokenize(tokenizer: Any, answer: Answer, text: str) -> list[int]:
    """The prompt's tokens: one BOS where it, the template or the tokenizer wants one, no end token it did not write.

    `text` is the answer's prompt with its pictures.

    Raises:
        InvalidInput: nothing is left to continue.
    """
    ids: list[int] = list(tokenizer(text).input_ids)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if ids and eos is not None and ids[-1] == eos and not text.endswith(tokenizer.eos_token):
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
        away = tensor.device.type == "meta"  # it is in host memory while it is not computed
        key = (str(tensor.device), id(tensor) if away else tensor.data_ptr())
        if key not in seen:
            seen.add(key)
            device = "cpu" if away else tensor.device.type if tensor.device.type != "cuda" else str(tensor.device)
            taken[device] = taken.get(device, 0) + tensor.numel() * tensor.element_size()

    for tensor in (*model.parameters(), *model.buffers()):
        add(tensor)
    return taken
