"""Token ids to text, piece by piece."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_PENDING = 8
"""A character has at most four bytes and so four tokens; what is still broken after more than that stays broken."""
_MAX_WINDOW = 16
_BYTE = re.compile("<0x[0-9A-F]{2}>")


class TokenDecoder:
    """Decodes an answer as its tokens come, at a cost per token that does not grow with the answer.

    What a token reads as depends on its neighbours (SentencePiece drops the space before a first word, a character may
    be spread over several tokens). So a window is decoded with and without the new tokens, and the difference is the
    new text; text that ends in an unfinished character waits.

    Args:
        decode: ids to text, without special tokens.
        context: the end of the prompt, which the answer continues.
    """

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(context)[-_MAX_PENDING:]
        self._read = len(self._window)
        """So many tokens of the window have been delivered; `_before` is their text."""
        self._before = decode(self._window)

    def push(self, token: int) -> str:
        """Take a token; return the text that is final with it."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT) and len(self._window) - self._read < _MAX_PENDING:
            return ""
        return self._deliver(text)

    def flush(self) -> str:
        """The tokens are over: return what an unfinished character becomes."""
        return self._deliver(self._decode(self._window))

    def _deliver(self, text: str) -> str:
        new = text[len(self._before) :]
        if new or len(self._window) > _MAX_WINDOW:  # a special token reads as nothing and would hide a leading space
            del self._window[: self._read]
            text = self._decode(self._window)
        self._read, self._before = len(self._window), text
        return new


def silent_tokens(tokenizer: Any) -> frozenset[int]:
    """The special tokens, which are left out of text."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset([token for token, about in added if about.special] + list(tokenizer.all_special_ids))


def bytes_of_tokens(tokenizer: Any) -> Callable[[int], bytes]:
    """What tells the bytes a token of a Hugging Face tokenizer stands for, be they part of a character.

    Vocabularies are written in two ways: in GPT-2's letters for bytes (Ġ is a space), or as text where ▁ is a space and
    <0x0A> a byte.
    """
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    letters = _alphabet() if decoder is not None and b"ByteLevel" in decoder.__getstate__() else None

    def read(token: int) -> bytes:
        piece = str(tokenizer.convert_ids_to_tokens(token))
        if letters is not None:
            return b"".join(letters.get(letter, letter.encode()) for letter in piece)
        if _BYTE.fullmatch(piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    return read


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, bytes]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others are counted on from U+0100."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): bytes([byte]) for byte in shown}
    return letters | {chr(256 + number): bytes([byte]) for number, byte in enumerate(hidden)}
