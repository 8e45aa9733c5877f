"""The form of an answer, in every way that clients ask for it: OpenAI's, ours, vLLM's and llama.cpp's. It becomes a `Grammar`."""

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from lfx_local_runtimes.routes.faults import InvalidField
from lfx_local_runtimes.routes.openai.conversation import Lenient, Refusals, grammar_of, refuse
from lfx_local_runtimes.runtimes.tasks.generation import Grammar
from lfx_local_runtimes.runtimes.tasks.generation_rules import NULL, at_most_one, fields

_FORM = "A form of the answer is asked for by response_format, grammar, regex or guided_choice."

FORM_REFUSALS: Refusals = {
    "stop_token_ids": (([],), "Use stop, with the text of the token."),
    "bad_words": (([],), "Ban their tokens with logit_bias."),
    "allowed_token_ids": ((), _FORM),
    "guided_whitespace_pattern": ((), _FORM),
    "structural_tag": ((), _FORM),
}

Source = Annotated[str, StringConstraints(min_length=1, max_length=1_000_000)]


def _read_json(value: object) -> object:
    """A schema may be sent as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error


Schema = Annotated[dict[str, Any] | bool, BeforeValidator(_read_json, json_schema_input_type=dict[str, Any] | bool)]


def _few(value: list[str]) -> list[str]:
    if sum(map(len, value)) > _MAX_CHOICES_CHARS:
        raise ValueError(f"has more than {_MAX_CHOICES_CHARS:,} characters")
    return value


_MAX_CHOICES_CHARS = 50_000
Choices = Annotated[list[Source], Field(min_length=1, max_length=1000), AfterValidator(_few)]


def _choice_regex(choices: list[str] | None) -> str | None:
    return None if choices is None else "|".join(re.escape(choice) for choice in choices)


class StructuredOutputs(BaseModel):
    """vLLM's form. Exactly one field."""

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True,
        json_schema_extra=at_most_one("json", "regex", "choice", "grammar", "json_object"),
    )  # fmt: skip

    schema_: Schema | None = Field(default=None, alias="json", description="A JSON schema that the answer must follow.")
    regex: Source | None = Field(default=None, description="A regular expression that the answer must match.")
    choice: Choices | None = Field(default=None, description="The answer is one of these texts.")
    grammar: Source | None = Field(default=None, description="A grammar in GBNF that the answer must follow.")
    json_object: bool | None = Field(default=None, description="The answer is any JSON object.")

    @model_validator(mode="before")
    @classmethod
    def _set(cls, data: object) -> object:
        """Leave out what changes nothing. Other fields are refused by name."""
        return {name: one for name, one in data.items() if one not in (None, False)} if isinstance(data, dict) else data

    def forms(self) -> list[dict[str, Any] | None]:
        """The fields of a `Grammar`, for each form."""
        return [
            _schema(self.schema_), _text("regex", self.regex), _text("gbnf", self.grammar),
            _text("regex", _choice_regex(self.choice)),
            {"kind": "json_object"} if self.json_object else None,
        ]  # fmt: skip


def _schema(schema: dict[str, Any] | bool | None) -> dict[str, Any] | None:
    return None if schema is None else {"kind": "json_schema", "json_schema": schema}


def _text(kind: str, text: str | None) -> dict[str, Any] | None:
    return None if text is None else {"kind": kind, "text": text}


_JSON_FORMS = ("json_schema", "guided_json")
_TEXT_FORMS = ("grammar", "regex", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs")
FORMS = (*_JSON_FORMS, *_TEXT_FORMS)


def form_rules(*more: dict[str, Any], **text: dict[str, Any]) -> dict[str, Any]:
    """Which fields go together, for the JSON schema of a body: at most one asks for a form, and tools go with JSON only.

    Args:
        more: other rules.
        text: OpenAI's own field for a form, and its schema if it asks for none.
    """
    alone = {name: {other: NULL for other in FORMS if other != name} | text for name in FORMS}
    ways = [fields(**dict.fromkeys(FORMS, NULL))]
    ways += [
        fields(**rest, **({"tools": {"maxItems": 0}} if name in _TEXT_FORMS else {})) for name, rest in alone.items()
    ]
    choices = [
        fields(tool_choice={"enum": ["none", "auto", None]}),
        fields("tools", tools={"type": "array", "minItems": 1}),
    ]
    return {"allOf": [{"anyOf": ways}, {"anyOf": choices}, *more]}


class Forms(Lenient):
    """The fields that ask for a form of the answer, besides OpenAI's own. A request may have one of them."""

    model_config = ConfigDict(json_schema_extra=at_most_one(*FORMS))

    grammar: Source | None = Field(
        default=None, description="Not OpenAI's. A grammar in GBNF that the answer must follow."
    )
    regex: Source | None = Field(
        default=None, description="Not OpenAI's. A regular expression that the answer must match."
    )
    json_schema: Schema | None = Field(
        default=None, description="llama.cpp's. A JSON schema that the answer must follow."
    )
    guided_json: Schema | None = Field(
        default=None, description="vLLM's. A JSON schema that the answer must follow, also as JSON text."
    )
    guided_regex: Source | None = Field(default=None, description="vLLM's name of regex.")
    guided_choice: Choices | None = Field(default=None, description="vLLM's. The answer is one of these texts.")
    guided_grammar: Source | None = Field(default=None, description="vLLM's name of grammar.")
    structured_outputs: StructuredOutputs | None = Field(
        default=None, description="vLLM's. json, regex, choice, grammar or json_object."
    )

    @model_validator(mode="before")
    @classmethod
    def _known_forms(cls, data: object) -> object:
        return refuse(data, FORM_REFUSALS)

    def constraint(self, wanted: dict[str, Any] | None, param: str) -> Grammar | None:
        """The grammar of the answer, if there is one; `wanted` is the response format's.

        Raises:
            InvalidField: the client sent more than one.
        """
        nested = self.structured_outputs.forms() if self.structured_outputs else []
        asked = [
            (wanted, param), (_text("gbnf", self.grammar), "grammar"), (_text("regex", self.regex), "regex"),
            (_schema(self.json_schema), "json_schema"), (_schema(self.guided_json), "guided_json"),
            (_text("regex", self.guided_regex), "guided_regex"),
            (_text("regex", _choice_regex(self.guided_choice)), "guided_choice"),
            (_text("gbnf", self.guided_grammar), "guided_grammar"),
            *((form, "structured_outputs") for form in nested),
        ]  # fmt: skip
        found = [(form, name) for form, name in asked if form is not None]
        if len(found) > 1:
            names = " and ".join(name for _, name in found)
            raise InvalidField(f"{names} exclude each other.", param=found[1][1], hint="Send one of them.")
        return grammar_of(*found[0]) if found else None
