"""Which fields of a request for text go together, for its JSON schema. The validators of `generation` check the same."""

from typing import Any

Schema = dict[str, Any]

NULL: Schema = {"type": "null"}
"""Or left out: a property that is absent fits every schema."""
_FALSE: Schema = {"const": False}
_TRUE: Schema = {"const": True}
_TEXT: Schema = {"type": "string"}
_LIST: Schema = {"type": "array"}
_EMPTY: Schema = {"maxItems": 0}


def fields(*needed: str, **schemas: Schema) -> Schema:
    """An object that has the needed fields. Fields with a schema fit it, or are left out."""
    return {"required": list(needed), "properties": schemas}


_TEMPLATED = {"raw": _FALSE, "suffix": NULL, "echo": _FALSE, "prompt_ids": NULL}
_RAW = {"raw": _TRUE, "messages": NULL, "tools": _EMPTY, "continue_final_message": _FALSE}

GRAMMAR: Schema = {
    "anyOf": [
        fields("kind", kind={"const": "json_object"}, json_schema=NULL, text=NULL),
        fields("kind", "json_schema", kind={"const": "json_schema"}, json_schema={"not": NULL}, text=NULL),
        fields("kind", "text", kind={"enum": ["regex", "gbnf", "lark"]}, json_schema=NULL, text=_TEXT),
    ]
}
"""Of a form: the source that its kind needs."""

GENERATION: Schema = {
    "allOf": [
        {
            "anyOf": [
                fields("messages", messages=_LIST, prompt=NULL, **_TEMPLATED),
                fields("prompt", prompt=_TEXT, messages=NULL, continue_final_message=_FALSE, **_TEMPLATED),
                fields("prompt", "raw", prompt=_TEXT, prompt_ids=NULL, suffix=NULL, **_RAW),
                fields(
                    "prompt", "raw", "suffix", prompt=_TEXT, prompt_ids=NULL, suffix=_TEXT, echo=_FALSE, truncate=_FALSE,
                    **_RAW,
                ),
                fields("prompt_ids", "raw", prompt=NULL, prompt_ids=_LIST, suffix=NULL, **_RAW),
            ]
        },
        {"anyOf": [fields(top_logprobs={"const": 0}), fields("logprobs", logprobs=_TRUE)]},
        {"anyOf": [fields(tool_choice={"enum": ["none", "auto"]}), fields("tools", tools={"minItems": 1})]},
        {
            "anyOf": [
                fields(tools=_EMPTY),
                fields("tool_choice", tool_choice={"const": "none"}),
                fields(grammar={"properties": {"kind": {"enum": ["json_object", "json_schema"]}}}),
            ]
        },
    ]
}  # fmt: skip
"""Of a request: one input and what it allows, and the fields that need others."""

TOKEN_IDS: Schema = {"propertyNames": {"pattern": "^[0-9]{1,9}$"}}
"""Of an object whose names are token ids."""


def at_most_one(*names: str) -> Schema:
    """Of fields that exclude each other: all but one are null."""
    return {"anyOf": [fields(**{other: NULL for other in names if other != name}) for name in names]}
