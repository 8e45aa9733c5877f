"""Constraints over a vocabulary of single bytes: what they let pass, what is refused, and in which words."""

import json
from typing import Any

import pytest

from lfx_local_runtimes.errors import EngineFailure, InvalidInput
from lfx_local_runtimes.runtimes.engines.constraints import Constraint, compile_constraint
from lfx_local_runtimes.runtimes.engines.schemas import MAX_CHARS
from lfx_local_runtimes.runtimes.tasks.generation import Grammar

llguidance = pytest.importorskip("llguidance")
np = pytest.importorskip("numpy")

END = 256


class Bytes:
    """A tokenizer in the form llguidance wraps: 256 bytes and an end token."""

    eos_token_id = END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (END,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))


def schema(value: Any) -> Grammar:
    return Grammar(kind="json_schema", json_schema=value)


def text(kind: Any, source: str) -> Grammar:
    return Grammar(kind=kind, text=source)


def takes(constraint: Constraint, answer: str) -> bool:
    """Whether the answer is allowed, byte by byte, and may end there."""
    for byte in answer.encode():
        if constraint.done or not constraint.allowed[byte]:
            return False
        constraint.accept(byte)
    return bool(constraint.allowed[END])


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name"],
    "additionalProperties": False,
}
LIST = {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}]}


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (schema(PERSON), '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 151}'),
        (schema(PERSON), '{"name":"Ada"}', '{"name": ""}'),
        (schema(PERSON), '{"name":"Ada"}', '{"age": 1}'),
        (schema({"type": "string", "pattern": "^[a-c]{2}$"}), '"ab"', '"abc"'),
        (schema({"enum": ["red", "green", 3]}), "3", '"blue"'),
        (schema(LIST), '{"next": {"next": null}}', '{"next": 1}'),
        (schema({"$ref": "#/$defs/a%20b~1c", "$defs": {"a b/c": {"const": "x"}}}), '"x"', '"y"'),
        (schema(True), "[1, {}]", "[1 1]"),
        (Grammar(kind="json_object"), '{"a": [true, "\\n"]}', "[1]"),
        (text("regex", "^[0-9]{3}$"), "123", "12"),
        (text("regex", r"a\$"), "a$", "a"),
        (text("regex", r"a\\$"), "a\\", "a$"),
        (text("gbnf", "root ::= [a-z]+ [a-z]"), "abc", "a"),
        (text("gbnf", 'root ::= "a" root | "\\u00e9" "\\u0041"'), "aaéA", "aé"),
        (text("gbnf", 'root ::= sum\nsum ::= one ("+" one)*\none ::= "(" sum ")" | [0-9]+'), "1+(2+34)", "1+(2"),
        (text("lark", 'start: "<" %json {"type": "integer"} ">"'), "<12>", "< 12>"),
    ],
)
def test_what_matches_passes_and_nothing_else(tokenizer: Any, grammar: Grammar, right: str, wrong: str) -> None:
    assert takes(compile_constraint(grammar, tokenizer), right)
    assert not takes(compile_constraint(grammar, tokenizer), wrong)


@pytest.mark.parametrize(
    "answer",
    [' {"a": 1}', '{ "a": 1}', '{"a":  1}', '{"a": 1 }', '{"a": 1,\n"b": 2}', '{"a" : 1}'],
)
def test_json_has_no_room_for_endless_whitespace(tokenizer: Any, answer: str) -> None:
    assert takes(compile_constraint(Grammar(kind="json_object"), tokenizer), '{"a": 1, "b":2}')
    assert not takes(compile_constraint(Grammar(kind="json_object"), tokenizer), answer)


def test_a_known_property_cannot_come_in_disguise(tokenizer: Any) -> None:
    """As an escape it would pass for an additional one, of any type."""
    grammar = schema({"type": "object", "properties": {"a": {"type": "integer"}}})
    assert takes(compile_constraint(grammar, tokenizer), '{"b": "x"}')
    assert not takes(compile_constraint(grammar, tokenizer), '{"\\u0061": "x"}')


@pytest.mark.parametrize(
    ("grammar", "answer", "done"),
    [
        (Grammar(kind="json_object"), "{}", True),
        (schema({"type": "integer"}), "12", False),
        (text("regex", "ab?"), "a", False),
        (text("regex", "ab?"), "ab", True),
        (text("regex", "a?"), "a", True),
    ],
)
def test_done_when_only_the_end_may_follow(tokenizer: Any, grammar: Grammar, answer: str, done: bool) -> None:
    constraint = compile_constraint(grammar, tokenizer)
    assert not constraint.done
    assert takes(constraint, answer)
    assert constraint.done is done


def test_an_end_token_ends_it(tokenizer: Any) -> None:
    constraint = compile_constraint(schema({"type": "integer"}), tokenizer)
    constraint.accept(ord("7"))
    constraint.accept(END)
    assert constraint.done


def test_mask_leaves_the_scores_of_what_may_come(tokenizer: Any) -> None:
    constraint = compile_constraint(text("regex", "[ab]"), tokenizer)
    scores = np.arange(300, dtype=np.float32)
    constraint.mask(scores)
    assert np.flatnonzero(scores > -np.inf).tolist() == [ord("a"), ord("b")]
    assert scores[ord("b")] == ord("b")


def test_scores_that_leave_nothing_are_the_callers_fault(tokenizer: Any) -> None:
    constraint = compile_constraint(text("regex", "[ab]"), tokenizer)
    scores = np.zeros(257, dtype=np.float32)
    scores[[ord("a"), ord("b")]] = -np.inf
    with pytest.raises(InvalidInput, match="logit_bias bans every token"):
        constraint.mask(scores)


def test_a_token_that_was_ruled_out_is_a_failure(tokenizer: Any) -> None:
    with pytest.raises(EngineFailure, match=f"Token {ord('x')} may not come next"):
        compile_constraint(text("regex", "[ab]"), tokenizer).accept(ord("x"))


def test_a_grammar_that_leads_nowhere_says_so_when_it_gets_there(tokenizer: Any) -> None:
    constraint = compile_constraint(text("lark", 'start: "x" y\ny: Z\nZ: /a/ & /b/'), tokenizer)
    with pytest.raises(InvalidInput, match="Lark grammar cannot be satisfied: nothing may come next"):
        constraint.accept(ord("x"))


ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (False, "cannot be satisfied"),
        ({"enum": []}, "cannot be satisfied"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, r"minimum \(3\) is greater than maximum \(1\)"),
        ({"type": "string", "pattern": "^a$", "minLength": 3}, "cannot be satisfied"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "cannot be satisfied"),
        ({"$ref": "#"}, "only an endless document could match"),
        (ENDLESS, "only an endless document could match"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "only an endless document could match"),
        ({"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}, "only an endless document could match"),
        ({"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": 1}, "an endless document"),
        (
            {"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": ENDLESS | {"$ref": "#/$defs/a"}}},
            r"#/\$defs/a",
        ),
    ],
)
def test_an_impossible_schema_is_an_error(tokenizer: Any, value: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        compile_constraint(schema(value), tokenizer)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"not": {}}, '"not"'),
        ({"type": "array", "uniqueItems": True, "contains": {}}, '"contains", "uniqueItems"|"uniqueItems", "contains"'),
        ({"not": {}, "x-guidance": {"lenient": True}}, '"not"'),
        ({"properties": {"a": {"if": {}}}}, '"if"'),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, '"oneOf" .* may overlap'),
        ({"type": "string", "format": "password"}, '"format": "password"'),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"$ref": "https://example.org/x"}, r"\$ref 'https://example.org/x' is not supported"),
        ({"$ref": "#name"}, r"\$ref '#name' is not supported"),
        ({"properties": {"a": {"$id": "x"}}}, r"\$id"),
        ({"$ref": "#/$defs/a/b", "$defs": {"a": {"$id": "x", "b": {}}}}, r"leads through an \$id"),
        ({"const": ["a\x01"]}, r"const has the control character U\+0001"),
        ({"properties": {"\x7f": {}}}, r"properties has the control character U\+007F"),
    ],
)
def test_what_cannot_be_enforced_is_named(tokenizer: Any, value: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        compile_constraint(schema(value), tokenizer)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (schema({"type": "foo"}), "Invalid type: foo"),
        (schema({"required": 5}), "'required', got 5"),
        (schema({"properties": []}), "properties must be an object"),
        (schema({"$ref": "#/$defs/a"}), "leads nowhere"),
        (schema({"minimum": float("nan")}), "not JSON"),
        (schema({"pattern": "a("}), "unclosed group at character 2"),
        (text("regex", "ab(c|d"), "regular expression is broken: unclosed group at character 3"),
        (text("regex", r"\bx"), "lookarounds not supported"),
        (text("regex", "[a&&b]"), "regular expression cannot be satisfied"),
        (text("regex", ""), "nothing but an empty answer"),
        (text("gbnf", 'root ::= "a" foo'), "Rule 'foo' not found"),
        (text("gbnf", 'x ::= "a"'), "no rule named root"),
        (text("gbnf", 'root ::= "a'), "line 1|line 3"),
        (text("lark", "start: foo"), 'line 1, column 8: unknown name: "foo"'),
        (text("lark", 'start: %json {"not": {}}'), '"not"'),
        (text("lark", 'start: %json {"x-guidance": {"lenient": true}, "not": {}}'), '"not"'),
        (text("lark", "start: %json nonsense"), "no JSON schema follows"),
    ],
)
def test_what_is_broken_is_told_with_its_place(tokenizer: Any, grammar: Grammar, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        compile_constraint(grammar, tokenizer)


def nested(levels: int, inside: Any, keyword: str = "items") -> Any:
    for _ in range(levels):
        inside = {keyword: inside}
    return inside


def chain(length: int) -> dict[str, Any]:
    links = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "null"}}}


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (schema({"enum": ["x" * MAX_CHARS]}), "characters; 120,000 are allowed"),
        (schema(nested(20_000, {})), "nested too deeply"),
        (schema(nested(400, {})), "recursion limit|nested too deeply"),
        (schema(chain(2000)), "nested too deeply"),
        (schema({"$ref": "#/$defs/a", "$defs": {"a": {**nested(60, {"$ref": "#"}), "type": "array"}} | chain(1)["$defs"]}), ""),
        (schema({"type": "object", "properties": {f"p{n}": {"multipleOf": 9901 + n} for n in range(50)}}), "multipleOf"),
        (schema({"anyOf": [{"const": f"{n:04}" * 20, "type": "string"} for n in range(5000)]}), "characters|too complex"),
        (schema({"allOf": [{"anyOf": [{"minimum": n}, {"maximum": n + 50}]} for n in range(30)]}), "too complex"),
        (text("regex", "x" * (MAX_CHARS + 1)), "characters; 120,000 are allowed"),
        (text("regex", "(" * 50_000 + ")" * 50_000), "broken|too complex"),
        (text("gbnf", "root ::= " + "(" * 5000), "broken"),
        (text("gbnf", "root ::= a\n" + 'a ::= "b"\n' * 1500), "1,000 rules"),
        (text("lark", "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(5000))), "rules and brackets"),
        (text("lark", "start: " + "(" * 900 + '"a"' + ")" * 900), "too complex"),
        (text("lark", "start: " + " | ".join('%json {"multipleOf": 9967}' for _ in range(50))), "multipleOf"),
    ],
)  # fmt: skip
def test_hostile_grammars_end_within_limits(tokenizer: Any, grammar: Grammar, words: str) -> None:
    if not words:  # as deep as it gets, and welcome
        assert takes(compile_constraint(grammar, tokenizer), "[]")
        return
    with pytest.raises(InvalidInput, match=words):
        compile_constraint(grammar, tokenizer)


@pytest.mark.parametrize("source", ["((a{100}){100}){100}", "(a|b|ab)*c{1,5000}", "[ab]*a[ab]{2000}", "(x+x+)+y"])
def test_an_expensive_regex_ends_within_limits(tokenizer: Any, source: str) -> None:
    try:
        constraint = compile_constraint(text("regex", source), tokenizer)
        for _ in range(200):
            constraint.accept(int(constraint.allowed.argmax()))
    except InvalidInput as error:
        assert "too complex" in error.message  # noqa: PT017 - either way is fine


def test_options_hold_inside_lark_too(tokenizer: Any) -> None:
    source = 'start: %json {"type": "object", "x-guidance": {"whitespace_flexible": true}}'
    assert not takes(compile_constraint(text("lark", source), tokenizer), json.dumps({"a": 1}, indent=1))
    assert takes(compile_constraint(text("lark", source), tokenizer), json.dumps({"a": 1}))
