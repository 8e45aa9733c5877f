"""Answers of chat/completions and completions, in one body or in chunks, written with the types of the `openai` package.

The chunk of a token is a constant text around a piece of the answer. The types make that text once per answer. So each
token costs only the JSON of its piece.
"""

from abc import abstractmethod
from collections.abc import Awaitable, Sequence
from typing import Any

from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from lfx_local_runtimes.errors import RequestCancelled
from lfx_local_runtimes.routes.delivery import Feed, ProgressComments, Tagged
from lfx_local_runtimes.routes.openai.wire import (
    DONE,
    About,
    cached_tokens,
    call_fields,
    check_complete,
    dumps,
    failure,
    frame,
    logprob_rows,
)
from lfx_local_runtimes.runtimes.requests import Failed, Finished, GenerationStream, Progress
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult, TextDelta, TokenLogprob


def usage_of(results: Sequence[GenerationResult], per_prompt: int) -> CompletionUsage:
    """Tokens of all answers. A prompt counts once for its `per_prompt` answers."""
    prompts = results[::per_prompt]
    prompt = sum(result.prompt_tokens for result in prompts)
    answer = sum(result.tokens_generated for result in results)
    return CompletionUsage.model_validate(
        {
            "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": sum(map(cached_tokens, prompts))},
        }
    )  # fmt: skip


def chat_completion(about: About, results: Sequence[GenerationResult]) -> dict[str, Any]:
    """The body of a complete chat answer.

    Raises:
        RequestCancelled: an answer was cancelled.
    """
    choices = []
    for index, result in enumerate(results):
        check_complete(result)
        message: dict[str, Any] = {
            "role": "assistant", "content": result.text if result.text or not result.tool_calls else None, "refusal": None,
        }  # fmt: skip
        if result.tool_calls:
            message["tool_calls"] = [call_fields(call) for call in result.tool_calls]
        if result.reasoning is not None:
            message["reasoning_content"] = result.reasoning
        logprobs = {"content": logprob_rows(result.logprobs), "refusal": None} if result.logprobs is not None else None
        choices.append(
            {"index": index, "message": message, "logprobs": logprobs, "finish_reason": result.finish_reason}
        )
    return ChatCompletion.model_validate(
        {
            "id": about.id, "object": "chat.completion", "created": about.created, "model": about.model, "choices": choices,
            "usage": usage_of(results, len(results)),
        }
    ).model_dump(mode="json", exclude_unset=True)  # fmt: skip


def completion(about: About, results: Sequence[GenerationResult], per_prompt: int) -> dict[str, Any]:
    """The body of a complete completion.

    Raises:
        RequestCancelled: an answer was cancelled.
    """
    choices = []
    for index, result in enumerate(results):
        check_complete(result)
        choices.append({"index": index, "text": result.text, "logprobs": None, "finish_reason": result.finish_reason})
    body = Completion.model_validate(
        {
            "id": about.id, "object": "text_completion", "created": about.created, "model": about.model,
            "choices": choices, "usage": usage_of(results, per_prompt),
        }
    ).model_dump(mode="json", exclude_unset=True)  # fmt: skip
    for choice, result in zip(body["choices"], results, strict=True):
        if (
            result.logprobs is not None
        ):  # the type has no null among them, which OpenAI's own answers have for a first token
            choice["logprobs"] = completion_logprobs(result.logprobs, 0)
    return body


def completion_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Log-probabilities as completions writes them. The token itself is always among the top ones, also with `logprobs: 0`.

    `offset` is how much text there was before, in characters.
    """
    offsets = []
    for one in logprobs:
        offsets.append(offset)
        offset += len(one.token)
    return {
        "tokens": [one.token for one in logprobs],
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [
            None if one.logprob is None else {other.token: other.logprob for other in (*one.top, one)}
            for one in logprobs
        ],
        "text_offset": offsets,
    }


class Chunks(Feed):
    """A stream of chunks for one or several answers. A subclass defines the chunks.

    Args:
        streams: the answers, started.
        gone: completes when the client has left.
        about: the fields that every chunk repeats.
        per_prompt: how many answers a prompt has.
        usage: report the usage in a last chunk.
    """

    def __init__(
        self, streams: Sequence[GenerationStream], gone: Awaitable[None], about: About, *, per_prompt: int, usage: bool
    ) -> None:
        super().__init__(streams, gone)
        self._about = about
        self._per_prompt = per_prompt
        self._usage = usage
        self._progress = ProgressComments()
        self._results: dict[int, GenerationResult] = {}
        self._around = [self._plain(index) for index in range(len(streams))]
        """For each answer: the JSON before and after the text of a chunk that has no other fields."""

    def write(self, events: list[Tagged]) -> str:
        """Chunks. The last ones are the usage, if the client wants it, and `[DONE]`. After an error nothing follows."""
        frames = []
        for index, event in events:
            if isinstance(event, TextDelta):
                frames.append(self._delta(index, event))
            elif isinstance(event, Progress):
                frames.append(self._progress.comment(event))
            elif isinstance(event, Failed):
                return "".join([*frames, failure(event.error)])
            elif isinstance(event, Finished) and event.cancelled:
                self.ended = True
                return "".join([*frames, failure(RequestCancelled.of(self.requests[index].id))])
            elif isinstance(event, Finished):
                self._results[index] = event.result
                frames.append(self._last(index, event))
        if self.ended:
            if self._usage:
                results = [self._results[index] for index in range(len(self.requests))]
                frames.append(self._chunk([], usage=usage_of(results, self._per_prompt)))
            frames.append(DONE)
        return "".join(frames)

    @abstractmethod
    def _chunk(self, choices: list[dict[str, Any]], usage: CompletionUsage | None = None) -> str:
        """A chunk of the choices, or of the usage, as a server-sent event."""

    def _fields(self, kind: str, choices: list[dict[str, Any]], usage: CompletionUsage | None) -> dict[str, Any]:
        about = self._about
        fields = {"id": about.id, "object": kind, "created": about.created, "model": about.model, "choices": choices}
        return (
            fields | {"usage": usage} if self._usage else fields
        )  # null before the last chunk, if the client wants it

    @abstractmethod
    def _plain(self, index: int) -> tuple[str, str]:
        """The JSON before and after a piece of text in a chunk."""

    @abstractmethod
    def _delta(self, index: int, delta: TextDelta) -> str:
        """More of an answer."""

    @abstractmethod
    def _last(self, index: int, event: Finished) -> str:
        """The end of an answer."""


class ChatChunks(Chunks):
    """Chunks of chat/completions."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begun: set[int] = set()

    def _chunk(self, choices: list[dict[str, Any]], usage: CompletionUsage | None = None) -> str:
        chunk = ChatCompletionChunk.model_validate(self._fields("chat.completion.chunk", choices, usage))
        return frame(chunk.model_dump(mode="json", exclude_unset=True))

    def _choice(
        self, index: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob] = (), reason: str | None = None
    ) -> str:
        content = {"content": logprob_rows(logprobs), "refusal": None} if logprobs else None
        return self._chunk([{"index": index, "delta": delta, "logprobs": content, "finish_reason": reason}])

    def _plain(self, index: int) -> tuple[str, str]:
        before, _, after = self._choice(index, {"content": ""}).partition('"content":""')
        return before + '"content":', after

    def _begin(self, index: int) -> str:
        if index in self._begun:
            return ""
        self._begun.add(index)
        return self._choice(index, {"role": "assistant", "content": "", "refusal": None})

    def _delta(self, index: int, delta: TextDelta) -> str:
        begin = "" if index in self._begun else self._begin(index)
        if not (delta.reasoning or delta.tool_calls or delta.logprobs):
            before, after = self._around[index]
            return f"{begin}{before}{dumps(delta.text)}{after}"
        fields: dict[str, Any] = {"content": delta.text} if delta.text else {}
        if delta.reasoning:
            fields["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            fields["tool_calls"] = [_call_delta(call) for call in delta.tool_calls]
        return begin + self._choice(index, fields, delta.logprobs)

    def _last(self, index: int, event: Finished) -> str:
        return self._begin(index) + self._choice(index, {}, reason=event.result.finish_reason)


def _call_delta(call: Any) -> dict[str, Any]:
    function = {"arguments": call.arguments}
    if call.name is not None:
        function = {"name": call.name, **function}
    fields: dict[str, Any] = {"index": call.index, "function": function}
    return fields if call.id is None else {"index": call.index, "id": call.id, "type": "function", "function": function}


class CompletionChunks(Chunks):
    """Chunks of completions. They contain text and logprobs only."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._length = [0] * len(self.requests)

    def _chunk(self, choices: list[dict[str, Any]], usage: CompletionUsage | None = None) -> str:
        fields = self._fields("text_completion", choices, usage)
        # construct: the type requires a finish reason, but in OpenAI's own chunks it is null before the last one
        return frame(Completion.model_construct(**fields).model_dump(mode="json", exclude_unset=True, warnings=False))

    def _choice(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> str:
        return self._chunk([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}])

    def _plain(self, index: int) -> tuple[str, str]:
        before, _, after = self._choice(index, "", None, None).partition('"text":""')
        return before + '"text":', after

    def _delta(self, index: int, delta: TextDelta) -> str:
        if not delta.logprobs and not delta.text:
            return ""
        if not delta.logprobs:
            before, after = self._around[index]
            return f"{before}{dumps(delta.text)}{after}"
        offset, self._length[index] = self._length[index], self._length[index] + len(delta.text)
        return self._choice(index, delta.text, completion_logprobs(delta.logprobs, offset), None)

    def _last(self, index: int, event: Finished) -> str:
        return self._choice(index, "", None, event.result.finish_reason)
