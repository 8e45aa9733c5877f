"""Pieces of text to rows of tokens, with Hugging Face's tokenizers."""

from collections.abc import Sequence
from typing import Any

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece, Tokens


class PieceTokenizer:
    """Cuts at the model's longest input and tells how much.

    Args:
        tokenizer: a `PreTrainedTokenizerFast`.
        limit: tokens of a row, special ones included.
    """

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        sample = tokenizer("a", return_special_tokens_mask=True)
        special = sample["special_tokens_mask"]
        start = special.index(0) if 0 in special else len(special)
        self._before = sample["input_ids"][:start]
        self._after = [token for token, mark in zip(sample["input_ids"], special, strict=True) if mark][start:]

    def __call__(self, pieces: Sequence[Piece], *, chunks: bool) -> list[list[Tokens]]:
        """For each piece the rows to compute.

        Raises:
            InvalidInput: a token id is not in the vocabulary.
        """
        if any(not isinstance(piece.text, str) for piece in pieces):
            return [
                self._of_ids(piece.text, chunks=chunks)
                if not isinstance(piece.text, str)
                else self([piece], chunks=chunks)[0]
                for piece in pieces
            ]
        texts = [piece.text for piece in pieces]
        pairs = [piece.pair for piece in pieces] if pieces[0].pair is not None else None
        found = self._tokenizer(
            texts, pairs, truncation=True, max_length=self._limit, return_overflowing_tokens=chunks,
            return_offsets_mapping=True, return_special_tokens_mask=True, return_token_type_ids=True,
        )  # fmt: skip
        samples = found["overflow_to_sample_mapping"] if chunks else range(len(pieces))
        rows: list[list[Tokens]] = [[] for _ in pieces]
        for sample, *columns in zip(
            samples, found["input_ids"], found["token_type_ids"], found["offset_mapping"],
            found["special_tokens_mask"], strict=True,
        ):  # fmt: skip
            row = Tokens(*columns)
            if not chunks and len(row.ids) >= self._limit:
                row.cut = len(self._tokenizer(pieces[sample].text, pieces[sample].pair).input_ids) - len(row.ids)
            rows[sample].append(row)
        return rows

    def _of_ids(self, ids: Sequence[int], *, chunks: bool) -> list[Tokens]:
        wrong = next((one for one in ids if not 0 <= one < len(self._tokenizer)), None)
        if wrong is not None:
            raise InvalidInput(
                f"Token id {wrong} is not in the model's vocabulary of {len(self._tokenizer):,}.", hint="Send the text."
            )
        ids = unwrapped(ids, self._before, self._after)
        room = max(1, self._limit - len(self._before) - len(self._after))
        parts = [ids[start : start + room] for start in range(0, len(ids), room)] or [ids]
        cut = 0 if chunks else len(ids) - len(parts[0])
        rows = [[*self._before, *part, *self._after] for part in (parts if chunks else parts[:1])]
        return [Tokens(row, [0] * len(row), cut=cut) for row in rows]


def unwrapped(ids: Sequence[int], before: Sequence[int], after: Sequence[int]) -> Sequence[int]:
    """The ids without the special tokens that the model's tokenizer puts around a text: the caller may have sent them too."""
    if before and list(ids[: len(before)]) == list(before):
        ids = ids[len(before) :]
    if after and list(ids[-len(after) :]) == list(after):
        ids = ids[: -len(after)]
    return ids


def padded(batch: Sequence[Tokens], pad: int, width: int = 0) -> dict[str, Any]:
    """A model's inputs by the names that encoders have for them: int64, of shape (rows, the longest row).

    Args:
        batch: the rows.
        pad: the token that fills up.
        width: the rows are at least as long as this.
    """
    import numpy as np

    shape = (len(batch), max(width, *(len(row.ids) for row in batch)))
    ids, mask, types = np.full(shape, pad, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for index, row in enumerate(batch):
        size = len(row.ids)
        ids[index, :size], mask[index, :size], types[index, :size] = row.ids, 1, row.types
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
