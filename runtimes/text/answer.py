"""One answer in the making, the same for every engine: prompt text, stop strings, events, times, the result."""

import secrets
import time
from collections.abc import Mapping
from typing import Any

from lfx_local_runtimes.errors import ContextOverflow
from lfx_local_runtimes.runtimes.config import FinishReason, GenerationResult, TokenLogprob
from lfx_local_runtimes.runtimes.requests import Finished, Request, TextDelta
from lfx_local_runtimes.runtimes.text.filters import StopFilter
from lfx_local_runtimes.runtimes.text.templates import Template, render, strip_bos


class Answer:
    """Follows one request from its prompt to its result. Times run from `begin`, or else from the moment it is made.

    Args:
        request: what was asked.
        template: how the model writes conversations down.
        bos: the text of the begin-of-sequence token, empty where there is none.
        eos: likewise of the end.
    """

    def __init__(self, request: Request, template: Template, *, bos: str = "", eos: str = "") -> None:
        self._request = request
        self._started = time.perf_counter()
        self._first: float | None = None
        self._pieces: list[str] = []
        config = request.config
        self.seed = secrets.randbelow(2**32 - 1) if config.seed is None else config.seed
        self.template = "raw" if config.raw else template.name
        text = (config.prompt or "") if config.raw else render(template, config.turns, bos_token=bos, eos_token=eos)
        self.prompt, self.had_bos = strip_bos(text, bos)
        self._trim = not config.raw and template.name == "dialogue"
        self._turn = StopFilter(() if config.raw else template.stop)
        self._stop = StopFilter(config.stop)
        self._logprobs: list[TokenLogprob] = []
        self._told = 0
        self.prompt_tokens = 0
        self.tokens = 0
        """Generated so far, an end token not counted."""
        self._cut = 0

    def begin(self) -> None:
        """The computation starts now."""
        self._started = time.perf_counter()

    def fit(self, prompt: list[int], context_length: int) -> list[int]:
        """The prompt's tokens, the oldest cut off if the request allows it and the context is too short.

        The first token stays (it may begin the sequence). Room is left for `max_tokens`, but for no more than half of
        the context.
        """
        config = self._request.config
        room = context_length - min(config.max_tokens, context_length // 2)
        if not config.truncate or len(prompt) <= room:
            return prompt
        self._cut = len(prompt) - room
        return [prompt[0], *prompt[len(prompt) - room + 1 :]]

    def admit(self, prompt_tokens: int, context_length: int) -> int:
        """Note the prompt's length. Returns how many tokens may follow.

        Raises:
            ContextOverflow: the prompt leaves no room for an answer.
        """
        self.prompt_tokens = prompt_tokens
        room = context_length - prompt_tokens
        if room < 1:
            raise ContextOverflow(
                f"The prompt has {prompt_tokens:,} tokens; the context holds {context_length:,}, the answer included.",
                model_name=self._request.model_name,
                hint="Shorten it, set truncate, or load the model with a larger context_length.",
            )  # fmt: skip
        return min(room, self._request.config.max_tokens)

    def push(self, text: str, logprob: TokenLogprob | None = None) -> bool:
        """A token was generated and `text` became final with it (perhaps none). False once a stop string came.

        `logprob` is told with the next text that is delivered.
        """
        self.tokens += 1
        if logprob is not None:
            self._logprobs.append(logprob)
        if self._first is None:
            self._first = time.perf_counter()
        self._take(self._turn.push(text))
        return not self._stopped

    @property
    def _stopped(self) -> bool:
        return self._turn.stopped or self._stop.stopped

    def _take(self, text: str) -> None:
        if self._trim:  # space after "Answer:" belongs to the form, and is no stop string of the caller's
            text = text.lstrip()
            self._trim = not text
        self._deliver(self._stop.push(text))

    def _deliver(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            told, self._told = self._logprobs[self._told :], len(self._logprobs)
            self._request.emit(TextDelta(text, self.tokens, logprobs=tuple(told)))

    def finish(self, reason: FinishReason, rest: str, metadata: Mapping[str, Any]) -> None:
        """Emit the result. `rest` is text still in the decoder; `metadata` is the engine's share."""
        if not self._stopped:
            self._take(self._turn.push(rest))
        if not self._stop.stopped:
            self._take(self._turn.flush())
            self._deliver(self._stop.flush())
        now = time.perf_counter()
        result = GenerationResult(
            text="".join(self._pieces), model_name=self._request.model_name, tokens_generated=self.tokens,
            prompt_tokens=self.prompt_tokens, finish_reason="stop" if self._stopped else reason,
            logprobs=tuple(self._logprobs) if self._request.config.logprobs else None,
            execution_time=now - self._started,
            time_to_first_token=None if self._first is None else self._first - self._started,
            metadata={**metadata, **self._about()},
        )  # fmt: skip
        self._request.emit(Finished(result))

    def _about(self) -> dict[str, Any]:
        about = {"seed": self.seed, "template": self.template, "request_id": self._request.id}
        if self._cut:
            about["truncated_tokens"] = self._cut
        if self._request.config.return_prompt:
            about["prompt"] = self.prompt
        return about
