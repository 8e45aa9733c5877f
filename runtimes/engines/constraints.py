"""Constrained answers: no token is allowed that would break a JSON schema, a regular expression or a grammar.

llguidance does the work. A schema keyword that it cannot enforce is an error; it is never ignored. A grammar that no
text can match is refused before any token is generated.
"""

import ctypes
import json
import re
from collections.abc import Sequence
from typing import Any

from lfx_local_runtimes.errors import EngineFailure, InvalidInput
from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.engines.schemas import MAX_CHARS, check_schema
from lfx_local_runtimes.runtimes.tasks.generation import Grammar

JSON_OPTIONS = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_flexible": False,  # otherwise a model may write spaces forever
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": '"\\bfnrt',  # no \u: it could hide a property's name, or write half a character
}
"""How JSON is written: on one line, with at most one space after `,` and `:`."""

MAX_RULES = 1000
"""Lines with a colon, plus brackets, of a Lark grammar. llguidance follows rules recursively in native code. Too deep a
recursion would end the process."""

_LEXER_FUEL = 200_000
_LEXER_STATES = 50_000  # about 2 kB each
_MAX_PIECE = 16 * 1024
_SPECIAL = b"\xff"
"""Marks a token without text for llguidance."""


class Constraint:
    """The tokens that may come next in an answer. One per answer, used by one thread at a time.

    Attributes:
        allowed: which tokens may come next, a numpy array of bools over the vocabulary; do not change it.
        done: only an end token may come next.
    """

    allowed: Any
    done: bool

    def __init__(self, matcher: Any, ends: Sequence[int], what: str) -> None:
        self._matcher = matcher
        self._ends = list(ends)
        self._what = what
        self._update()

    def _update(self) -> None:
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self.allowed = np.unpackbits(bits, bitorder="little").view(np.bool_)
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error(), self._what)
        may_end = np.count_nonzero(self.allowed[self._ends]) if self._matcher.is_accepting() else 0
        self.done = bool(may_end and np.count_nonzero(self.allowed) == may_end)

    def mask(self, scores: Any) -> None:
        """Set the scores of tokens that may not come next to -inf, in place.

        Args:
            scores: a float array of the vocabulary's length or longer. Tokens beyond the vocabulary are not allowed.

        Raises:
            InvalidInput: every allowed token was at -inf already.
        """
        import numpy as np

        known = self.allowed[: len(scores)]
        scores[: len(known)][~known] = -np.inf
        scores[len(known) :] = -np.inf
        if scores.max() == -np.inf:
            raise InvalidInput(f"logit_bias bans every token that may come next: {self._what} allows no other.")

    def accept(self, token: int) -> None:
        """Continue the answer with `token`, or end it if this is an end token.

        Raises:
            InvalidInput: the grammar becomes too complex, or no token can come next.
            EngineFailure: the token is not allowed.
        """
        if not self.allowed[token]:
            raise EngineFailure(
                f"Token {token} may not come next. {self._what} allows {self.allowed.sum():,} other tokens."
            )
        if token in self._ends:
            self.done = True
        elif self._matcher.consume_token(token):
            self._update()
        else:
            raise _refused(self._matcher.get_error(), self._what)


def compile_constraint(grammar: Grammar, tokenizer: Any) -> Constraint:
    """Make a grammar ready for one answer, in milliseconds.

    Args:
        grammar: what the answer must look like.
        tokenizer: an `llguidance.LLTokenizer`, see `llama_tokenizer` and `hf_tokenizer`.

    Raises:
        InvalidInput: the grammar is broken (the message has the place), impossible, too large, or cannot be enforced
            (the message has the keyword).
    """
    import llguidance

    what, source = _SUBJECT[grammar.kind], _source(grammar)
    limits = llguidance.LLParserLimits(
        initial_lexer_fuel=_LEXER_FUEL, max_lexer_states=_LEXER_STATES, verbose_errors=False
    )
    matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=limits)
    if matcher.is_error():
        raise _refused(matcher.get_error(), what)
    if warnings := matcher.get_grammar_warnings():
        raise _refused(warnings[0], what)
    constraint = Constraint(matcher, tokenizer.eos_tokens, what)
    if constraint.done:
        raise InvalidInput(f"{what} allows nothing but an empty answer.")
    return constraint


_SUBJECT = {
    "json_object": "The JSON schema", "json_schema": "The JSON schema", "regex": "The regular expression",
    "gbnf": "The GBNF grammar", "lark": "The Lark grammar",
}  # fmt: skip


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's form."""
    from llguidance import LLMatcher

    if grammar.kind in ("json_object", "json_schema"):
        schema = {"type": "object"} if grammar.kind == "json_object" else grammar.json_schema
        check_schema(schema)
        schema = {} if schema is True else schema
        return str(LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS))
    text = grammar.text or ""
    if len(text) > MAX_CHARS:
        raise InvalidInput(f"{_SUBJECT[grammar.kind]} has {len(text):,} characters; {MAX_CHARS:,} are allowed.")
    if grammar.kind == "regex":
        return str(LLMatcher.grammar_from_regex(_without_anchors(text)))
    if grammar.kind == "gbnf":
        text = _gbnf_to_lark(text)
    return str(LLMatcher.grammar_from_lark(_with_checked_schemas(text)))


def _without_anchors(regex: str) -> str:
    """The expression without ^ and $. llguidance does not support them, and the whole answer has to match anyway."""
    regex = regex.removeprefix("^")
    return regex[:-1] if re.search(r"(?<!\\)(\\\\)*\$\Z", regex) else regex


def _gbnf_to_lark(text: str) -> str:
    """A llama.cpp grammar in Lark's syntax.

    The rule `root` is renamed, and a new `root` calls it. Reason: llguidance reads a rule without recursion as one
    regular expression, character by character as llama.cpp does. But it never does so with the rule it starts with.
    """
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if text.count("::=") > MAX_RULES:
        raise InvalidInput(f"The GBNF grammar has more than {MAX_RULES:,} rules.")
    text, found = re.subn(r"^([ \t]*)root(?=[ \t]*::=)", r"\1whole-answer", text, count=1, flags=re.MULTILINE)
    if not found:
        raise InvalidInput("The GBNF grammar has no rule named root.")
    # The converter drops zeros that Rust's notation needs, so such characters are written as themselves.
    text = re.sub(r"(?<!\\)((?:\\\\)*)\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8}))", _as_character, text)
    try:
        return str(gbnf_to_lark(f"{text}\nroot ::= whole-answer\n"))
    except Exception as error:
        raise InvalidInput(f"The GBNF grammar is broken: {str(error) or type(error).__name__}.") from error


def _as_character(escape: re.Match[str]) -> str:
    code = int(escape[2] or escape[3], 16)
    if code < 0x80 or code > 0x10FFFF:
        return f"{escape[1]}\\x{code:02x}" if code < 0x80 else escape[0]
    return escape[1] + chr(code)


def _with_checked_schemas(lark: str) -> str:
    """The Lark grammar with its `%json` schemas checked, and with `JSON_OPTIONS` in each of them."""
    parts, rest, spent = [], lark, 0
    while (found := rest.find("%json")) >= 0:
        start = found + len("%json")
        start += len(rest[start:]) - len(rest[start:].lstrip())
        try:
            schema, end = json.JSONDecoder().raw_decode(rest, start)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"The Lark grammar is broken: no JSON schema follows %json ({error}).") from error
        spent = check_schema(schema, spent)
        if isinstance(schema, dict):
            schema = {**schema, "x-guidance": JSON_OPTIONS}
        parts += [rest[:found], "%json ", json.dumps(schema)]
        rest = rest[end:]
    outside = "".join(parts[0::3]) + rest
    size = sum(":" in line for line in outside.split("\n")) + len(re.findall(r"[(\[]", outside))
    if size > MAX_RULES:
        raise InvalidInput(f"The grammar has {size:,} rules and brackets; {MAX_RULES:,} are allowed.")
    return "".join(parts) + rest


# -- errors ------------------------------------------------------------------------------------------------------------

_PLACE = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")
_REASONS = (
    (r"Unimplemented keys: \[(.*?)\]", "uses {0}, which cannot be enforced", "Leave it out."),
    (
        r"oneOf constraints are not supported",
        'uses "oneOf" with alternatives that may overlap, which cannot be enforced',
        "Use anyOf, or give each alternative a constant property that tells them apart.",
    ),
    (r"Unknown format: (.*)", 'uses "format": "{0}", which cannot be enforced', "Use a pattern."),
    (r"Unsatisfiable schema: (.*)", "cannot be satisfied: {0}", ""),
    (r"NoExtension", "cannot be satisfied: nothing may come next", ""),
    (r"too (?:big|large|many|complex|deep)|fuel|max is", "is too complex: {first}", "Make it smaller."),
    (r"", "cannot be used: {first}", ""),
)
"""Pattern of llguidance's error → the text after the grammar's name, and a hint. The first match counts."""


def _refused(reason: str, what: str) -> InvalidInput:
    """The fault for llguidance's error, in our words."""
    if broken := re.search(r"regex parse error:\n {4}[^\n]*\n {4}( *)\^+\nerror: ([^\n]*)", reason):
        return InvalidInput(f"{what} is broken: {broken[2]} at character {len(broken[1]) + 1} of the regex.")
    found, message, hint = next(
        (found, message, hint) for pattern, message, hint in _REASONS if (found := re.search(pattern, reason))
    )
    return InvalidInput(f"{what} {message.format(*found.groups(), first=_first_line(reason))}.", hint=hint)


def _first_line(reason: str) -> str:
    line = _PLACE.sub(r"line \1, column \2: ", reason.strip().partition("\n")[0])
    return line[:300].rstrip(".:; ")


# -- tokenizers --------------------------------------------------------------------------------------------------------


def llama_tokenizer(vocabulary: int, ends: Sequence[int]) -> Any:
    """llama.cpp's vocabulary for llguidance. Takes a second or two for 262,144 tokens: keep it as long as the model.

    Args:
        vocabulary: its address; it must outlive the tokenizer.
        ends: the tokens that end an answer.
    """
    llama = require("llama_cpp", "llamacpp")
    llguidance = require("llguidance", "llamacpp")
    buffer = ctypes.create_string_buffer(_MAX_PIECE)

    def piece(token: int, special: bool) -> bytes:
        size = llama.llama_token_to_piece(vocabulary, token, buffer, _MAX_PIECE, 0, special)
        return ctypes.string_at(buffer, max(0, size))

    tokens = [piece(token, False) for token in range(llama.llama_vocab_n_tokens(vocabulary))]
    for token, text in enumerate(tokens):
        if not text:
            tokens[token] = _SPECIAL + (piece(token, True) or b"<%d>" % token)
    for token in ends:
        tokens[token] = _SPECIAL + tokens[token].removeprefix(_SPECIAL)
    tokenize = ctypes.cast(llama.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value
    return llguidance.LLTokenizer.from_llamacpp(
        tokens=tokens, vocab_ptr=vocabulary, tokenize_fptr=tokenize, eos_token=list(ends)
    )


def hf_tokenizer(tokenizer: Any, ends: Sequence[int]) -> Any:
    """A Transformers tokenizer for llguidance. Takes a second or two for 262,144 tokens: keep it as long as the model.

    Args:
        tokenizer: a fast one, backed by the `tokenizers` library.
        ends: the tokens that end an answer.

    Raises:
        InvalidInput: it is not a fast one.
    """
    require("llguidance", "transformers")
    from llguidance.hf import from_tokenizer

    try:
        return from_tokenizer(tokenizer, eos_token=list(ends))
    except ValueError as error:
        raise InvalidInput(
            f"This model's tokenizer ({type(tokenizer).__name__}) cannot be used with a grammar: {error}.",
            hint="Use a model with a tokenizer.json, or its GGUF copy.",
        ) from error
