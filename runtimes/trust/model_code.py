"""Which Python files a model's folder would run, and what they name. The folder is hostile; nothing in it is run.

Transformers runs the files that `auto_map` names in the configuration files, and `custom_generate/generate.py` if it is
there. What those import from the folder is followed. Code that is approved can still read any file of the model and run
it as code: the report lists such calls as dynamic code, and the confinement has to hold against them.
"""

import hashlib
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import InvalidModelFile
from lfx_local_runtimes.runtimes.formats.jsonfile import read_json
from lfx_local_runtimes.runtimes.trust.python_code import Imported, Unreadable, read_python
from lfx_local_runtimes.runtimes.trust.report import shown

MAX_FILES = 200
MAX_FILE = 2**20
MAX_TOTAL = 4 * 2**20
"""Bytes. A file of names and commas takes eight seconds a MiB to read; the largest honest ones have 0.3 MiB."""

MAX_PROBLEMS = 20

CONFIGURATIONS = (
    "config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "generation_config.json",
)  # fmt: skip
GENERATE = "custom_generate/generate.py"
"""Transformers loads it in place of its own `generate` if remote code is trusted."""


@dataclass
class FolderCode:
    """What was found; `files` has the SHA-256 of each file's content as it was read."""

    files: dict[str, str] = field(default_factory=dict)
    found: list[tuple[str, str, str, int]] = field(default_factory=list)
    """Group, name, file, line."""
    imports: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def read_folder(folder: Path) -> FolderCode:
    """Find the code that a model's folder would run, and read it."""
    return _Folder(folder).read()


def combined(kind: str, files: dict[str, str]) -> str:
    """One SHA-256 for all files, of their names and the SHA-256 of their contents."""
    lines = json.dumps([kind, sorted(files.items())], ensure_ascii=True)
    return hashlib.sha256(lines.encode()).hexdigest()


class Enclosure:
    """A model's folder, and the files that belong to it. A link may lead into the hub cache's folder of blobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._real = folder.resolve()
        repository = self._real.parent.parent
        self._blobs = repository / "blobs" if self._real.parent.name == "snapshots" else None

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders that hold the files."""
        return (self._real, self._blobs) if self._blobs is not None and self._blobs.is_dir() else (self._real,)

    def holds(self, path: Path) -> bool:
        """The path is a regular file in this folder, after links are followed.

        Raises:
            OSError, ValueError: there is no such file.
        """
        real = path.resolve(strict=True)
        inside = real.is_relative_to(self._real) or (self._blobs is not None and real.is_relative_to(self._blobs))
        return inside and stat.S_ISREG(real.stat().st_mode)


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._enclosure = Enclosure(folder)
        self._folder = folder
        self._code = FolderCode()
        self._total = 0
        self._waiting: list[str] = []
        self._seen: set[str] = set()

    def read(self) -> FolderCode:
        for reference in self._references():
            self._start(reference)
        if self._exists(GENERATE):
            self._add(GENERATE)
        while self._waiting:
            if len(self._code.files) >= MAX_FILES:
                self._problem(f"the model would run more than {MAX_FILES} files")
                break
            self._file(self._waiting.pop())
        return self._code

    def _add(self, name: str) -> None:
        if name not in self._seen:
            self._seen.add(name)
            self._waiting.append(name)

    def _problem(self, text: str) -> None:
        if len(self._code.problems) < MAX_PROBLEMS and shown(text) not in self._code.problems:
            self._code.problems.append(shown(text))

    # -- what the configuration names --------------------------------------------------------------------------------

    def _references(self) -> list[str]:
        return sorted({reference for name in CONFIGURATIONS for reference in _auto_maps(self._configuration(name))})

    def _configuration(self, name: str) -> dict[str, Any]:
        try:
            return read_json(self._folder / name)
        except FileNotFoundError:
            return {}
        except (InvalidModelFile, OSError) as error:
            self._problem(f"{name} cannot be read: {error}")
            return {}

    def _start(self, reference: str) -> None:
        """`module.Class`; `org/name--module.Class` is code of another repository."""
        module, dot, class_name = reference.partition(".")
        if "--" in reference:
            self._problem(f"the configuration names {reference}, which is code of another repository")
        elif not module or not dot or "." in class_name:
            self._problem(f"the configuration names {reference!r}, which is no class in a file")
        else:
            self._add(f"{module}.py")

    # -- files -------------------------------------------------------------------------------------------------------

    def _exists(self, name: str) -> bool:
        try:
            return (self._folder / name).is_file()
        except (OSError, ValueError):
            return False

    def _file(self, name: str) -> None:
        path = self._folder / name
        try:
            if not self._enclosure.holds(path):
                self._problem(f"{name} leads out of the model's folder")
                return
            with path.open("rb") as file:
                source = file.read(MAX_FILE + 1)
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
            self._problem(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}")
            return
        self._total += len(source)
        if len(source) > MAX_FILE or self._total > MAX_TOTAL:
            self._problem(f"{name} is too long: {MAX_FILE >> 20} MiB a file and {MAX_TOTAL >> 20} MiB in all are read")
            return
        self._code.files[name] = hashlib.sha256(source).hexdigest()
        try:
            reading = read_python(source)
        except Unreadable as error:
            self._problem(f"{name}: {error}")
            return
        self._code.found += [(group, what, name, line) for group, what, line in reading.found]
        for imported in reading.imports:
            self._follow(name, imported)

    def _follow(self, name: str, imported: Imported) -> None:
        """Add the files of the folder that an import would run. An absolute import may mean a file beside it, too."""
        folder = Path(name).parent
        if not imported.level:
            self._code.imports.add(shown(imported.module))
        steps = max(imported.level - 1, 0)
        if steps > len(folder.parts):
            self._code.found.append(
                ("dynamic code", f"an import from above the model's folder ({imported.module})", name, 0)
            )
            return
        for _ in range(steps):
            folder = folder.parent
        places = {folder} if imported.level else {folder, Path()}
        for place in places:
            for candidate in _candidates(place, imported):
                if self._exists(candidate):
                    self._add(candidate)


def _candidates(place: Path, imported: Imported) -> Iterator[str]:
    """Every file that Python would run for this import if it starts in `place`."""
    parts = imported.module.split(".") if imported.module else []
    for end in range(1, len(parts) + 1):
        yield from _module(place.joinpath(*parts[:end]))
    if imported.level and not parts:
        yield (place / "__init__.py").as_posix()
    for name in imported.names:
        yield from _module(place.joinpath(*parts, name))


def _module(path: Path) -> Iterator[str]:
    yield f"{path.as_posix()}.py"
    yield (path / "__init__.py").as_posix()


def _auto_maps(value: Any) -> list[str]:
    """Every class reference under an `auto_map`, at any depth."""
    found: list[str] = []
    waiting: list[tuple[Any, bool]] = [(value, False)]
    while waiting:
        here, mapped = waiting.pop()
        if isinstance(here, dict):
            waiting += [(child, mapped or key == "auto_map") for key, child in here.items()]
        elif isinstance(here, list):
            waiting += [(child, mapped) for child in here]
        elif isinstance(here, str) and mapped:
            found.append(here)
    return found
