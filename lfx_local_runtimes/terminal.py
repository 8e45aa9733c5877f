"""What the commands print: tables, progress bars, sizes and times."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lfx_local_runtimes.runtimes.requests import Progress

if TYPE_CHECKING:
    from rich.console import Console


def print_table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows below their header, without a frame."""
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _console() -> "Console":
    """Standard output. If it is not a terminal, lines are not wrapped or cut."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, emoji=False, width=10_000)


def size(mib: float | None) -> str:
    """A size in MiB, or in GiB if it is that large."""
    return "-" if mib is None else f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[Progress], None]]:
    """A progress bar on standard error for each phase. It disappears at the end. Without a terminal there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(event: Progress) -> None:
            if event.phase not in tasks:
                tasks[event.phase] = bars.add_task(event.phase, total=event.total or None)
            bars.update(tasks[event.phase], completed=event.done, total=event.total or None)

        yield report


def duration(seconds: float | None) -> str:
    """A time in its largest whole unit."""
    if seconds is None:
        return "-"
    for length, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
