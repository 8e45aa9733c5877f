"""Choosing the next token from llama.cpp's scores, with the meaning and order that `GenerationConfig` promises."""

import math
from collections.abc import Sequence
from typing import Any

from lfx_local_runtimes.errors import EngineFailure
from lfx_local_runtimes.runtimes.engines.constraints import Constraint
from lfx_local_runtimes.runtimes.engines.llama_cpp.native import LlamaModel
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, TokenLogprob

_LEAST = -9999.0
"""Stands for a logarithm of zero, which JSON cannot write."""


class Sampler:
    """Draws one request's tokens with llama.cpp's own chain. Close it after use.

    Args:
        model: the model whose scores they are.
        config: the sampling options.
        seed: of the draw: the same seed and scores give the same tokens.
        prompt: its tokens, which the repetition penalty counts.
        constraint: what the answer has to look like.
    """

    def __init__(
        self, model: LlamaModel, config: GenerationConfig, seed: int, prompt: Sequence[int],
        constraint: Constraint | None = None,
    ) -> None:  # fmt: skip
        self._model = model
        self._constraint = constraint
        self._bias = list(config.logit_bias.items())
        self._banned_until = math.inf if config.ignore_eos else config.min_tokens
        self._end_ids = model.end_tokens() if self._banned_until else []
        self._drawn = 0
        self.tells = config.logprobs
        """Whether `logprob` is wanted."""
        self._top = config.top_logprobs
        self._chain: Any = None
        penalised = config.repetition_penalty != 1.0 or config.frequency_penalty or config.presence_penalty
        if config.temperature > 0 or penalised:
            self._chain = self._make_chain(config, seed, prompt)

    def _make_chain(self, config: GenerationConfig, seed: int, prompt: Sequence[int]) -> Any:
        lib, vocabulary, context = self._model.lib, self._model.n_vocab, self._model.n_ctx
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

        def add(link: Any) -> None:
            lib.llama_sampler_chain_add(chain, link)

        if config.repetition_penalty != 1.0:
            repetition = lib.llama_sampler_init_penalties(vocabulary, context, config.repetition_penalty, 0.0, 0.0)
            for token in prompt:
                lib.llama_sampler_accept(repetition, token)
            add(repetition)
        if config.frequency_penalty or config.presence_penalty:
            add(lib.llama_sampler_init_penalties(
                vocabulary, context, 1.0, config.frequency_penalty, config.presence_penalty
            ))  # fmt: skip
        if config.temperature == 0:
            add(lib.llama_sampler_init_greedy())
            return chain
        if config.top_k:
            add(lib.llama_sampler_init_top_k(min(config.top_k, vocabulary)))
        if config.top_p < 1:
            add(lib.llama_sampler_init_top_p(config.top_p, 1))
        if config.min_p > 0:
            add(lib.llama_sampler_init_min_p(config.min_p, 1))
        add(lib.llama_sampler_init_temp(config.temperature))
        add(lib.llama_sampler_init_dist(seed))
        return chain

    def sample(self, row: int, logits: Any) -> int:
        """The next token, from the scores after a row of the last batch. `logits` are those scores; they are changed.

        Raises:
            EngineFailure: the scores are not numbers.
            InvalidInput: the constraint leaves no token, or becomes too complex.
        """
        for token, bias in self._bias:
            logits[token] += bias if bias > -100 else -math.inf
        if self._drawn < self._banned_until:
            logits[self._end_ids] = -math.inf
        if self._constraint is not None:
            self._constraint.mask(logits)
        self._drawn += 1
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            raise EngineFailure("The model's scores are not numbers.", hint="Fetch its file again, or use another.")
        token = best
        if self._chain is not None:
            token = int(self._model.lib.llama_sampler_sample(self._chain, self._model.context, row))
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    @property
    def done(self) -> bool:
        """The constraint allows nothing more."""
        return self._constraint is not None and self._constraint.done

    def logprob(self, token: int, scores: Any) -> TokenLogprob:
        """How likely a token was, and the likeliest ones, itself among them, from a copy of the scores made before `sample`."""
        import numpy as np

        shares = scores.astype(np.float64)
        shares -= shares.max()
        shares -= np.log(np.exp(shares).sum())
        best = np.argpartition(shares, -self._top)[-self._top :].tolist() if self._top else []
        if best and token not in best:
            best.append(token)
        top = sorted(best, key=lambda one: -shares[one])
        return self._told(token, shares, tuple(self._told(one, shares) for one in top))

    def _told(self, token: int, shares: Any, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return self._row(token, max(_LEAST, float(shares[token])), top)

    def first(self, token: int) -> TokenLogprob:
        """The same for the first token of a prompt, which follows nothing."""
        return self._row(token, None)

    def _row(self, token: int, logprob: float | None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        piece = self._model.piece(token)
        return TokenLogprob(token=piece.decode("utf-8", "replace"), logprob=logprob, bytes=tuple(piece), top=top)

    def close(self) -> None:
        """Free the chain."""
        if self._chain is not None:
            self._model.lib.llama_sampler_free(self._chain)
            self._chain = None
