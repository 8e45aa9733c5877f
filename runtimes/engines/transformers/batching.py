"""Several requests of one model in one forward pass: Transformers' continuous batching, driven from our own loop.

The library keeps the paged KV cache, shares blocks of equal prompt beginnings where the model's layers allow it, and
decides what a step evaluates: a token for every running answer first, then prompts, up to a chunk. Its own loop would
run on a thread of its own, sample all requests alike and end with the first error; so the steps are called from the
model's thread, and in place of the library's sampling each request chooses its token itself.
"""

import logging
import math
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from lfx_local_runtimes.runtimes.engines.transformers.load import Loaded, libraries
from lfx_local_runtimes.runtimes.engines.transformers.offer import CHUNK
from lfx_local_runtimes.runtimes.planning import LoadPlan, estimate_memory

logger = logging.getLogger(__name__)

PAGE = 32
"""Tokens of a cache block, the unit in which prompt beginnings are shared."""

_TRIALS = ("The capital of France is Paris. The capital of Italy is", "One, two, three, four,")

_DEVIATION = 0.2
"""Of a trial's scores from the model's own, as a share of their spread: Gemma in bf16 stays below 0.02; models that do
not see the cache are above 0.6."""

Choose = Callable[[Any], int]
"""Takes the scores after a sequence's last token (a float tensor, its to change) and says what comes next."""


class PagedBatch:
    """Sequences of tokens that grow together, a token in every step.

    Args:
        model: a causal language model, on this thread.
        sequences: how many there are at once, at most.
        blocks: cache blocks of `PAGE` tokens of all layers.
        chunk: tokens evaluated in one step.
        share: reuse the cache of equal beginnings.

    Raises:
        MemoryError: the cache does not fit.
        Exception: the library cannot batch this model.
    """

    def __init__(self, model: Any, *, sequences: int, blocks: int, chunk: int, share: bool) -> None:
        torch, transformers = libraries()
        self._model, self._torch = model, torch
        self._numbers = count()
        self._choose: dict[str, Choose] = {}
        self._reused: dict[str, int] = {}
        options = transformers.ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=blocks, max_batch_tokens=chunk, max_requests_per_batch=sequences,
            max_memory_percent=1.0, allow_block_sharing=share, use_async_batching=False, use_cuda_graph=False,
            auto_switch_to_flash=False,  # it would fetch code from the hub
        )  # fmt: skip
        self._manager = model.init_continuous_batching(
            transformers.GenerationConfig(do_sample=False, eos_token_id=-1), options
        )
        with torch.inference_mode():
            self._manager.warmup()  # makes the processor
        self._processor = self._manager.batch_processor
        self._processor.model_runner._sample = self._sample

    @property
    def memory(self) -> int:
        """Bytes of the cache and of the tensors that steps are prepared in."""
        inputs = self._processor.inputs_and_outputs
        held = [self._processor.cache.cache_tensor, inputs.read_index_storage, *(inputs.attention_mask or {}).values()]
        return sum(tensor.nbytes for tensor in held)

    def add(self, tokens: Sequence[int], choose: Choose) -> str:
        """Let a sequence join. It is there until it is removed; the key returned names it."""
        key = str(next(self._numbers))
        self._choose[key] = choose
        self._manager.add_request(list(tokens), request_id=key)
        return key

    def remove(self, key: str) -> None:
        """Let a sequence go; its cache is free at the next step."""
        del self._choose[key]
        self._reused.pop(key, None)
        self._manager.cancel_request(key)
        self._processor.scheduler.block_new_requests = False  # set while the cache is full, and unset at an end

    def reused(self, key: str) -> int:
        """How many of a sequence's first tokens were in the cache when it joined."""
        return self._reused.get(key, 0)

    def step(self) -> None:
        """Evaluate what there is, up to a chunk, and let each sequence that is evaluated choose its next token."""
        with self._torch.inference_mode():
            if self._processor.prepare_next_batch():
                for one in self._processor.inputs_and_outputs.requests_in_batch:
                    self._reused.setdefault(one.state.request_id, one.state.position_offset - one.query_length)
                self._processor._generation_step(self._model)
                self._processor.update_batch()

    def _sample(self, scores: Any, output_ids: Any) -> None:
        """Called by the library after the forward pass, with a row of scores for each sequence that is through with its
        prompt, in the step's order; it reads the tokens from the other tensor."""
        batch = self._processor.inputs_and_outputs.requests_in_batch
        through = [one.state.request_id for one in batch if one.has_new_token]
        for column, (key, row) in enumerate(zip(through, scores[0], strict=False)):  # rows of others are at the end
            output_ids[0, column] = self._choose[key](row)

    def reset(self) -> None:
        """Forget all sequences and everything cached: after a step that failed."""
        for key in list(self._choose):
            self.remove(key)
        with self._torch.inference_mode():
            self._processor.reset()
            self._processor.cache.reset()


def paged_batch(loaded: Loaded, plan: LoadPlan, *, share: bool) -> PagedBatch | None:
    """A batch as planned, or None where the library does not batch the model, or would compute something else.

    Some architectures do not hand the paged cache to their attention, and would answer without having seen their
    prompts; where a model cannot use torch's attention, the library's own forgets what some of these models need (soft
    caps). So only models with torch's are batched, and two sequences are tried together and compared with the model's
    own forward pass.

    Raises:
        MemoryError: the cache does not fit.
    """
    model, name = loaded.model, type(loaded.model).__name__
    if model.config._attn_implementation != "sdpa":
        logger.info("%s is not batched: its attention is %s", name, model.config._attn_implementation)
        return None
    try:
        trials = [list(loaded.tokenizer(text).input_ids) for text in _TRIALS]
        expected = [_own_scores(model, tokens) for tokens in trials]
        batch = PagedBatch(
            model, sequences=plan.sequences, blocks=_blocks(plan), share=share,
            chunk=max(min(CHUNK, plan.context_length), plan.sequences),
        )  # fmt: skip
        deviation = max(map(_deviation, _batched_scores(batch, trials), expected))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the library finds it cannot do
        logger.info("%s is not batched: %s", name, error)
        return None
    if deviation < _DEVIATION:
        return batch
    logger.info("%s is not batched: its scores would deviate by %.2f", name, deviation)
    return None


def _blocks(plan: LoadPlan) -> int:
    """Cache blocks for the planned sequences, each of the planned length; sliding layers need fewer."""
    page = estimate_memory(plan.info, PAGE, swa_full=True).kv_cache
    whole = estimate_memory(plan.info, plan.context_length, sequences=plan.sequences, swa_full=False).kv_cache
    needed = math.ceil(whole / page) if page else plan.sequences * math.ceil(plan.context_length / PAGE)
    return needed + plan.sequences + 2  # every sequence may leave a block unfilled, and every kind of layer a sector


# -- the trial -------------------------------------------------------------------------------------------------------


def _own_scores(model: Any, tokens: list[int]) -> Any:
    torch, _ = libraries()
    with torch.inference_mode():
        return model(torch.tensor([tokens], device=model.device), use_cache=False).logits[0, -1].float()


def _batched_scores(batch: PagedBatch, trials: Sequence[list[int]]) -> list[Any]:
    """The scores after each sequence's last token, which it gets in a second step."""
    heard: list[list[Any]] = []
    keys = []
    for *prompt, last in trials:
        scores: list[Any] = []

        def choose(row: Any, scores: list[Any] = scores, last: int = last) -> int:
            scores.append(row.clone())
            return last

        heard.append(scores)
        keys.append(batch.add(prompt, choose))
    batch.step()
    batch.step()
    for key in keys:
        batch.remove(key)
    return [scores[1] for scores in heard]


def _deviation(scores: Any, expected: Any) -> float:
    return float((scores - expected).norm() / (expected - expected.mean()).norm())
