"""Token ids that a client sends to a model that reads: wrapped in the model's special tokens once, never twice."""

from typing import Any

import pytest

from lfx_local_runtimes.runtimes.engines.encoder.tokens import PieceTokenizer
from lfx_local_runtimes.runtimes.engines.llama_cpp.encoder import VocabularyTokenizer
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece

CLS, SEP, A = 1, 2, 5
LIMIT = 6


class Words:
    """A Hugging Face tokenizer that knows one text."""

    def __len__(self) -> int:
        return 100

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        assert text == "a"
        return {"input_ids": [CLS, A, SEP], "special_tokens_mask": [1, 0, 1]}


class Model:
    """llama.cpp's, likewise."""

    n_vocab = 100

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        assert text == "a"
        return [CLS, A, SEP] if add_special else [A]


@pytest.fixture(params=["transformers", "llama_cpp"])
def tokenize(request: pytest.FixtureRequest) -> Any:
    if request.param == "transformers":
        return PieceTokenizer(Words(), LIMIT)
    return VocabularyTokenizer(Model(), LIMIT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "row"),
    [
        ((7, 8), [CLS, 7, 8, SEP]),
        ((CLS, 7, 8, SEP), [CLS, 7, 8, SEP]),
        ((CLS, 7, 8), [CLS, 7, 8, SEP]),
        ((7, 8, SEP), [CLS, 7, 8, SEP]),
        ((CLS, SEP), [CLS, SEP]),
        ((7, CLS, 8), [CLS, 7, CLS, 8, SEP]),
    ],
)
def test_special_tokens_come_once(tokenize: Any, ids: tuple[int, ...], row: list[int]) -> None:
    ((tokens,),) = tokenize([Piece(ids)], chunks=False)
    assert (tokens.ids, tokens.cut) == (row, 0)


def test_what_is_too_long_is_cut_inside_of_them(tokenize: Any) -> None:
    ids = (CLS, 10, 11, 12, 13, 14, SEP)
    ((cut,),) = tokenize([Piece(ids)], chunks=False)
    assert (cut.ids, cut.cut) == ([CLS, 10, 11, 12, 13, SEP], 1)
    (parts,) = tokenize([Piece(ids)], chunks=True)
    assert [part.ids for part in parts] == [[CLS, 10, 11, 12, 13, SEP], [CLS, 14, SEP]]
