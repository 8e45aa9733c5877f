"""The forms that all of OpenAI's routes share: JSON, server-sent events, log-probabilities, ids."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lfx_local_runtimes.errors import RequestCancelled, RuntimeFault
from lfx_local_runtimes.routes.faults import openai_envelope
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult, TokenLogprob

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class About:
    """The fields that every part of an answer repeats: the id, its time (Unix seconds), the model."""

    id: str
    created: int
    model: str


def dumps(data: object) -> str:
    """Compact JSON in ASCII. JSON allows characters at which some clients break a line."""
    return json.dumps(data, separators=(",", ":"))


def frame(data: object, event: str = "") -> str:
    """A server-sent event."""
    return f"event: {event}\ndata: {dumps(data)}\n\n" if event else f"data: {dumps(data)}\n\n"


def failure(fault: RuntimeFault) -> str:
    """An error in the middle of a stream. In this form OpenAI's clients raise it."""
    return frame(openai_envelope(fault))


def check_complete(result: GenerationResult) -> None:
    """Raise if an answer is incomplete because it was cancelled.

    Raises:
        RequestCancelled: somebody cancelled it.
    """
    if result.finish_reason == "cancelled":
        raise RequestCancelled.of(str(result.metadata.get("request_id", "")))


def logprob_rows(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Log-probabilities in the form of chat/completions and responses."""
    return [{**_row(one), "top_logprobs": [_row(other) for other in one.top]} for one in logprobs]


def _row(one: TokenLogprob) -> dict[str, Any]:
    return {"token": one.token, "logprob": one.logprob, "bytes": list(one.bytes)}


def call_fields(call: Any) -> dict[str, Any]:
    """A tool call in the form of chat/completions."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def cached_tokens(result: GenerationResult) -> int:
    """Tokens of the prompt that were in the cache."""
    return int(result.metadata.get("cached_tokens", 0))
