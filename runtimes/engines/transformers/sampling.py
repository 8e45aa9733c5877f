"""Sampling inside `generate`, with the meaning and order that `GenerationConfig` promises.

`generate` draws from the process-wide random state, which models on other threads share. So it is run greedy, and the
sampler, as its logits processor, raises the score of the token it drew: every request has a random state of its own.
"""

import math
import random
from typing import Any

from lfx_local_runtimes.errors import EngineFailure
from lfx_local_runtimes.runtimes.config import GenerationConfig

_FIRST_GUESS = 1024
"""Candidates looked at first when nothing but their probabilities limits them; sorting 262,144 takes 50 ms."""


class Sampler:
    """Draws one token per call, for one request of one sequence.

    Args:
        config: the sampling options; temperature 0 leaves the choice to the argmax of `generate`.
        seed: of the draw. The same seed and scores give the same tokens.
    """

    def __init__(self, config: GenerationConfig, seed: int) -> None:
        self._config = config
        self._random = random.Random(seed)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Change `scores` (a float tensor of 1 by vocabulary, the caller's copy) in place and return it.

        Raises:
            EngineFailure: the scores are not numbers.
        """
        row = scores[0]
        if self._config.repetition_penalty != 1.0:
            penalise(row, input_ids[0], self._config.repetition_penalty)
        if self._config.temperature > 0:
            row[self._draw(row)] = math.inf
        return scores

    def _draw(self, scores: Any) -> int:
        config = self._config
        ids, values = shortlist(scores, config.top_k, config.top_p, config.min_p)
        values = values.cpu().double()
        values -= values.max()
        cumulative = (values / config.temperature).softmax(0).cumsum(0)
        total = float(cumulative[-1])
        if math.isnan(total):
            raise EngineFailure(
                "The model's scores are not numbers: its activations overflowed.", hint="Load it in bf16 or fp32."
            )
        index = int((cumulative <= self._random.random() * total).sum())
        index = min(index, len(values) - 1)  # rounding
        return index if ids is None else int(ids[index])


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
