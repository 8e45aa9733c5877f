"""Greedy answers of a model that is not deterministic: the same up to a near tie."""

from lfx_local_runtimes.runtimes import GenerationResult

NEAR_TIE_NATS = 0.7
"""How far apart two tokens may be for rounding to choose between them."""


def same_but_for_a_near_tie(one: GenerationResult, other: GenerationResult) -> bool:
    """Whether two answers to one prompt are the same up to a token where both choices were near the top.

    Without `deterministic` the kernels for four rows and more round K-quants differently. Activations are then quantized
    to eight bits, which turns a last bit into a step. `one` needs `top_logprobs`, both need `logprobs`.
    """
    assert one.logprobs is not None
    assert other.logprobs is not None
    for expected, got in zip(one.logprobs, other.logprobs, strict=False):
        if expected.token != got.token:
            rivals = {rival.token: rival.logprob for rival in expected.top}
            return got.token in rivals and expected.logprob - rivals[got.token] < NEAR_TIE_NATS
    return one.text == other.text
