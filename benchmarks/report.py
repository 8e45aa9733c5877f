"""Markdown tables, and the machine that the numbers come from."""

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

_VERSIONS = ("lfx-local-runtimes", "llama-cpp-python", "torch", "transformers", "lfx", "langflow")


def machine() -> str:
    """Processor, cores, memory, system, and the versions that matter, in one line."""
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()}, Python {platform.python_version()}"
    return (
        f"{_processor()}, {psutil.cpu_count(logical=False)} cores, {memory:.0f} GiB, {system}; "
        f"{', '.join(f'{name} {_version(name)}' for name in _VERSIONS)}"
    )


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> None:
    """Print a markdown table."""
    print(f"\n### {title}\n")
    print(f"| {' | '.join(header)} |")
    print(f"|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")
    if note:
        print(f"\n{note}")


def verdict(value: float, *, at_least: float | None = None, at_most: float | None = None) -> str:
    """A tick or a cross."""
    reached = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    return "✓" if reached else "✗"


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
