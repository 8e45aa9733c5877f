"""The engine `transformers`."""

from lfx_local_runtimes.runtimes.engines.registry import EngineRow

_HERE = "lfx_local_runtimes.runtimes.engines.transformers"

ROWS = (
    EngineRow(
        "transformers", f"{_HERE}.factory:transformers", f"{_HERE}.offer:offer", extra="transformers",
        warm=f"{_HERE}.load:warm", library="torch",
        overhead=450 * 2**20,  # torch 2.9 and Transformers 5 for the CPU, after a first answer: 430
    ),
)  # fmt: skip
