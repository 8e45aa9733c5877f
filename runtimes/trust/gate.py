"""Whether code that comes with a model may run. Asked before the first of its files is opened by an engine.

It is asked twice. `check` goes by what this machine should be able to confine. `confirm` goes by what the model's process
says that it has given up.
"""

import getpass
import logging
import os
import shlex
from collections.abc import Sequence
from typing import Literal, NoReturn

from lfx_local_runtimes.errors import NotAllowed, PickleRefused, RemoteCodeRefused
from lfx_local_runtimes.runtimes.config import ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.processes.confinement import Confinement, Level, available
from lfx_local_runtimes.runtimes.trust.approvals import Approvals
from lfx_local_runtimes.runtimes.trust.audit import AuditFault, AuditLog, Entry
from lfx_local_runtimes.runtimes.trust.report import PICKLE, REMOTE_CODE, Clearance, CodeReport, Kind
from lfx_local_runtimes.runtimes.trust.scan import scan_pickle, scan_remote_code, source_of
from lfx_local_runtimes.settings import Settings

logger = logging.getLogger(__name__)

_FAULTS: dict[Kind, type[NotAllowed]] = {REMOTE_CODE: RemoteCodeRefused, PICKLE: PickleRefused}
_SETTINGS: dict[Kind, str] = {
    REMOTE_CODE: "LOCAL_RUNTIMES_TRUST_REMOTE_CODE=true", PICKLE: "LOCAL_RUNTIMES_ALLOW_PICKLE=true",
}  # fmt: skip
_HAS: dict[Kind, str] = {
    REMOTE_CODE: "asks to run code that came with it", PICKLE: "has pickle weights, which can run code",
}  # fmt: skip


def approvals_of(settings: Settings) -> Approvals:
    """The approvals in the data folder."""
    return Approvals(settings.home / "approvals.json")


def audit_of(settings: Settings) -> AuditLog:
    """The audit log in the data folder."""
    return AuditLog(settings.home / "audit.jsonl")


def approve_command(name: str) -> str:
    """What a user types to look at a model's code and approve it."""
    return f"lfx-local-runtimes trust {shlex.quote(name)}"


def this_user() -> str:
    """The login name of who runs this program."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user: a container
        return f"user {os.getuid()}" if hasattr(os, "getuid") else "unknown"


def this_program() -> str:
    """Who loads a model if nobody says: requests of many callers may have waited for it."""
    return f"{this_user()} (process {os.getpid()})"


def level_of(isolation: str, settings: Settings) -> Level:
    """The confinement that a model's process will have; `isolation` is its runtime's: `process` or `inline`."""
    return available().level if isolation == "process" and settings.confine != "off" else "none"


def check(
    config: ModelConfig, info: ModelInfo, settings: Settings, confinement_level: Level, *,
    name: str | None = None, who: str | None = None,
) -> Clearance:  # fmt: skip
    """What of a model's code may run. Every refusal and every load of code is in the audit log.

    The operator must allow the kind of code, the engine must be confined fully (unless `allow_unconfined_code` is set),
    and somebody must have approved this very code under the model's name. Reads pickle weights in whole, to hash them.

    Args:
        config: the model.
        info: its files.
        settings: what the operator allows, and where approvals and the audit log are.
        confinement_level: of the process that would run the code.
        name: the name it was approved under; unset, the configuration's. For a variant: the name of the model itself.
        who: asks for the load. Unset: this program.

    Raises:
        RemoteCodeRefused, PickleRefused: it may not run, or the audit log cannot be written.
    """
    known, loader = name or config.model_name, who or this_program()
    gate = _Gate(known, info, settings, confinement_level, loader)
    passed = [report for kind in kinds_asked(config, info) if (report := gate.check(kind)) is not None]
    for report in passed:
        gate.loaded(report)
    code = {report.kind: report.sha256 for report in passed}
    return Clearance(known, loader, code, bool(code) and not settings.allow_unconfined_code)


def confirm(clearance: Clearance, info: ModelInfo, settings: Settings, confinement: Confinement) -> None:
    """Return if the process that will run the code is confined as it must be.

    Args:
        clearance: of this load.
        info: the model's files.
        settings: where the audit log is.
        confinement: what the process says of itself, before it reads the model.

    Raises:
        RemoteCodeRefused, PickleRefused: it is not. The audit log has that.
    """
    if clearance.needs_full and confinement.level != "full":
        gate = _Gate(clearance.name, info, settings, confinement.level, clearance.who)
        kind, sha256 = next(iter(clearance.code.items()))
        gate.refuse_unconfined(kind, sha256, confinement.missing)


def log_refusal(refusal: NotAllowed, name: str, info: ModelInfo, settings: Settings) -> None:
    """Write down that a load of a model's code was refused before the gate was asked. A log that fails changes nothing."""
    kind = PICKLE if isinstance(refusal, PickleRefused) else REMOTE_CODE
    entry = Entry("refused", name, kind, None, source_of(info), this_program(), reason=refusal.message)
    try:
        audit_of(settings).write(entry)
    except AuditFault:
        logger.exception("refused to load the code of %s: %s", name, refusal.message)


def kinds_asked(config: ModelConfig, info: ModelInfo) -> tuple[Kind, ...]:
    """The kinds of code that a load with this configuration may run."""
    kinds: list[Kind] = []
    if config.trust_remote_code:
        kinds.append(REMOTE_CODE)
    onnx = config.runtime_type == RuntimeType.ONNX and info.onnx  # its pickle files are left alone
    if info.format is ModelFormat.PICKLE and not onnx:
        kinds.append(PICKLE)
    return tuple(kinds)


class _Gate:
    """One model that asks to pass."""

    def __init__(self, name: str, info: ModelInfo, settings: Settings, level: Level, who: str) -> None:
        self._name, self._info, self._settings, self._level, self._who = name, info, settings, level, who
        self._audit = audit_of(settings)

    def check(self, kind: Kind) -> CodeReport | None:
        """The code that may run; None if there is none after all. Cheap checks come first."""
        allowed = self._settings.trust_remote_code if kind == REMOTE_CODE else self._settings.allow_pickle
        if not allowed:
            self._refuse(
                kind, f"{self._name} {_HAS[kind]}, and the operator does not allow that.",
                f"If you trust it, set {_SETTINGS[kind]} and start again. Then run: {approve_command(self._name)}",
            )  # fmt: skip
        report = scan_remote_code(self._info) if kind == REMOTE_CODE else None
        if kind == REMOTE_CODE and report is None:
            return None
        if self._level != "full" and not self._settings.allow_unconfined_code:
            self.refuse_unconfined(kind, report.sha256 if report else None)
        report = report or scan_pickle(self._info)
        assert report is not None  # pickle weights are pickle weights
        if report.problems:
            self._refuse(
                kind, f"{self._name} {_HAS[kind]}, and the scan cannot check it: {'; '.join(report.problems[:3])}.",
                "Use another copy of the model.", report.sha256,
            )  # fmt: skip
        approvals = approvals_of(self._settings)
        if not approvals.approved(self._name, report):
            known = any(one.model_name == self._name and one.kind == kind for one in approvals.all())
            state = "it has changed since somebody approved it" if known else "nobody has approved it yet"
            self._refuse(
                kind, f"{self._name} {_HAS[kind]}, and {state}.",
                f"Look at it and approve it: {approve_command(self._name)}", report.sha256,
            )  # fmt: skip
        return report

    def refuse_unconfined(self, kind: Kind, sha256: str | None, missing: Sequence[str] = ()) -> NoReturn:
        """Its process is not confined as it must be."""
        why = "; ".join((self._level, *missing))
        self._refuse(
            kind, f"{self._name} {_HAS[kind]}, and its process is not fully confined here ({why}).",
            "Run it on a Linux with Landlock and seccomp. LOCAL_RUNTIMES_ALLOW_UNCONFINED_CODE=true runs it "
            "without: the code can then do everything that your user can do.", sha256,
        )  # fmt: skip

    def loaded(self, report: CodeReport) -> None:
        """Write that the code is about to run. What is not in the log does not run."""
        try:
            self._audit.write(self._entry("loaded", report.kind, report.sha256, None))
        except AuditFault as fault:
            logger.exception("refused to load the code of %s", self._name)
            raise _FAULTS[report.kind](
                f"The code of {self._name} may run, but {_as_clause(fault.message)} Nothing was loaded.",
                model_name=self._name, hint=fault.hint,
            ) from fault  # fmt: skip

    def _refuse(self, kind: Kind, message: str, hint: str, sha256: str | None = None) -> NoReturn:
        refusal = _FAULTS[kind](message, model_name=self._name, hint=hint)
        try:
            self._audit.write(self._entry("refused", kind, sha256, message))
        except AuditFault as fault:  # it stays refused
            logger.exception("refused to load the code of %s: %s", self._name, message)
            refusal.hint = f"{hint} Besides, {_as_clause(fault.message)}"
            raise refusal from fault
        raise refusal

    def _entry(self, event: Literal["loaded", "refused"], kind: Kind, sha256: str | None, reason: str | None) -> Entry:
        return Entry(
            event, self._name, kind, sha256 or None, source_of(self._info), self._who, self._level, reason,
        )  # fmt: skip


def _as_clause(message: str) -> str:
    return message[:1].lower() + message[1:]
