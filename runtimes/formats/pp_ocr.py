"""PP-OCR models: a folder with up to three ONNX files that read text in pictures together.

What each file does is read from its outline. The recogniser contains its alphabet, under the key `character`. The detector
gives a picture of the same form as its input. The file that finds lines written upside down gives two numbers for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lfx_local_runtimes.runtimes.formats.onnx import OnnxHeader

ARCHITECTURE = "pp-ocr"
_ALPHABET = "character"
_DIRECTIONS = 2


@dataclass(frozen=True, slots=True)
class PpOcr:
    """The parts of a model. `direction` is None if the model reads upright lines only."""

    detector: OnnxHeader
    recogniser: OnnxHeader
    direction: OnnxHeader | None

    @property
    def parts(self) -> tuple[OnnxHeader, ...]:
        """Those that are there."""
        return tuple(part for part in (self.detector, self.recogniser, self.direction) if part is not None)


def pp_ocr_of(headers: Sequence[OnnxHeader]) -> PpOcr | None:
    """The model that the ONNX files of a folder are; None if they are no PP-OCR model, or have a part twice."""
    recognisers = [one for one in headers if _ALPHABET in one.keys]
    others = [one for one in headers if one not in recognisers and len(one.outputs) == 1]
    detectors = [one for one in others if len(one.outputs[0].shape) == 4]
    directions = [one for one in others if one.outputs[0].shape[1:] == (_DIRECTIONS,)]
    if len(recognisers) != 1 or len(detectors) != 1 or len(directions) > 1:
        return None
    return PpOcr(detectors[0], recognisers[0], directions[0] if directions else None)
