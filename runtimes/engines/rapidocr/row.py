"""The engine `rapidocr`."""

from lfx_local_runtimes.runtimes.engines.registry import EngineRow

_HERE = "lfx_local_runtimes.runtimes.engines.rapidocr"

ROWS = (
    EngineRow(
        "rapidocr", f"{_HERE}.runtime:RapidOcrRuntime", f"{_HERE}.offer:offer", extra="documents",
        modules=("rapidocr", "onnxruntime", "pypdfium2", "docx", "pptx"), overhead=115 * 2**20, accelerators=frozenset(),
    ),
)  # fmt: skip
