"""What clients may ask of a task, in either API: the fields are those of its `Ask`, and so many inputs at once."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, PlainValidator, ValidationInfo, field_validator

MAX_INPUTS = 2048
"""Inputs of one request, as OpenAI has it."""


class Limited(BaseModel):
    """Put before an `Ask`: at most `MAX_INPUTS` inputs, counted before anything else is looked at."""

    @field_validator("texts", "documents", mode="before", check_fields=False)
    @classmethod
    def _few(cls, value: object) -> object:
        if isinstance(value, list) and len(value) > MAX_INPUTS:
            raise ValueError(f"{len(value):,} inputs are more than the {MAX_INPUTS:,} of one request")
        return value


class LimitedPairs(Limited):
    """The same for a `ZeroShotAsk`: an NLI model reads every text with every label."""

    @field_validator("labels", check_fields=False)
    @classmethod
    def _few_pairs(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        pairs = len(value) * len(info.data.get("texts", ()))
        if pairs > MAX_INPUTS:
            raise ValueError(f"each with each text makes {pairs:,} inputs, more than the {MAX_INPUTS:,} of one request")
        return value


def by_labels(own: type[BaseModel], given: type[BaseModel]) -> PlainValidator:
    """Reads a body as `given` where it brings labels, else as `own`: a union whose errors are those of one body."""

    def read(value: Any) -> BaseModel:
        brings = isinstance(value, dict) and value.get("labels") is not None
        return (given if brings else own).model_validate(value)

    either: Any = own | given
    reader: Callable[[Any], Any] = read
    return PlainValidator(reader, json_schema_input_type=either)
