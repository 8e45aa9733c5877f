"""From a model's output to labels, boxes, vectors and maps, without a model."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from lfx_local_runtimes.runtimes.media.drawing import boxed, class_map, colour_of, heated, tinted
from lfx_local_runtimes.runtimes.media.pictures import open_picture
from lfx_local_runtimes.runtimes.tasks import family_of, task_rows
from lfx_local_runtimes.runtimes.tasks.base import TaskResult
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES
from lfx_local_runtimes.runtimes.tasks.text.reading import Spec
from lfx_local_runtimes.runtimes.tasks.vision.classification import ImageClassification, ImageClassificationAsk
from lfx_local_runtimes.runtimes.tasks.vision.depth import Depth, DepthAsk
from lfx_local_runtimes.runtimes.tasks.vision.detection import ObjectDetection, ObjectDetectionAsk
from lfx_local_runtimes.runtimes.tasks.vision.embedding import ImageEmbedding, ImageEmbeddingAsk
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Pixels
from lfx_local_runtimes.runtimes.tasks.vision.segmentation import ImageSegmentation, SegmentationAsk
from lfx_local_runtimes.runtimes.tasks.vision.zero_shot import ImageZeroShot, ImageZeroShotAsk
from tests.pictures import drawn

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


# -- object detection ----------------------------------------------------------------------------------------------------

DETECTOR = Spec("object_detection", 1, ("cat", "dog"))


def seen(picture: bool = False) -> Pixels:
    return Pixels(np.zeros((3, 8, 8), np.float32), (200, 100), drawn((200, 100)) if picture else None)


def test_softmax_scores_leave_out_nothing_and_weak_boxes() -> None:
    logits = np.array([[0, 9, 0], [0, 0, 9], [3, 0, 0]], np.float32)  # the second query has found nothing
    boxes = np.array([[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 1, 1], [0.05, 0.5, 0.2, 2]], np.float32)
    ask = ObjectDetectionAsk(images=(b"a",), threshold=0.5)
    found, drawing = ObjectDetection().keep(ask, {"logits": logits, "boxes": boxes}, seen(), DETECTOR)
    assert [one.label for one in found] == ["dog", "cat"]
    assert (found[0].xmin, found[0].ymin, found[0].xmax, found[0].ymax) == pytest.approx((80, 30, 120, 70))
    assert (found[1].xmin, found[1].ymin, found[1].xmax, found[1].ymax) == pytest.approx((0, 0, 30, 100))
    assert drawing is None


def test_sigmoid_scores_keep_the_best_of_all_queries_and_labels() -> None:
    logits = np.array([[5, 4], [-9, 3]], np.float32)
    boxes = np.full((2, 4), 0.5, np.float32)
    ask = ObjectDetectionAsk(images=(b"a",), threshold=0.5, draw=True)
    value = {"logits": logits, "boxes": boxes}
    found, drawing = ObjectDetection().keep(ask, value, seen(picture=True), replace(DETECTOR, activation="sigmoid"))
    assert [one.label for one in found] == ["cat", "dog"]  # two, because there are two queries
    assert open_picture(drawing, "drawing").size == (200, 100)
    three = replace(DETECTOR, activation="sigmoid", most=3)
    assert len(ObjectDetection().keep(ask, value, seen(picture=True), three)[0]) == 3


# -- zero-shot -----------------------------------------------------------------------------------------------------------


def test_labels_of_ones_own_become_sentences() -> None:
    ask = ImageZeroShotAsk.model_validate({"images": [b"a"], "candidate_labels": ["a cat", "a dog"]})
    spec = Spec("zero_shot_image_classification", 9, scale=10.0)
    pieces = ImageZeroShot().pieces(ask, spec)
    assert [piece.text for piece in pieces[1:]] == ["This is a photo of a cat.", "This is a photo of a dog."]
    values = [np.array(vector, np.float32) for vector in ([3, 4], [0.6, 0.8], [1, 0])]
    (found,) = ImageZeroShot().result(ask, values, spec, ABOUT).labels
    assert [one.label for one in found] == ["a cat", "a dog"]
    assert found[0].score == pytest.approx(1 / (1 + np.exp(-4)))
    (own,) = ImageZeroShot().result(ask.model_copy(update={"multi_label": True}), values, spec, ABOUT).labels
    assert own[1].score == pytest.approx(1 / (1 + np.exp(-6)))
    with pytest.raises(ValidationError, match="hypothesis"):
        ImageZeroShotAsk(images=(b"a",), labels=("x",), hypothesis="no place")


# -- vectors, depths, classes --------------------------------------------------------------------------------------------


def test_vectors_of_pictures_come_before_those_of_texts() -> None:
    ask = ImageEmbeddingAsk(images=(b"a",), texts=("b",), dimensions=2)
    assert [type(piece).__name__ for piece in ImageEmbedding().pieces(ask, Spec("image_embedding", 1))] == [
        "Look",
        "Piece",
    ]
    spec = Spec("zero_shot_image_classification", 1, normalize=True, shortens=True)
    values = [np.array([3, 4, 12], np.float32), np.array([0, 1, 0], np.float32)]
    assert np.allclose(ImageEmbedding().result(ask, values, spec, ABOUT).vectors, [[0.6, 0.8], [0, 1]])


def test_depths_are_summed_up() -> None:
    values = np.array([[0, 1], [2, 5]], np.float32)
    plain = Depth().keep(DepthAsk(images=(b"a",)), values, seen(), DETECTOR)
    assert (plain.width, plain.height, plain.min, plain.max, plain.mean, plain.median) == (2, 2, 0, 5, 2, 1.5)
    assert (plain.values, plain.drawing) == (None, None)
    full = Depth().keep(DepthAsk(images=(b"a",), raw=True, draw=True), values, seen(), DETECTOR)
    shown = open_picture(full.drawing, "drawing")
    assert full.values is values
    assert sum(shown.getpixel((1, 1))) > sum(shown.getpixel((0, 0)))
    flat = Depth().keep(DepthAsk(images=(b"a",), draw=True), np.ones((2, 2), np.float32), seen(), DETECTOR)
    assert flat.drawing is not None


def test_classes_have_areas_and_run_lengths() -> None:
    classes = np.array([[1, 1, 0], [1, 0, 0]])
    pixels = Pixels(np.zeros((3, 8, 8), np.float32), (3, 2), drawn((3, 2)))
    ask = SegmentationAsk(images=(b"a",), rle=True, draw=True)
    found = ImageSegmentation().keep(ask, classes, pixels, DETECTOR)
    assert [(one.label, one.area, one.share, one.rle.counts) for one in found.segments] == [
        ("cat", 3, 0.5, (3, 3)), ("dog", 3, 0.5, (0, 3, 3)),
    ]  # fmt: skip
    assert found.segments[0].rle.size == (2, 3)
    assert np.array_equal(np.asarray(Image.open(BytesIO(found.class_map.data))), classes)
    assert found.drawing is not None
    many = class_map(np.array([[0, 999]]))
    assert np.asarray(Image.open(BytesIO(many.data))).tolist() == [[0, 999]]


def test_a_drawing_is_never_larger_than_people_need() -> None:
    large = Image.new("RGB", (4000, 3000))
    assert open_picture(boxed(large, (4000, 3000), [("cat", 0.5, (-50, 0, 9000, 2000))]), "drawing").size == (
        1600,
        1200,
    )
    assert open_picture(heated(np.zeros((3000, 10), np.float32)), "drawing").size[1] == 1600
    assert open_picture(tinted(large, [("cat", np.ones((3000, 4000), bool))]), "drawing").size == (1600, 1200)
    assert boxed(Image.new("RGB", (1, 1)), (1, 1), [("cat", 0.5, (0, 0, 1, 1))]).mime == "image/png"
    assert colour_of("cat") == colour_of("cat")
