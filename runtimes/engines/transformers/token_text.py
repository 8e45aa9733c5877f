"""Token ids to text, piece by piece."""

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_PENDING = 8
"""A character has at most four bytes and so four tokens; what is still broken after more than that stays broken."""
_MAX_WINDOW = 16


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
