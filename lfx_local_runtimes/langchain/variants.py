"""A model with load options of the caller: the key under which the manager knows it."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.langchain.messages import first_problem
from lfx_local_runtimes.runtimes.config import LoadOptions, ModelKey

LOADING = tuple(LoadOptions.model_fields)
"""The options that make another copy of a model."""


def variant(model: str, overrides: Mapping[str, Any]) -> ModelKey:
    """The model with these options; those that are None are the model's own.

    Raises:
        InvalidInput: an option is out of range.
    """
    try:
        return ModelKey(model, LoadOptions.model_validate(dict(overrides)))
    except ValidationError as error:
        raise InvalidInput(first_problem(error), model_name=model) from error
