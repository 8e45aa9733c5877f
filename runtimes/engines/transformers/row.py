"""The engine `transformers`."""

from lfx_local_runtimes.runtimes.engines.registry import EngineRow

_HERE = "lfx_local_runtimes.runtimes.engines.transformers"

ROWS = (
    EngineRow(
        "transformers", f"{_HERE}.factory:transformers", f"{_HERE}.offer:offer", extra="transformers",
        overhead=600 * 2**20,
    ),
)  # fmt: skip
