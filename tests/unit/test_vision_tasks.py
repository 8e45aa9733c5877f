"""From a model's output to labels, boxes, vectors and maps, without a model."""

import numpy as np
import pytest
from pydantic import ValidationError

from lfx_local_runtimes.runtimes.tasks import family_of, task_rows
from lfx_local_runtimes.runtimes.tasks.base import TaskResult
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES
from lfx_local_runtimes.runtimes.tasks.text.reading import Spec
from lfx_local_runtimes.runtimes.tasks.vision.classification import ImageClassification, ImageClassificationAsk
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Pixels

ABOUT = TaskResult("m", {})


def test_what_a_picture_costs_is_comparable_with_a_text() -> None:
    pixels = Pixels(np.zeros((3, 224, 224), np.float32), (640, 480))
    assert (pixels.cost, pixels.amount, pixels.shape) == (196, 224 * 224, (3, 224, 224))
    assert Pixels(np.zeros((3, 1, 1), np.float32), (1, 1)).cost == 1


def test_every_task_of_pictures_takes_large_bodies() -> None:
    rows = [row for row in task_rows().values() if row.family == "seeing"]
    assert rows
    assert {row.body_bytes for row in rows} == {MEDIA_BODY_BYTES}
    assert family_of("image_classification") == "seeing"


def test_pictures_are_named_by_their_place() -> None:
    looks = ImageClassification().pieces(ImageClassificationAsk(images=(b"a", b"b")), Spec("image_classification", 1))
    assert [(look.place, look.image.data, look.keeps) for look in looks] == [
        ("images.0", b"a", False),
        ("images.1", b"b", False),
    ]


def test_labels_of_a_picture() -> None:
    spec = Spec("image_classification", 1, ("cat", "dog", "bird"))
    reading, logits = ImageClassification(), np.array([[0, 5, 1], [3, 0, 0]], np.float32)
    values = reading.values(logits, [], spec)
    found = reading.result(ImageClassificationAsk(images=(b"a", b"b"), top_k=2), values, spec, ABOUT).labels
    assert [[one.label for one in row] for row in found] == [["dog", "bird"], ["cat", "dog"]]
    assert sum(one.score for one in found[0]) < 1
    alone = reading.result(ImageClassificationAsk(images=(b"a",), multi_label=True), values[:1], spec, ABOUT).labels
    assert alone[0][0].score == pytest.approx(1 / (1 + np.exp(-5)))


def test_pictures_are_needed() -> None:
    with pytest.raises(ValidationError):
        ImageClassificationAsk(images=())
    with pytest.raises(ValidationError):
        ImageClassificationAsk(images=(b"a",) * 1025)
