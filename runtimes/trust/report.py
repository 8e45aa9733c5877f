"""What a scan found, as plain data. Everything in it came from a stranger: text is printable ASCII and bounded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

Kind = Literal["remote_code", "pickle"]
REMOTE_CODE: Kind = "remote_code"
PICKLE: Kind = "pickle"

GROUPS = ("network", "programs", "native code", "dynamic code", "files", "process")
"""What a finding is about. Dynamic code is made while the program runs, so a scan cannot see it. Process means
environment variables, signals and the interpreter's own state."""

MAX_FINDINGS = 1000
MAX_LINES = 20
_MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class Finding:
    """One notable thing that a file names or calls. `lines` is empty for a pickle."""

    group: str
    what: str
    file: str
    lines: tuple[int, ...] = ()


@dataclass(frozen=True)
class CodeReport:
    """The code of one kind that a model would run."""

    kind: Kind
    source: str
    """Which copy of the model this is: `org/name@commit` for the hub, else the folder's path."""
    files: tuple[str, ...]
    """Paths inside the model's folder, with `/`."""
    sha256: str
    """Over the names and contents of `files`, in hexadecimal. Empty if they could not all be read."""
    findings: tuple[Finding, ...]
    imports: tuple[str, ...]
    """The modules that the files import. For a pickle: the names that it looks up."""
    problems: tuple[str, ...] = ()
    """Why the code cannot be checked. Such code is never approved and never run."""


@dataclass(frozen=True)
class Clearance:
    """What the gate lets pass for one load."""

    name: str
    """The model that the code was approved for."""
    who: str
    """Asks for the load."""
    code: Mapping[Kind, str] = field(default_factory=dict)
    """The SHA-256 of the code that may run, by its kind. An engine runs no other: what the scan did not see is refused."""
    needs_full: bool = False
    """The code may run only in a process that is confined in full."""


def shown(text: object) -> str:
    """Text from a stranger, safe to print: other characters than printable ASCII are escaped, and it is cut."""
    plain = ascii(str(text)[:_MAX_TEXT])[1:-1]
    return plain if len(plain) <= _MAX_TEXT else f"{plain[:_MAX_TEXT]}..."


def merged(findings: Iterable[tuple[str, str, str, int]]) -> tuple[Finding, ...]:
    """One finding for each (group, what, file), with its lines; the most notable groups come first."""
    lines: dict[tuple[str, str, str], set[int]] = {}
    for group, what, file, line in findings:
        found = lines.setdefault((group, shown(what), shown(file)), set())
        if line:
            found.add(line)
    order = sorted(lines, key=lambda key: (GROUPS.index(key[0]), key[2], key[1]))
    return tuple(Finding(*key, tuple(sorted(lines[key])[:MAX_LINES])) for key in order[:MAX_FINDINGS])


def findings_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """The findings that the scan's process wrote down as JSON."""
    return tuple(
        Finding(str(row["group"]), str(row["what"]), str(row["file"]), tuple(cast("list[int]", row["lines"])))
        for row in rows
    )
