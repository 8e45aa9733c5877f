"""Tool calls of every family: found in any cut of the text, told apart from text that is none, and written down."""

import json
from itertools import pairwise
from typing import Any

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.chat.tool_choice import answer_grammar, arguments_schema, close_objects, offered_tools
from lfx_local_runtimes.runtimes.chat.tool_formats import FORMATS, PLAIN, ToolFormat, choose_format
from lfx_local_runtimes.runtimes.chat.tool_notations import MAX_DEPTH, read_gemma, read_python, write_gemma
from lfx_local_runtimes.runtimes.chat.tool_parsers import ForcedParser, Parser
from lfx_local_runtimes.runtimes.engines.constraints import compile_constraint
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, Grammar, Tool, ToolCallDelta

ADD = Tool(
    name="add",
    description="Add two numbers.",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
)
TOOLS = (ADD, Tool(name="now"), Tool(name="json"))
FAMILY = {form.name: form for form in (PLAIN, *FORMATS)}
EVERY = pytest.mark.parametrize("name", FAMILY)

Told = tuple[str, list[tuple[str, str]]]


def told(parser: Parser, pieces: list[str]) -> Told:
    """Text and calls of a text in pieces; checks that the deltas of a call are well formed."""
    text, names, arguments, ids = "", {}, {}, set()
    for parsed in [*map(parser.push, pieces), parser.flush()]:
        text += parsed.text
        for delta in parsed.calls:
            assert isinstance(delta, ToolCallDelta)
            assert (delta.id is None) == (delta.name is None) == (delta.index in names)
            names.setdefault(delta.index, delta.name)
            arguments[delta.index] = arguments.get(delta.index, "") + delta.arguments
            ids |= {delta.id} - {None}
    assert list(names) == list(range(len(names)))
    assert len(ids) == len(names)
    return text, [(str(names[index]), arguments[index]) for index in names]


def read(name: str, text: str, places: tuple[int, ...] | list[int] = (), *, parallel: bool = True) -> Told:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return told(FAMILY[name].parser(TOOLS, parallel=parallel), [text[a:b] for a, b in pairwise(edges)])


def calls(*made: tuple[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in made]


HARD = {"a": 1, "b": 'x "}] ``` </tool_call> [TOOL_CALLS] ünï\n\\'}

CALLS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("json", '{"name": "add", "arguments": {"a": 1}}', "", calls(("add", {"a": 1}))),
    ("json", '\n {"function": "now"}\n', "", calls(("now", {}))),
    ("json", '```json\n{"name": "add", "arguments": {"a": 1}}\n```', "", calls(("add", {"a": 1}))),
    ("json", 'So:\n```\n[{"name": "now"}, {"name": "now"}]\n```\nDone', "So:\n\nDone", calls(("now", {}), ("now", {}))),
    ("json", '{"name": "now"}\n{"name": "now"}', "", calls(("now", {}), ("now", {}))),
    ("json", '{"tool_calls": [{"id": "1", "function": {"name": "add", "arguments": "{\\"a\\": 2}"}}]}', "",
     calls(("add", {"a": 2}))),
    ("hermes", 'Well.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', "Well.\n",
     calls(("add", {"a": 1}))),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>\n<tool_call>{"name": "now"}', "", calls(("now", {}), ("now", {}))),
    ("hermes", "<tool_call>\n<function=add>\n<parameter=a>\n3\n</parameter>\n<parameter=b>\n4\n</parameter>\n"
     "</function>\n</tool_call>", "", calls(("add", {"a": 3, "b": "4"}))),
    ("llama3", '{"name": "add", "parameters": {"a": 1}}', "", calls(("add", {"a": 1}))),
    ("llama3", '<|python_tag|>{"type": "function", "name": "now", "parameters": {}}; {"name": "now"}', "",
     calls(("now", {}), ("now", {}))),
    ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "a23456789"}, {"name": "now"}]', "",
     calls(("add", {"a": 1}), ("now", {}))),
    ("mistral", '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]now[CALL_ID]a23456789[ARGS]{}', "",
     calls(("add", {"a": 1}), ("now", {}))),
    ("mistral", '[TOOL_CALLS]json[ARGS]{"a": [1]}', "", calls(("json", {"a": [1]}))),
    ("mistral", 'Hm. [TOOL_CALLS]now{"a": 1}', "Hm. ", calls(("now", {"a": 1}))),
    ("gemma", "```tool_code\nprint(add(1, b='x{'))\n```", "", calls(("add", {"a": 1, "b": "x{"}))),
    ("gemma", "[add(a=1), now()]", "", calls(("add", {"a": 1}), ("now", {}))),
    ("gemma", '```json\n{"name": "now", "parameters": {}}\n```\n', "", calls(("now", {}))),
    ("functiongemma", "<start_function_call>call:add{a:1,b:<escape>x, }<escape>}<end_function_call>", "",
     calls(("add", {"a": 1, "b": "x, }"}))),
    ("gemma4", '<|tool_call>call:add{a:-1.5,b:[<|"|>x<|"|>,{c:true,d:null}]}<tool_call|>', "",
     calls(("add", {"a": -1.5, "b": ["x", {"c": True, "d": None}]}))),
    ("harmony", '<|channel|>commentary to=functions.add<|message|>{"a": 1}<|call|>', "", calls(("add", {"a": 1}))),
]  # fmt: skip

TEXTS: list[tuple[str, str]] = [
    ("json", "Hello {world}"),
    ("json", "{"),
    ("json", " {} "),
    ("json", '{"total": 3}'),
    ("json", '{"name": "subtract", "arguments": {}}'),
    ("json", '{"name": "add", "arguments": [1]}'),
    ("json", '{"name": "add", "arguments": {"a": NaN}}'),
    ("json", '{"name": "add", "arguments": {"a": 1'),
    ("json", "```python\nprint({'name': 1})\n```\nThat was it."),
    ("json", '```json\n{"total": 3}\n```\nThat was it.'),
    ("json", '{"name": "add", "arguments": ' + "[" * 5000),
    ("json", "{" + " " * 600 + '"name": "now"}'),
    ("hermes", "a <tool_call b"),
    ("hermes", '<tool_call>\n{"name": "add", "arguments": {"a": }}\n</tool_call>\nSorry.'),
    ("hermes", "<tool_call>\nadd 1 and 2\n</tool_call>"),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1}'),
    ("hermes", "</tool_call> <tool_call></tool_call>"),
    ("hermes", "<tool_call><function=add><parameter=a</function></tool_call>"),
    ("llama3", "<|python_tag|>import math"),
    ("llama3", '{"name": "Ann", "age": 3}'),
    ("mistral", "[TOOL_CALLS] none"),
    ("mistral", "[TOOL_CALLS]" + "x" * 600 + "{}"),
    ("mistral", "[1, 2]"),
    ("gemma", "[add(a=b)]"),
    ("gemma", "```tool_code\nadd(a=__import__('os'))\n```"),
    ("gemma", "```tool_code\n" + "(" * 300 + "\n```"),
    ("functiongemma", "<start_function_call>call:add{a:<escape>x}<end_function_call>"),
    ("functiongemma", "<start_function_call>call:add{" + "a:{" * 500 + "<end_function_call>"),
    ("gemma4", '<|tool_call>call:subtract{a:1}<tool_call|>'),
    ("harmony", "<|channel|>commentary to=functions.add<|message|>{<|call|>"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "around", "made"), CALLS)
def test_calls_are_found_in_any_cut(name: str, text: str, around: str, made: list[tuple[str, str]]) -> None:
    for step in (1, 2, 7, len(text)):
        assert read(name, text, list(range(0, len(text), step))) == (around, made)


@pytest.mark.parametrize(("name", "text"), TEXTS)
def test_what_is_no_call_is_text_to_the_last_character(name: str, text: str) -> None:
    for step in (1, 2, 7, len(text)):
        assert read(name, text, list(range(0, len(text), step))) == (text, [])


@EVERY
def test_what_a_format_writes_it_reads(name: str) -> None:
    written = FAMILY[name].write_call("add", HARD)
    assert read(name, written) == ("", calls(("add", HARD)))
    twice = read(name, f"{written}\n{FAMILY[name].write_call('now', {})} Done.")
    assert (twice[0].strip(), twice[1]) == ("Done.", calls(("add", HARD), ("now", {})))


FRAGMENTS = st.sampled_from(
    [
        *(mark for form in FAMILY.values() for mark in (*form.openings, *form.closings, *form.control)),
        '{"name": "add"', '"arguments": {', '{"name": "now"}', "}", "]", "[", "{", '"', "\\", "\n", " ", ";", ",", "json",
        "add", "now", "call:add{", "[now()]", "tool_code", "(", ")", "x", "é", "<function=add>", "<", "`",
    ]
)  # fmt: skip


@given(st.sampled_from(sorted(FAMILY)), st.lists(FRAGMENTS, max_size=12), st.lists(st.integers(0, 400), max_size=12))
def test_no_cut_of_any_text_makes_a_difference(name: str, fragments: list[str], places: list[int]) -> None:
    text = "".join(fragments)
    whole = read(name, text)
    assert read(name, text, places) == whole
    assert read(name, text, list(range(len(text)))) == whole
    if not whole[1]:
        assert whole[0] == text


@EVERY
def test_one_call_where_one_is_wanted(name: str) -> None:
    written = FAMILY[name].write_call("now", {})
    assert read(name, f"{written}\n{written} Done.", [5], parallel=False) == ("", calls(("now", {})))


def test_a_text_without_calls_is_not_held_back() -> None:
    parser = FAMILY["hermes"].parser(TOOLS, parallel=True)
    assert [parser.push(piece).text for piece in ("Hello", " <b>", " <tool", "box>")] == [
        "Hello",
        " <b>",
        " ",
        "<toolbox>",
    ]
    parser = PLAIN.parser(TOOLS, parallel=True)
    assert [parser.push(piece).text for piece in ("{", '"to', "tal", '": 3}')] == ["", "", '{"total', '": 3}']


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"a": "' + "x" * 200_000),
        ("json", '{"name": "' + "[" * 200_000),
        ("gemma", "```tool_code\n" + "[(" * 100_000),
        ("mistral", "[TOOL_CALLS]" * 20_000),
        ("json", "```" * 70_000),
        ("functiongemma", "<start_function_call>call:add{" + "[" * 200_000 + "<end_function_call>"),
        ("hermes", "<tool_call><function=add>" + "<parameter=a>" * 20_000 + "</tool_call>"),
    ],
)
def test_a_long_hostile_text_is_read_to_its_end(name: str, text: str) -> None:
    assert read(name, text)[0] in (text, "")
    assert read(name, text, list(range(0, len(text), 3)))[0] in (text, "")


# -- notations -------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text("ab{}[]:,\"' \n", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab_", min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=5), JSON, max_size=3))
def test_gemmas_notation_there_and_back(arguments: dict[str, Any]) -> None:
    written = f"call:add{write_gemma(arguments, '<escape>')}"
    assert read_gemma(written, {"add": ADD}, "<escape>") == [("add", arguments)]


@pytest.mark.parametrize(
    "text", ["call:add{a:}", "call:add{a 1}", "call:add{a:1", "call:add{a:[1}", "add{a:1}", "call:add{a:1} b"]
)
def test_broken_notation_is_no_call(text: str) -> None:
    assert read_gemma(text, {"add": ADD}, "<escape>") is None


def test_depth_is_bounded() -> None:
    assert read_gemma("call:add{a:" + "[" * MAX_DEPTH * 2 + "]" * MAX_DEPTH * 2 + "}", {"add": ADD}, '"') is None


@pytest.mark.parametrize(
    "text",
    [
        "add(a=open('x'))",
        "add(*[1])",
        "add(**{'a': 1})",
        "add(1, 2, 3)",
        "add(a={1})",
        "os.system('x')",
        "add",
        "add(a=1)\nnow()",
    ],
)
def test_python_that_is_no_plain_call_is_not_read(text: str) -> None:
    assert read_python(text, {"add": ADD, "now": TOOLS[1]}) is None


# -- choosing, telling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "source", "name"),
    [
        ("gemma", None, "gemma"), ("chatml", None, "hermes"), ("llama3", None, "llama3"), ("dialogue", None, "json"),
        ("none", None, "json"),
        ("model", "<|im_start|>{{ tools }}<tool_call>", "hermes"),
        ("model", "{{ '<|start_header_id|>' }}<|python_tag|>", "llama3"),
        ("model", "[AVAILABLE_TOOLS][TOOL_CALLS]", "mistral"),
        ("model", "<start_of_turn>", "gemma"),
        ("model", "<start_of_turn><start_function_call>call:", "functiongemma"),
        ("model", "<|turn><|tool_call>call:", "gemma4"),
        ("model", "<|start|>assistant<|channel|>final<|message|>", "harmony"),
        ("custom", "{{ messages }}", "json"),
    ],
)  # fmt: skip
def test_the_template_tells_the_family(template: str, source: str | None, name: str) -> None:
    assert choose_format(template, source).name == name


@EVERY
def test_a_model_is_told_what_it_can_call_and_how(name: str) -> None:
    form: ToolFormat = FAMILY[name]
    text = form.instructions(TOOLS)
    for part in ("add", "Add two numbers.", '"a": {"type": "integer"}', "now"):
        assert part in text
    assert all(mark in text for mark in form.openings if mark not in ("```", "<|python_tag|>"))
    assert "42" in form.write_result("add", "42")


# -- forced choice ---------------------------------------------------------------------------------------------------


def config(**options: Any) -> GenerationConfig:
    return GenerationConfig.model_validate({"prompt": "Hi", "tools": TOOLS, **options})


@pytest.mark.parametrize(
    ("choice", "offered"),
    [("auto", ["add", "now", "json"]), ("required", ["add", "now", "json"]), ("none", []), ("now", ["now"])],
)
def test_which_tools_are_offered(choice: str, offered: list[str]) -> None:
    assert [tool.name for tool in offered_tools(config(tool_choice=choice))] == offered


def test_a_free_choice_has_no_grammar() -> None:
    assert answer_grammar(config()) is None
    assert answer_grammar(config(tool_choice="none")) is None
    assert answer_grammar(GenerationConfig(prompt="Hi")) is None


def accepts(grammar: Grammar | None, text: str) -> bool:
    """The grammar engine allows the text, and the answer to end there."""
    assert grammar is not None
    tokenizer = llguidance.LLTokenizer("byte")
    constraint = compile_constraint(grammar, tokenizer)
    for token in text.encode():
        if not constraint.allowed[token]:
            return False
        constraint.accept(token)
    return bool(constraint.allowed[tokenizer.eos_tokens].any())


@pytest.mark.parametrize(
    ("choice", "text", "allowed"),
    [
        ("required", '{"name": "add", "arguments": {"a": 1, "b": "x"}}', True),
        ("required", '{"name": "now", "arguments": {}}', True),
        ("now", '{"name": "now", "arguments": {}}', True),
        ("now", '{"name": "add", "arguments": {}}', False),
        ("now", '{"name": "now", "arguments": {"a": 1}}', False),
        ("required", '{"name": "add", "arguments": {"a": "x"}}', False),
        ("required", '{"name": "add", "arguments": {"c": 1}}', False),
        ("required", '{"name": "subtract", "arguments": {}}', False),
        ("required", '{"name": "now", "arguments": { }}', False),
        ("required", "Hello", False),
    ],
)
def test_a_forced_choice_allows_valid_calls_only(choice: str, text: str, allowed: bool) -> None:
    tools = (ADD, Tool(name="now"))
    assert accepts(answer_grammar(config(tools=tools, tool_choice=choice)), text) is allowed


def test_references_in_a_tools_schema_hold() -> None:
    point = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    tool = Tool(
        name="go", parameters={"properties": {"to": {"$ref": "#/$defs/P"}}, "required": ["to"], "$defs": {"P": point}}
    )
    grammar = answer_grammar(config(tools=(ADD, tool), tool_choice="required"))
    assert accepts(grammar, '{"name": "go", "arguments": {"to": {"x": 1}}}')
    assert not accepts(grammar, '{"name": "go", "arguments": {"to": {"y": 1}}}')


def test_a_schema_that_is_nested_too_deeply_is_refused_by_name() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"items": deep}
    tool = Tool.model_construct(name="deep", description="", parameters=deep)
    asked = config().model_copy(update={"tools": (tool,), "tool_choice": "deep"})
    with pytest.raises(InvalidInput, match="deep"):
        answer_grammar(asked)


def test_objects_are_closed_where_the_schema_leaves_it_open() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"properties": {"properties": {"type": "null"}}}}},
        "$defs": {
            "B": {"properties": {}, "additionalProperties": {"type": "string"}},
            "C": {"properties": {}, "allOf": []},
        },
    }
    closed = close_objects(schema)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["items"]["additionalProperties"] is False
    assert closed["$defs"] == schema["$defs"]
    assert "additionalProperties" not in schema
    assert close_objects(True) is True
    assert arguments_schema(Tool(name="now"))["additionalProperties"] is False


FORCED = '{"name": "add", "arguments": {"a": 1, "b": "}\\"é"}}'


@given(st.lists(st.integers(0, len(FORCED)), max_size=10))
def test_forced_arguments_come_as_they_are_written(places: list[int]) -> None:
    edges = [0, *sorted(places), len(FORCED)]
    parser = ForcedParser(TOOLS)
    assert told(parser, [FORCED[a:b] for a, b in pairwise(edges)]) == ("", [("add", FORCED[29:-1])])
    assert parser.done


def test_a_forced_call_streams() -> None:
    parser = ForcedParser(TOOLS)
    pieces = [parser.push(piece).calls for piece in ('{"name": "add", ', '"arguments": {"a"', ": 1", "}", "}")]
    assert [[(call.name, call.arguments) for call in calls] for calls in pieces] == [
        [], [("add", '{"a"')], [(None, ": 1")], [(None, "}")], [],
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["Hello", '{"name": "add"', '{"name": "add", "parameters": {}}'])
def test_what_was_not_forced_is_text(text: str) -> None:
    assert told(ForcedParser(TOOLS), list(text)) == (text, [])
