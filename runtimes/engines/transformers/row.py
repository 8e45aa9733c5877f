"""The engine `transformers`."""

from lfx_local_runtimes.runtimes.engines.registry import EngineRow

_HERE = "lfx_local_runtimes.runtimes.engines.transformers"

ROWS = (
    EngineRow(
        "transformers", f"{_HERE}.factory:transformers", f"{_HERE}.offer:offer", extra="transformers",
        modules=("torch", "transformers"),
        warm=f"{_HERE}.load:warm",
        overhead=350 * 2**20,  # torch 2.9 and Transformers 5 for the CPU with an encoder; the offer adds for text
    ),
)  # fmt: skip
