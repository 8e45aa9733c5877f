"""`python -m benchmarks [topic …]`: all of them, or those named."""

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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the pack against the libraries it stands on."
    )
    parser.add_argument("topics", nargs="*", choices=[[], *TOPICS], help="default: all")
    topics = parser.parse_args().topics or TOPICS
    print(machine(), flush=True)
    for topic in topics:
        importlib.import_module(f"benchmarks.{topic}").main()


main()
