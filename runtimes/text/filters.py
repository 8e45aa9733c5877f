"""Text on its way out of an engine: whole characters only, and nothing of a stop string."""

import codecs
from collections.abc import Sequence


class StopFilter:
    """Lets text through up to the first stop string and holds back what may yet become one.

    The stop string that is complete first wins; of several complete at the same character, the longest. Where the text
    is cut into pieces makes no difference. Linear in the text: every stop string keeps its own Knuth–Morris–Pratt
    state, so that nothing is read twice.

    Args:
        stops: the stop strings; empty ones are ignored.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._borders = tuple(_borders(stop) for stop in self._stops)
        self._firsts = frozenset(stop[0] for stop in self._stops)
        self._matched = [0] * len(self._stops)
        self._held = ""
        self.stopped = False
        """True once a stop string came; nothing is delivered from then on."""

    def push(self, text: str) -> str:
        """Take more text; return what can be delivered now."""
        if self.stopped:
            return ""
        if not self._held and self._firsts.isdisjoint(text):
            return text
        start = len(self._held)
        pending = self._held + text
        for end, character in enumerate(text, start + 1):
            length = self._advance(character)
            if length:
                self.stopped, self._held = True, ""
                return pending[: end - length]
        keep = len(pending) - max(self._matched)
        self._held = pending[keep:]
        return pending[:keep]

    def flush(self) -> str:
        """The text is over: return what was held back."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _advance(self, character: str) -> int:
        """Move every stop string on by one character. Returns the length of the longest one now complete, or 0."""
        complete = 0
        for index, stop in enumerate(self._stops):
            matched, borders = self._matched[index], self._borders[index]
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            if stop[matched] == character:
                matched += 1
            self._matched[index] = matched
            if matched == len(stop):
                complete = max(complete, matched)
        return complete


def _borders(pattern: str) -> list[int]:
    """For every prefix of `pattern`, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(pattern)
    length = 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = borders[length - 1]
        if pattern[index] == pattern[length]:
            length += 1
        borders[index] = length
    return borders


class Utf8Decoder:
    """Bytes to text in pieces: the bytes of an unfinished character wait, broken ones become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """Take more bytes; return the characters that are complete."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The bytes are over: return what an unfinished character becomes."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
