"""The engines `gemma_local` and `gemma_streaming`."""

from lfx_local_runtimes.runtimes.engines.registry import EngineRow

_HERE = "lfx_local_runtimes.runtimes.engines.gemma"

ROWS = (
    EngineRow("gemma_local", f"{_HERE}.runtime:GemmaLocalRuntime", f"{_HERE}.offer:offer", overhead=350 * 2**20),
    EngineRow(
        "gemma_streaming", f"{_HERE}.runtime:GemmaStreamingRuntime", f"{_HERE}.offer:offer", overhead=350 * 2**20
    ),
)
