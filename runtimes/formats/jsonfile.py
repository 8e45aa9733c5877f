"""Reads the JSON files of a model. Each must be an object of limited size, without a key given twice."""

import json
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import InvalidModelFile

MAX_JSON = 32 * 2**20
"""Bytes. The largest files of real models (indexes, tokenizer configurations) take a few MB."""


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """The object in a file.

    Raises:
        InvalidModelFile: it is too long, or not a JSON object.
        OSError: it cannot be read.
    """
    return parse_json(read_text(path, limit), path.name)


def read_text(path: Path, limit: int = MAX_JSON) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises:
        InvalidModelFile: it is longer.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(limit + 1)
    if len(text) > limit:
        raise InvalidModelFile(f"{path.name}: longer than {limit / 2**20:.0f} MiB")
    return text


def parse_json(text: bytes, name: str) -> dict[str, Any]:
    """The object in `text`. Errors mention `name`.

    Raises:
        InvalidModelFile: it is not a JSON object in UTF-8, is nested too deeply or gives a key twice.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InvalidModelFile(f"{name}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InvalidModelFile(f"{name}: not a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is given twice")
    return value
