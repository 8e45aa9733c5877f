"""What OpenAI's API promises, kept by both engines on the real Gemma: lengths, log-probabilities, forms, sizes."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.server import create_app
from lfx_local_runtimes.settings import Settings

pytestmark = pytest.mark.integration

CONTEXT = 1024
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module", params=["llama_cpp", "transformers"])
def model(request: pytest.FixtureRequest) -> str:
    """The engine, and the model's name."""
    return str(request.param)


@pytest.fixture(scope="module")
def client(
    model: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    """Of a server that has loaded the model."""
    path: Path = request.getfixturevalue("gemma_gguf" if model == "llama_cpp" else "gemma_safetensors")
    home = tmp_path_factory.mktemp("home")
    manager = RuntimeManager(Settings(home=home, model_dirs=(path.parent,), offline=True))
    manager.register_model(
        ModelConfig(model_id=str(path), model_name=model, runtime_type=model, context_length=CONTEXT)
    )
    asyncio.run(manager.load_model(model))
    with TestClient(create_app(manager), base_url="http://127.0.0.1/v1", raise_server_exceptions=False) as client:
        yield client
    manager.close()


def ask(client: TestClient, path: str, status: int = 200, **fields: Any) -> dict[str, Any]:
    body = {"messages": QUESTION} if path == "/chat/completions" and "messages" not in fields else {}
    content = json.dumps({"temperature": 0, "max_tokens": 16, **body, **fields})
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    return dict(response.json())


def test_a_base_model_says_at_least_min_tokens(client: TestClient, model: str) -> None:
    assert ask(client, "/chat/completions", model=model)["choices"][0]["finish_reason"] == "stop"
    for fields in ({"min_tokens": 16}, {"ignore_eos": True}):
        answer = ask(client, "/chat/completions", model=model, **fields)
        assert answer["usage"]["completion_tokens"] == 16
        assert answer["choices"][0]["finish_reason"] == "length"


def test_logprobs_spell_the_answer(client: TestClient, model: str) -> None:
    for fields in ({}, {"stop": ["ar"]}):
        answer = ask(client, "/chat/completions", model=model, logprobs=True, top_logprobs=2, **fields)
        (choice,) = answer["choices"]
        rows = choice["logprobs"]["content"]
        spelled = b"".join(bytes(row["bytes"]) for row in rows).decode()
        assert spelled.strip().startswith(choice["message"]["content"].strip())
        assert len(spelled) - len(choice["message"]["content"]) < 8, "at most a token that was cut"
        assert all(row["token"] in [one["token"] for one in row["top_logprobs"]] for row in rows)


def test_drawn_tokens_are_among_the_top_ones(client: TestClient, model: str) -> None:
    answer = ask(client, "/completions", model=model, prompt="Once", logprobs=1, temperature=2, seed=7, max_tokens=20)
    logprobs = answer["choices"][0]["logprobs"]
    assert all(token in top for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))
    assert any(len(top) == 2 for top in logprobs["top_logprobs"])
    none = ask(client, "/completions", model=model, prompt="Once", logprobs=0)["choices"][0]["logprobs"]
    assert all(list(top) == [token] for token, top in zip(none["tokens"], none["top_logprobs"], strict=True))


def test_echo_gives_the_prompt_and_its_logprobs(client: TestClient, model: str) -> None:
    prompt = "One, two, three, four. " * 20 + "The capital of France is"
    if model == "transformers":
        error = ask(client, "/completions", 400, model=model, prompt=prompt, echo=True)["error"]
        assert "GGUF" in error["message"]
        return
    made = ask(client, "/completions", model=model, prompt=prompt, logprobs=1, max_tokens=4)["choices"][0]
    echoed = ask(client, "/completions", model=model, prompt=prompt + made["text"], logprobs=1, max_tokens=2, echo=True)
    (choice,) = echoed["choices"]
    assert choice["text"].startswith(prompt + made["text"])
    rows = choice["logprobs"]
    assert "".join(rows["tokens"]) == choice["text"]
    assert len(rows["tokens"]) == echoed["usage"]["total_tokens"]
    assert (rows["token_logprobs"][0], rows["top_logprobs"][0]) == (None, None)
    assert rows["tokens"][-6:-2] == made["logprobs"]["tokens"]
    assert rows["token_logprobs"][-6:-2] == pytest.approx(made["logprobs"]["token_logprobs"], abs=0.05)
    spelled = [choice["text"][at:][: len(token)] for at, token in zip(rows["text_offset"], rows["tokens"], strict=True)]
    assert spelled == rows["tokens"]
    plain = ask(client, "/completions", model=model, prompt=prompt, max_tokens=4, echo=True)["choices"][0]
    assert (plain["text"], plain["logprobs"]) == (prompt + made["text"], None)

    body = {"model": model, "prompt": "Once upon a", "echo": True, "logprobs": 0, "max_tokens": 3, "temperature": 0}
    whole = ask(client, "/completions", **body)["choices"][0]
    lines = client.post("/completions", json={**body, "stream": True}).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [one for choice in choices for one in (choice["logprobs"] or {}).get(name, [])] == whole["logprobs"][
            name
        ]


def test_ids_outside_of_the_vocabulary(client: TestClient, model: str) -> None:
    error = ask(client, "/chat/completions", 400, model=model, logit_bias={"999999": 5})["error"]
    assert "logit_bias" in error["message"]


def test_forms_are_kept(client: TestClient, model: str) -> None:
    def text(**fields: Any) -> str:
        return str(ask(client, "/chat/completions", model=model, **fields)["choices"][0]["message"]["content"])

    assert text(guided_choice=["(a) Paris", "(b) Rome"]) in ("(a) Paris", "(b) Rome")
    assert json.loads(text(guided_json=SCHEMA))["city"] in ("Paris", "Rome")
    assert json.loads(text(response_format={"type": "json_object", "schema": SCHEMA}))["city"] in ("Paris", "Rome")
    assert text(structured_outputs={"regex": "[0-9]{3}"}).isdecimal()


def test_tools_beside_a_form(client: TestClient, model: str) -> None:
    fields = {"model": model, "tools": [TOOL], "response_format": {"type": "json_object", "schema": SCHEMA}}
    (forced,) = ask(client, "/chat/completions", tool_choice="required", **fields)["choices"]
    assert forced["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}
    (free,) = ask(client, "/chat/completions", max_tokens=40, **fields)["choices"]
    calls = free["message"].get("tool_calls")
    assert calls or json.loads(free["message"]["content"])["city"] in ("Paris", "Rome")


def test_two_million_blanks_are_refused_at_once(client: TestClient, model: str) -> None:
    for path, fields in (
        ("/completions", {"prompt": " " * 2_000_000}),
        ("/chat/completions", {"messages": [{"role": "user", "content": f"a{' ' * 2_000_000}b"}]}),
    ):
        error = ask(client, path, 400, model=model, **fields)["error"]
        assert error["code"] == "context_length_exceeded"


HALF = '{"a": "\\ud800"}'


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL], "top_k": 2**40, "seed": 2**80},
        {"messages": [
            *QUESTION,
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": HALF}}]},
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ], "tools": [TOOL]},
        {"messages": [
            *QUESTION,
            {"role": "assistant", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"a": 1' + "0" * 5000 + "}"}}
            ]},
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ], "max_tokens": 1},
        {"tools": [{"type": "function", "function": {"name": "x" * 64, "parameters": {"description": "y" * 2**20}}}], "tool_choice": "required"},
        {"metadata": {"k": "\ud800"}},
        {"user": "\ud800"},
        {"guided_choice": ["\ud800"]},
        {"guided_json": '{"const": "\\ud800"}'},
    ],
)  # fmt: skip
def test_strange_values_are_answered_without_a_server_error(
    client: TestClient, model: str, fields: dict[str, Any]
) -> None:
    content = json.dumps({"model": model, "messages": QUESTION, "max_tokens": 2, **fields})
    response = client.post("/chat/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400), response.text
