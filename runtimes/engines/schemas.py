"""Checks JSON schemas from requests before llguidance compiles them.

llguidance reports most of what it cannot enforce; this module refuses the rest. Its compiler is recursive native code
and does not limit references. Too long a chain of references would end the process, so the length is limited here.
"""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.tasks.generation import MAX_SCHEMA_CHARS

MAX_CHARS = MAX_SCHEMA_CHARS
"""Characters of a schema as JSON, and of a grammar's text."""

MAX_DEPTH = 512
"""Levels of all referenced schemas, added up: no path through them is deeper. They take a third of an 8 MiB stack."""

MAX_MULTIPLES = 100_000
"""Number of schemas times the least common multiple of their `multipleOf`. This many take llguidance about two seconds."""

_OTHER_BASE = ("$id", "id")
_MAPS = ("properties", "patternProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ONES = ("items", "additionalItems", "additionalProperties")
_UNWRITABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")


def check_schema(schema: Any, spent: int = 0) -> int:
    """Make sure that a schema can be compiled and lets no wrong answer pass.

    Args:
        schema: from a request, of any type.
        spent: how much of `MAX_MULTIPLES` other schemas of the same grammar use.

    Returns:
        `spent` plus what this schema uses.

    Raises:
        InvalidInput: it cannot be satisfied, cannot be enforced, or is too large; the keyword is named.
    """
    try:
        text = json.dumps(schema, allow_nan=False)
        if len(text) > MAX_CHARS:
            raise InvalidInput(f"The JSON schema has {len(text):,} characters; {MAX_CHARS:,} are allowed.")
        return _Schema(schema).check(spent)
    except RecursionError as error:
        raise InvalidInput("The JSON schema is nested too deeply.") from error
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"The JSON schema is not JSON: {error}.") from error


class _Schema:
    """A schema with everything it refers to: `targets` maps references to schemas. `#` is the whole schema."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self.targets: dict[str, Any] = {"#": root}
        self._nodes = 0
        self._multiple = 1

    def check(self, spent: int) -> int:
        """See `check_schema`."""
        depth, waiting = 0, ["#"]
        while waiting:
            name = waiting.pop()
            depth += self._visit(self.targets[name], waiting)
            if depth > MAX_DEPTH:
                raise InvalidInput(f"The JSON schema is nested too deeply: its $ref add up to over {MAX_DEPTH} levels.")
        spent += self._nodes * self._multiple if self._multiple > 1 else 0
        if spent > MAX_MULTIPLES:
            raise InvalidInput(f"multipleOf is too costly here: the least common multiple is {self._multiple:,}.")
        self._check_endings()
        return spent

    def _visit(self, schema: Any, waiting: list[str]) -> int:
        """Check one schema and those inside it; references go to `waiting`. Returns its depth."""
        self._nodes += 1
        if not isinstance(schema, dict):
            return 1
        if schema is not self._root and (self._moves_base(schema) or "$schema" in schema):
            raise InvalidInput(
                "$id and $schema inside a JSON schema are not supported.", hint="Use $defs and #/$defs/…."
            )
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in self.targets:
            self.targets[reference] = self._resolve(reference)
            waiting.append(reference)
        for keyword in ("const", "enum", "properties", "required"):
            _check_writable(keyword, schema.get(keyword))
        self._check_counts(schema)
        return 1 + max((self._visit(inner, waiting) for inner in _inner(schema)), default=0)

    @staticmethod
    def _moves_base(schema: dict[str, Any]) -> bool:
        return any(isinstance(schema.get(keyword), str) for keyword in _OTHER_BASE)

    def _resolve(self, reference: str) -> Any:
        if not reference.startswith("#/"):
            raise InvalidInput(f"$ref {reference[:200]!r} is not supported: only those that begin with #/ are.")
        found = self._root
        for part in unquote(reference[2:]).split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (LookupError, TypeError, ValueError):
                raise InvalidInput(f"$ref {reference[:200]!r} leads nowhere.") from None
            if isinstance(found, dict) and self._moves_base(found):
                raise InvalidInput(f"$ref {reference[:200]!r} leads through an $id, which is not supported.")
        return found

    def _check_counts(self, schema: dict[str, Any]) -> None:
        least = _number(schema, "minProperties")
        if least - len(set(map(str, _list(schema, "required")))) > 1:  # the same key, written twice, would count as two
            raise InvalidInput("minProperties cannot be enforced beyond the required properties and one more.")
        multiple = schema.get("multipleOf")
        if isinstance(multiple, int | float) and multiple > 0:
            digits = "".join(map(str, Decimal(repr(multiple)).as_tuple().digits)).rstrip("0")
            self._multiple = math.lcm(self._multiple, int(digits or 1))

    # -- endings -----------------------------------------------------------------------------------------------------

    def _check_endings(self) -> None:
        """Refuse schemas that only an endless document could satisfy, such as an object that requires itself."""
        finite: set[str] = set()
        endless = list(reversed(self.targets))
        while ended := {name for name in endless if self._ends(self.targets[name], finite)}:
            finite |= ended
            endless = [name for name in endless if name not in finite]
        if endless:
            where = "The JSON schema" if "#" in endless else f"The JSON schema's {endless[0][:200]}"
            raise InvalidInput(f"{where} cannot be satisfied: only an endless document could match, or it is false.")

    def _ends(self, schema: Any, finite: set[str]) -> bool:
        """Whether a finite document may match, if those in `finite` are the only references that end.

        llguidance checks everything else.
        """
        if not isinstance(schema, dict):
            return schema is not False
        if "$ref" in schema and schema["$ref"] not in finite:
            return False
        if "const" in schema or "enum" in schema:
            return True
        if not all(self._ends(one, finite) for one in _list(schema, "allOf")):
            return False
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema and not any(self._ends(one, finite) for one in _list(schema, keyword)):
                return False
        types = schema.get("type", "any")
        return any(self._type_ends(one, schema, finite) for one in (types if isinstance(types, list) else [types]))

    def _type_ends(self, kind: Any, schema: dict[str, Any], finite: set[str]) -> bool:
        if kind == "object":
            known = schema.get("properties")
            known = known if isinstance(known, dict) else {}
            others = True if "patternProperties" in schema else schema.get("additionalProperties", True)
            required = [str(name) for name in _list(schema, "required")]
            if not all(self._ends(known.get(name, others), finite) for name in required):
                return False
            return _number(schema, "minProperties") <= len(required) or self._ends(others, finite)
        if kind == "array":
            first = _list(schema, "prefixItems") or _list(schema, "items")
            others = schema.get("additionalItems" if isinstance(schema.get("items"), list) else "items", True)
            least = _number(schema, "minItems")
            if not all(self._ends(one, finite) for one in first[: int(least)]):
                return False
            return least <= len(first) or self._ends(others, finite)
        return True


def _inner(schema: dict[str, Any]) -> Iterator[Any]:
    """The schemas directly inside one. Other keywords are annotations, or llguidance refuses them."""
    for keyword in _MAPS:
        if isinstance(schema.get(keyword), dict):
            yield from schema[keyword].values()
    for keyword in _LISTS:
        yield from _list(schema, keyword)
    for keyword in _ONES:
        if isinstance(schema.get(keyword), dict | bool):
            yield schema[keyword]


def _list(schema: dict[str, Any], keyword: str) -> list[Any]:
    value = schema.get(keyword)
    return value if isinstance(value, list) else []


def _number(schema: dict[str, Any], keyword: str) -> float:
    value = schema.get(keyword)
    return value if isinstance(value, int | float) else 0


def _check_writable(keyword: str, value: Any) -> None:
    """Refuse control characters that JSON writes as \\u00…: with such escapes, a property's name could be hidden."""
    if isinstance(value, str) and (found := _UNWRITABLE.search(value)):
        raise InvalidInput(f"{keyword} has the control character U+{ord(found[0]):04X}, which cannot be generated.")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_writable(keyword, name)
            if keyword != "properties":
                _check_writable(keyword, inner)
    elif isinstance(value, list):
        for inner in value:
            _check_writable(keyword, inner)
