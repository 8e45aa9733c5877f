"""Markdown tables, which targets were missed, and the machine that the numbers come from.

A measurement that raises must not lose those beside it: its row shows the error, and it counts as a target missed.
"""

import platform
import random
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Generic, TypeVar

import psutil

from lfx_local_runtimes.runtimes.devices import MACHINE

T = TypeVar("T")
Row = Sequence[object]

_VERSIONS = ("lfx-local-runtimes", "llama-cpp-python", "torch", "transformers", "lfx", "langflow")


def machine() -> str:
    """Processor, cores, memory, system, and the versions that matter, in one line."""
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()}, Python {platform.python_version()}"
    cards = "".join(f"{card.name}, " for card in MACHINE.accelerators())
    return (
        f"{_processor()}, {psutil.cpu_count(logical=False)} cores, {memory:.0f} GiB, {cards}{system}; "
        f"{', '.join(f'{name} {_version(name)}' for name in _VERSIONS)}"
    )


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> None:
    """Print a markdown table."""
    print(f"\n### {title}\n")
    print(f"| {' | '.join(header)} |")
    print(f"|{'---|' * len(header)}")
    for row in rows:
        cells = [str(cell) for cell in row]
        print(f"| {' | '.join(cells + [''] * (len(header) - len(cells)))} |")
    print(f"\n{note}" if note else "", flush=True)


# -- targets -------------------------------------------------------------------------------------------------------------


class Targets:
    """How many targets there were, and how many of them were missed."""

    def __init__(self) -> None:
        self.count = self.missed = 0

    def note(self, reached: bool) -> str:
        """Count one; returns a tick or a cross."""
        self.count += 1
        self.missed += not reached
        return "✓" if reached else "✗"

    def __str__(self) -> str:
        if not self.missed:
            return f"All {self.count} targets were reached."
        return f"{self.missed} of {self.count} targets {'was' if self.missed == 1 else 'were'} missed."


TARGETS = Targets()
"""Those of this run."""


def verdict(value: float, *, at_least: float | None = None, at_most: float | None = None) -> str:
    """A tick; or a cross and by how much the target was missed. It is counted."""
    if at_least is not None and value < at_least:
        return f"{TARGETS.note(False)} by {_distance(at_least - value, at_least)}"
    if at_most is not None and value > at_most:
        return f"{TARGETS.note(False)} by {_distance(value - at_most, at_most)}"
    return TARGETS.note(True)


def _distance(by: float, target: float) -> str:
    return f"{100 * by / abs(target):.2g} %" if target else f"{by:g}"


def conclude() -> int:
    """Print how many targets were missed. Returns the exit status."""
    print(f"\n{TARGETS}")
    return 1 if TARGETS.missed else 0


# -- what raises ---------------------------------------------------------------------------------------------------------


def row(name: str, measure: Callable[..., Iterable[object]], *arguments: object) -> Row:
    """The name of a measurement and the cells that it returns, or the error that it raises."""
    try:
        return [name, *measure(*arguments)]
    except Exception as error:  # noqa: BLE001 - whatever it was, the other rows are wanted
        return failed(name, error)


def failed(name: str, error: BaseException) -> Row:
    """A row for a measurement that raised. It counts as one target missed."""
    traceback.print_exception(error)
    said = " ".join(str(error).split()).replace("|", "/")
    return [name, f"{type(error).__name__}{': ' if said else ''}{said[:200]} {TARGETS.note(False)}"]


def print_all(*tables: Callable[[], object]) -> None:
    """Make and print tables, one after the other. One that raises becomes a table with the error."""
    for table in tables:
        _print_one(table)


def _print_one(table: Callable[[], object]) -> None:
    try:
        table()
    except Exception as error:  # noqa: BLE001 - whatever it was, the other tables are wanted
        name = getattr(getattr(table, "func", table), "__name__", "a table")
        print_table(f"No table: {name}", ["", "error"], [failed(name, error)])


class Samples(Generic[T]):
    """What sides measured in turns. To ask for a side that raised raises its error again."""

    def __init__(self, taken: Mapping[str, list[T]], errors: Mapping[str, Exception]) -> None:
        self._taken = taken
        self._errors = errors

    def __getitem__(self, side: str) -> list[T]:
        if side in self._errors:
            raise self._errors[side]
        return self._taken[side]


def in_turns(sides: Mapping[str, Callable[[int], T]], rounds: int) -> Samples[T]:
    """Let sides measure the same in turns, so that a busy machine slows all of them.

    Every round has another order: a side may feel what the one before it leaves. A side that raises takes no further part.

    Args:
        sides: by name; each gets the number of the round. Round 0 warms up, and its samples are dropped.
        rounds: how many there are after that.
    """
    taken: dict[str, list[T]] = {name: [] for name in sides}
    errors: dict[str, Exception] = {}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(sides), len(sides)):
            if name in errors:
                continue
            try:
                sample = sides[name](number)
            except Exception as error:  # noqa: BLE001 - the other sides go on
                errors[name] = error
                continue
            if number:
                taken[name].append(sample)
    return Samples(taken, errors)


# -- the machine ---------------------------------------------------------------------------------------------------------


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
