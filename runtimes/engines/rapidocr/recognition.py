"""`Recogniser`: a PP-OCR model that finds the lines of text in a picture and reads them."""

import hashlib
from collections.abc import Iterable, Sequence
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
            "Global.log_level": "error", "Global.use_cls": model.direction is not None,
            "Det.model_path": str(model.detector.path), "Rec.model_path": str(model.recogniser.path),
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        }  # fmt: skip
        if model.direction is not None:
            chosen["Cls.model_path"] = str(model.direction.path)
        self._name = name
        self._path = model.recogniser.path
        try:
            self._engine = rapidocr.RapidOCR(params=chosen)
            self._engine(_sample())  # it opens its files when they are first needed
        except Exception as error:  # its faults and ONNX Runtime's have no common base
            raise LoadFailed(f"RapidOCR refuses {name}: {str(error)[-500:]}", model_name=name) from error
        self.version = version("rapidocr")

    def read(self, pixels: Any) -> list[TextLine]:
        """The lines of a picture, as RapidOCR orders them: from top to bottom.

        Args:
            pixels: uint8 of shape (height, width, 3): blue, green, red.
        """
        found = self._engine(pixels)
        if found.txts is None:
            return []
        rows = zip(found.boxes.tolist(), found.txts, found.scores, strict=True)
        return [_line(corners, str(text), float(score)) for corners, text, score in rows]

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
    picture = np.full((64, 320, 3), 255, np.uint8)
    return cv2.putText(picture, "Sample", (20, 44), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (0, 0, 0), 2)


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
