"""Answers of responses: the items of the output while they grow, and their events, in the types of the `openai` package.

One model request makes at most a reasoning item, then a message, then function calls. An answer that is not streamed goes
through the same code as one piece.
"""

import time
from collections.abc import Awaitable
from typing import Any

from openai.types import responses as types

from lfx_local_runtimes.errors import RequestCancelled
from lfx_local_runtimes.routes.delivery import Feed, ProgressComments, Tagged
from lfx_local_runtimes.routes.openai.responses_body import ResponsesBody
from lfx_local_runtimes.routes.openai.wire import (
    About,
    cached_tokens,
    check_complete,
    dumps,
    failure,
    frame,
    logprob_rows,
)
from lfx_local_runtimes.runtimes.requests import Failed, Finished, GenerationStream, Progress
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult, TextDelta, TokenLogprob, ToolCallDelta


class Output:
    """The output of one response: `push` what the model says, then `close`. Both return the frames to send."""

    def __init__(self, about: About, body: ResponsesBody, tool_choice: str) -> None:
        self._about = about
        self._body = body
        self._tool_choice = tool_choice
        self._items: list[dict[str, Any]] = []
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._call = -1
        self._open = False
        self._sequence = 0
        self._head = ""

    # -- events ------------------------------------------------------------------------------------------------------

    def _event(self, kind: type[Any], type_: str, /, **fields: Any) -> str:
        event = kind.model_validate({**fields, "type": type_, "sequence_number": self._sequence})
        self._sequence += 1
        return frame(event.model_dump(mode="json", by_alias=True, exclude_unset=True), type_)

    def begin(self) -> str:
        """The first events: the response exists and is in progress."""
        response = self._response("in_progress")
        return self._event(types.ResponseCreatedEvent, "response.created", response=response) + self._event(
            types.ResponseInProgressEvent, "response.in_progress", response=response
        )

    def push(self, delta: TextDelta) -> str:
        """More of the answer."""
        frames = []
        if delta.reasoning:
            frames.append(self._enter("reasoning") + self._piece(delta.reasoning))
        if delta.text:
            self._logprobs += delta.logprobs
            frames.append(self._enter("message") + self._piece(delta.text, delta.logprobs))
        for call in delta.tool_calls:
            if call.index != self._call:
                self._call = call.index
                frames.append(self._leave() + self._enter("function_call", call))
            if call.arguments:
                frames.append(self._piece(call.arguments))
        return "".join(frames)

    def close(self, result: GenerationResult) -> str:
        """The last events, with the complete response."""
        frames = self._leave("incomplete" if result.finish_reason == "length" else "completed")
        if result.finish_reason == "length":
            response = self._response("incomplete", result)
            return frames + self._event(types.ResponseIncompleteEvent, "response.incomplete", response=response)
        response = self._response("completed", result)
        return frames + self._event(types.ResponseCompletedEvent, "response.completed", response=response)

    # -- items -------------------------------------------------------------------------------------------------------

    @property
    def _item(self) -> dict[str, Any]:
        return self._items[-1]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self._items) - 1}

    def _enter(self, kind: str, call: ToolCallDelta | None = None) -> str:
        """Begin an item, unless one of this kind is open. A function call always begins a new item."""
        if self._open and call is None and self._item["type"] == kind:
            return ""
        frames = self._leave()
        self._items.append(self._new_item(kind, call))
        self._open = True
        frames += self._event(
            types.ResponseOutputItemAddedEvent, "response.output_item.added",
            item=dict(self._item), output_index=len(self._items) - 1,
        )  # fmt: skip
        if kind != "function_call":
            frames += self._event(
                types.ResponseContentPartAddedEvent, "response.content_part.added",
                **self._place(), content_index=0, part=self._part(""),
            )  # fmt: skip
        self._head = self._prepared(kind)
        return frames

    def _new_item(self, kind: str, call: ToolCallDelta | None) -> dict[str, Any]:
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        fields: dict[str, Any] = {
            "id": f"{prefix}_{self._about.id.removeprefix('resp_')}_{len(self._items)}", "type": kind, "status": "in_progress",
        }  # fmt: skip
        if call is not None:
            return fields | {"call_id": call.id or fields["id"], "name": call.name or "", "arguments": ""}
        return fields | (
            {"summary": [], "content": []} if kind == "reasoning" else {"role": "assistant", "content": []}
        )

    def _part(self, text: str) -> dict[str, Any]:
        if self._item["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        part = {"type": "output_text", "text": text, "annotations": []}
        return part | {"logprobs": logprob_rows(self._logprobs)} if text and self._logprobs else part

    def _prepared(self, kind: str) -> str:
        """The beginning of every delta of the open item. Only the text and the number behind it differ."""
        event, name, fixed = _DELTAS[kind]
        fields = event.model_validate({**self._place(), **fixed, "type": name, "delta": "", "sequence_number": 0})
        constant = fields.model_dump(mode="json", exclude_unset=True, exclude={"delta", "sequence_number"})
        return f'event: {name}\ndata: {dumps(constant)[:-1]},"delta":'

    def _piece(self, text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> str:
        self._pieces.append(text)
        if logprobs:
            rows = logprob_rows(logprobs)
            return self._event(
                types.ResponseTextDeltaEvent, "response.output_text.delta",
                **self._place(), content_index=0, delta=text, logprobs=rows,
            )  # fmt: skip
        number, self._sequence = self._sequence, self._sequence + 1
        return f'{self._head}{dumps(text)},"sequence_number":{number}}}\n\n'

    def _leave(self, status: str = "completed") -> str:
        """End the open item, if there is one."""
        if not self._open:
            return ""
        self._open = False
        text, kind, place = "".join(self._pieces), self._item["type"], self._place()
        self._pieces = []
        self._item["status"] = status
        if kind == "function_call":
            self._item["arguments"] = text
            frames = self._event(
                types.ResponseFunctionCallArgumentsDoneEvent, "response.function_call_arguments.done",
                **place, name=self._item["name"], arguments=text,
            )  # fmt: skip
        else:
            part = self._part(text)
            self._item["content"] = [part]
            place["content_index"] = 0
            if kind == "message":
                frames = self._event(
                    types.ResponseTextDoneEvent, "response.output_text.done",
                    **place, text=text, logprobs=part.get("logprobs", []),
                )  # fmt: skip
            else:
                frames = self._event(
                    types.ResponseReasoningTextDoneEvent, "response.reasoning_text.done", **place, text=text
                )
            frames += self._event(types.ResponseContentPartDoneEvent, "response.content_part.done", **place, part=part)
        return frames + self._event(
            types.ResponseOutputItemDoneEvent, "response.output_item.done",
            item=dict(self._item), output_index=len(self._items) - 1,
        )  # fmt: skip

    # -- the response ------------------------------------------------------------------------------------------------

    def response(self, result: GenerationResult) -> dict[str, Any]:
        """The finished response."""
        fields = self._response("incomplete" if result.finish_reason == "length" else "completed", result)
        return types.Response.model_validate(fields).model_dump(mode="json", by_alias=True, exclude_unset=True)

    def _response(self, status: str, result: GenerationResult | None = None) -> dict[str, Any]:
        body, about = self._body, self._about
        fields: dict[str, Any] = {
            "id": about.id, "object": "response", "created_at": about.created, "model": about.model, "status": status,
            "output": [dict(item) for item in self._items], "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions, "metadata": body.metadata or {}, "user": body.user,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p, "top_logprobs": body.top_logprobs or 0,
            "max_output_tokens": body.max_output_tokens, "truncation": body.truncation or "disabled",
            "parallel_tool_calls": body.parallel_tool_calls is not False, "tool_choice": self._choice(),
            "tools": [tool.model_dump(exclude_unset=True) for tool in body.tools or ()],
            "text": {"format": self._format()}, "previous_response_id": None, "store": False, "background": False,
            "usage": _usage(result) if result is not None else None,
        }  # fmt: skip
        if status == "completed":
            fields["completed_at"] = int(time.time())
        return fields

    def _choice(self) -> object:
        """The choice in the form of this API."""
        choice = self._tool_choice
        return choice if choice in ("none", "auto", "required") else {"type": "function", "name": choice}

    def _format(self) -> dict[str, Any]:
        form = self._body.form
        if form is None or form.type != "json_schema":
            return {"type": form.type if form else "text"}
        return {"type": form.type, "name": form.name or "", "schema": form.json_schema}


_DELTAS: dict[str, tuple[type[Any], str, dict[str, Any]]] = {
    "message": (types.ResponseTextDeltaEvent, "response.output_text.delta", {"content_index": 0, "logprobs": []}),
    "reasoning": (types.ResponseReasoningTextDeltaEvent, "response.reasoning_text.delta", {"content_index": 0}),
    "function_call": (
        types.ResponseFunctionCallArgumentsDeltaEvent, "response.function_call_arguments.delta", {},
    ),
}  # fmt: skip


def _usage(result: GenerationResult) -> dict[str, Any]:
    return {
        "input_tokens": result.prompt_tokens, "output_tokens": result.tokens_generated,
        "total_tokens": result.prompt_tokens + result.tokens_generated,
        "input_tokens_details": {"cached_tokens": cached_tokens(result), "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip


def complete_response(output: Output, result: GenerationResult) -> dict[str, Any]:
    """The body of a complete answer.

    Raises:
        RequestCancelled: it was cancelled.
    """
    check_complete(result)
    calls = tuple(
        ToolCallDelta(index, call.id, call.name, call.arguments) for index, call in enumerate(result.tool_calls)
    )
    output.push(TextDelta(result.text, result.tokens_generated, result.reasoning or "", calls, result.logprobs or ()))
    output.close(result)
    return output.response(result)


class ResponseEvents(Feed):
    """A stream of one response's events."""

    def __init__(self, stream: GenerationStream, gone: Awaitable[None], output: Output) -> None:
        super().__init__([stream], gone)
        self._output = output
        self._progress = ProgressComments()
        self._begun = False

    def write(self, events: list[Tagged]) -> str:
        """Named events. After an error nothing follows."""
        frames = [] if self._begun else [self._output.begin()]
        self._begun = True
        for _, event in events:
            if isinstance(event, TextDelta):
                frames.append(self._output.push(event))
            elif isinstance(event, Progress):
                frames.append(self._progress.comment(event))
            elif isinstance(event, Failed):
                frames.append(failure(event.error))
            elif isinstance(event, Finished) and event.cancelled:
                frames.append(failure(RequestCancelled.of(self.requests[0].id)))
            elif isinstance(event, Finished):
                frames.append(self._output.close(event.result))
        return "".join(frames)
