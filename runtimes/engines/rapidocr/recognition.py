"""`Recogniser`: a PP-OCR model that finds the lines of text in a picture and reads them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import yaml

from lfx_local_runtimes.errors import InvalidInput, LoadFailed
from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.formats.pp_ocr import PpOcr
from lfx_local_runtimes.runtimes.tasks.documents.pages import Box, Point, TextLine

_EXTRA = "documents"
LONGEST_SIDE = 2000
"""Pixels. RapidOCR makes larger pictures smaller."""

_UNSURE = 0.8
"""If a picture is read with less certainty, it may be upside down."""


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was read in a picture."""

    lines: list[TextLine]
    """As RapidOCR orders them: from top to bottom."""
    pixels: Any
    """The picture, upright. The places of the lines are in it."""
    turned: bool
    """It was upside down."""


class Recogniser:
    """A PP-OCR model in memory.

    Args:
        model: its files.
        threads: of the processor, at most.
        name: what requests call it.

    Raises:
        LoadFailed: RapidOCR refuses the files.
    """

    def __init__(self, model: PpOcr, threads: int, name: str) -> None:
        rapidocr = require("rapidocr", _EXTRA)
        chosen = {
            "Global.log_level": "error", "Global.use_cls": False,
            "Det.model_path": str(model.detector.path), "Rec.model_path": str(model.recogniser.path),
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        }  # fmt: skip
        self._name = name
        self._path = model.recogniser.path
        try:
            self._engine = rapidocr.RapidOCR(params=chosen)
            self._engine(_sample())  # it opens its files when they are first needed
        except Exception as error:  # its faults and ONNX Runtime's have no common base
            raise LoadFailed(f"RapidOCR refuses {name}: {str(error)[-500:]}", model_name=name) from error
        self.version = version("rapidocr")

    def read(self, pixels: Any) -> Recognition:
        """Read a picture. One that is upside down is turned.

        Args:
            pixels: uint8 of shape (height, width, 3): blue, green, red.
        """
        import numpy as np

        found, upright, turned = self._engine(pixels), pixels, False
        if _certainty(found) < _UNSURE:
            rotated = np.ascontiguousarray(pixels[::-1, ::-1])
            again = self._engine(rotated)
            if _certainty(again) > _certainty(found):
                found, upright, turned = again, rotated, True
        if found.txts is None:
            return Recognition([], pixels, turned=False)
        rows = zip(found.boxes.tolist(), found.txts, found.scores, strict=True)
        lines = [_line(corners, str(text), float(score)) for corners, text, score in rows]
        return Recognition(lines, upright, turned)

    @cached_property
    def _languages(self) -> frozenset[str]:
        return _languages_of(self._path)

    def check_languages(self, wanted: Sequence[str]) -> None:
        """Return if the model reads these languages, or if it is not known which ones it reads.

        Raises:
            InvalidInput: it does not read one.
        """
        known = self._languages if wanted else frozenset()
        missing = [one for one in wanted if known and one.lower() not in known]
        if missing:
            raise InvalidInput(
                f"{self._name} does not read {', '.join(missing)}.", model_name=self._name,
                hint=f"It reads {', '.join(sorted(known))}. Use another PP-OCR model, or leave languages out.",
            )  # fmt: skip


def _certainty(found: Any) -> float:
    """How sure a recognition is of its lines, on average."""
    return sum(found.scores) / len(found.scores) if found.scores else 0.0


def box_of(corners: Iterable[Point]) -> Box:
    """The upright box around points."""
    across, down = zip(*corners, strict=True)
    return min(across), min(down), max(across), max(down)


def _line(corners: list[list[float]], text: str, score: float) -> TextLine:
    points = cast("tuple[Point, Point, Point, Point]", tuple((float(x), float(y)) for x, y in corners))
    return TextLine(text, box_of(points), score, points)


def _sample() -> Any:
    """A picture with a word, for which all parts of a model are needed."""
    import numpy as np

    cv2 = require("cv2", _EXTRA)
    picture = np.full((240, 320, 3), 255, np.uint8)
    return cv2.putText(picture, "Sample", (60, 130), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (0, 0, 0), 2)


def _languages_of(recogniser: Path) -> frozenset[str]:
    """The languages of a recogniser that RapidOCR knows by its SHA-256; empty for others."""
    listed = Path(require("rapidocr", _EXTRA).__file__).parent / "default_models.yaml"
    known = yaml.load(listed.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    digest = hashlib.sha256(recogniser.read_bytes()).hexdigest()
    found: set[str] = set()
    for edition, parts in known["onnxruntime"].items():
        keys = {key for key, entry in parts.get("rec", {}).items() if entry.get("SHA256") == digest}
        routes = known["model_routes"].get(edition, {})
        sizes = routes.get("rec", {})
        for size, rows in sizes.items():
            if size != "aliases":
                found.update(str(code) for row in rows if row["model_key"] in keys for code in row["supported_langs"])
        others = {**routes.get("aliases", {}), **sizes.get("aliases", {})}
        found.update(alias for alias, code in others.items() if code in found)
    return frozenset(found)
