"""What the comparison of many answers with lone ones accepts, and what it finds."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.soak import EXACT, FAST, MINILM, NATIVE, Answer, Call, agree, read
from tests.routes_app import LOGPROBS, a_result

CHAT = Call("/v1/chat/completions", {"model": EXACT})
LONE = Answer(["Hello there"], ["stop"])
TOKENS = a_result(logprobs=LOGPROBS)


def native(model: str) -> Call:
    return Call(f"{NATIVE}/generate", {"model_name": model})


def drawn(*tokens: str) -> Answer:
    """An answer with other tokens than `TOKENS`."""
    rows = [one.model_copy(update={"token": token}) for one, token in zip(LOGPROBS, tokens, strict=False)]
    return Answer(["".join(tokens)], ["stop"], result=a_result(text="".join(tokens), logprobs=rows))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (LONE, True),
        (replace(LONE, texts=["Hello you"]), False),
        (replace(LONE, ends=["length"]), False),
        (Answer(["Hello"], ["cancelled"]), True),
        (Answer(["Hallo"], ["cancelled"]), False),
        (Answer(ends=["cancelled"]), True),
    ],
)
def test_exact_answers_are_the_same_or_their_beginning(answer: Answer, expected: bool) -> None:
    assert agree(CHAT, answer, LONE) is expected


@pytest.mark.parametrize(("tokens", "expected"), [(("He", "llo"), True), (("Ho", "me"), False), (("Hi",), False)])
def test_other_answers_may_differ_after_a_near_tie_only(tokens: tuple[str, ...], expected: bool) -> None:
    """`Ho` is among the top tokens, and a whole nat less likely than `He`."""
    lone = Answer(["Hello"], ["stop"], result=TOKENS)
    assert agree(native(FAST), drawn(*tokens), lone) is expected


def test_vectors_are_compared_by_their_numbers() -> None:
    call, lone = Call("/v1/embeddings", {"model": MINILM}), Answer(vectors=[[1.0, 0.0]])
    assert agree(call, Answer(vectors=[[1.0, 0.00001]]), lone)
    assert not agree(call, Answer(vectors=[[1.0, 0.01]]), lone)
    assert not agree(call, Answer(vectors=[[1.0, 0.0], [1.0, 0.0]]), lone)


def test_pieces_that_are_not_the_whole_answer_are_found() -> None:
    done: dict[str, Any] = a_result(text="Hello").model_dump(mode="json")
    assert read([{"text": "Hel"}, {"text": "lo"}, done]).texts == ["Hello"]
    with pytest.raises(RuntimeError, match="are not the whole"):
        read([{"text": "Hel"}, done])


def test_an_error_other_than_a_cancel_is_found() -> None:
    assert read([{"error": {"code": "cancelled"}}]).cancelled
    with pytest.raises(RuntimeError, match="engine_died"):
        read([{"error": {"code": "engine_died"}}])
