"""What a model thinks before it answers, kept apart from the answer.

Families mark it differently; the marks are those of their chat templates: `<think>…</think>` (Qwen 3, DeepSeek R1 and
most others), `[THINK]…[/THINK]` (Magistral), `<reasoning>…</reasoning>` (tunes by reinforcement), `<|channel>thought …
<channel|>` (Gemma 4), and the channels of harmony (gpt-oss, OpenAI's description of the format). Some templates open
the thought at the end of the prompt, so that the model never writes the opening mark.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from lfx_local_runtimes.runtimes.text.filters import MarkScanner


@dataclass(frozen=True, slots=True)
class Marks:
    """How one family encloses its thoughts.

    `control`: the marks are tokens of their own that no text spells by accident, so that a thought may also come later
    in the answer; other marks count only at its beginning. `breaks` end a thought without closing it and belong to what
    comes next.
    """

    opening: str
    closing: str
    control: bool = False
    breaks: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, str]:
        """What may be tokens of their own: the marks, without the name of a channel."""
        return self.opening[: max(map(self.opening.rfind, ">]")) + 1], self.closing


THINK = Marks("<think>", "</think>")
REASONING = Marks("<reasoning>", "</reasoning>")
MAGISTRAL = Marks("[THINK]", "[/THINK]", control=True)
GEMMA = Marks("<|channel>thought", "<channel|>", control=True, breaks=("<|tool_call>",))
FAMILIES = (THINK, REASONING, MAGISTRAL, GEMMA)

_UNDECLARED = (THINK, REASONING)
"""What a model may write although its template does not say so."""


class Splitter(ABC):
    """Tells thought and answer apart in a text that comes in pieces; where it is cut makes no difference."""

    inside: bool = False
    """The text stands within a thought."""

    marks: tuple[str, ...] = ()
    """Marks that may be control tokens, which engines otherwise leave out of the text."""

    @property
    @abstractmethod
    def closing(self) -> str:
        """The text that ends the thought at hand and begins the answer."""

    @abstractmethod
    def push(self, text: str) -> tuple[str, str]:
        """Take more text. Returns what is thought and what is answer."""

    @abstractmethod
    def flush(self) -> tuple[str, str]:
        """The text is over. Returns the rest, likewise."""

    @abstractmethod
    def skip(self) -> str:
        """Do without a thought, before anything is pushed. Returns what has to be added to the prompt for that."""


class NoThought(Splitter):
    """All is answer."""

    closing = ""

    def push(self, text: str) -> tuple[str, str]:
        """Nothing is thought."""
        return "", text

    def flush(self) -> tuple[str, str]:
        """Nothing was held back."""
        return "", ""

    def skip(self) -> str:
        """Nothing has to be added."""
        return ""


class ThoughtSplitter(Splitter):
    """Thoughts between marks. Space after a mark belongs to neither side.

    Args:
        families: the marks the model may use.
        opened: those of a thought that the prompt has begun.
    """

    def __init__(self, families: tuple[Marks, ...], opened: Marks | None = None) -> None:
        self._families = {marks.opening: marks for marks in families}
        self.marks = tuple(token for marks in families for token in marks.tokens)
        self._scanner = MarkScanner(
            [mark for marks in families for mark in (marks.opening, marks.closing, *marks.breaks)]
        )
        self._now = opened
        self.inside = opened is not None
        self._begun = False
        """Something of the answer has come."""
        self._space: list[str] = []
        """At the very beginning: a mark may follow, or the answer."""
        self._trim = opened is not None

    @property
    def closing(self) -> str:
        """The mark that ends the open thought, with the space models put around it."""
        return f"\n{self._now.closing}\n\n" if self._now is not None else ""

    def push(self, text: str) -> tuple[str, str]:
        """Take more text. Returns what is thought and what is answer."""
        thought: list[str] = []
        answer: list[str] = []
        for plain, mark in self._scanner.push(text):
            self._take(plain, thought, answer)
            if mark:
                self._turn(mark, thought, answer)
        return "".join(thought), "".join(answer)

    def flush(self) -> tuple[str, str]:
        """The text is over. Returns the rest: an unclosed thought stays a thought."""
        thought: list[str] = []
        answer: list[str] = []
        self._take(self._scanner.flush(), thought, answer)
        answer += self._space
        self._space = []
        return "".join(thought), "".join(answer)

    def skip(self) -> str:
        """Close the thought that the prompt has begun."""
        text, self._now, self.inside, self._trim = self.closing, None, False, False
        return text

    def _turn(self, mark: str, thought: list[str], answer: list[str]) -> None:
        if self._now is None:
            family = self._families.get(mark)
            if family is None or (self._begun and not family.control):
                self._take(mark, thought, answer)
                return
            self._now, self._space = family, []
        elif mark == self._now.closing:
            self._now = None
        elif mark in self._now.breaks:
            self._now, self._trim = None, False
            self._take(mark, thought, answer)
            self.inside = False
            return
        else:
            self._take(mark, thought, answer)
            return
        self.inside, self._trim = self._now is not None, True

    def _take(self, text: str, thought: list[str], answer: list[str]) -> None:
        if self._trim:
            text = text.lstrip()
            self._trim = not text
        if not text:
            return
        if self._now is not None:
            thought.append(text)
        elif self._begun or not text.isspace():
            answer += [*self._space, text]
            self._space, self._begun = [], True
        else:
            self._space.append(text)


class HarmonySplitter(Splitter):
    """The channels of harmony: analysis is thought, final and commentary are the answer.

    A message to a function is passed on as answer, in one spelling: `<|channel|>commentary to=functions.NAME
    <|message|>ARGUMENTS<|call|>` without the space; the tool parser reads it.

    Args:
        prompt: the rendered prompt, which ends with a header or in the middle of a message.
    """

    marks = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
    closing = "<|end|><|start|>assistant<|channel|>final<|message|>"

    def __init__(self, prompt: str) -> None:
        self._scanner = MarkScanner(self.marks)
        self._header: list[str] | None = []
        """The header so far; None within a message."""
        self._call = False
        start, message = prompt.rfind("<|start|>"), prompt.rfind("<|message|>")
        if message > start:
            self._open(prompt[start:message])

    def push(self, text: str) -> tuple[str, str]:
        """Take more text. Returns what is thought and what is answer."""
        thought: list[str] = []
        answer: list[str] = []
        for plain, mark in self._scanner.push(text):
            if self._header is not None:
                self._header.append(plain)
            else:
                (thought if self.inside else answer).append(plain)
            if mark:
                answer.append(self._turn(mark))
        return "".join(thought), "".join(answer)

    def flush(self) -> tuple[str, str]:
        """The text is over. What came without any header is told as it stands; a header that was cut off is not."""
        rest = self._scanner.flush()
        if self._header is not None:
            rest = "".join([*self._header, rest]) if set(self.marks).isdisjoint(self._header) else ""
        return (rest, "") if self.inside else ("", rest)

    def skip(self) -> str:
        """Open the final channel."""
        text = "<|channel|>final<|message|>" if self._header is not None else self.closing if self.inside else ""
        if text:
            self._open(text)
        return text

    def _turn(self, mark: str) -> str:
        """A mark came. Returns what it adds to the answer."""
        if self._header is not None and mark == "<|message|>":
            return self._open("".join(self._header))
        if self._header is not None and mark in ("<|channel|>", "<|start|>", "<|constrain|>"):
            self._header.append(mark)
            return ""
        called, self._call = self._call, False
        self._header, self.inside = [mark] if mark in ("<|start|>", "<|channel|>") else [], False
        return "<|call|>" if called else ""

    def _open(self, header: str) -> str:
        """A message begins. Returns what that adds to the answer."""
        self._header = None
        _, is_call, rest = header.partition("to=functions.")
        self._call = bool(is_call)
        self.inside = not is_call and "analysis" in header
        if not is_call:
            return ""
        name = rest.split("<|")[0].split(maxsplit=1)[:1]
        return f"<|channel|>commentary to=functions.{name[0] if name else ''}<|message|>"


def make_splitter(source: str, prompt: str, continued: str = "") -> Splitter:
    """What splits the answers of a model.

    Args:
        source: the text of its chat template; empty for a built-in form.
        prompt: the rendered prompt.
        continued: the assistant's message that the answer continues.
    """
    if "<|channel|>" in source and "<|message|>" in source:
        return HarmonySplitter(prompt)
    declared = tuple(marks for marks in FAMILIES if marks.closing in source or marks.opening in source)
    families = declared or _UNDECLARED
    end = prompt.rstrip()
    for marks in families:
        if end.endswith(marks.opening) or continued.rfind(marks.opening) > continued.rfind(marks.closing):
            return ThoughtSplitter(families, opened=marks)
    return ThoughtSplitter(families)
