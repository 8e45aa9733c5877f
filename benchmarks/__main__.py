"""`python -m benchmarks [topic …]`: those named, or all but the long ones. Exits with 1 if a target was missed."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from benchmarks.report import conclude, machine, print_all

TOPICS = (
    "startup",
    "memory",
    "processes",
    "text",
    "batching",
    "structured",
    "transformers_batching",
    "encoders",
    "vision",
    "retrieval",
    "soak",
)
LONG = ("mutants",)
"""They take more than five minutes, and run only if they are named."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of the topics, and last how many targets were missed. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the pack against the libraries it stands on. The exit status is 1 if a target was missed.",
        epilog="LOCAL_RUNTIMES_FORCE_DEVICE=cuda measures both sides on the graphics card; by default it is the CPU.",
    )
    parser.add_argument(
        "topics", nargs="*", choices=[[], *TOPICS, *LONG], help=f"default: all but {', '.join(LONG)}, which take long"
    )
    topics = parser.parse_args(arguments).topics or TOPICS
    print(machine(), flush=True)
    print_all(*map(topic, topics))
    return conclude()


def topic(name: str) -> Callable[[], None]:
    """What prints the tables of a module of this package. The module is imported when its turn comes."""

    def run() -> None:
        importlib.import_module(f"benchmarks.{name}").main()

    run.__name__ = name
    return run


if __name__ == "__main__":
    sys.exit(main())
