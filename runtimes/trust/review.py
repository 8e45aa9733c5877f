"""What a person does about a model's code, on the command line or over REST: look, approve, revoke."""

import contextlib
from dataclasses import dataclass

from lfx_local_runtimes.errors import ModelConflict, ModelNotFound, NotAllowed, RuntimeFault
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.runtimes.trust.approvals import Approval
from lfx_local_runtimes.runtimes.trust.audit import AuditFault, Entry
from lfx_local_runtimes.runtimes.trust.gate import approvals_of, approve_command, audit_of
from lfx_local_runtimes.runtimes.trust.report import CodeReport
from lfx_local_runtimes.runtimes.trust.scan import scan, source_of


class CodeChanged(ModelConflict):
    """The code is not the one that was looked at."""

    code = "code_changed"


class CodeUnchecked(NotAllowed):
    """The code cannot be checked, so nobody can approve it."""

    code = "code_unchecked"


@dataclass(frozen=True)
class Review:
    """A model's code as it is now, and which of it was approved."""

    config: ModelConfig
    source: str
    reports: tuple[CodeReport, ...]
    approved: frozenset[str]
    """The SHA-256 of each report that is approved."""


class Reviewer:
    """Looks at models' code, and keeps what people decide about it. Reads the disk: call it off the event loop."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._approvals = approvals_of(catalog.settings)
        self._audit = audit_of(catalog.settings)

    def look(self, name: str) -> Review:
        """Scan a model's code. Runs nothing of it.

        Raises:
            ModelNotFound: no such model, or its files are not on this machine.
        """
        config = self._catalog.resolve(name).config
        path = self._catalog.locate(config)
        if path is None:
            raise ModelNotFound(
                f"The files of {name} are not on this machine.", model_name=name,
                hint=f"Fetch them first: lfx-local-runtimes pull {name}",
            )  # fmt: skip
        info = read_model(path)
        reports = scan(info)
        known = self._approvals.all()
        approved = frozenset(
            report.sha256
            for report in reports
            if report.sha256 and any(one.holds_for(config.model_name, report) for one in known)
        )
        return Review(config, source_of(info), reports, approved)

    def approve(self, name: str, sha256: str, who: str) -> Review:
        """Approve the code that has this SHA-256, so that nobody approves what they have not seen.

        Raises:
            CodeChanged: the model's code has another.
            CodeUnchecked: it cannot be checked.
            ModelNotFound: as `look`.
            RuntimeFault: the approval or its line in the audit log cannot be written.
        """
        seen = self.look(name)
        model = seen.config.model_name
        report = next((one for one in seen.reports if one.sha256 and one.sha256 == sha256), None)
        if report is None:
            problems = [problem for one in seen.reports for problem in one.problems]
            if problems:
                raise CodeUnchecked(
                    f"The code of {model} cannot be checked: {'; '.join(problems[:3])}.", model_name=model,
                    hint="Use another copy of the model.",
                )  # fmt: skip
            raise CodeChanged(
                f"{model} has no code with this SHA-256. It may have changed since you looked.",
                model_name=model,
                hint=f"Look at it again: GET models/{model}/code, or {approve_command(model)}",
            )
        # The log comes first: an approval without its line must not be.
        self._audit.write(Entry("approved", model, report.kind, report.sha256, report.source, who))
        self._approvals.approve(model, report, who)
        return Review(seen.config, seen.source, seen.reports, seen.approved | {report.sha256})

    def revoke(self, name: str, who: str) -> list[Approval]:
        """Take back every approval of a model's code; returns them. A model in memory stays until it is unloaded.

        Raises:
            RuntimeFault: the approvals cannot be written, and stand.
            AuditFault: they are revoked, and the audit log cannot be written.
        """
        gone = self._approvals.revoke(name)
        if not gone:
            with contextlib.suppress(RuntimeFault):  # it may be another spelling; a model that is gone has none
                name = self._catalog.resolve(name).config.model_name
                gone = self._approvals.revoke(name)
        for one in gone:
            self._audit.write(Entry("revoked", name, one.kind, one.sha256, one.source, who))
        return gone

    def approvals(self) -> list[Approval]:
        """Every approval, oldest first."""
        return self._approvals.all()

    def refused(self, name: str, who: str, reason: str) -> None:
        """Log that somebody who may not tried to decide.

        Raises:
            AuditFault: the log cannot be written.
        """
        self._audit.write(Entry("refused", name, who=who, reason=reason))


__all__ = ["AuditFault", "CodeChanged", "CodeUnchecked", "Review", "Reviewer"]
