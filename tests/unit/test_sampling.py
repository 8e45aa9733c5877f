"""The sampler of the Transformers engine, against the definition and against llama.cpp's own chain."""

import ctypes
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfx_local_runtimes.errors import EngineFailure
from lfx_local_runtimes.runtimes.engines.transformers.sampling import Sampler, logprob, penalise, shortlist
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig

torch = pytest.importorskip("torch")

LIMITS = [
    (0, 1.0, 0.0),
    (5, 1.0, 0.0),
    (0, 0.5, 0.0),
    (0, 1.0, 0.1),
    (40, 0.95, 0.05),
    (0, 0.95, 0.05),
    (9000, 0.99, 0.001),
]


def noise(size: int, seed: int = 0, spread: float = 2.0) -> Any:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def by_definition(scores: Any, top_k: int, top_p: float, min_p: float) -> list[int]:
    values, ids = scores.double().sort(descending=True)
    if top_k:
        values, ids = values[:top_k], ids[:top_k]
    shares = values.softmax(0)
    survivors, mass = [], 0.0
    for token, value, share in zip(ids.tolist(), values.tolist(), shares.tolist(), strict=True):
        if mass >= top_p or (min_p > 0 and value < float(values[0]) + math.log(min_p)):
            break
        survivors.append(token)
        mass += share
    return survivors


def by_llama_cpp(scores: Any, top_k: int, top_p: float, min_p: float) -> list[int]:
    llama = pytest.importorskip("llama_cpp")
    tokens = (llama.llama_token_data * len(scores))(*[(i, float(score), 0.0) for i, score in enumerate(scores)])
    array = llama.llama_token_data_array(tokens, len(scores), -1, False)
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    if top_k:
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_top_k(top_k))
    llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_top_p(top_p, 1))
    llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_min_p(min_p, 1))
    llama.llama_sampler_apply(chain, ctypes.byref(array))
    survivors = [array.data[i].id for i in range(array.size)]
    llama.llama_sampler_free(chain)
    return survivors


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize(("size", "spread"), [(50, 2.0), (20_000, 0.2), (20_000, 4.0)])
def test_shortlist_is_what_the_definition_says(limits: tuple[int, float, float], size: int, spread: float) -> None:
    scores = noise(size, spread=spread)
    ids, values = shortlist(scores, *limits)
    if ids is None:
        assert limits == (0, 1.0, 0.0)
        assert values is scores
        return
    expected = by_definition(scores, *limits)
    assert abs(len(ids) - len(expected)) <= 1 + len(expected) // 1000  # sums of float32 end a token early or late
    common = min(len(ids), len(expected))
    assert ids[:common].tolist() == expected[:common]
    assert torch.equal(values, scores[ids])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 60), st.floats(0.05, 0.99), st.floats(0, 0.5))
def test_llama_cpp_keeps_the_same_tokens(seed: int, top_k: int, top_p: float, min_p: float) -> None:
    scores = noise(100, seed)
    ids, _ = shortlist(scores, top_k, top_p, min_p)
    assert sorted(ids.tolist()) == sorted(by_llama_cpp(scores, top_k, top_p, min_p))


@pytest.mark.parametrize("limits", [(0, 1e-9, 0.0), (1, 1.0, 0.0), (0, 1.0, 1.0), (0, 1e-9, 1.0)])
def test_the_best_token_always_survives(limits: tuple[int, float, float]) -> None:
    scores = noise(5000)
    ids, _ = shortlist(scores, *limits)
    assert ids.tolist() == [int(scores.argmax())]


def test_a_top_k_beyond_the_vocabulary_is_the_vocabulary() -> None:
    ids, _ = shortlist(noise(10), 40, 1.0, 0.0)
    assert sorted(ids.tolist()) == list(range(10))


def test_penalty_divides_positive_scores_and_multiplies_others_once_per_token() -> None:
    scores = torch.tensor([4.0, -4.0, 0.0, 1.0])
    penalise(scores, torch.tensor([0, 1, 1, 2, 0]), 2.0)
    assert scores.tolist() == [2.0, -8.0, 0.0, 1.0]


def draws(scores: Any, count: int, seed: int = 7, prompt: tuple[int, ...] = (0,), **options: Any) -> list[int]:
    sampler = Sampler(GenerationConfig(prompt="x", **options), seed, prompt, end_ids=(1,))
    return [sampler.sample(scores.clone()) for _ in range(count)]


@pytest.mark.parametrize("limits", [{"top_k": 0, "top_p": 1, "min_p": 0}, {"top_k": 3, "top_p": 1, "min_p": 0}])
def test_tokens_come_as_often_as_their_probability(limits: dict[str, Any]) -> None:
    scores, count = torch.tensor([1.0, 3.0, 2.0, -1.0]), 4000
    drawn = draws(scores, count, temperature=1.5, **limits)
    kept = scores.clone()
    if limits["top_k"]:
        kept[3] = -math.inf
    for token, share in enumerate((kept / 1.5).softmax(0).tolist()):
        error = 5 * math.sqrt(share * (1 - share) / count)
        assert drawn.count(token) / count == pytest.approx(share, abs=error + 1e-9)


def test_the_seed_decides() -> None:
    scores = noise(1000)
    assert draws(scores, 20, seed=1) == draws(scores, 20, seed=1)
    assert draws(scores, 20, seed=1) != draws(scores, 20, seed=2)


def test_the_process_wide_random_state_is_not_touched() -> None:
    before = torch.get_rng_state()
    draws(noise(1000), 5)
    assert torch.equal(torch.get_rng_state(), before)


def greedy(*scores: float, count: int = 1, **options: Any) -> list[int]:
    return draws(torch.tensor(scores), count, temperature=0, **options)


def test_greedy_takes_the_best() -> None:
    assert greedy(0.0, 1.0, 3.0, 2.0, count=3) == [2, 2, 2]


def test_the_repetition_penalty_counts_prompt_and_answer() -> None:
    assert greedy(3.0, 0.0, 2.0, repetition_penalty=2.0) == [2]
    assert greedy(3.0, 0.0, 2.0, 1.9, count=3, repetition_penalty=2.0) == [2, 3, 0]
    assert greedy(3.0, 0.0, 2.0, count=2) == [0, 0]


def test_the_frequency_penalty_grows_and_the_presence_penalty_does_not() -> None:
    scores = (3.0, 0.0, 2.2)  # token 0 is in the prompt, which they do not count
    assert greedy(*scores, count=6, frequency_penalty=0.3) == [0, 0, 0, 2, 0, 2]
    assert greedy(*scores, count=6, presence_penalty=0.7) == [0] * 6
    assert greedy(*scores, count=6, presence_penalty=0.9) == [0, 2, 0, 0, 0, 0]
    assert greedy(*scores, count=3, frequency_penalty=-2) == [0] * 3


def test_a_bias_is_added_and_minus_100_bans() -> None:
    assert greedy(3.0, 0.0, 2.0, logit_bias={2: 1.5}) == [2]
    assert greedy(3.0, 0.0, 2.0, logit_bias={0: -100, 2: -3}) == [1]
    assert greedy(3.0, 0.0, 2.0, logit_bias={70_000: 5}) == [0]  # beyond the vocabulary
    assert set(draws(torch.tensor([0.0, 0.0]), 50, logit_bias={0: -100})) == {1}


def test_an_answer_does_not_end_before_min_tokens_nor_at_all_with_ignore_eos() -> None:
    assert greedy(2.0, 3.0, 1.0, count=4, min_tokens=2) == [0, 0, 1, 1]
    assert greedy(2.0, 3.0, 1.0, count=4, ignore_eos=True) == [0] * 4


class Spells:
    """Allows one token after the other."""

    def __init__(self, *tokens: int) -> None:
        self.left = list(tokens)

    def mask(self, scores: Any) -> None:
        kept = scores[self.left[0]]
        scores[:] = -math.inf
        scores[self.left[0]] = kept

    def accept(self, token: int) -> None:
        assert token == self.left.pop(0)

    @property
    def done(self) -> bool:
        return not self.left


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_constraint_leaves_what_it_allows(temperature: float) -> None:
    sampler = Sampler(GenerationConfig(prompt="x", temperature=temperature), 1, constraint=Spells(4, 7, 4))
    drawn = []
    while not sampler.done:
        drawn.append(sampler.sample(noise(10)))
    assert drawn == [4, 7, 4]


def test_logprobs_are_the_models_own() -> None:
    scores = noise(1000)
    told = logprob(5, scores, 3, lambda token: f"t{token}é".encode()[:-1])
    shares = scores.double().log_softmax(0)
    best = [*scores.topk(3).indices.tolist(), 5]
    assert told.logprob == pytest.approx(float(shares[5]))
    assert (told.token, told.bytes) == ("t5\N{REPLACEMENT CHARACTER}", tuple(b"t5\xc3"))
    assert [one.token for one in told.top] == [f"t{token}\N{REPLACEMENT CHARACTER}" for token in best]
    assert [one.logprob for one in told.top] == pytest.approx(shares[best].tolist())
    assert logprob(0, torch.tensor([-math.inf, 0.0]), 0, lambda token: b"").logprob == -9999


@pytest.mark.parametrize("temperature", [1e-300, 1e-9])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    scores = noise(1000)
    assert set(draws(scores, 5, temperature=temperature)) == {int(scores.argmax())}


def test_scores_that_are_not_numbers_are_a_failure() -> None:
    with pytest.raises(EngineFailure, match="not numbers"):
        draws(torch.full((10,), math.nan), 1)
