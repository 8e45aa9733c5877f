"""An answer in the making: what is trimmed, what stops it, what is delivered when."""

import pytest

from lfx_local_runtimes.errors import ContextOverflow
from lfx_local_runtimes.runtimes.config import GenerationConfig, GenerationResult
from lfx_local_runtimes.runtimes.requests import GenerationStream, Request
from lfx_local_runtimes.runtimes.text.answer import Answer
from lfx_local_runtimes.runtimes.text.templates import BUILT_IN


def answer(
    *pieces: str, form: str = "dialogue", rest: str = "", **options: object
) -> tuple[list[str], GenerationResult]:
    """What a request gets when the engine says these pieces."""
    request = Request("m", GenerationConfig.model_validate({"prompt": "Hi", **options}))
    request.start()
    made = Answer(request, BUILT_IN[form])
    made.admit(3, 100)
    for piece in pieces:
        if not made.push(piece):
            break
    made.finish("length", rest, {})
    stream = GenerationStream(request)
    texts = list(stream)
    assert stream.result is not None
    assert "".join(texts) == stream.result.text
    return texts, stream.result


def test_the_space_of_the_form_is_not_part_of_the_answer() -> None:
    assert answer(" ", "\n", " Paris", " is")[0] == ["Paris", " is"]
    assert answer(" Paris", form="gemma")[0] == [" Paris"]
    assert answer(" Paris", raw=True)[0] == [" Paris"]


def test_a_callers_stop_string_does_not_match_that_space() -> None:
    texts, result = answer("\n\n", "yes", "\n\n", "no", stop="\n\n")
    assert "".join(texts) == "yes"
    assert result.finish_reason == "stop"
    assert result.tokens_generated == 4, "the second newline might have begun the next question"


def test_the_next_turn_ends_it_even_where_the_answer_is_empty() -> None:
    assert answer("\nQues", "tion: more")[1].text == ""
    assert answer("a\nQues", "tion: more")[1].text == "a"
    assert answer("a\nQues", "tion: more")[1].finish_reason == "stop"
    assert answer("a\nQuestion: more", raw=True)[1].text == "a\nQuestion: more"


def test_what_only_looked_like_a_stop_is_delivered_at_the_end() -> None:
    assert answer("a\nQues", stop="zz")[1].text == "a\nQues"
    assert answer("az", stop="zz")[1].text == "az"
    assert answer("a", rest="z", stop="zz")[1].text == "az"
    assert answer("a\nQues", rest="z", stop="szz")[1].text == "a\nQuesz"


def test_room_and_limits() -> None:
    made = Answer(Request("m", GenerationConfig(prompt="Hi", max_tokens=50)), BUILT_IN["dialogue"])
    assert made.admit(10, 100) == 50
    assert made.admit(70, 100) == 30
    with pytest.raises(ContextOverflow, match=r"100 tokens; the context holds 100"):
        made.admit(100, 100)


def test_seeds() -> None:
    assert answer("a", seed=7)[1].metadata["seed"] == 7
    assert answer("a")[1].metadata["seed"] != answer("a")[1].metadata["seed"]
