"""The models a user registered: one JSON file that several processes may write.

Every change reads the file, changes it and replaces it under a lock between processes, so no change is lost. An entry
that is not valid (written by another version, or by hand) stays in the file and is reported in `problems`.
"""

import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from pydantic import ValidationError

from lfx_local_runtimes.errors import ModelConflict, RuntimeFault
from lfx_local_runtimes.runtimes.config import ModelConfig

_LOCK_TIMEOUT_S = 30.0

logger = logging.getLogger(__name__)

_Signature = tuple[int, int, int]


class Registrations:
    """`ModelConfig`s by name, kept in `path`. Safe to use from any thread and from several processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._signature: _Signature | None = None
        self._models: dict[str, ModelConfig] = {}
        self._problems: dict[str, str] = {}

    def all(self) -> dict[str, ModelConfig]:
        """The registered models by name. Reads the file only if it changed. A corrupt file is renamed.

        Raises:
            RuntimeFault: the file exists but cannot be read.
        """
        return dict(self._refresh()[0])

    @property
    def problems(self) -> dict[str, str]:
        """Entries in the file that are not a valid configuration, with the reason."""
        return dict(self._refresh()[1])

    def add(self, config: ModelConfig, *, replace: bool = False) -> bool:
        """Register a model. False if exactly this is registered already.

        Args:
            config: the model.
            replace: if the name is registered with another configuration, put this one in its place.

        Raises:
            ModelConflict: the name is registered with another configuration, and `replace` is not set.
            RuntimeFault: the file cannot be written; it stays unchanged.
        """
        name = config.model_name
        with self._changing() as entries:
            if name in entries:
                if _parse(entries[name]) == config:
                    return False
                if not replace:
                    raise ModelConflict(
                        f"{name} is registered with another configuration.", model_name=name,
                        hint=f"Replace that: PUT models/{name}, or Replace in the Model Manager node. Remove it: DELETE "
                        f"models/{name}, or lfx-local-runtimes rm {name}. Or choose another name.",
                    )  # fmt: skip
            entries[name] = config.model_dump(mode="json", exclude_defaults=True)
            self._write(entries)
        return True

    def remove(self, name: str) -> bool:
        """Forget a model. False if it was not registered.

        Raises:
            RuntimeFault: the file cannot be written; it stays unchanged.
        """
        with self._changing() as entries:
            if name not in entries:
                return False
            del entries[name]
            self._write(entries)
        return True

    # -- reading -----------------------------------------------------------------------------------------------------

    def _refresh(self) -> tuple[dict[str, ModelConfig], dict[str, str]]:
        with self._lock:
            signature = self._stat()
            if signature != self._signature:
                entries = self._read()
                if entries is None:
                    with self._between_processes():
                        entries = self._read_or_move_aside()
                    signature = self._stat()
                self._take(entries, signature)
            return self._models, self._problems

    def _stat(self) -> _Signature | None:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._fault("read", error) from error
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _take(self, entries: dict[str, Any], signature: _Signature | None) -> None:
        models, problems = {}, {}
        for name, entry in entries.items():
            config = _parse(entry)
            if isinstance(config, ModelConfig) and config.model_name == name:
                models[name] = config
            else:
                problems[name] = config if isinstance(config, str) else f"model_name is {config.model_name}"
                if name not in self._problems:
                    logger.warning("%s: the entry %r is ignored: %s", self.path, name, problems[name])
        self._models, self._problems, self._signature = models, problems, signature

    def _read(self) -> dict[str, Any] | None:
        """The entries of the file; None if it is corrupt."""
        try:
            content = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._fault("read", error) from error
        except (ValueError, RecursionError):
            return None
        entries = content.get("models") if isinstance(content, dict) else None
        return entries if isinstance(entries, dict) else None

    def _read_or_move_aside(self) -> dict[str, Any]:
        """Like `_read`, but a corrupt file is renamed and counts as empty. Hold the lock between processes."""
        entries = self._read()
        if entries is None:
            aside = self.path.with_name(f"{self.path.name}.corrupt-{uuid.uuid4().hex[:12]}")
            try:
                self.path.rename(aside)
            except OSError as error:
                raise self._fault("move aside the corrupt", error) from error
            logger.warning("%s was corrupt: it is now %s, and the registrations start empty.", self.path, aside.name)
            entries = {}
        return entries

    # -- writing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        with self._lock, self._between_processes():
            yield self._read_or_move_aside()

    @contextmanager
    def _between_processes(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path.with_name(f"{self.path.name}.lock")).acquire(timeout=_LOCK_TIMEOUT_S)
        except (OSError, filelock.Timeout) as error:
            raise self._fault("lock", error) from error
        with lock:
            yield

    def _write(self, entries: dict[str, Any]) -> None:
        temporary = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            with temporary.open("x", encoding="utf-8") as file:
                json.dump({"models": entries}, file, indent=2, ensure_ascii=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._fault("write", error) from error
        self._take(entries, self._stat())

    def _fault(self, doing: str, error: Exception) -> RuntimeFault:
        return RuntimeFault(
            f"Could not {doing} {self.path}: {getattr(error, 'strerror', None) or error}.",
            hint="Nothing was changed. Check that the disk has room and that you may write to the folder.",
        )


def _parse(entry: object) -> ModelConfig | str:
    """The configuration, or why the entry is not valid."""
    try:
        return ModelConfig.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        return ": ".join(filter(None, (".".join(str(part) for part in first["loc"]), first["msg"])))
