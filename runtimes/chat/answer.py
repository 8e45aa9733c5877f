"""One answer in the making, the same for every engine: prompt text, events, times, the result.

The engine's text passes through, in this order: the end of the turn, the split of thought and answer, the parser of tool
calls, and the caller's stop strings, which count in the answer's text only.
"""

import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lfx_local_runtimes.errors import ContextOverflow, InvalidInput
from lfx_local_runtimes.runtimes.chat.filters import StopFilter
from lfx_local_runtimes.runtimes.chat.reasoning import NoThought, Splitter, make_splitter
from lfx_local_runtimes.runtimes.chat.repetition import WINDOW, repeats
from lfx_local_runtimes.runtimes.chat.templates import Template, render, strip_bos
from lfx_local_runtimes.runtimes.chat.tool_choice import answer_grammar, is_forced, offered_tools
from lfx_local_runtimes.runtimes.chat.tool_formats import choose_format
from lfx_local_runtimes.runtimes.chat.tool_parsers import ForcedParser, Parsed, Parser
from lfx_local_runtimes.runtimes.requests import Finished, Request
from lfx_local_runtimes.runtimes.tasks.generation import (
    FinishReason,
    GenerationConfig,
    GenerationResult,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

_PIECE = 32_768
"""Characters of a long prompt whose tokens are counted at once."""

_CUT = 64
"""Tokens that a text may have more in two pieces than in one."""

MOST_SCORED = 16_384
"""Tokens of a prompt whose log-probabilities may be asked for. An answer has to fit into one message between processes."""


class Answer:
    """Follows one request from its prompt to its result. Times run from `begin`, or else from the moment it is made.

    Args:
        request: what was asked, a `GenerationConfig`.
        template: how the model writes conversations down.
        bos: the text of the begin-of-sequence token, empty where there is none.
        eos: likewise of the end.
        fills_in: the engine and the model can fill a gap in a text.
        echoes: the engine calls `echo` if a request wants it.
        picture: the text that stands for a picture in the model's prompts. None: the model reads text only.

    Raises:
        InvalidInput: there is a gap to fill, a prompt to repeat, or a picture to look at, and they cannot.
    """

    def __init__(
        self, request: Request[GenerationConfig], template: Template, *, bos: str = "", eos: str = "", fills_in: bool = False,
        echoes: bool = False, picture: str | None = None,
    ) -> None:  # fmt: skip
        self._request = request
        if request.ask.pictures and picture is None:
            raise InvalidInput(
                f"{request.model_name} reads text only, and the conversation has a picture.", model_name=request.model_name,
                hint="Use a vision-language model, such as a SmolVLM or a Gemma 3 with 4B or more, or leave the picture out.",
            )  # fmt: skip
        if request.ask.echo and not echoes:
            raise InvalidInput(
                f"echo: the engine of {request.model_name} does not repeat prompts.", model_name=request.model_name,
                hint="Leave echo out, or use a GGUF model.",
            )  # fmt: skip
        if request.ask.suffix is not None and not fills_in:
            raise InvalidInput(
                f"suffix: {request.model_name} cannot fill a gap in a text.", model_name=request.model_name,
                hint="Leave suffix out, or use a GGUF model that was trained for it, such as a Qwen2.5-Coder.",
            )  # fmt: skip
        self._started = time.perf_counter()
        self._first: float | None = None
        config = request.ask
        self.seed = secrets.randbelow(2**32 - 1) if config.seed is None else config.seed
        self.template = "raw" if config.raw else template.name
        self.grammar = answer_grammar(config)
        """What the engine has to hold the answer to."""
        self.marks: tuple[str, ...] = ()
        """Control tokens whose text has to be pushed, though engines otherwise leave such tokens out."""
        self._parser = self._make_parser(config, template)
        self._splitter, text = self._write_prompt(config, template, bos, eos, picture or "")
        sound = text.encode("utf-8", "replace").decode()  # no tokenizer reads half of a character
        self.prompt, self.had_bos = strip_bos(sound, bos)
        continues = config.messages is not None and config.messages[-1].role == "assistant"
        self._trim = not config.raw and template.name == "dialogue" and not continues and self.grammar is None
        self._stop = StopFilter(config.stop)
        self._guarded = (
            template.name == "dialogue" and not config.raw and self.grammar is None and not config.ignore_eos
        )
        """A base model writes the answer, and may go round in circles. Then the answer ends."""
        self._recent = ""
        self._loops = False
        self._pieces: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._thought_tokens = 0
        self._closing = False
        """The end of the thought has been demanded and has not come yet."""
        self._untold: list[tuple[TokenLogprob | None, str]] = []
        """The tokens whose text has not been delivered yet, with their texts."""
        self._logprobs: list[TokenLogprob] = []
        self.prompt_tokens = 0
        self.tokens = 0
        """Generated so far, an end token not counted."""
        self._cut = 0

    def _make_parser(self, config: GenerationConfig, template: Template) -> Parser | None:
        """What finds tool calls. Also sets what ends the turn: for some families a mark after a call; nothing where a
        grammar rules, because a text that it allows may hold such a mark."""
        stops = () if config.raw or self.grammar is not None else template.stop
        tools = offered_tools(config)
        parser: Parser | None = None
        if is_forced(config) or (tools and self.grammar is not None):
            parser = ForcedParser(tools)
        elif tools:
            form = choose_format(template.name, template.source)
            parser = form.parser(tools, parallel=config.parallel_tool_calls)
            self.marks, stops = form.control, (*stops, *form.stops)
        self._turn = StopFilter(stops)
        self._turn_from = math.inf if config.ignore_eos else config.min_tokens
        """The turn's end counts in texts after this many tokens."""
        return parser

    def _write_prompt(
        self, config: GenerationConfig, template: Template, bos: str, eos: str, picture: str
    ) -> tuple[Splitter, str]:
        """The prompt, and what splits the answer to it. A grammar rules all of the answer: nothing is thought then."""
        if config.raw:
            return NoThought(), config.prompt or ""
        thinking = self.grammar is None and config.reasoning_budget != 0
        prompt = render(
            template, config.turns, bos_token=bos, eos_token=eos, tools=offered_tools(config),
            continue_final=config.continue_final_message, thinking=thinking, picture=picture,
        )  # fmt: skip
        if config.pictures and (count := prompt.count(picture)) != len(config.pictures):
            raise InvalidInput(
                f"The prompt has {count} places for pictures, and the conversation has {len(config.pictures)} pictures.",
                model_name=self._request.model_name,
                hint=f"Leave {picture} out of the texts: it stands for a picture. If it is in none of them, the model's chat "
                "template has no place for pictures in such a message: put them into a user message.",
            )  # fmt: skip
        last = config.turns[-1]
        splitter = make_splitter(template.source or "", prompt, last.text if last.role == "assistant" else "")
        if not thinking:
            prompt += splitter.skip()
        if self.grammar is not None:
            return NoThought(), prompt
        self.marks += splitter.marks
        return splitter, prompt

    def begin(self) -> None:
        """The computation starts now."""
        self._started = time.perf_counter()

    def check_ids(self, vocabulary: int) -> None:
        """Refuse token ids that the model does not have.

        Raises:
            InvalidInput: an id of the prompt or of logit_bias is not in the vocabulary.
        """
        config = self._request.ask
        for name, ids in (("prompt_ids", config.prompt_ids or ()), ("logit_bias", config.logit_bias)):
            wrong = next((one for one in ids if one >= vocabulary), None)
            if wrong is not None:
                raise InvalidInput(
                    f"{name}: token id {wrong} is not in the model's vocabulary of {vocabulary:,}.",
                    model_name=self._request.model_name, hint="Send ids of this model's tokenizer.",
                )  # fmt: skip

    def check_size(self, context_length: int, count: Callable[[str], int]) -> None:
        """Refuse a prompt that cannot fit before time is spent on its tokens: some tokenizers take a time that grows with the
        square of a text's length, half a minute for two million blanks. So a long prompt is counted in pieces first.

        Args:
            context_length: in tokens.
            count: the number of tokens of a text.

        Raises:
            ContextOverflow: the prompt has more tokens than the context.
        """
        text = self.prompt + (self._request.ask.suffix or "")
        if self._request.ask.truncate or len(text) <= _PIECE:
            return
        tokens = 0
        for start in range(0, len(text), _PIECE):
            tokens += count(text[start : start + _PIECE]) - _CUT
            if tokens > context_length:
                raise ContextOverflow(
                    f"The prompt has {len(text):,} characters, more than {tokens:,} tokens; the context holds "
                    f"{context_length:,} tokens.",
                    model_name=self._request.model_name, hint="Shorten it, or set truncate.",
                )  # fmt: skip

    def fit(self, prompt: list[int], context_length: int) -> list[int]:
        """The prompt's tokens, the oldest cut off if the request allows it and the context is too short.

        The first token stays (it may begin the sequence). Room is left for `max_tokens`, but for no more than half of
        the context.
        """
        config = self._request.ask
        room = context_length - min(config.max_tokens, context_length // 2)
        if not config.truncate or len(prompt) <= room:
            return prompt
        self._cut = len(prompt) - room
        return [prompt[0], *prompt[len(prompt) - room + 1 :]]

    def admit(self, prompt_tokens: int, context_length: int) -> int:
        """Note the prompt's length. Returns how many tokens may follow.

        Raises:
            ContextOverflow: the prompt leaves no room for an answer.
            InvalidInput: the log-probabilities of its tokens are wanted, and there are too many.
        """
        self.prompt_tokens = prompt_tokens
        if self._request.ask.echo and self._request.ask.logprobs and prompt_tokens > MOST_SCORED:
            raise InvalidInput(
                f"echo: the prompt has {prompt_tokens:,} tokens; log-probabilities are given for {MOST_SCORED:,} at most.",
                model_name=self._request.model_name, hint="Shorten the prompt, or leave logprobs out.",
            )  # fmt: skip
        room = context_length - prompt_tokens
        if room < 1:
            raise ContextOverflow(
                f"The prompt has {prompt_tokens:,} tokens; the context holds {context_length:,}, the answer included.",
                model_name=self._request.model_name,
                hint="Shorten it, set truncate, or load the model with a larger context_length.",
            )  # fmt: skip
        return min(room, self._request.ask.max_tokens)

    def echo(self, prompt: str, logprobs: Sequence[TokenLogprob]) -> None:
        """Begin the answer with the prompt, before the first token. `logprobs` are those of its tokens, if they are wanted."""
        self._pieces.append(prompt)
        self._logprobs += logprobs
        self._request.emit(TextDelta(prompt, 0, logprobs=tuple(logprobs)))

    def push(self, text: str, logprob: TokenLogprob | None = None) -> bool:
        """A token was generated and `text` became final with it (perhaps none). False once the answer is over.

        `logprob` is delivered with the token's text, if that is part of the answer.
        """
        self.tokens += 1
        if self._request.ask.logprobs:
            self._untold.append((logprob, text))
        if self._first is None:
            self._first = time.perf_counter()
        was_inside = self._splitter.inside
        self._take(self._turn.push(text) if self.tokens > self._turn_from else text)
        if was_inside or self._splitter.inside:
            self._untold.clear()
        self._thought_tokens += was_inside and self._splitter.inside
        self._closing = self._closing and self._splitter.inside
        return not self._stopped

    def take_forced(self) -> str:
        """Text that has to come next, whatever the model would say; told once, after `push`. Empty most of the time.

        It ends a thought that has used up its budget. The engine evaluates its tokens as if they had been drawn, and
        pushes them.
        """
        budget = self._request.ask.reasoning_budget
        if budget is None or self._closing or not self._splitter.inside or self._thought_tokens < budget:
            return ""
        self._closing = True
        return self._splitter.closing

    @property
    def _stopped(self) -> bool:
        return (
            self._turn.stopped or self._stop.stopped or self._loops or (self._parser is not None and self._parser.done)
        )

    def _take(self, text: str) -> None:
        if self._trim:  # space after "Answer:" belongs to the form, and is no stop string of the caller's
            text = text.lstrip()
            self._trim = not text
        self._split(*self._splitter.push(text))

    def _split(self, thought: str, text: str) -> None:
        parsed = self._parser.push(text) if self._parser is not None else Parsed(text)
        answer = self._stop.push(parsed.text) if self.tokens > self._request.ask.min_tokens else parsed.text
        self._deliver(thought, answer, parsed.calls)

    def _deliver(self, thought: str, text: str, calls: tuple[ToolCallDelta, ...] = ()) -> None:
        if not (thought or text or calls):
            return
        self._thoughts.append(thought)
        self._pieces.append(text)
        self._calls += calls
        if self._guarded and self.tokens >= self._request.ask.min_tokens:
            self._recent = (self._recent + text)[-WINDOW:]
            self._loops = repeats(self._recent)
        told = self._tell(text)
        if calls:
            self._untold.clear()
        self._logprobs += told
        self._request.emit(TextDelta(text, self.tokens, thought, calls, told))

    def _tell(self, text: str) -> tuple[TokenLogprob, ...]:
        """The log-probabilities of the tokens that `text` is made of. Those before them are part of no answer."""
        if not text or not self._untold:
            return ()
        whole = "".join(piece for _, piece in self._untold)
        start = max(0, whole.find(text))
        end, place, told, left = start + len(text), 0, [], []
        for token in self._untold:
            if place >= end:
                left.append(token)
            elif place + len(token[1]) > start or (place == start and not token[1]):
                told.append(token[0])
                if place + len(token[1]) > end:
                    left.append((None, token[1][end - place :]))
            place += len(token[1])
        self._untold = left
        return tuple(one for one in told if one is not None)

    def finish(self, reason: FinishReason, rest: str, metadata: Mapping[str, Any]) -> None:
        """Emit the result. `rest` is text still in the decoder; `metadata` is the engine's share."""
        if self._request.ask.logprobs:
            self._untold.append((None, rest))
        if not self._stopped:
            self._take(self._turn.push(rest))
        if not self._stop.stopped:
            self._take(self._turn.flush())
            self._split(*self._splitter.flush())
            parsed = self._parser.flush() if self._parser is not None else Parsed()
            self._deliver("", self._stop.push(parsed.text) + self._stop.flush(), parsed.calls)
        calls = self._made_calls()
        reason = "stop" if self._stopped else reason
        now = time.perf_counter()
        result = GenerationResult(
            text="".join(self._pieces), model_name=self._request.model_name, tokens_generated=self.tokens,
            prompt_tokens=self.prompt_tokens, finish_reason="tool_calls" if calls and reason == "stop" else reason,
            reasoning="".join(self._thoughts) or None, tool_calls=calls,
            logprobs=tuple(self._logprobs) if self._request.ask.logprobs else None,
            execution_time=now - self._started,
            time_to_first_token=None if self._first is None else self._first - self._started,
            metadata={**metadata, **self._about()},
        )  # fmt: skip
        self._request.emit(Finished(result))

    def _made_calls(self) -> tuple[ToolCall, ...]:
        """The calls, put together from their pieces."""
        made: dict[int, dict[str, str]] = {}
        pieces: dict[int, list[str]] = {}
        for delta in self._calls:
            if delta.id is not None and delta.name is not None:
                made[delta.index] = {"id": delta.id, "name": delta.name}
            pieces.setdefault(delta.index, []).append(delta.arguments)
        return tuple(ToolCall(**call, arguments="".join(pieces[index])) for index, call in made.items())

    def _about(self) -> dict[str, Any]:
        about = {"seed": self.seed, "template": self.template, "request_id": self._request.id}
        if self._cut:
            about["truncated_tokens"] = self._cut
        if self._request.ask.return_prompt:
            about["prompt"] = self._request.ask.prompt_ids or self.prompt
        return about
