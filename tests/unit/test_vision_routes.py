"""The routes of tasks with pictures: every form of a picture, the limits, the errors."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fastapi.testclient import TestClient

from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.requests import Finished, Request, Run
from lfx_local_runtimes.runtimes.tasks.base import Ask
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES, Media
from lfx_local_runtimes.runtimes.tasks.text.classification import Label
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingResult
from lfx_local_runtimes.runtimes.tasks.vision.classification import ImageClassificationResult
from lfx_local_runtimes.runtimes.tasks.vision.depth import DepthMap, DepthResult
from lfx_local_runtimes.runtimes.tasks.vision.detection import DetectedObject, ObjectDetectionResult
from lfx_local_runtimes.runtimes.tasks.vision.segmentation import Rle, Segment, Segmentation, SegmentationResult
from lfx_local_runtimes.runtimes.tasks.vision.zero_shot import ImageZeroShotResult
from lfx_local_runtimes.settings import Settings
from tests.pictures import drawn, file_of
from tests.routes_app import KEY, MODEL, make_app

PNG = file_of(drawn())
ENCODED = base64.b64encode(PNG).decode()
LABELS = ((Label("cat", 0.75), Label("dog", 0.25)),)
VECTORS = EmbeddingResult(MODEL, {"engine": "fake"}, np.array([[0.5, -0.25]], np.float32))
DRAWING = Media("image/png", PNG)
RESULTS: dict[str, Any] = {
    "image_classification": ImageClassificationResult(MODEL, {"engine": "fake"}, LABELS),
    "object_detection": ObjectDetectionResult(MODEL, {}, ((DetectedObject("cat", 0.9, 1, 2, 3, 4),),), (DRAWING,)),
    "zero_shot_image_classification": ImageZeroShotResult(MODEL, {}, LABELS),
    "image_embedding": VECTORS,
    "depth_estimation": DepthResult(
        MODEL, {}, (DepthMap(2, 1, 0, 1, 0.5, 0.5, np.array([[0, 1]], np.float32), DRAWING),)
    ),
    "image_segmentation": SegmentationResult(
        MODEL, {}, (Segmentation((Segment("cat", 1, 6, 1.0, Rle((2, 3), (0, 6))),), DRAWING),)
    ),
}
PATHS = {
    "image_classification": "/vision/classify", "object_detection": "/vision/detect", "depth_estimation": "/vision/depth",
    "zero_shot_image_classification": "/vision/clip", "image_segmentation": "/vision/segment", "image_embedding": "/embed",
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {"zero_shot_image_classification": {"candidate_labels": ["a cat"]}}


class FakeManager:
    """Answers every task with its result."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.asks: list[Any] = []

    def start(self, model_name: str, ask: Ask[Any], *, request_id: str | None = None) -> Run[Any, Any]:
        self.asks.append(ask)
        request = Request(model_name, ask, request_id)
        request.emit(Finished(RESULTS[ask.task]))
        return Run(request)


@pytest.fixture
def fake(tmp_path: Path) -> FakeManager:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.png").write_bytes(PNG)
    return FakeManager(Settings(home=tmp_path))


@pytest.fixture
def client(fake: FakeManager) -> Iterator[TestClient]:
    app = make_app(cast("RuntimeManager", fake))
    with TestClient(app, base_url="http://test" + PREFIX, headers=KEY, raise_server_exceptions=False) as made:
        yield made


FORMS = [ENCODED, f"data:image/png;base64,{ENCODED}", {"path": "a.png"}, {"url": f"data:image/png;base64,{ENCODED}"}]


@pytest.mark.parametrize(("task", "path"), PATHS.items())
def test_a_picture_comes_in_every_form(client: TestClient, fake: FakeManager, task: str, path: str) -> None:
    openai = "/v1/embeddings" if task == "image_embedding" else f"/v1{path}"
    for url, name in ((path, "model_name"), (openai, "model")):
        answer = client.post(url, json={name: MODEL, "images": FORMS, **MORE.get(task, {})})
        assert answer.status_code == 200, answer.text
        assert fake.asks[-1].task == task
        assert fake.asks[-1].images == (Media("image/png", PNG),) * len(FORMS)


def test_labels_are_written(client: TestClient) -> None:
    answer = client.post("/vision/classify", json={"model_name": MODEL, "images": [ENCODED], "top_k": 2}).json()
    assert answer["labels"] == [[{"label": "cat", "score": 0.75}, {"label": "dog", "score": 0.25}]]


def test_pictures_and_arrays_in_a_result_are_json(client: TestClient) -> None:
    body = {"model_name": MODEL, "images": [ENCODED]}
    found = client.post("/vision/detect", json=body | {"draw": True}).json()
    assert found["objects"] == [[{"label": "cat", "score": 0.9, "xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}]]
    assert found["drawings"] == [{"mime": "image/png", "data": ENCODED}]
    depth = client.post("/vision/depth", json=body | {"raw": True}).json()["depths"][0]
    assert depth["values"] == [[0, 1]]
    segments = client.post("/vision/segment", json=body).json()["segmentations"][0]["segments"]
    assert segments[0]["rle"] == {"size": [2, 3], "counts": [0, 6]}


def test_embeddings_of_pictures_and_texts(client: TestClient, fake: FakeManager) -> None:
    body = {"model_name": MODEL, "images": [ENCODED], "texts": ["a cat"]}
    assert client.post("/embed", json=body).json()["vectors"] == [[0.5, -0.25]]
    assert (fake.asks[-1].task, fake.asks[-1].texts) == ("image_embedding", ("a cat",))
    openai = client.post("/v1/embeddings", json={"model": MODEL, "images": [ENCODED], "input": "a cat"}).json()
    assert openai["data"][0]["embedding"] == [0.5, -0.25]
    assert fake.asks[-1].texts == ("a cat",)


def test_inference_takes_pictures_too(client: TestClient, fake: FakeManager) -> None:
    body = {"model": MODEL, "task": "image-classification", "options": {"images": [{"path": "a.png"}]}}
    answer = client.post("/inference", json=body)
    assert answer.status_code == 200, answer.text
    assert fake.asks[-1].images == (Media("image/png", PNG),)


@pytest.mark.parametrize(
    ("image", "status", "says"),
    [
        ({"path": "../a.png"}, 403, "images.0"),
        ({"path": "none.png"}, 422, "images.0"),
        ({"url": "http://127.0.0.1/a.png"}, 403, "LOCAL_RUNTIMES_MEDIA_URLS"),
        ({"file": "a.png"}, 422, "images.0: an image must be a data URL"),
        ("no base64!", 422, "images.0"),
    ],
)
def test_what_is_no_picture_is_refused(
    client: TestClient, fake: FakeManager, image: Any, status: int, says: str
) -> None:
    answer = client.post("/vision/classify", json={"model_name": MODEL, "images": [image]})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert says in f"{error['message']} {error['hint']}"
    assert not fake.asks
    refused = client.post("/v1/vision/classify", json={"model": MODEL, "images": [image]})
    assert refused.status_code in (400, 403)


def test_bodies_have_room_for_pictures(client: TestClient) -> None:
    spaces = b" " * (MEDIA_BODY_BYTES // 2)
    fine = client.post("/vision/classify", content=spaces, headers={"content-type": "application/json"})
    assert fine.status_code == 422
    for path in ("/vision/classify", "/v1/vision/classify"):
        large = client.post(path, content=spaces * 3, headers={"content-type": "application/json"})
        assert large.status_code == 413
    assert client.post("/classify", content=spaces, headers={"content-type": "application/json"}).status_code == 413
