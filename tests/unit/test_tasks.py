"""Tasks without a model: from what is asked to pieces, and from numbers to results."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.tasks import task_rows
from lfx_local_runtimes.runtimes.tasks.base import TaskResult
from lfx_local_runtimes.runtimes.tasks.text.classification import ClassificationAsk, scores
from lfx_local_runtimes.runtimes.tasks.text.embedding import Embedding, EmbeddingAsk, pool
from lfx_local_runtimes.runtimes.tasks.text.ner import Ner, NerAsk
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece, Spec, Tokens
from lfx_local_runtimes.runtimes.tasks.text.rerank import RerankAsk
from lfx_local_runtimes.runtimes.tasks.text.zero_shot import ZeroShot, ZeroShotAsk

ABOUT = TaskResult("m", {})
STATES = np.array([[[1, 2], [3, 4], [100, 100]], [[5, 6], [7, 8], [9, 1]]], dtype=np.float32)
MASK = np.array([[True, True, False], [True, True, True]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("cls", [[1, 2], [5, 6]]),
        ("lasttoken", [[3, 4], [9, 1]]),
        ("max", [[3, 4], [9, 8]]),
        ("mean", [[2, 3], [7, 5]]),
        ("mean_sqrt_len", [[4 / 2**0.5, 6 / 2**0.5], [21 / 3**0.5, 15 / 3**0.5]]),
        ("weightedmean", [[7 / 3, 10 / 3], [46 / 6, 25 / 6]]),
    ],
)
def test_pooling_leaves_padding_out(mode: str, expected: list[list[float]]) -> None:
    assert np.allclose(pool(STATES, MASK, mode), expected)
    broken = STATES.copy()
    broken[0, 2] = np.inf
    if mode != "lasttoken":
        assert np.allclose(pool(broken, MASK, mode), expected), "what stands in the padding does not matter"


def test_prompts_are_the_models_own_or_the_callers() -> None:
    spec = Spec("embedding", 10, prompts={"query": "query: ", "passage": "passage: "}, default_prompt="passage")

    def first(**options: Any) -> object:
        return Embedding().pieces(EmbeddingAsk(texts=("owl",), **options), spec)[0].text

    assert first() == "passage: owl"
    assert first(prompt="query") == "query: owl"
    assert first(role="query") == "query: owl"
    assert first(role="document") == "passage: owl"
    assert Embedding().pieces(EmbeddingAsk(texts=("owl",), role="query"), Spec("embedding", 10))[0].text == "owl"
    assert first(prompt="find: ") == "find: owl"
    assert first(prompt="") == "owl"


def test_vectors_are_shortened_before_they_are_normalized() -> None:
    values = [np.array([3, 4, 12], dtype=np.float32)]
    ask = EmbeddingAsk(texts=("a",), dimensions=2, normalize=True)
    assert np.allclose(Embedding().result(ask, values, Spec("embedding", 1), ABOUT).vectors, [[0.6, 0.8]])
    zero = Embedding().result(ask, [np.zeros(3, dtype=np.float32)], Spec("embedding", 1), ABOUT)
    assert not np.isnan(zero.vectors).any()


def test_a_model_not_made_for_shorter_vectors_is_warned_of() -> None:
    def warnings(dimensions: int | None, *, shortens: bool = False) -> list[str]:
        about = TaskResult("m", {"warnings": ["slow"]})
        ask, spec = EmbeddingAsk(texts=("a",), dimensions=dimensions), Spec("embedding", 1, shortens=shortens)
        found = Embedding().result(ask, [np.array([3, 4, 12], dtype=np.float32)], spec, about)
        return list(found.metadata["warnings"])

    assert warnings(None) == warnings(3) == warnings(2, shortens=True) == ["slow"]
    assert "matryoshka_dimensions" in warnings(2)[1]


def test_scores_of_extreme_logits_are_numbers() -> None:
    logits = np.array([[1000.0, -1000.0]], dtype=np.float32)
    assert np.allclose(scores(logits, "softmax"), [[1, 0]])
    assert np.allclose(scores(logits, "sigmoid"), [[1, 0]])
    assert np.array_equal(scores(logits, "identity"), logits)


def test_neighbouring_tags_become_a_span() -> None:
    labels = ("O", "B-PER", "I-PER", "B-LOC")
    spec = Spec("ner", 10, labels)
    text = "Ada Byron met Bob in Rome"
    spans = [(0, 0), (0, 3), (4, 9), (10, 13), (14, 17), (18, 20), (21, 25), (0, 0)]
    tags = [0, 1, 2, 0, 1, 0, 3, 0]
    tokens = Tokens(list(range(8)), [0] * 8, spans, [1, 0, 0, 0, 0, 0, 0, 1])
    logits = np.full((1, 8, 4), -20, dtype=np.float32)
    logits[0, range(8), tags] = 20
    found = Ner().result(NerAsk(texts=(text,)), Ner().values(logits, [tokens], spec), spec, ABOUT).entities[0]
    assert [(one.label, one.text) for one in found] == [("PER", "Ada Byron"), ("PER", "Bob"), ("LOC", "Rome")]
    assert all(one.score > 0.99 for one in found)


def test_two_entities_side_by_side_stay_two() -> None:
    spec = Spec("ner", 10, ("O", "B-PER", "I-PER"))
    tokens = Tokens([1, 2], [0, 0], [(0, 3), (4, 7)], [0, 0])
    logits = np.array([[[0, 9, 0], [0, 9, 0]]], dtype=np.float32)
    found = Ner().values(logits, [tokens], spec)[0]
    assert [(start, end) for _, start, end, _ in found] == [(0, 3), (4, 7)]


def test_zero_shot_needs_a_model_that_knows_entailment() -> None:
    ask = ZeroShotAsk(texts=("a",), labels=("x", "y"))
    with pytest.raises(InvalidInput, match="name no entailment"):
        ZeroShot().pieces(ask, Spec("classification", 10, ("good", "bad")))
    pieces = ZeroShot().pieces(ask, Spec("zero_shot", 10, ("contradiction", "ENTAILMENT")))
    assert pieces == [Piece("a", "This example is x."), Piece("a", "This example is y.")]


SIMILAR = Spec("embedding", 10, prompts={"own": "say: "}, default_prompt="own")


def test_an_embedding_model_reads_each_text_and_each_label_once() -> None:
    ask = ZeroShotAsk(texts=("a", "b", "c"), labels=("x", "y"))
    read = [Piece("say: a"), Piece("say: b"), Piece("say: c"), Piece("say: x"), Piece("say: y")]
    assert ZeroShot().pieces(ask, SIMILAR) == read
    asked = ask.model_copy(update={"hypothesis": "{} or {}"})
    assert ZeroShot().pieces(asked, SIMILAR)[3:] == [Piece("say: x or x"), Piece("say: y or y")]
    tokens = [Tokens([1, 2], [0, 0]), Tokens([1, 2, 3], [0, 0, 0])]
    pooled = ZeroShot().values(STATES, tokens, SIMILAR)
    assert np.array_equal(pooled, Embedding().values(STATES, tokens, SIMILAR))


@pytest.mark.parametrize(
    ("labels", "multi_label", "expected"),
    [
        (("x", "y"), False, {"x": 1 / (1 + np.exp(-0.2 / 0.05)), "y": 1 / (1 + np.exp(0.2 / 0.05))}),
        (("x", "y"), True, {"x": 0.8, "y": 0.6}),
        (("x",), False, {"x": 0.8}),
    ],
)
def test_labels_are_scored_by_their_cosines(
    labels: tuple[str, ...], multi_label: bool, expected: dict[str, float]
) -> None:
    """The text's vector points 4 along one label and 3 along the other."""
    values = [np.array(vector, dtype=np.float32) for vector in ([4, 3], [5, 0], [0, 7])[: 1 + len(labels)]]
    ask = ZeroShotAsk(texts=("a",), labels=labels, multi_label=multi_label)
    found = ZeroShot().result(ask, values, SIMILAR, TaskResult("m", {"tokens": 3}))
    assert {one.label: one.score for one in found.labels[0]} == pytest.approx(expected)
    assert [one.label for one in found.labels[0]] == list(expected)
    assert found.metadata == {"tokens": 3, "method": "similarity"}


def test_what_is_unlike_has_no_score_below_zero() -> None:
    values = [np.array(vector, dtype=np.float32) for vector in ([1, 0], [-1, 0], [0, 0])]
    ask = ZeroShotAsk(texts=("a",), labels=("x", "y"), multi_label=True)
    assert [one.score for one in ZeroShot().result(ask, values, SIMILAR, ABOUT).labels[0]] == [0, 0]


def test_a_result_says_that_it_was_judged_by_entailment() -> None:
    spec = Spec("zero_shot", 10, ("entailment", "contradiction"))
    ask = ZeroShotAsk(texts=("a",), labels=("x",))
    found = ZeroShot().result(ask, [np.array([2, -1], dtype=np.float32)], spec, ABOUT)
    assert found.metadata["method"] == "entailment"
    assert found.labels[0][0].score == pytest.approx(1 / (1 + np.exp(-3)))


@pytest.mark.parametrize(
    ("ask", "options", "said"),
    [
        (EmbeddingAsk, {"texts": ()}, "at least 1"),
        (EmbeddingAsk, {"texts": ("a", "")}, "input 1 must be a text or token ids, and not empty"),
        (EmbeddingAsk, {"texts": ("a", None)}, "input 1 must be"),
        (EmbeddingAsk, {"texts": ((),)}, "input 0 must be"),
        (EmbeddingAsk, {"texts": ((1, True),)}, "input 0 must be"),
        (EmbeddingAsk, {"texts": ("a",), "dimensions": 0}, "dimensions"),
        (RerankAsk, {"query": "", "documents": ("a",)}, "query"),
        (RerankAsk, {"query": "a", "documents": ("a",), "overflow": "chunk"}, "should be 'truncate' or 'error'"),
        (ClassificationAsk, {"texts": ("a",), "top_k": 0}, "top_k"),
        (ZeroShotAsk, {"texts": ("a",), "labels": ("x", "x")}, "twice"),
        (ZeroShotAsk, {"texts": ("a",), "labels": ("x",), "hypothesis": "It is so."}, "replaced by the label"),
        (NerAsk, {"texts": ("a",), "min_score": 2}, "min_score"),
    ],
)
def test_what_cannot_be_asked_is_named(ask: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ask(**options)


def test_every_task_is_asked_by_its_name() -> None:
    for ask in (EmbeddingAsk, RerankAsk, ClassificationAsk, ZeroShotAsk, NerAsk):
        assert ask.task in task_rows()
