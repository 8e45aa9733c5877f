"""`python -m benchmarks [topic …]`: those named, or all but the long ones."""

import argparse
import importlib

from benchmarks.report import machine

TOPICS = (
    "startup",
    "memory",
    "processes",
    "text",
    "batching",
    "structured",
    "transformers_batching",
    "encoders",
    "retrieval",
)
LONG = ("mutants",)
"""They take more than five minutes, and run only if they are named."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the pack against the libraries it stands on."
    )
    parser.add_argument(
        "topics", nargs="*", choices=[[], *TOPICS, *LONG], help=f"default: all but {', '.join(LONG)}, which take long"
    )
    topics = parser.parse_args().topics or TOPICS
    print(machine(), flush=True)
    for topic in topics:
        importlib.import_module(f"benchmarks.{topic}").main()


main()
