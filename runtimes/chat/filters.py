"""Filters for the text of an engine: they complete characters, remove stop strings, and cut at marks."""

import codecs
import re
from collections.abc import Sequence


class StopFilter:
    """Passes text on up to the first stop string. Holds back text that may still become a stop string.

    The stop string that is complete first counts. If several are complete at the same character, the longest counts. The
    result does not depend on how the text is cut into pieces. Time is linear in the text: every stop string keeps its own
    Knuth–Morris–Pratt state, so no character is read twice.

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
        """True once a stop string came. No text is delivered after that."""

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
    """Cuts a text that comes in pieces at marks such as `<think>`. Holds back text that may still become a mark.

    The result does not depend on how the text is cut into pieces. Time is linear in the text.

    Args:
        marks: no mark may be part of another.
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
        """The index of the longest unfinished mark at the end of the text; the text's length if there is none."""
        for index in range(max(start, len(text) - self._longest + 1), len(text)):
            if text[index] in self._firsts and any(mark.startswith(text[index:]) for mark in self._marks):
                return index
        return len(text)


class Utf8Decoder:
    """Decodes bytes that come in pieces. Bytes of an unfinished character wait; invalid bytes become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """Take more bytes; return the characters that are complete."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The bytes are over: return U+FFFD if a character is unfinished, otherwise an empty text."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
