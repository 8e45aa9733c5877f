"""Pictures are decoded beside the model, and a picture that cannot be decoded fails its own request alone."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.encoder.seeing import SLICE, SeeingRuntime
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece, Spec, Tokens
from lfx_local_runtimes.runtimes.tasks.vision.classification import ImageClassificationAsk
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Look, Pixels
from tests.encoder_models import answer, begin, unload
from tests.isolated_engines import scripted_plan

PATIENCE_S = 20.0


class Eye:
    """Finds a cat in every picture whose first byte is odd. A batch waits until so many pictures were decoded."""

    spec = Spec("image_classification", 1, ("cat", "dog"))
    memory: dict[str, int] = {"cpu": 1}  # noqa: RUF012
    about: dict[str, Any] = {"dtype": "fp32"}  # noqa: RUF012

    def __init__(self) -> None:
        self.decoded = 0
        self.needed = 0
        self.batches: list[int] = []
        self._changed = threading.Condition()

    def look(self, look: Look) -> Pixels:
        data = look.image.data
        if data == b"broken":
            raise InvalidInput(f"{look.place} cannot be decoded.")
        with self._changed:
            self.decoded += 1
            self._changed.notify_all()
        return Pixels(np.full((3, 16, 16), data[0], np.float32), (16, 16))

    def tokenize(self, pieces: Sequence[Piece], *, chunks: bool) -> list[list[Tokens]]:
        raise AssertionError

    def compute(self, batch: Sequence[Any]) -> Any:
        with self._changed:
            assert self._changed.wait_for(lambda: self.decoded >= self.needed, PATIENCE_S)
        self.batches.append(len(batch))
        return np.array([[one.values.flat[0] % 2, 0.5] for one in batch], np.float32)


class Seer(SeeingRuntime):
    engine = "seer"

    def __init__(self, config: ModelConfig, plan: LoadPlan | None, eye: Eye) -> None:
        super().__init__(config, plan)
        self._eye = eye

    def _open(self, plan: LoadPlan, context: LoadContext) -> Any:
        return self._eye


@pytest.fixture
def eye() -> Eye:
    return Eye()


@pytest.fixture
def seer(eye: Eye, tmp_path: Path) -> Any:
    config = ModelConfig(model_id=str(tmp_path), model_name="a seer", model_type="image_classification")
    runtime = Seer(config, scripted_plan(config, "seer"), eye)
    runtime.start(LoadContext()).result()
    yield runtime
    unload(runtime)


def test_the_next_pictures_are_decoded_while_the_first_are_computed(seer: Seer, eye: Eye) -> None:
    eye.needed = 2 * SLICE  # the first batch ends only when the second slice is decoded
    result = answer(seer, ImageClassificationAsk(images=(b"a",) * (2 * SLICE)))
    assert len(result.labels) == 2 * SLICE
    assert eye.batches[0] == SLICE


def test_a_broken_picture_fails_its_own_request(seer: Seer, eye: Eye) -> None:
    good = begin(seer, ImageClassificationAsk(images=(b"a",) * 3))
    with pytest.raises(InvalidInput, match=r"images\.9 cannot be decoded"):
        answer(seer, ImageClassificationAsk(images=(*((b"b",) * 9), b"broken")))
    assert [one[0].label for one in good.wait().labels] == ["cat"] * 3
    assert answer(seer, ImageClassificationAsk(images=(b"b",))).labels[0][0].label == "dog"
