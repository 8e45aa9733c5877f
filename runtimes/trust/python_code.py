"""One Python file, read and never run: what it imports and which notable names it uses."""

import ast
import io
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

from lfx_local_runtimes.runtimes.trust.notable import ATTRIBUTES, BUILTINS, group_of

_PLAIN_ENCODINGS = frozenset({"utf-8", "utf-8-sig", "ascii", "iso-8859-1"})
_TRUSTS = "trust_remote_code"


class Unreadable(Exception):
    """A file that cannot be read as Python; the text says why."""


@dataclass(frozen=True, slots=True)
class Imported:
    """One import statement: the number of leading dots, the module, and the names taken from it."""

    level: int
    module: str
    names: tuple[str, ...] = ()


@dataclass
class Reading:
    """What one file imports and uses."""

    imports: list[Imported] = field(default_factory=list)
    found: list[tuple[str, str, int]] = field(default_factory=list)
    """Group, name, line."""


def read_python(source: bytes) -> Reading:
    """Parse a file as Python would and list what it names.

    Raises:
        Unreadable: it does not parse, or parsing it takes too much.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except SyntaxError as error:
        line = f" (line {error.lineno})" if error.lineno else ""
        raise Unreadable(f"it is not valid Python{line}: {error.msg}") from error
    except (ValueError, LookupError) as error:  # null bytes, an encoding that does not exist
        raise Unreadable(f"it is not valid Python: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise Unreadable("it is nested too deeply") from error
    reader = _Reader()
    if encoding not in _PLAIN_ENCODINGS:  # an editor may show other text than Python runs
        reader.reading.found.append(("dynamic code", f"the encoding {encoding}", 1))
    reader.read(tree)
    return reader.reading


class _Reader:
    """Walks a tree with a list of its own in place of recursion: a hostile tree is deep."""

    def __init__(self) -> None:
        self.reading = Reading()
        self._names: dict[str, set[str]] = {}
        """What a name may stand for, by every import of the file."""

    def read(self, tree: ast.AST) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self._import(node)
            elif isinstance(node, ast.ImportFrom):
                self._import_from(node)
        waiting = [tree]
        while waiting:
            node = waiting.pop()
            if isinstance(node, (ast.Attribute, ast.Name)):
                waiting += self._use(node)
                continue
            if isinstance(node, ast.Call):
                self._call(node)
            waiting += ast.iter_child_nodes(node)

    def _note(self, dotted: str, line: int, what: str = "") -> None:
        if (group := group_of(dotted)) is not None:
            self.reading.found.append((group, what or dotted, line))

    def _import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.reading.imports.append(Imported(0, alias.name))
            bound = alias.asname or alias.name.partition(".")[0]
            self._names.setdefault(bound, set()).add(alias.name if alias.asname else bound)
            if alias.name != "os":  # its uses are listed, and every second file imports it
                self._note(alias.name, node.lineno, f"import {alias.name}")

    def _import_from(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        self.reading.imports.append(Imported(node.level, module, tuple(alias.name for alias in node.names)))
        if node.level:
            return
        for alias in node.names:
            dotted = f"{module}.{alias.name}"
            self._names.setdefault(alias.asname or alias.name, set()).add(dotted)
            self._note(module if alias.name == "*" else dotted, node.lineno, f"from {module} import {alias.name}")

    def _use(self, node: ast.Attribute | ast.Name) -> list[ast.AST]:
        """Note a name with all its attributes; returns what is left to walk."""
        attributes: list[str] = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            attributes.append(base.attr)
            base = base.value
        for name in ATTRIBUTES.intersection(attributes):
            self.reading.found.append(("dynamic code", name, node.lineno))
        if not isinstance(base, ast.Name):
            return [base]
        if isinstance(base.ctx, ast.Load):
            for dotted in self._meanings(base.id, attributes):
                self._note(dotted, node.lineno)
        return []

    def _meanings(self, name: str, attributes: list[str]) -> Iterator[str]:
        for known in self._names.get(name, {name} & BUILTINS):
            yield ".".join([known, *reversed(attributes)])

    def _call(self, node: ast.Call) -> None:
        if any(keyword.arg == _TRUSTS for keyword in node.keywords):
            self.reading.found.append(("dynamic code", _TRUSTS, node.lineno))
        if not (isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) >= 2):
            return
        wanted = node.args[1]
        if not (isinstance(wanted, ast.Constant) and isinstance(wanted.value, str)):
            self.reading.found.append(("dynamic code", "getattr with a computed name", node.lineno))
            return
        self._use(ast.Attribute(node.args[0], wanted.value, ast.Load(), lineno=node.lineno))
