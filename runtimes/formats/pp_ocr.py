"""PP-OCR models: a folder with ONNX files that read text in pictures together.

What each file does is read from its outline. The recogniser contains its alphabet, under the key `character`. The detector
gives a picture of the same form as its input. A third file often lies beside them, which finds lines that are upside down. It is
not used: it turns some long lines that are upright.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lfx_local_runtimes.runtimes.formats.onnx import OnnxHeader

ARCHITECTURE = "pp-ocr"
_ALPHABET = "character"


@dataclass(frozen=True, slots=True)
class PpOcr:
    """The parts of a model."""

    detector: OnnxHeader
    recogniser: OnnxHeader

    @property
    def parts(self) -> tuple[OnnxHeader, OnnxHeader]:
        """Both."""
        return self.detector, self.recogniser


def pp_ocr_of(headers: Sequence[OnnxHeader]) -> PpOcr | None:
    """The model that the ONNX files of a folder are; None if they are no PP-OCR model, or have a part twice."""
    recognisers = [one for one in headers if _ALPHABET in one.keys]
    others = [one for one in headers if one not in recognisers and len(one.outputs) == 1]
    detectors = [one for one in others if len(one.outputs[0].shape) == 4]
    return PpOcr(detectors[0], recognisers[0]) if len(recognisers) == len(detectors) == 1 else None
