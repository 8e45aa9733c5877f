"""The engine `llama_cpp`."""

from lfx_local_runtimes.runtimes.engines.llama_cpp.native import ENVIRONMENT
from lfx_local_runtimes.runtimes.engines.registry import EngineRow

_HERE = "lfx_local_runtimes.runtimes.engines.llama_cpp"

ROWS = (
    EngineRow(
        "llama_cpp",
        f"{_HERE}.factory:llama_cpp",
        f"{_HERE}.offer:offer",
        extra="llamacpp",
        modules=("llama_cpp",),
        warm=f"{_HERE}.native:warm",
        environment=ENVIRONMENT,
        overhead=70 * 2**20,
    ),
)
