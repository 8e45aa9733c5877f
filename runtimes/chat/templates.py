"""From a conversation to the text a model continues.

`choose_template` picks the form: an override from the model's configuration; else the template in the model's files;
else the turn markers of its family, if it was tuned for instructions and the family is known for certain; else a plain
dialogue. Base models continue a dialogue well, but write nonsense after turn markers.

**Beginning of sequence.** A template may write the BOS token as text, and tokenizers add one too. Two BOS tokens spoil
the answer. So every engine must call `strip_bos` on the rendered text. If there was a BOS, the rest is tokenized *with*
a BOS; if there was none, by the tokenizer's own default. The built-in forms write no BOS.

Jinja templates come with models from unknown authors, so they run in `template_sandbox`. The built-in forms are plain
Python. If a template does not support tools, `tool_history` writes them as text.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lfx_local_runtimes.errors import InvalidInput, TemplateFault
from lfx_local_runtimes.runtimes.chat.template_sandbox import (
    MAX_OUTPUT_CHARS,
    TemplateOverrun,
    TemplateRefusal,
    get_renderer,
)
from lfx_local_runtimes.runtimes.chat.tool_formats import ToolFormat, choose_format
from lfx_local_runtimes.runtimes.chat.tool_history import Support, as_data, as_text, tools_as_data
from lfx_local_runtimes.runtimes.formats.info import ModelInfo
from lfx_local_runtimes.runtimes.tasks.generation import ChatMessage, Tool

_GEMMA_END = "<end_of_turn>"
_CHATML_END = "<|im_end|>"
_LLAMA3_END = "<|eot_id|>"
_NEXT_QUESTION = "\nQuestion:"

_LLAMA3_VOCABULARY = 128_256

_CUT = "\ue000the answer goes on here\ue001"
"""Added to a message that is to be continued, to find its end in the rendered text."""


@dataclass(frozen=True, slots=True)
class Template:
    """A way to write a conversation as text.

    `name` is what results report: `model` (the files' own), `custom` (the configuration's), or a built-in: `gemma`,
    `chatml`, `llama3`, `dialogue`, `none`. `source` is the Jinja text of the first two. `stop` holds strings that end an
    answer, besides the request's own. `folds_system`: if the template refuses the system role, the system text goes into
    the first user turn.
    """

    name: str
    source: str | None = None
    stop: tuple[str, ...] = ()
    folds_system: bool = False


BUILT_IN = {
    "gemma": Template("gemma", stop=(_GEMMA_END,), folds_system=True),
    "chatml": Template("chatml", stop=(_CHATML_END,)),
    "llama3": Template("llama3", stop=(_LLAMA3_END,)),
    "dialogue": Template("dialogue", stop=(_NEXT_QUESTION,)),
    "none": Template("none"),
}


def choose_template(info: ModelInfo, override: str | None = None) -> Template:
    """The template for a model.

    Args:
        info: what the model's files say.
        override: `ModelConfig.chat_template`: a built-in's name or Jinja text; with `None` the files decide.

    Raises:
        InvalidInput: the override is neither.
    """
    family = _family(info)
    if override is not None:
        name = override.strip().lower()
        if name in BUILT_IN:
            return BUILT_IN[name]
        if "{" not in override:
            raise InvalidInput(
                f"chat_template {override[:80]!r} is neither Jinja text nor the name of a built-in template.",
                hint=f"Use one of: {', '.join(BUILT_IN)}.",
            )
        return _jinja("custom", override, family)
    if info.chat_template:
        return _jinja("model", info.chat_template, family)
    if info.instruct and family is not None:
        return BUILT_IN[family]
    return BUILT_IN["dialogue"]


def render(
    template: Template,
    messages: Sequence[ChatMessage],
    *,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Tool] = (),
    continue_final: bool = False,
    thinking: bool = True,
    picture: str = "",
) -> str:
    """The prompt: the conversation as text, including the opening of the assistant's turn.

    If the last message is the assistant's, it is left open to be continued: by the built-in forms always, by Jinja
    templates only with `continue_final`.

    Args:
        template: from `choose_template`.
        messages: the conversation, one message or more.
        bos_token: the tokenizer's BOS token as text; empty if it has none.
        eos_token: the tokenizer's EOS token, likewise.
        tools: what the model may call.
        continue_final: the last message is the assistant's and is continued.
        thinking: False asks the template to let the model answer without a thought, if the template can do that.
        picture: the text that stands for a picture in the model's prompts. Templates that know pictures write it
            themselves.

    Raises:
        InvalidInput: the last message is the assistant's, the template is Jinja, and `continue_final` is False; or the
            template changes the message that is to be continued.
        TemplateFault: the template refuses the conversation, fails, or exceeds its limits. If it refuses, the fault has
            the template's own words; if one message is the cause, the fault names it.
    """
    form = choose_format(template.name, template.source)
    if template.source is None:
        return _WRITERS[template.name](_flat(as_text(messages, tools, form, Support()), picture))
    if messages[-1].role == "assistant" and not continue_final:
        raise InvalidInput(
            f"messages[{len(messages) - 1}] is the assistant's: the {template.name} chat template would answer it.",
            hint="Set continue_final_message to continue it, or end with a user message.",
        )
    variables: dict[str, Any] = {
        "tools": tools_as_data(tools), "documents": None, "bos_token": bos_token, "eos_token": eos_token,
        **({} if thinking else {"enable_thinking": False, "thinking": False}),
    }  # fmt: skip
    jinja = _Jinja(template, variables, tools, form, picture)
    if not continue_final:
        return _render_naming_message(jinja, messages)
    last = messages[-1].model_copy(update={"content": messages[-1].text + _CUT})
    text, found, _ = _render_naming_message(jinja, [*messages[:-1], last], prompt=False).rpartition(_CUT)
    if not found:
        raise InvalidInput(
            f"The {template.name} chat template changes messages[{len(messages) - 1}], so it cannot be continued.",
            hint="End with a user message.",
        )
    return text


def warm(template: Template) -> None:
    """Prepare the first `render`, for an engine that starts a load. Returns at once."""
    if template.source is not None:
        get_renderer().warm(template.source)


def strip_bos(text: str, bos: str) -> tuple[str, bool]:
    """Take the BOS token off the front of a rendered text. Returns the rest, and whether it was there."""
    if bos and text.startswith(bos):
        return text[len(bos) :], True
    return text, False


def _jinja(name: str, source: str, family: str | None) -> Template:
    # A quantized or merged model may write its end-of-turn mark as text instead of the token.
    stop = tuple(marker for marker in (_GEMMA_END, _CHATML_END, _LLAMA3_END) if marker in source)
    return Template(name, source, stop, folds_system=family == "gemma")


def _family(info: ModelInfo) -> str | None:
    """The built-in template an instruct model of this architecture was tuned with; None unless that is certain.

    `llama` is the architecture of many families; Llama 3 is recognised by the size of its vocabulary.
    """
    architecture = (info.architecture or "").lower()
    if re.match(r"gemma(2|3n?)?(?!\d)", architecture):
        return "gemma"
    if architecture.startswith("qwen"):
        return "chatml"
    if architecture.startswith("llama") and info.vocabulary == _LLAMA3_VOCABULARY:
        return "llama3"
    return None


@dataclass(frozen=True, slots=True)
class _Jinja:
    """A template with its inputs other than the messages."""

    template: Template
    variables: dict[str, Any]
    tools: Sequence[Tool]
    form: ToolFormat
    picture: str

    def render(self, messages: Sequence[ChatMessage], prompt: bool) -> str:
        """The conversation as text. If the template refuses the system role, its text goes into the first user turn.

        Some templates append the arguments of calls to text; these get the arguments as text.
        """
        assert self.template.source is not None
        support = Support.of(self.template.source)
        written = as_text(messages, self.tools, self.form, support)
        try:
            return self._render(written, prompt, support)
        except TemplateRefusal:
            folded = _fold_system(written)
            folds = self.template.folds_system or (self.tools and not support.tools)
            if not folds or folded == written:
                raise
            return self._render(folded, prompt, support)
        except TemplateOverrun:
            raise
        except TemplateFault as fault:
            if not any(message.tool_calls for message in written):
                raise
            try:
                return self._render(written, prompt, support, text_arguments=True)
            except TemplateFault:
                raise fault from None

    def _render(
        self, messages: Sequence[ChatMessage], prompt: bool, support: Support, *, text_arguments: bool = False
    ) -> str:
        assert self.template.source is not None
        data = as_data(messages, support=support, picture=self.picture, text_arguments=text_arguments)
        variables = {**self.variables, "messages": data, "add_generation_prompt": prompt}
        allowed = MAX_OUTPUT_CHARS + sum(len(message.text) for message in messages)
        return get_renderer().render(self.template.source, variables, max_chars=allowed)


def _render_naming_message(jinja: _Jinja, messages: Sequence[ChatMessage], *, prompt: bool = True) -> str:
    """Render. If the template fails, the fault names the first message that it fails on, found by bisection.

    Raises:
        TemplateFault: of the original type; unchanged if no single message is the cause.
    """
    try:
        return jinja.render(messages, prompt)
    except TemplateOverrun:
        raise
    except TemplateFault as fault:
        good, bad = 0, len(messages)
        while bad - good > 1:
            middle = (good + bad) // 2
            problem = _problem(jinja, messages[:middle])
            if problem not in (None, fault.message):
                raise
            good, bad = (middle, bad) if problem is None else (good, middle)
        if bad == 1 and _problem(jinja, [ChatMessage(role="user", content="Hello")]) == fault.message:
            raise  # the template fails on every conversation
        message = f"messages[{bad - 1}] ({messages[bad - 1].role}): {fault.message}"
        raise type(fault)(message, hint=fault.hint) from fault


def _problem(jinja: _Jinja, messages: Sequence[ChatMessage]) -> str | None:
    """The template's error for these messages; None if it accepts them."""
    try:
        jinja.render(messages, prompt=False)
    except TemplateFault as fault:
        return fault.message
    return None


def _fold_system(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The conversation without system messages: their text is at the start of the first user turn."""
    system = "\n\n".join(message.text for message in messages if message.role == "system")
    turns = [message for message in messages if message.role != "system"]
    if not system:
        return turns
    for index, message in enumerate(turns):
        if message.role == "user":
            turns[index] = ChatMessage(role="user", content=system).followed_by(message)
            return turns
    return [ChatMessage(role="user", content=system), *turns]


# -- the built-in forms ----------------------------------------------------------------------------------------------


def _flat(messages: Sequence[ChatMessage], picture: str) -> list[ChatMessage]:
    """The same with a text in the place of each picture."""
    return [message.model_copy(update={"content": message.written(picture)}) for message in messages]


def _write_turns(
    messages: Sequence[ChatMessage], opening: Callable[[str], str], closing: str, assistant: str, *, trim: bool
) -> str:
    """Turns between markers. A tool's result is written as the user's. The last turn stays open for the assistant."""
    pieces = []
    for message in messages:
        role = {"tool": "user", "assistant": assistant}.get(message.role, message.role)
        pieces.append(f"{opening(role)}{message.text.strip() if trim else message.text}{closing}")
    last = messages[-1]
    pieces[-1:] = [f"{opening(assistant)}{last.text}"] if last.role == "assistant" else [pieces[-1], opening(assistant)]
    return "".join(pieces)


def _write_gemma(messages: Sequence[ChatMessage]) -> str:
    turns = _fold_system(messages)
    return _write_turns(turns, "<start_of_turn>{}\n".format, f"{_GEMMA_END}\n", "model", trim=True)


def _write_chatml(messages: Sequence[ChatMessage]) -> str:
    return _write_turns(messages, "<|im_start|>{}\n".format, f"{_CHATML_END}\n", "assistant", trim=False)


def _write_llama3(messages: Sequence[ChatMessage]) -> str:
    opening = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    return _write_turns(messages, opening, _LLAMA3_END, "assistant", trim=True)


def _write_dialogue(messages: Sequence[ChatMessage]) -> str:
    system = "".join(f"{message.text.strip()}\n\n" for message in messages if message.role == "system")
    turns = [message for message in messages if message.role != "system"]
    lines = [f"{'Answer' if turn.role == 'assistant' else 'Question'}: {turn.text.strip()}" for turn in turns]
    if not turns or turns[-1].role != "assistant":
        lines.append("Answer:")
    return system + "\n".join(lines)


def _write_plain(messages: Sequence[ChatMessage]) -> str:
    return "\n\n".join(message.text for message in messages)


_WRITERS: dict[str, Callable[[Sequence[ChatMessage]], str]] = {
    "gemma": _write_gemma,
    "chatml": _write_chatml,
    "llama3": _write_llama3,
    "dialogue": _write_dialogue,
    "none": _write_plain,
}
