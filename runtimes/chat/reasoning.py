"""Separates a model's thought from its answer.

Model families mark a thought differently. The marks are those of their chat templates: `<think>…</think>` (Qwen 3,
DeepSeek R1 and most others), `[THINK]…[/THINK]` (Magistral), `<reasoning>…</reasoning>` (models tuned by reinforcement
learning), `<|channel>thought …<channel|>` (Gemma 4), and the channels of harmony (gpt-oss, OpenAI's description of the
format). Some templates open the thought at the end of the prompt. Then the model never writes the opening mark.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from lfx_local_runtimes.runtimes.chat.filters import MarkScanner


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks around the thoughts of one model family.

    `control`: the marks are special tokens, which ordinary text cannot contain by accident. So a thought may also come
    later in the answer. Other marks count only at the beginning of the answer. `breaks`: marks that end a thought
    without closing it; they belong to the text after it.
    """

    opening: str
    closing: str
    control: bool = False
    breaks: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, str]:
        """The parts of the marks that may be special tokens: the marks without the name of a channel."""
        return self.opening[: max(map(self.opening.rfind, ">]")) + 1], self.closing


THINK = Marks("<think>", "</think>")
REASONING = Marks("<reasoning>", "</reasoning>")
MAGISTRAL = Marks("[THINK]", "[/THINK]", control=True)
GEMMA = Marks("<|channel>thought", "<channel|>", control=True, breaks=("<|tool_call>",))
FAMILIES = (THINK, REASONING, MAGISTRAL, GEMMA)

_UNDECLARED = (THINK, REASONING)
"""Marks that a model may write even if its template does not mention them."""


class Splitter(ABC):
    """Separates thought and answer in a text that comes in pieces. The result does not depend on how it is cut."""

    inside: bool = False
    """The text is inside a thought now."""

    marks: tuple[str, ...] = ()
    """Marks that may be control tokens. Engines keep these in the text and leave out other control tokens."""

    @property
    @abstractmethod
    def closing(self) -> str:
        """The text that ends the current thought and begins the answer."""

    @abstractmethod
    def push(self, text: str) -> tuple[str, str]:
        """Take more text. Returns the next part of the thought and of the answer."""

    @abstractmethod
    def flush(self) -> tuple[str, str]:
        """The text is over. Returns the rest of the thought and of the answer."""

    @abstractmethod
    def skip(self) -> str:
        """Skip the thought; call this before `push`. Returns the text to add to the prompt for that."""


class NoThought(Splitter):
    """The whole text is answer."""

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
        opened: the marks of a thought that the prompt has begun.
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
        """A part of the answer has come."""
        self._space: list[str] = []
        """Space before the answer, held back because a mark may still follow."""
        self._trim = opened is not None

    @property
    def closing(self) -> str:
        """The mark that ends the open thought, with the space models put around it."""
        return f"\n{self._now.closing}\n\n" if self._now is not None else ""

    def push(self, text: str) -> tuple[str, str]:
        """Take more text. Returns the next part of the thought and of the answer."""
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

    A message to a function is passed on as answer, always in the form that the tool parser reads:
    `<|channel|>commentary to=functions.NAME<|message|>ARGUMENTS<|call|>`.

    Args:
        prompt: the rendered prompt, which ends with a header or in the middle of a message.
    """

    marks = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
    closing = "<|end|><|start|>assistant<|channel|>final<|message|>"

    def __init__(self, prompt: str) -> None:
        self._scanner = MarkScanner(self.marks)
        self._header: list[str] | None = []
        """The header so far; None inside a message."""
        self._call = False
        start, message = prompt.rfind("<|start|>"), prompt.rfind("<|message|>")
        if message > start:
            self._open(prompt[start:message])

    def push(self, text: str) -> tuple[str, str]:
        """Take more text. Returns the next part of the thought and of the answer."""
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
        """The text is over. Text without any header is returned as it is; a header that was cut off is dropped."""
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
        """Handle a mark. Returns what it adds to the answer."""
        if self._header is not None and mark == "<|message|>":
            return self._open("".join(self._header))
        if self._header is not None and mark in ("<|channel|>", "<|start|>", "<|constrain|>"):
            self._header.append(mark)
            return ""
        called, self._call = self._call, False
        self._header, self.inside = [mark] if mark in ("<|start|>", "<|channel|>") else [], False
        return "<|call|>" if called else ""

    def _open(self, header: str) -> str:
        """Begin a message. Returns what that adds to the answer."""
        self._header = None
        _, is_call, rest = header.partition("to=functions.")
        self._call = bool(is_call)
        self.inside = not is_call and "analysis" in header
        if not is_call:
            return ""
        name = rest.split("<|")[0].split(maxsplit=1)[:1]
        return f"<|channel|>commentary to=functions.{name[0] if name else ''}<|message|>"


def make_splitter(source: str, prompt: str, continued: str = "") -> Splitter:
    """The splitter for the answers of a model.

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
