"""Approvals of code that comes with models: one JSON file in the data folder that several processes may write.

An approval is for one model's name, one copy of the model, one kind of code and one SHA-256. Code that has changed since
needs a new one. What cannot be read approves nothing.
"""

import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import filelock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.runtimes.trust.report import CodeReport, Kind

MAX_BYTES = 8 * 2**20
MAX_APPROVALS = 5000
_LOCK_TIMEOUT_S = 30.0

logger = logging.getLogger(__name__)


class Approval(BaseModel):
    """That somebody approved code, and when."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    model_name: str = Field(max_length=1024)
    kind: Kind
    source: str = Field(max_length=8192)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    when: datetime
    who: str = Field(max_length=1024)

    def holds_for(self, name: str, report: CodeReport) -> bool:
        """It is for just this code of this model."""
        wanted = (name, report.kind, report.source, report.sha256)
        return (self.model_name, self.kind, self.source, self.sha256) == wanted


class Approvals:
    """The approvals in `path`. Safe to use from any thread and from several processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def all(self) -> list[Approval]:
        """All of them, oldest first. None if the file is not there or is corrupt, which is logged.

        Raises:
            RuntimeFault: the file is there and cannot be read.
        """
        entries = self._read()
        if entries is None:
            logger.warning("%s is corrupt: no model's code counts as approved", self.path)
        return _valid(entries or [])

    def approved(self, name: str, report: CodeReport) -> bool:
        """Somebody approved just this code of this model. Raises as `all`."""
        if not report.sha256 or report.problems:
            return False
        return any(approval.holds_for(name, report) for approval in self.all())

    def approve(self, name: str, report: CodeReport, who: str) -> Approval:
        """Remember an approval. It replaces the one for the same copy of the model in another state.

        Raises:
            ValueError: the report has problems; such code cannot be approved.
            RuntimeFault: the file cannot be written; it is then as it was.
        """
        if not report.sha256 or report.problems:
            raise ValueError("code that cannot be checked cannot be approved")
        made = Approval(
            model_name=name, kind=report.kind, source=report.source, sha256=report.sha256, who=who[:1024],
            when=datetime.now(timezone.utc).replace(microsecond=0),
        )  # fmt: skip
        with self._changing() as entries:
            kept = [one for one in _valid(entries) if (one.model_name, one.kind, one.source) != _place(made)]
            if len(kept) >= MAX_APPROVALS:
                raise RuntimeFault(
                    f"{self.path} holds {MAX_APPROVALS:,} approvals, which is the limit.",
                    hint="Revoke some: lfx-local-runtimes trust NAME --revoke",
                )
            self._write([*kept, made])
        return made

    def revoke(self, name: str) -> list[Approval]:
        """Forget every approval of a model's code; returns them.

        Raises:
            RuntimeFault: the file cannot be written; it is then as it was.
        """
        with self._changing() as entries:
            approvals = _valid(entries)
            gone = [one for one in approvals if one.model_name == name]
            if gone:
                self._write([one for one in approvals if one.model_name != name])
        return gone

    # -- the file ----------------------------------------------------------------------------------------------------

    def _read(self) -> list[Any] | None:
        """The entries; None if the file is corrupt."""
        try:
            with self.path.open("rb") as file:
                text = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._fault("read", error) from error
        try:
            content = json.loads(text) if len(text) <= MAX_BYTES else None
        except (ValueError, RecursionError):
            return None
        entries = content.get("approvals") if isinstance(content, dict) else None
        return entries if isinstance(entries, list) else None

    @contextmanager
    def _changing(self) -> Iterator[list[Any]]:
        with self._lock, self._between_processes():
            entries = self._read()
            if entries is None:
                self._move_aside()
            yield entries or []

    @contextmanager
    def _between_processes(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path.with_name(f"{self.path.name}.lock")).acquire(timeout=_LOCK_TIMEOUT_S)
        except (OSError, filelock.Timeout) as error:
            raise self._fault("lock", error) from error
        with lock:
            yield

    def _move_aside(self) -> None:
        aside = self.path.with_name(f"{self.path.name}.corrupt-{uuid.uuid4().hex[:12]}")
        try:
            self.path.rename(aside)
        except OSError as error:
            raise self._fault("move aside the corrupt", error) from error
        logger.warning("%s was corrupt: it is now %s, and the approvals start empty.", self.path, aside.name)

    def _write(self, approvals: list[Approval]) -> None:
        temporary = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:12]}.tmp")
        content = {"approvals": [approval.model_dump(mode="json") for approval in approvals]}
        try:
            with os.fdopen(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
            ) as file:
                json.dump(content, file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._fault("write", error) from error

    def _fault(self, doing: str, error: Exception) -> RuntimeFault:
        return RuntimeFault(
            f"Could not {doing} {self.path}: {getattr(error, 'strerror', None) or error}.",
            hint="Nothing was changed. See that the disk has room and the folder is yours.",
        )


def _place(approval: Approval) -> tuple[str, Kind, str]:
    return approval.model_name, approval.kind, approval.source


def _valid(entries: list[Any]) -> list[Approval]:
    found = []
    for entry in entries:
        try:
            found.append(Approval.model_validate(entry))
        except ValidationError:  # noqa: PERF203 - of another version, or written by hand: it approves nothing
            logger.warning("an entry of the approvals is not valid and is ignored")
    return found
