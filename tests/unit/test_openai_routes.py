"""OpenAI's API, whole answers: what a request becomes, what an answer looks like, and what every refusal says."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from lfx_local_runtimes import errors
from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.requests import Finished
from lfx_local_runtimes.runtimes.tasks.generation import ChatMessage, GenerationConfig, ToolCall
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES
from tests.routes_app import KEY, LOGPROBS, MODEL, Exchange, Stage, a_result, make_app, write_model

MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
WEATHER = {"name": "weather", "description": "Of a place.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": WEATHER}
OTHER_TOOL = {"type": "function", "function": {"name": "time"}}


@pytest.fixture
def client(manager: RuntimeManager) -> Iterator[TestClient]:
    app = make_app(manager)
    with TestClient(app, base_url=f"http://test{PREFIX}/v1", headers=KEY, raise_server_exceptions=False) as client:
        yield client


def chat(client: TestClient, **fields: Any) -> Any:
    return client.post("/chat/completions", json={"model": MODEL, "messages": MESSAGES, "max_tokens": 1, **fields})


def complete(client: TestClient, **fields: Any) -> Any:
    return client.post("/completions", json={"model": MODEL, "prompt": "hi", **fields})


def respond(client: TestClient, **fields: Any) -> Any:
    return client.post("/responses", json={"model": MODEL, "input": "hi", "max_output_tokens": 1, **fields})


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


CALLS = (
    ToolCall(id="call_1", name="weather", arguments='{"a": 1}'),
    ToolCall(id="call_2", name="time", arguments="{}"),
)


# -- what a request becomes ----------------------------------------------------------------------------------------------


def test_the_defaults_are_openais(client: TestClient, stage: Stage) -> None:
    assert chat(client, max_tokens=1).status_code == 200
    assert complete(client).status_code == 200
    assert respond(client).status_code == 200
    for request in stage.requests:
        config = request.ask
        assert (config.temperature, config.top_p, config.top_k, config.min_p, config.seed) == (1, 1, 0, 0, None)
    assert [request.ask.max_tokens for request in stage.requests] == [1, 16, 1]
    assert stage.requests[1].ask.raw


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"temperature": 0}, "temperature", 0.0),
        ({"temperature": None, "top_p": None, "stop": None}, "temperature", 1.0),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"top_p": 0}, "top_p", 1e-6),
        ({"max_tokens": None, "max_completion_tokens": 3}, "max_tokens", 3),
        ({"max_tokens": 5, "max_completion_tokens": 2}, "max_tokens", 2),
        ({"stop": "."}, "stop", (".",)),
        ({"stop": [".", "!"]}, "stop", (".", "!")),
        ({"seed": -1}, "seed", 2**32 - 2),
        ({"seed": 2**40}, "seed", 2**40 % (2**32 - 1)),
        ({"logit_bias": {"5": -100, "6": 1.5}}, "logit_bias", {5: -100.0, 6: 1.5}),
        ({"frequency_penalty": -1, "presence_penalty": 2}, "frequency_penalty", -1.0),
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs", 2),
        ({"logprobs": True}, "logprobs", True),
        ({"top_k": 3}, "top_k", 3),
        ({"min_p": 0.1}, "min_p", 0.1),
        ({"repetition_penalty": 1.2}, "repetition_penalty", 1.2),
        ({"min_tokens": 1}, "min_tokens", 1),
        ({"ignore_eos": True}, "ignore_eos", True),
        ({"truncate": True}, "truncate", True),
        ({"keep_alive": -1}, "keep_alive", -1.0),
        ({"reasoning_budget": 9}, "reasoning_budget", 9),
        ({"reasoning_effort": "none"}, "reasoning_budget", 0),
        ({"reasoning_effort": "high"}, "reasoning_budget", None),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls", False),
        ({"tools": [TOOL]}, "tool_choice", "auto"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice", "required"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice", "weather"),
        ({"response_format": {"type": "text"}}, "grammar", None),
        # what is not ours to know, or asks for nothing
        ({"surprise": 1, "user": "me", "metadata": {}, "service_tier": "auto", "store": False}, "max_tokens", 1),
        ({"modalities": ["text"], "audio": None, "functions": []}, "max_tokens", 1),
    ],
)  # fmt: skip
def test_a_chat_field_reaches_the_engine(
    client: TestClient, stage: Stage, fields: dict[str, Any], name: str, value: object
) -> None:
    response = chat(client, **fields)
    assert response.status_code == 200, response.text
    assert getattr(stage.requests[-1].ask, name) == value


def test_messages_become_turns(client: TestClient, stage: Stage) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "name": "me", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]
    assert chat(client, messages=messages, continue_final_message=True).status_code == 200
    config = stage.requests[-1].ask
    assert config.messages == (
        ChatMessage(role="system", content="be brief"),
        ChatMessage(role="user", content="one\ntwo"),
        ChatMessage(role="assistant", content="", tool_calls=(ToolCall(id="c1", name="weather", arguments="{}"),)),
        ChatMessage(role="tool", content="rain", tool_call_id="c1"),
        ChatMessage(role="assistant", content="no"),
    )
    assert config.continue_final_message


def test_tools_and_the_choice_among_them(client: TestClient, stage: Stage) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    assert chat(client, tools=[TOOL, OTHER_TOOL], tool_choice=choice).status_code == 200
    config = stage.requests[-1].ask
    assert ([tool.name for tool in config.tools], config.tool_choice) == (["time"], "required")

    assert chat(client, tools=[TOOL, OTHER_TOOL], tool_choice="none").status_code == 200
    first, second = stage.requests[-1].ask.tools
    assert first.model_dump() == WEATHER
    assert second.parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("fields", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", None),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}, "json_schema", SCHEMA),
        ({"grammar": 'root ::= "a"'}, "gbnf", 'root ::= "a"'),
        ({"regex": "a+"}, "regex", "a+"),
    ],
)  # fmt: skip
def test_what_the_answer_must_look_like(
    client: TestClient, stage: Stage, fields: dict[str, Any], kind: str, source: object
) -> None:
    def take(request: GenerationConfig) -> tuple[str, object]:
        assert request.grammar is not None
        return request.grammar.kind, request.grammar.json_schema or request.grammar.text

    stage.events = [Finished(a_result())]
    assert chat(client, **fields).status_code == 200
    assert take(stage.requests[-1].ask) == (kind, source)
    if "response_format" not in fields:
        assert complete(client, **fields).status_code == 200
        assert take(stage.requests[-1].ask) == (kind, source)


def test_each_of_n_answers_has_the_next_seed(client: TestClient, stage: Stage) -> None:
    body = chat(client, n=3, seed=2**32 - 3).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert sorted(request.ask.seed for request in stage.requests) == [0, 2**32 - 3, 2**32 - 2]  # type: ignore[type-var]
    assert body["usage"]["completion_tokens"] == 3
    prompt = chat(client).json()["usage"]["prompt_tokens"]
    assert body["usage"]["prompt_tokens"] == prompt  # counts once


def test_completions_take_several_prompts(client: TestClient, stage: Stage) -> None:
    body = complete(client, prompt=["one", "two words"], n=2, max_tokens=2, logprobs=3).json()
    Completion.model_validate(body)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert sorted(str(request.ask.prompt) for request in stage.requests) == ["one", "one", "two words", "two words"]
    assert body["usage"] == {
        "prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    assert {(request.ask.logprobs, request.ask.top_logprobs) for request in stage.requests} == {(True, 3)}


@pytest.mark.parametrize(("prompt", "ids"), [([1, 2, 3], [(1, 2, 3)]), ([[1, 2], [3]], [(1, 2), (3,)])])
def test_completions_take_token_ids(
    prompt: object, ids: list[tuple[int, ...]], client: TestClient, stage: Stage
) -> None:
    assert len(complete(client, prompt=prompt, max_tokens=2).json()["choices"]) == len(ids)
    assert sorted(request.ask.prompt_ids or () for request in stage.requests) == ids
    assert all(request.ask.prompt is None and request.ask.raw for request in stage.requests)


def test_a_suffix_reaches_models_that_fill_a_gap(client: TestClient, stage: Stage) -> None:
    assert complete(client, prompt="one", suffix="", max_tokens=2).status_code == 200
    refused = error_of(complete(client, prompt="one", suffix=" two", max_tokens=2), 400)
    assert "cannot fill a gap" in refused["message"]
    assert [request.ask.suffix for request in stage.requests] == [None, " two"]
    for wrong in ({"prompt": [1, 2]}, {"prompt": "one", "truncate": True}):
        assert "suffix" in error_of(complete(client, suffix=" two", **wrong), 400)["message"]


def test_echo_reaches_engines_that_repeat_prompts(client: TestClient, stage: Stage) -> None:
    refused = error_of(complete(client, prompt="one", echo=True), 400)
    assert "does not repeat prompts" in refused["message"]
    assert stage.requests[-1].ask.echo
    assert "echo" in error_of(complete(client, prompt="one", echo=True, suffix=" two"), 400)["message"]


def test_response_items_become_turns(client: TestClient, stage: Stage) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}", "id": "fc_1"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "message", "role": "developer", "content": "go on"},
    ]
    response = respond(
        client, instructions="be brief", input=items, tools=[{"type": "function", "strict": True, **WEATHER}],
        tool_choice={"type": "function", "function": {"name": "weather"}}, truncation="auto", reasoning={"effort": "none"},
        include=["message.output_text.logprobs"], top_logprobs=1, metadata={"k": "v"},
    )  # fmt: skip
    assert response.status_code == 200, response.text
    config = stage.requests[-1].ask
    calls = (ToolCall(id="c1", name="weather", arguments="{}"), ToolCall(id="c2", name="time", arguments="{}"))
    assert config.messages == (
        ChatMessage(role="system", content="be brief"),
        ChatMessage(role="user", content="one"),
        ChatMessage(role="assistant", content="", tool_calls=calls),
        ChatMessage(role="tool", content="rain", tool_call_id="c1"),
        ChatMessage(role="system", content="go on"),
    )
    assert (config.tool_choice, config.truncate, config.reasoning_budget) == ("weather", True, 0)
    assert (config.logprobs, config.top_logprobs) == (True, 1)
    echo = response.json()
    assert (echo["instructions"], echo["metadata"], echo["truncation"]) == ("be brief", {"k": "v"}, "auto")
    assert echo["tools"] == [{"type": "function", "strict": True, **WEATHER}]


def test_response_text_formats(client: TestClient, stage: Stage) -> None:
    stage.events = [Finished(a_result())]
    form = {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}
    response = respond(client, text={"format": form})
    assert stage.requests[-1].ask.grammar is not None
    assert stage.requests[-1].ask.grammar.json_schema == SCHEMA
    assert response.json()["text"]["format"] == {"type": "json_schema", "name": "a", "schema": SCHEMA}


# -- what an answer looks like -------------------------------------------------------------------------------------------


def test_a_chat_answer(client: TestClient) -> None:
    response = chat(client, max_tokens=3)
    body = response.json()
    ChatCompletion.model_validate(body, strict=True)
    assert body["id"] == f"chatcmpl-{response.headers['x-request-id']}"
    assert (body["object"], body["model"]) == ("chat.completion", MODEL)
    assert body["choices"] == [
        {
            "index": 0, "finish_reason": "length", "logprobs": None,
            "message": {"role": "assistant", "content": "t0 t1 t2 ", "refusal": None},
        }
    ]  # fmt: skip
    assert body["usage"]["completion_tokens"] == 3


def test_a_chat_answer_with_everything(client: TestClient, stage: Stage) -> None:
    stage.events = [
        Finished(a_result(text="", tool_calls=CALLS, reasoning="hm", logprobs=LOGPROBS, finish_reason="tool_calls"))
    ]
    body = chat(client).json()
    ChatCompletion.model_validate(body)
    (choice,) = body["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": None, "refusal": None, "reasoning_content": "hm",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}},
            {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    }  # fmt: skip
    assert choice["finish_reason"] == "tool_calls"
    first, second = choice["logprobs"]["content"]
    assert first == {
        "token": "He", "logprob": -0.5, "bytes": [72, 101],
        "top_logprobs": [{"token": "Ho", "logprob": -1.5, "bytes": [72, 111]}],
    }  # fmt: skip
    assert second["top_logprobs"] == []
    assert body["usage"] == {
        "prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 3},
    }  # fmt: skip


def test_completion_logprobs_have_their_own_form(client: TestClient, stage: Stage) -> None:
    stage.events = [Finished(a_result(logprobs=LOGPROBS))]
    body = complete(client, logprobs=1).json()
    Completion.model_validate(body)
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["He", "llo"], "token_logprobs": [-0.5, -0.25], "top_logprobs": [{"Ho": -1.5, "He": -0.5}, {"llo": -0.25}], "text_offset": [0, 2],
    }  # fmt: skip


def test_a_response(client: TestClient, stage: Stage) -> None:
    stage.events = [Finished(a_result(tool_calls=CALLS, reasoning="hm", logprobs=LOGPROBS, finish_reason="tool_calls"))]
    body = respond(client).json()
    Response.model_validate(body)
    assert (body["object"], body["status"], body["error"]) == ("response", "completed", None)
    reasoning, message, first, second = body["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert message["content"][0]["text"] == "Hello"
    assert [row["token"] for row in message["content"][0]["logprobs"]] == ["He", "llo"]
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_1", "weather", '{"a": 1}')
    assert (second["call_id"], second["name"], second["arguments"]) == ("call_2", "time", "{}")
    assert len({item["id"] for item in body["output"]}) == 4
    assert {item["status"] for item in body["output"]} == {"completed"}
    assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"], body["usage"]["total_tokens"]) == (7, 4, 11)
    assert body["usage"]["input_tokens_details"]["cached_tokens"] == 3


def test_a_response_that_ran_out_of_tokens_is_incomplete(client: TestClient) -> None:
    body = respond(client, max_output_tokens=2).json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["content"][0]["text"] == "t0 t1 "


def test_models(client: TestClient, manager: RuntimeManager) -> None:
    body = client.get("/models").json()
    assert body["object"] == "list"
    rows = {row["id"]: Model.model_validate(row, strict=True) for row in body["data"]}
    assert rows[MODEL].owned_by == "local"
    assert client.get(f"/models/{MODEL}").json() == rows[MODEL].model_dump()
    assert rows[MODEL].model_dump()["max_model_len"] == manager.model_status(MODEL).context_length
    assert error_of(client.get("/models/nobody"), 404)["code"] == "model_not_found"


def test_models_that_cannot_be_loaded_are_not_listed(client: TestClient, manager: RuntimeManager) -> None:
    """A client may take the first one of the list."""
    models = manager.settings.model_roots[0]
    (models / "broken.gguf").write_bytes(b"GGUF")
    write_model(models / "painter")
    (models / "painter" / "config.json").write_text('{"architectures": ["ViTMAEModel"], "model_type": "vit_mae"}')

    def listed() -> set[str]:
        return {row["id"] for row in client.get("/models").json()["data"]}

    assert MODEL in listed()
    assert not {"broken", "painter"} & listed()
    assert complete(client, model="broken", prompt="Hi").status_code >= 400
    assert "broken" not in listed(), "nor after somebody has tried"
    assert {"broken", "painter"} <= {row.model_name for row in manager.list_models()}


def test_models_that_write_text_are_first(client: TestClient, manager: RuntimeManager) -> None:
    """A client may take the first one of the list for a chat."""
    known = manager.catalog.registered()[MODEL]
    for name, task in (("reader", "embedding"), ("writer", "llm")):
        manager.register_model(known.model_copy(update={"model_name": name, "model_type": task}))
    names = [row["id"] for row in client.get("/models").json()["data"]]
    assert names.index(MODEL) < names.index("writer") < names.index("reader")


# -- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat", {"audio": {"voice": "x"}}, "audio"),
        ("chat", {"modalities": ["text", "audio"]}, "modalities"),
        ("chat", {"web_search_options": {}}, "web_search_options"),
        ("chat", {"functions": [{"name": "f"}]}, "functions"),
        ("chat", {"store": True}, "store"),
        ("complete", {"best_of": 3}, "best_of"),
        ("respond", {"previous_response_id": "resp_1"}, "previous_response_id"),
        ("respond", {"conversation": "conv_1"}, "conversation"),
        ("respond", {"store": True}, "store"),
        ("respond", {"background": True}, "background"),
        ("respond", {"prompt": {"id": "p"}}, "prompt"),
        ("respond", {"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ("respond", {"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
    ],
)  # fmt: skip
def test_what_is_known_and_not_there_is_refused_by_name(
    client: TestClient, stage: Stage, path: str, fields: dict[str, Any], param: str
) -> None:
    call = {"chat": chat, "complete": complete, "respond": respond}[path]
    error = error_of(call(client, **fields), 400)
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "unsupported_parameter", param)
    assert error["message"].startswith(param)
    assert not stage.requests


IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


@pytest.mark.parametrize(
    ("path", "fields", "param", "says"),
    [
        ("chat", {"messages": []}, "messages", "at least 1"),
        ("chat", {"messages": [{"role": "user"}]}, "messages.0", "content"),
        ("chat", {"messages": [{"role": "tool", "content": "x"}]}, "messages.0", "tool_call_id"),
        ("chat", {"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content", "data URL"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content", "part 0"),
        ("chat", {"messages": [{"role": "function", "content": "x"}]}, "messages.0.role", "'tool'"),
        ("chat", {"temperature": 2.1}, "temperature", "2"),
        ("chat", {"temperature": "NaN"}, "temperature", ""),
        ("chat", {"n": 0}, "n", "1"),
        ("chat", {"n": 129}, "n", "128"),
        ("chat", {"max_tokens": 0}, "max_tokens", "1"),
        ("chat", {"stop": [""]}, "stop.0", "1 character"),
        ("chat", {"stop": ["x"] * 1000}, "stop", "64"),
        ("chat", {"logit_bias": {"x": 1}}, "logit_bias.x.[key]", "integer"),
        ("chat", {"top_logprobs": 2}, None, "top_logprobs needs logprobs"),
        ("chat", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type", "function"),
        ("chat", {"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools.0.function.name", "pattern"),
        ("chat", {"tools": [TOOL, TOOL]}, None, "same name"),
        ("chat", {"tool_choice": "required"}, None, "required"),
        ("chat", {"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, None, "nobody"),
        ("chat", {"tool_choice": "sometimes"}, "tool_choice", "none, auto, required"),
        ("chat", {"tool_choice": {"type": "function"}}, "tool_choice", "none, auto, required"),
        ("chat", {"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "missing"),
        ("chat", {"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ("chat", {"regex": "a", "grammar": "b"}, "regex", "exclude each other"),
        ("chat", {"regex": "a", "tools": [TOOL], "tool_choice": "required"}, None, "grammar"),
        ("chat", {"continue_final_message": True}, None, "continue_final_message"),
        ("chat", {"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content", ""),
        ("complete", {"prompt": []}, "prompt", "1 to 128"),
        ("complete", {"prompt": ["x"] * 65, "n": 2}, "prompt", "65 prompts"),
        ("respond", {"input": []}, "input", "empty"),
        ("respond", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content", "image_url"),
        ("respond", {"input": [{"type": "function_call", "name": "x"}]}, "input.0.call_id", "required"),
        ("respond", {"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    client: TestClient, stage: Stage, path: str, fields: dict[str, Any], param: str | None, says: str
) -> None:
    route = {"chat": "/chat/completions", "complete": "/completions", "respond": "/responses"}[path]
    whole = {"model": MODEL, "messages": MESSAGES, "prompt": "hi", "input": "hi"}
    unused = {"chat": ("input", "prompt"), "complete": ("messages",), "respond": ("messages", "prompt")}[path]
    body = {name: value for name, value in whole.items() if name not in unused} | fields
    response = client.post(route, content=json.dumps(body), headers={"content-type": "application/json"})
    error = error_of(response, 400)
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_input", param)
    assert says in error["message"]
    assert not stage.requests


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/responses"])
@pytest.mark.parametrize("content", [b"{", b"[" * 200_000, b"\xff", b"", b"[]", b"null"])
def test_what_is_not_a_json_object_is_a_400(client: TestClient, path: str, content: bytes) -> None:
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    assert error_of(response, 400)["type"] == "invalid_request_error"


def test_a_body_over_the_limit_is_refused(client: TestClient) -> None:
    assert error_of(chat(client, user="x" * MEDIA_BODY_BYTES), 413)["code"] == "body_too_large"


# -- faults --------------------------------------------------------------------------------------------------------------

INVALID, SERVER = "invalid_request_error", "server_error"
EXPECTED = {
    errors.InvalidInput: (400, INVALID, "invalid_input"),
    errors.ContextOverflow: (400, INVALID, "context_length_exceeded"),
    errors.TemplateFault: (400, INVALID, "template_fault"),
    errors.InvalidModelFile: (400, INVALID, "invalid_model_file"),
    errors.WrongTask: (400, INVALID, "wrong_task"),
    errors.RequestCancelled: (499, SERVER, "cancelled"),
    errors.ModelNotFound: (404, INVALID, "model_not_found"),
    errors.RequestNotFound: (404, INVALID, "request_not_found"),
    errors.DownloadNotFound: (404, INVALID, "download_not_found"),
    errors.ModelConflict: (409, INVALID, "model_conflict"),
    errors.ModelBusy: (409, INVALID, "model_busy"),
    errors.QueueFull: (429, "rate_limit_error", "queue_full"),
    errors.DoesNotFit: (507, SERVER, "does_not_fit"),
    errors.NotAllowed: (403, INVALID, "not_allowed"),
    errors.PathNotAllowed: (403, INVALID, "path_not_allowed"),
    errors.DownloadTooLarge: (403, INVALID, "download_too_large"),
    errors.PickleRefused: (403, INVALID, "pickle_refused"),
    errors.RemoteCodeRefused: (403, INVALID, "remote_code_refused"),
    errors.MissingExtra: (501, SERVER, "missing_extra"),
    errors.DeviceUnavailable: (400, INVALID, "device_unavailable"),
    errors.DownloadFailed: (502, SERVER, "download_failed"),
    errors.DiskFull: (507, SERVER, "disk_full"),
    errors.NotDownloaded: (404, INVALID, "not_downloaded"),
    errors.Offline: (404, INVALID, "offline"),
    errors.EngineFailure: (500, SERVER, "engine_failure"),
    errors.EngineDied: (503, SERVER, "engine_died"),
    errors.DeviceFailed: (503, SERVER, "device_failed"),
    errors.LoadFailed: (500, SERVER, "load_failed"),
    errors.SettingsFault: (500, SERVER, "settings_fault"),
    RuntimeFault: (500, SERVER, "runtime_fault"),
}


def all_faults(kind: type[RuntimeFault] = RuntimeFault) -> Iterator[type[RuntimeFault]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from all_faults(child)


@pytest.mark.parametrize("kind", all_faults(), ids=lambda kind: kind.__name__)
def test_every_fault_has_its_status_and_envelope(client: TestClient, stage: Stage, kind: type[RuntimeFault]) -> None:
    stage.serve_fault = kind("It went wrong.", hint="Try this.")
    status, type_, code = EXPECTED[kind]
    param = "model" if kind is errors.ModelNotFound else None
    response = chat(client)
    assert error_of(response, status) == {
        "message": "It went wrong. Try this.", "type": type_, "param": param, "code": code,
    }  # fmt: skip
    no_retry = status >= 500 and kind is not errors.DownloadFailed
    assert response.headers.get("x-should-retry") == ("false" if no_retry else None)


@pytest.mark.parametrize("call", [chat, complete, respond])
def test_an_unknown_model_is_a_404(client: TestClient, call: Any) -> None:
    error = error_of(call(client, model="nobody"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "nobody" in error["message"]


@pytest.mark.parametrize("call", [chat, complete, respond])
def test_a_cancelled_answer_is_an_error_that_is_not_tried_again(client: TestClient, stage: Stage, call: Any) -> None:
    stage.events = [Finished(a_result(finish_reason="cancelled", metadata={"request_id": "mine"}))]
    error = error_of(call(client), 499)
    assert error["code"] == "cancelled"
    assert "mine" in error["message"]


def test_who_may_not_is_told_in_the_envelope(client: TestClient, stage: Stage) -> None:
    for method, path in [
        ("GET", "/models"),
        ("GET", f"/models/{MODEL}"),
        ("POST", "/chat/completions"),
        ("POST", "/responses"),
    ]:
        response = client.request(
            method, path, json={"model": MODEL, "messages": MESSAGES}, headers={"x-api-key": "no"}
        )
        assert error_of(response, 403) == {
            "message": "no key",
            "type": INVALID,
            "param": None,
            "code": "invalid_api_key",
        }
    assert not stage.requests


# -- requests' ids, and leaving ------------------------------------------------------------------------------------------


def test_the_request_id_is_the_clients(client: TestClient, stage: Stage) -> None:
    response = client.post(
        "/chat/completions", json={"model": MODEL, "messages": MESSAGES, "max_tokens": 1, "n": 2},
        headers={"x-request-id": "mine"},
    )  # fmt: skip
    assert response.headers["x-request-id"] == "mine"
    assert response.json()["id"] == "chatcmpl-mine"
    assert sorted(request.id for request in stage.requests) == ["mine", "mine.1"]
    assert client.get("/models/nobody", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    refused = client.get("/models", headers={"x-request-id": "no/slash"})
    assert error_of(refused, 400)["param"] == "x-request-id"


async def test_an_id_in_use_is_refused_and_starts_nothing(manager: RuntimeManager, stage: Stage) -> None:
    held = manager.stream(MODEL, GenerationConfig(prompt="hi"), request_id="mine.1")
    with stage.held():
        await stage.serving()
        body = {"model": MODEL, "messages": MESSAGES, "n": 3}
        exchange = Exchange(
            make_app(manager), "/v1/chat/completions", json.dumps(body).encode(), headers={"x-request-id": "mine"}
        )
        assert await exchange.start() == 400
        assert "mine.1" in (await exchange.json())["error"]["message"]
        await exchange.ended
        held.cancel()
    await asyncio.to_thread(stage.wait_until, lambda: manager.stats()["running_requests"] == 0)


async def test_a_client_that_leaves_ends_all_its_answers(manager: RuntimeManager, stage: Stage) -> None:
    with stage.held():
        body = {"model": MODEL, "messages": MESSAGES, "n": 3}
        exchange = Exchange(make_app(manager, layers=3), "/v1/chat/completions", json.dumps(body).encode())
        await stage.serving()
        exchange.leave()
        await exchange.ended
        await asyncio.to_thread(stage.wait_until, lambda: manager.stats()["running_requests"] == 0)
    await asyncio.to_thread(stage.wait_until, lambda: manager.model_status(MODEL).leases == 0)
    assert len(stage.requests) == 1


# -- the application -----------------------------------------------------------------------------------------------------


def test_openapi_describes_the_contract(manager: RuntimeManager) -> None:
    paths = make_app(manager).openapi()["paths"]
    described = {
        (method.upper(), path.removeprefix(f"{PREFIX}/v1")): operation
        for path, operations in paths.items()
        for method, operation in operations.items()
        if path.startswith(f"{PREFIX}/v1/")
    }
    assert set(described) == {
        ("GET", "/models"), ("GET", "/models/{model_name}"), ("POST", "/chat/completions"), ("POST", "/completions"),
        ("POST", "/responses"), ("POST", "/embeddings"), ("POST", "/rerank"), ("POST", "/classify"), ("POST", "/ner"),
        ("POST", "/multimodal/caption"), ("POST", "/multimodal/vqa"),
        ("POST", "/ocr"), ("POST", "/documents/read"),
        ("POST", "/vision/classify"), ("POST", "/vision/clip"), ("POST", "/vision/detect"), ("POST", "/vision/depth"),
        ("POST", "/vision/segment"),
    }  # fmt: skip
    for operation in described.values():
        assert operation["description"]
        assert operation["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith(
            "/OpenAIEnvelope"
        )


def test_the_openai_package_is_imported_by_the_first_request(tmp_path: Path) -> None:
    """It takes most of a second."""
    code = (
        "import sys\nfrom lfx_local_runtimes.routes import build_router\n"
        "build_router(lambda: None, lambda: None, lambda: None)\nprint('openai' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "False"
