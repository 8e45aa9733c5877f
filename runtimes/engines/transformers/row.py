"""The engine `transformers`."""

from lfx_local_runtimes.runtimes.engines.registry import EngineRow

_HERE = "lfx_local_runtimes.runtimes.engines.transformers"

ROWS = (
    EngineRow(
        "transformers", f"{_HERE}.factory:transformers", f"{_HERE}.offer:offer", extra="transformers",
        modules=("torch", "transformers"),
        warm=f"{_HERE}.load:warm",
        overhead=310 * 2**20,  # torch 2.13 and Transformers 5 for the CPU with a model for pictures; the offer adds for words
    ),
)  # fmt: skip
