"""The engine `onnx`."""

from lfx_local_runtimes.runtimes.config import DeviceType
from lfx_local_runtimes.runtimes.engines.registry import EngineRow

_HERE = "lfx_local_runtimes.runtimes.engines.onnx"

ROWS = (
    EngineRow(
        "onnx", f"{_HERE}.encoder:OnnxEncoder", f"{_HERE}.offer:offer", extra="onnx",
        modules=("onnxruntime", "transformers"),
        prepare=f"{_HERE}.export:with_export", overhead=270 * 2**20, accelerators=frozenset({DeviceType.CUDA}),
    ),
)  # fmt: skip
