"""Finds tool calls in a text that comes in pieces. The result does not depend on how it is cut; time is linear.

A call that the model chose to make is reported when it is complete, because it could still turn out to be text. Then it
is passed on as text, so nothing is lost. A call that a grammar forces cannot be anything else, so its arguments are
reported as they come.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lfx_local_runtimes.runtimes.chat.filters import MarkScanner
from lfx_local_runtimes.runtimes.chat.tool_notations import Calls
from lfx_local_runtimes.runtimes.tasks.generation import Tool, ToolCallDelta

_MAX_HEAD = 512
"""A text counts as a call only if it begins like one within this many characters."""

_FORCED = '{{"name": "{}", "arguments": '


@dataclass(frozen=True, slots=True)
class Parsed:
    """A piece of text, separated into plain text and calls."""

    text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class Parser(Protocol):
    """Takes a text in pieces and separates calls from plain text."""

    @property
    def done(self) -> bool:
        """Whether no more calls and no more text are wanted."""

    def push(self, text: str) -> Parsed:
        """Take more text."""

    def flush(self) -> Parsed:
        """The text is over."""


def new_call_id() -> str:
    """An id for a new call."""
    return f"call_{secrets.token_hex(12)}"


def forced_opening(name: str) -> str:
    """How a forced call begins. Its arguments and a closing brace follow."""
    return _FORCED.format(name)


class JsonSpan:
    """Finds the end of a JSON object or array. Brackets inside strings do not count."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def feed(self, text: str) -> int | None:
        """Take more text; the first text begins with the bracket. Returns the index after the last bracket, or None."""
        for end, character in enumerate(text, 1):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return end
        return None


class ForcedParser:
    """Reads the one call of an answer that a grammar holds to a form, as the grammar writes calls. Other answers are text."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._openings = {forced_opening(tool.name): tool.name for tool in tools}
        self._head: str | None = ""
        self._span: JsonSpan | None = None
        self.done = False

    def push(self, text: str) -> Parsed:
        """Take more text."""
        if self.done:
            return Parsed()
        if self._span is not None:
            piece = self._arguments(text)
            return Parsed("", (ToolCallDelta(0, arguments=piece),) if piece else ())
        if self._head is None:
            return Parsed(text)
        self._head += text
        for opening, name in self._openings.items():
            if self._head.startswith(opening):
                self._span = JsonSpan()
                piece = self._arguments(self._head[len(opening) :])
                return Parsed("", (ToolCallDelta(0, id=new_call_id(), name=name, arguments=piece),))
            if opening.startswith(self._head):
                return Parsed()
        text, self._head = self._head, None  # the engine did not force it
        return Parsed(text)

    def flush(self) -> Parsed:
        """The text is over."""
        return Parsed(self._head or "") if self._span is None and not self.done else Parsed()

    def _arguments(self, text: str) -> str:
        assert self._span is not None
        end = self._span.feed(text)
        if end is not None:
            self._span, self.done = None, True
        return text[:end]


@dataclass(frozen=True, slots=True)
class CallForm:
    """What the calls of a family look like in a text.

    Args:
        openings: marks before a call.
        closings: marks after it; they may be missing.
        starts: how a call may begin after a mark, without spaces. After marks that are not listed, any text may come.
            The mark "" means no mark: such a call counts only at the beginning of the answer or after another call.
        separators: characters that may be between two calls, besides space.
        languages: words that may follow a mark, as in a fence.
        read: returns the calls in the text between the marks; None if it is not a call.
    """

    openings: tuple[str, ...]
    closings: tuple[str, ...]
    starts: Mapping[str, tuple[str, ...]]
    separators: str
    languages: tuple[str, ...]
    read: Callable[[str], Calls | None]


@dataclass(slots=True)
class _Region:
    """A text that may be a call, beginning after its opening mark."""

    opening: str
    starts: tuple[str, ...]
    """How the text may begin; empty once it has begun so."""
    languages: tuple[str, ...]
    body: list[str] = field(default_factory=list)
    head: str | None = ""
    """The text before the first bracket; None once the bracket is found, or is not looked for any more."""
    span: JsonSpan | None = None
    """If there is one, the region ends where it ends. Otherwise the region ends at a closing mark."""

    def feed(self, text: str) -> int | None:
        """Take more text. Returns the index after the region's end, or None if the end has not come."""
        start = 0
        if self.head is not None:
            start = self._find_bracket(text)
        end = self.span.feed(text[start:]) if self.span is not None else None
        end = None if end is None else start + end
        self.body.append(text[:end])
        return end

    def _find_bracket(self, text: str) -> int:
        """Look for the bracket that decides how the region ends. Returns its index, or 0 if it is not found."""
        assert self.head is not None
        before = len(self.head)
        self.head = (self.head + text)[:_MAX_HEAD]
        for index in range(before, len(self.head)):
            if self.head[index] not in "{[":
                continue
            head = self.head[:index].strip()
            if self.head[index] == "{" or head in ("", *self.languages):
                self.head = None
                if not head.startswith(("<", "call:")) and "(" not in head:
                    self.span = JsonSpan()
                return index - before
        if len(self.head) == _MAX_HEAD:
            self.head = None
        return 0

    def may_be_call(self) -> bool:
        """Whether it may still be a call, judging by its beginning."""
        if not self.starts:
            return True
        text = "".join(self.body)[:_MAX_HEAD]
        head = "".join(text.split())
        if head.startswith(self.starts):
            self.starts = ()
            return True
        return len(text) < _MAX_HEAD and any(start.startswith(head) for start in self.starts)


class ToolParser:
    """Finds calls that the model chose to make.

    Args:
        form: what the calls of the model's family look like.
        parallel: more than one call is wanted.
    """

    def __init__(self, form: CallForm, *, parallel: bool = True) -> None:
        self._form = form
        self._parallel = parallel
        self._scanner = MarkScanner([*form.openings, *form.closings])
        self._region: _Region | None = None
        self._count = 0
        self._fresh = True
        """Only space has come since the beginning or since the last call."""
        self._awaits_closing = False
        self._space: list[str] = []
        self._texts: list[str] = []
        self._calls: list[ToolCallDelta] = []

    @property
    def done(self) -> bool:
        """Whether no more calls and no more text are wanted."""
        return self._count > 0 and not self._parallel

    def push(self, text: str) -> Parsed:
        """Take more text."""
        for plain, mark in self._scanner.push(text):
            self._plain(plain)
            if mark:
                self._mark(mark)
        return self._parsed()

    def flush(self) -> Parsed:
        """The text is over. A call without its closing mark counts as a call; an incomplete call becomes text."""
        self._plain(self._scanner.flush())
        if self._region is not None:
            self._end_region(self._form.read("".join(self._region.body)))
        if not self._count:
            self._texts += self._space
        self._space = []
        return self._parsed()

    def _parsed(self) -> Parsed:
        parsed = Parsed("".join(self._texts), tuple(self._calls))
        self._texts, self._calls = [], []
        return parsed

    def _mark(self, mark: str) -> None:
        if self._region is not None:
            if self._region.span is None and mark in self._form.closings:
                self._end_region(self._form.read("".join(self._region.body)), mark)
            else:
                self._plain(mark)
        elif self._awaits_closing and mark in self._form.closings:
            self._awaits_closing, self._space = False, []
        elif mark in self._form.openings:
            self._region = _Region(mark, self._form.starts.get(mark, ()), self._form.languages)
        else:
            self._add_text(mark)

    def _plain(self, text: str) -> None:
        while text and not self.done:
            text = self._outside(text) if self._region is None else self._inside(self._region, text)

    def _outside(self, text: str) -> str:
        """Take text outside of a call. Returns the rest from the place where a call without a mark may begin."""
        if not self._fresh:
            self._add_text(text)
            return ""
        rest = text.lstrip(" \t\r\n" + (self._form.separators if self._count else ""))
        self._space.append(text[: len(text) - len(rest)])
        if "" in self._form.starts and rest.startswith(("{", "[")):
            self._region = _Region("", self._form.starts[""], ())
            return rest
        self._add_text(rest)
        return ""

    def _add_text(self, text: str) -> None:
        if text and not self.done:
            self._texts += [*self._space, text]
            self._space, self._fresh, self._awaits_closing = [], False, False

    def _inside(self, region: _Region, text: str) -> str:
        """Take text that may belong to a call. Returns the rest after the call's end."""
        end = region.feed(text)
        if not region.may_be_call():
            self._end_region(None)
        elif end is not None:
            self._end_region(self._form.read("".join(region.body)))
        return "" if end is None else text[end:]

    def _end_region(self, calls: Calls | None, closing: str = "") -> None:
        region, self._region = self._region, None
        assert region is not None
        if calls is None:
            self._add_text("".join([region.opening, *region.body, closing]))
            return
        for name, arguments in calls if self._parallel else calls[:1]:
            text = json.dumps(arguments, ensure_ascii=False)
            self._calls.append(ToolCallDelta(self._count, id=new_call_id(), name=name, arguments=text))
            self._count += 1
        self._fresh, self._awaits_closing, self._space = True, bool(region.opening) and not closing, []
