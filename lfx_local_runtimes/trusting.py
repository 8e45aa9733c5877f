"""`lfx-local-runtimes trust`: show the code that comes with a model, and ask whether it may run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lfx_local_runtimes.runtimes.trust.report import REMOTE_CODE, CodeReport
from lfx_local_runtimes.settings import Settings, load_settings
from lfx_local_runtimes.terminal import print_table

if TYPE_CHECKING:
    from lfx_local_runtimes.runtimes.trust.review import Review, Reviewer

_NOTHING = "It names nothing of the network, programs, native or dynamic code, files or the process."
_NOTE = (
    "The scan reads the code and does not run it. Code that is well hidden is not in this list, so approve only what you "
    "would run yourself."
)


def trust(
    name: Annotated[str | None, typer.Argument(help="The model.")] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Approve without asking.")] = False,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the approval back.")] = False,
    every: Annotated[bool, typer.Option("--list", help="List all approvals.")] = False,
    model_dir: Annotated[
        list[Path] | None,
        typer.Option("--model-dir", help="A model folder; may be repeated. By default LOCAL_RUNTIMES_MODEL_DIRS."),
    ] = None,
) -> None:
    """Look at the code that comes with a model, and approve it. It never runs without."""
    from lfx_local_runtimes.runtimes.sources.catalog import Catalog
    from lfx_local_runtimes.runtimes.trust.review import Reviewer

    if (name is None) != every or yes + revoke + every > 1:
        raise typer.BadParameter("Give a model's name, alone or with one of --yes and --revoke, or --list.")
    settings = load_settings(model_dirs=tuple(model_dir) if model_dir else None)
    command = TrustCommand(settings, Reviewer(Catalog(settings)))
    if name is None:
        command.list()
    elif revoke:
        command.revoke(name)
    else:
        command.approve(name, yes=yes)


class TrustCommand:
    """Works on the data folder directly; a server need not run."""

    def __init__(self, settings: Settings, reviewer: "Reviewer") -> None:
        self._settings = settings
        self._reviewer = reviewer

    def list(self) -> None:
        """Print all approvals."""
        rows = [
            (one.model_name, one.kind, one.source, one.sha256[:12], f"{one.when:%Y-%m-%d %H:%M}", one.who)
            for one in self._reviewer.approvals()
        ]
        print_table(("NAME", "KIND", "COPY", "SHA-256", "WHEN (UTC)", "WHO"), rows)

    def revoke(self, name: str) -> None:
        """Take a model's approvals back."""
        from lfx_local_runtimes.runtimes.trust.gate import this_user

        gone = self._reviewer.revoke(name, this_user())
        typer.echo(f"{name}: {len(gone)} revoked." if gone else f"{name}: nothing was approved.")

    def approve(self, name: str, *, yes: bool) -> None:
        """Show a model's code and ask about each kind of it.

        Raises:
            CodeUnchecked: some of it cannot be checked.
            RuntimeFault: as `Reviewer.approve`.
        """
        from lfx_local_runtimes.runtimes.trust.gate import this_user
        from lfx_local_runtimes.runtimes.trust.review import CodeUnchecked

        seen = self._reviewer.look(name)
        model = seen.config.model_name
        if not seen.reports:
            typer.echo(f"{model} brings no code.")
            return
        typer.echo(f"{model}: {seen.source}")
        refused = False
        for report in seen.reports:
            self._show(report)
            if report.problems:
                raise CodeUnchecked(
                    f"The code of {model} cannot be checked.", model_name=model, hint="Use another copy of the model."
                )
            if report.sha256 in seen.approved:
                typer.echo("Approved already.")
            elif yes or typer.confirm(f"May {model} run this code?", default=False):
                self._reviewer.approve(model, report.sha256, this_user())
                typer.echo("Approved.")
            else:
                refused = True
                typer.echo("Not approved.")
        if refused:
            raise typer.Exit(1)
        self._say_what_is_missing(seen)

    def _show(self, report: CodeReport) -> None:
        what = "Python code" if report.kind == REMOTE_CODE else "Pickle weights"
        typer.echo(f"\n{what}, SHA-256 {report.sha256 or 'unknown'}")
        typer.echo(f"  files: {', '.join(report.files) or '-'}")
        typer.echo(f"  {'imports' if report.kind == REMOTE_CODE else 'names'}: {', '.join(report.imports) or '-'}")
        for problem in report.problems:
            typer.echo(f"  problem: {problem}")
        if report.findings:
            typer.echo()
            rows = [(one.group, one.what, one.file, ", ".join(map(str, one.lines)) or "-") for one in report.findings]
            print_table(("ABOUT", "WHAT", "FILE", "LINES"), rows)
            typer.echo()
        elif not report.problems:
            typer.echo(_NOTHING)
        typer.echo(_NOTE)

    def _say_what_is_missing(self, seen: "Review") -> None:
        settings = self._settings
        for report in seen.reports:
            remote = report.kind == REMOTE_CODE
            allowed = settings.trust_remote_code if remote else settings.allow_pickle
            if not allowed:
                setting = "LOCAL_RUNTIMES_TRUST_REMOTE_CODE" if remote else "LOCAL_RUNTIMES_ALLOW_PICKLE"
                typer.echo(f"It still needs {setting}=true where the model is loaded.")
            if remote and not seen.config.trust_remote_code:
                typer.echo("It still needs trust_remote_code in the model's configuration: register it with that.")
