"""Text on its way out of an engine: whole characters only, nothing of a stop string, cut where marks stand."""

import codecs
import re
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


class MarkScanner:
    """Cuts a text that comes in pieces at marks such as `<think>`; holds back what may yet become one.

    Where the pieces are cut makes no difference. Linear in the text.

    Args:
        marks: none of them part of another.
    """

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = tuple(dict.fromkeys(marks))
        assert not any(a in b for a in self._marks for b in self._marks if a != b), "one mark is part of another"
        self._pattern = re.compile("|".join(map(re.escape, self._marks)) or r"(?!)")
        self._firsts = frozenset(mark[0] for mark in self._marks)
        self._longest = max(map(len, self._marks), default=0)
        self._held = ""

    def push(self, text: str) -> list[tuple[str, str]]:
        """Take more text. Returns pairs of plain text and the mark after it; the last pair has no mark."""
        if not self._held and self._firsts.isdisjoint(text):
            return [(text, "")]
        text, start, found = self._held + text, 0, []
        for match in self._pattern.finditer(text):
            found.append((text[start : match.start()], match[0]))
            start = match.end()
        keep = self._unfinished(text, start)
        self._held = text[keep:]
        return [*found, (text[start:keep], "")]

    def flush(self) -> str:
        """The text is over: return what was held back."""
        held, self._held = self._held, ""
        return held

    def _unfinished(self, text: str, start: int) -> int:
        """Where the longest beginning of a mark stands at the end of the text."""
        for index in range(max(start, len(text) - self._longest + 1), len(text)):
            if text[index] in self._firsts and any(mark.startswith(text[index:]) for mark in self._marks):
                return index
        return len(text)


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
