"""Choosing the next token from a model's scores, with the meaning and order that `GenerationConfig` promises.

Transformers draws from the process-wide random state, which models on other threads share, and knows one set of options
for everything it computes together. So every request brings its own sampler, with a random state of its own.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

from lfx_local_runtimes.errors import EngineFailure
from lfx_local_runtimes.runtimes.engines.constraints import Constraint
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, TokenLogprob

_FIRST_GUESS = 1024
"""Candidates looked at first when nothing but their probabilities limits them; sorting 262,144 takes 50 ms."""

_LEAST = -9999.0
"""Stands for a logarithm of zero, which JSON cannot write."""


class Sampler:
    """Draws one request's tokens.

    Args:
        config: the sampling options; temperature 0 takes the best token.
        seed: of the draw. The same seed and scores give the same tokens.
        prompt: its tokens, which the repetition penalty counts.
        end_ids: the tokens that end an answer, which `min_tokens` and `ignore_eos` ban.
        constraint: what the answer has to look like.
    """

    def __init__(
        self,
        config: GenerationConfig,
        seed: int,
        prompt: Iterable[int] = (),
        end_ids: Collection[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self._config = config
        self._random = random.Random(seed)
        self._end_ids = sorted(end_ids)
        self._banned_until = math.inf if config.ignore_eos else config.min_tokens
        self._constraint = constraint
        self._seen = set(prompt) if config.repetition_penalty != 1.0 else set()
        self._drawn: Counter[int] = Counter()
        self._count = 0

    @property
    def done(self) -> bool:
        """The constraint allows nothing more."""
        return self._constraint is not None and self._constraint.done

    def sample(self, scores: Any) -> int:
        """The next token, from the scores of the whole vocabulary (a float tensor, changed in place).

        Raises:
            EngineFailure: the scores are not numbers.
            InvalidInput: the constraint leaves no token, or becomes too complex.
        """
        self._adjust(scores)
        token = int(scores.argmax())
        if not math.isfinite(scores[token]):
            raise EngineFailure(
                "The model's scores are not numbers: its activations overflowed.", hint="Load it in bf16 or fp32."
            )
        if self._config.temperature > 0:
            token = self._draw(scores)
        self._count += 1
        self._drawn[token] += 1
        self._seen.add(token)
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    def _adjust(self, scores: Any) -> None:
        """Everything that changes scores before tokens are left out."""
        config = self._config
        for token, bias in config.logit_bias.items():
            if token < len(scores):
                scores[token] += bias if bias > -100 else -math.inf
        if self._count < self._banned_until:
            scores[[token for token in self._end_ids if token < len(scores)]] = -math.inf
        if self._constraint is not None:
            row = scores.cpu()  # the same memory where they are on the CPU
            self._constraint.mask(row.numpy())
            scores.copy_(row)
        if config.repetition_penalty != 1.0:
            penalise(scores, list(self._seen), config.repetition_penalty)
        if self._drawn and (config.frequency_penalty or config.presence_penalty):
            counts = scores.new_tensor(list(self._drawn.values()))
            scores[list(self._drawn)] -= counts * config.frequency_penalty + config.presence_penalty

    def _draw(self, scores: Any) -> int:
        config = self._config
        ids, values = shortlist(scores, config.top_k, config.top_p, config.min_p)
        values = values.cpu().double()
        values -= values.max()
        cumulative = (values / config.temperature).softmax(0).cumsum(0)
        index = int((cumulative <= self._random.random() * float(cumulative[-1])).sum())
        index = min(index, len(values) - 1)  # rounding
        return index if ids is None else int(ids[index])


def logprob(token: int, scores: Any, top: int, piece: Callable[[int], bytes]) -> TokenLogprob:
    """How likely a token was, and the likeliest `top` ones, itself among them, from the scores as the model gave them.

    `piece` tells the bytes a token stands for.
    """
    shares = scores.double().log_softmax(0)

    def told(one: int, others: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        data = piece(one)
        return TokenLogprob(
            token=data.decode("utf-8", "replace"),
            logprob=max(float(shares[one]), _LEAST),
            bytes=tuple(data),
            top=others,
        )

    best = shares.topk(min(top, len(shares))).indices.tolist() if top else []
    if best and token not in best:
        best.append(token)
    return told(token, tuple(told(one) for one in best))


def penalise(scores: Any, seen: Any, penalty: float) -> None:
    """Make the tokens in `seen` less likely, in place: positive scores are divided by `penalty`, others multiplied.

    The rule of CTRL (Keskar et al. 2019, section 4.1) with the sign handling that Transformers and llama.cpp share. A
    token is penalised once, however often it was seen.
    """
    picked = scores[seen]
    scores[seen] = (picked / penalty).where(picked > 0, picked * penalty)


def shortlist(scores: Any, top_k: int, top_p: float, min_p: float) -> tuple[Any, Any]:
    """The tokens that survive top-k, then top-p, then min-p: their ids and scores, best first.

    As in llama.cpp's chain: top-p counts probabilities among the top k and keeps the token that reaches `top_p`; min-p
    compares with the best. Ids are None when every token survives; the scores then stand in the vocabulary's order.
    """
    size = scores.shape[0]
    if not top_k and top_p >= 1 and min_p <= 0:
        return None, scores
    limit = min(top_k or size, size)
    everything = None if top_k or top_p >= 1 else scores.softmax(0)
    count = limit if top_k else min(_FIRST_GUESS, size)
    while True:
        values, ids = scores.topk(count)
        keep = count
        if top_p < 1:
            shares = values.softmax(0) if everything is None else everything[ids]
            keep = min(keep, int((shares.cumsum(0) < top_p).sum()) + 1)
        if min_p > 0:
            keep = min(keep, max(1, int((values >= values[0] + math.log(min_p)).sum())))
        if keep < count or count == limit:
            return ids[:keep], values[:keep]
        count = min(count * 16, limit)
