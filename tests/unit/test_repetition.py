"""The end of an answer that repeats itself: only a base model's, and only where the caller leaves the end to us."""

import pytest

from lfx_local_runtimes.runtimes.chat.repetition import LONGEST, repeats
from tests.unit.test_answer import answer

LOOP = " I am happy now and"


@pytest.mark.parametrize("text", [LOOP * 6, "la " * 30, "x" * LONGEST * 3, f"Yes.{'No one knows the answer. ' * 3}"])
def test_a_loop_is_seen(text: str) -> None:
    assert repeats(text)


@pytest.mark.parametrize(
    "text",
    ["", "short", LOOP * 2, "-" * 900, "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15", f"{LOOP * 6}. The end."],
)
def test_what_is_no_loop(text: str) -> None:
    assert not repeats(text)


def test_a_base_models_loop_ends_its_answer() -> None:
    _, result = answer(*[LOOP] * 90)
    assert result.finish_reason == "stop"
    assert result.tokens_generated < 10


@pytest.mark.parametrize("options", [{"form": "chatml"}, {"raw": True}, {"ignore_eos": True}, {"min_tokens": 40}])
def test_other_answers_go_on(options: dict[str, object]) -> None:
    _, result = answer(*[LOOP] * 40, **options)  # type: ignore[arg-type]
    assert (result.tokens_generated, result.finish_reason) == (40, "length")
