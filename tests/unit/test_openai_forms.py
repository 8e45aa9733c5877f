"""A form that a client asks for is kept or refused, in OpenAI's words, vLLM's and llama.cpp's; and tools beside it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.runtimes.chat.answer import Answer
from lfx_local_runtimes.runtimes.chat.templates import Template
from lfx_local_runtimes.runtimes.chat.tool_choice import answer_grammar
from lfx_local_runtimes.runtimes.engines.constraints import compile_constraint
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.requests import Finished, GenerationStream, Request, Run
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, GenerationResult, Grammar
from tests.routes_app import KEY, MODEL, Stage, a_result, make_app

llguidance = pytest.importorskip("llguidance")

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}}
BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]},
    "/completions": {"model": MODEL, "prompt": "hi"},
    "/responses": {"model": MODEL, "input": "hi"},
}
every_path = pytest.mark.parametrize("path", BODIES)


@pytest.fixture
def client(manager: RuntimeManager, stage: Stage) -> Iterator[TestClient]:
    stage.events = [Finished(a_result())]
    app = make_app(manager)
    with TestClient(app, base_url=f"http://test{PREFIX}/v1", headers=KEY, raise_server_exceptions=False) as client:
        yield client


def post(client: TestClient, path: str, fields: dict[str, Any]) -> Any:
    """With half characters as JSON writes them, which the client's own JSON could not."""
    return client.post(path, content=json.dumps(BODIES[path] | fields), headers={"content-type": "application/json"})


def takes(grammar: Grammar | None, text: str) -> bool:
    """Whether the grammar allows just this text."""
    assert grammar is not None
    tokenizer = llguidance.LLTokenizer("byte")
    constraint = compile_constraint(grammar, tokenizer)
    for token in text.encode():
        if not constraint.allowed[token]:
            return False
        constraint.accept(token)
    return bool(constraint.allowed[tokenizer.eos_tokens].any())


RIGHT, WRONG = '{"a": 1}', '{"b": 1}'
FORMS: list[tuple[dict[str, Any], str, str]] = [
    ({"guided_json": SCHEMA}, RIGHT, WRONG),
    ({"guided_json": json.dumps(SCHEMA)}, RIGHT, WRONG),
    ({"json_schema": SCHEMA}, RIGHT, WRONG),
    ({"guided_regex": "[0-9]{2}"}, "42", "4"),
    ({"guided_choice": ["yes (1)", "no.", "may be|"]}, "may be|", "may be"),
    ({"guided_choice": ["yes (1)", "no."]}, "no.", "nox"),
    ({"guided_grammar": 'root ::= "a"+'}, "aa", "b"),
    ({"structured_outputs": {"json": SCHEMA, "regex": None, "disable_any_whitespace": False}}, RIGHT, WRONG),
    ({"structured_outputs": {"regex": "[0-9]{2}"}}, "42", "4"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "no", "maybe"),
    ({"structured_outputs": {"grammar": 'root ::= "a"+'}}, "aa", "b"),
    ({"structured_outputs": {"json_object": True}}, WRONG, "[]"),
]


@every_path
@pytest.mark.parametrize(("fields", "right", "wrong"), FORMS)
def test_a_form_is_kept(
    client: TestClient, stage: Stage, path: str, fields: dict[str, Any], right: str, wrong: str
) -> None:
    response = post(client, path, fields)
    assert response.status_code == 200, response.text
    grammar = stage.requests[-1].ask.grammar
    assert takes(grammar, right)
    assert not takes(grammar, wrong)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/chat/completions", {"response_format": {"type": "json_object", "schema": SCHEMA}}),
        ("/chat/completions", {"response_format": {"type": "json_object", "json_schema": {"schema": SCHEMA}}}),
        ("/chat/completions", {"response_format": {"type": "json_schema", "schema": SCHEMA}}),
        ("/responses", {"text": {"format": {"type": "json_object", "schema": SCHEMA}}}),
    ],
)
def test_a_schema_beside_json_object_is_kept(
    client: TestClient, stage: Stage, path: str, fields: dict[str, Any]
) -> None:
    assert post(client, path, fields).status_code == 200
    assert stage.requests[-1].ask.grammar == Grammar(kind="json_schema", json_schema=SCHEMA)


@every_path
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop_token_ids": [5]}, "stop_token_ids"),
        ({"bad_words": ["no"]}, "bad_words"),
        ({"allowed_token_ids": [5]}, "allowed_token_ids"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a", "guided_json": SCHEMA}, "guided_regex"),
    ],
)
def test_other_forms_are_refused_by_name(
    client: TestClient, stage: Stage, path: str, fields: dict[str, Any], param: str
) -> None:
    response = post(client, path, fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert not stage.requests


@every_path
def test_what_asks_for_nothing_is_taken(client: TestClient, path: str) -> None:
    nothing = {"stop_token_ids": [], "bad_words": None, "guided_json": None, "structured_outputs": None}
    assert post(client, path, nothing).status_code == 200


# -- what engines cannot read ----------------------------------------------------------------------------------------------

STRANGE = [
    ({"type": "integer", "maximum": 2**70}, "64 bits"),
    ({"type": "integer", "enum": [-(2**63) - 1]}, "64 bits"),
    ({"type": "string", "const": "\ud800"}, "half of a character"),
    ({"type": "object", "properties": {"\udfff": {}}}, "half of a character"),
]


@pytest.mark.parametrize(("schema", "says"), STRANGE)
def test_what_engines_cannot_read_is_refused(client: TestClient, stage: Stage, schema: Any, says: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tool = {
        "type": "function",
        "function": {"name": "x", "parameters": {"type": "object", "properties": {"p": schema}}},
    }
    for fields in ({"response_format": form}, {"guided_json": schema}, {"tools": [tool]}):
        response = post(client, "/chat/completions", fields)
        assert response.status_code == 400, response.text
        assert says in response.json()["error"]["message"]
    assert not stage.requests


def test_numbers_of_64_bits_are_taken(client: TestClient) -> None:
    schema = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
    assert post(client, "/chat/completions", {"guided_json": schema}).status_code == 200


def asked(**options: Any) -> GenerationConfig:
    return GenerationConfig.model_validate({"prompt": "Hi", "tools": [TOOL], **options})


@pytest.mark.parametrize("options", [{"tool_choice": "required"}, {"grammar": {"kind": "json_object"}}])
def test_a_tool_of_a_megabyte_is_refused(options: dict[str, Any]) -> None:
    large = {"name": "large", "parameters": {"type": "object", "properties": {}, "description": "x" * 2**20}}
    with pytest.raises(InvalidInput, match=r"large: 1,0\d\d,\d\d\d characters of JSON; 120,000 are allowed"):
        answer_grammar(asked(tools=[large], **options))


def test_many_large_tools_are_refused() -> None:
    tools = [{"name": f"t{i}", "parameters": {"description": "x" * 100_000}} for i in range(11)]
    with pytest.raises(InvalidInput, match="1,000,000 are allowed"):
        answer_grammar(asked(tools=tools, tool_choice="required"))


# -- tools beside a form ---------------------------------------------------------------------------------------------------

FORM = {"kind": "json_schema", "json_schema": SCHEMA}
CALL = '{"name": "add", "arguments": {"b": 1}}'


def answered(text: str, **options: Any) -> GenerationResult:
    request = Request("m", asked(**options))
    request.start()
    made = Answer(request, Template("model", "{% for message in messages %}{{ message.content }}{% endfor %}"))
    made.admit(1, 1000)
    assert takes(made.grammar, text)
    for character in text:
        if not made.push(character):
            break
    made.finish("stop", "", {})
    return GenerationStream(Run(request)).wait()


def test_a_free_choice_beside_a_form_allows_both() -> None:
    result = answered(RIGHT, grammar=FORM)
    assert (result.text, result.tool_calls, result.finish_reason) == (RIGHT, (), "stop")
    result = answered(CALL, grammar=FORM)
    assert (result.text, result.tool_calls[0].arguments, result.finish_reason) == ("", '{"b": 1}', "tool_calls")
    assert not takes(answer_grammar(asked(grammar=FORM)), WRONG)
    assert not takes(answer_grammar(asked(grammar=FORM)), '{"name": "add", "arguments": {"c": 1}}')


def test_a_free_choice_beside_any_json_object_allows_both() -> None:
    assert answered(WRONG, grammar={"kind": "json_object"}).text == WRONG
    assert answered(CALL, grammar={"kind": "json_object"}).tool_calls


def test_a_forced_choice_beside_a_form_is_a_call() -> None:
    for choice in ("required", "add"):
        assert answered(CALL, grammar=FORM, tool_choice=choice).tool_calls[0].name == "add"
        assert not takes(answer_grammar(asked(grammar=FORM, tool_choice=choice)), RIGHT)


def test_no_choice_beside_a_form_is_the_form() -> None:
    assert answer_grammar(asked(grammar=FORM, tool_choice="none")) == Grammar.model_validate(FORM)


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_other_forms_beside_tools_are_refused(client: TestClient, stage: Stage, choice: str) -> None:
    fields = {"regex": "a", "tools": [{"type": "function", "function": TOOL}], "tool_choice": choice}
    response = post(client, "/chat/completions", fields)
    assert response.status_code == 400
    assert "regex and tools exclude each other" in response.json()["error"]["message"]
    assert post(client, "/chat/completions", fields | {"tool_choice": "none"}).status_code == 200
    assert len(stage.requests) == 1
