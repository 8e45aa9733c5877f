"""The nodes that look at pictures, over scripted models: what they take, ask and show."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfx.components.input_output.chat_output import ChatOutput
from lfx.custom.custom_component.component import Component
from lfx.graph.graph.base import Graph
from lfx.schema.data import Data
from lfx.schema.dataframe import DataFrame
from lfx.schema.message import Message

from lfx_local_runtimes.components.local_runtimes.depth import DepthComponent
from lfx_local_runtimes.components.local_runtimes.image_classifier import ImageClassifierComponent
from lfx_local_runtimes.components.local_runtimes.local_embeddings import LocalEmbeddingsComponent
from lfx_local_runtimes.components.local_runtimes.object_detector import ObjectDetectorComponent
from lfx_local_runtimes.components.local_runtimes.segmenter import SegmenterComponent
from lfx_local_runtimes.components.local_runtimes.zero_shot_image_classifier import ZeroShotImageClassifierComponent
from lfx_local_runtimes.errors import InvalidInput, ModelNotFound, NotAllowed
from lfx_local_runtimes.langchain.embeddings import LocalRuntimeEmbeddings
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager, ScriptedRuntime, register_engine
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Finished, Request
from lfx_local_runtimes.runtimes.tasks.media import Media
from lfx_local_runtimes.runtimes.tasks.text.classification import Label
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingResult
from lfx_local_runtimes.runtimes.tasks.vision.classification import ImageClassificationResult
from lfx_local_runtimes.runtimes.tasks.vision.depth import DepthMap, DepthResult
from lfx_local_runtimes.runtimes.tasks.vision.detection import DetectedObject, ObjectDetectionResult
from lfx_local_runtimes.runtimes.tasks.vision.segmentation import Segment, Segmentation, SegmentationResult
from lfx_local_runtimes.runtimes.tasks.vision.zero_shot import ImageZeroShotResult
from lfx_local_runtimes.settings import Settings
from tests.pictures import drawn, file_of
from tests.routes_app import write_model

PNG = file_of(drawn())
DRAWING = Media("image/png", file_of(drawn(colour="green")))
LABELS = (Label("cat", 0.75), Label("dog", 0.25))
CAT = DetectedObject("cat", 0.9, 1, 2, 3, 4)
TASK_OF: dict[type[Component], str] = {
    ImageClassifierComponent: "image_classification",
    ObjectDetectorComponent: "object_detection",
    ZeroShotImageClassifierComponent: "zero_shot_image_classification",
    DepthComponent: "depth_estimation",
    SegmenterComponent: "image_segmentation",
}
EMBEDDER = "my image_embedding"


def result_of(task: str, count: int) -> Any:
    """What a scripted model finds in so many pictures."""
    depth = DepthMap(64, 48, 0.5, 9.0, 3.0, 2.0, None, DRAWING)
    segmentation = Segmentation((Segment("sky", 2, 60, 0.6), Segment("tree", 1, 40, 0.4)), DRAWING, DRAWING)
    return {
        "image_classification": ImageClassificationResult("m", {}, (LABELS,) * count),
        "zero_shot_image_classification": ImageZeroShotResult("m", {}, (LABELS,) * count),
        "object_detection": ObjectDetectionResult("m", {}, ((CAT, CAT),) * count, (DRAWING,) * count),
        "depth_estimation": DepthResult("m", {}, (depth,) * count),
        "image_segmentation": SegmentationResult("m", {}, (segmentation,) * count),
        "image_embedding": EmbeddingResult("m", {}, np.array([[0.5, -0.25]] * count, dtype=np.float32)),
    }[task]


class Gallery:
    """A manager with one model for each task, and what they were asked."""

    def __init__(self, home: Path) -> None:
        self.asks: list[Any] = []
        register_engine("scripted", lambda config, plan: Looker(self, config, plan))
        self.manager = RuntimeManager(Settings(home=home, offline=True))
        for task in (*TASK_OF.values(), "image_embedding"):
            place = home / "models" / task
            write_model(place)
            config = ModelConfig(model_id=str(place), model_name=f"my {task}", model_type=task, runtime_type="scripted")
            self.manager.register_model(config)


class Looker(ScriptedRuntime):
    """Finds the same in every picture."""

    def __init__(self, gallery: Gallery, config: ModelConfig, plan: LoadPlan | None) -> None:
        super().__init__(config, plan)
        self._gallery = gallery

    @property
    def tasks(self) -> frozenset[str]:
        return frozenset({self.config.model_type})

    def _serve(self, request: Request[Any]) -> None:
        self._gallery.asks.append(request.ask)
        request.emit(Finished(result_of(request.task, len(request.ask.images))))


@pytest.fixture
def gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gallery]:
    settings = Settings(home=tmp_path, offline=True)
    made = Gallery(tmp_path)
    monkeypatch.setattr("lfx_local_runtimes.runtimes.manager._shared", made.manager)
    monkeypatch.setattr("lfx_local_runtimes.nodes.seeing.get_settings", lambda: settings)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield made
    made.manager.close()


def node(kind: type[Component], **options: Any) -> Any:
    return kind(**{"model_name": f"my {TASK_OF[kind]}", "input_value": Data(data={"image": PNG}), **options})


def records(table: DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_dict(orient="records")
    return rows


@pytest.mark.parametrize("kind", TASK_OF)
async def test_models_of_the_task_are_offered(gallery: Gallery, kind: type[Component]) -> None:
    made = node(kind)
    fields = made.to_frontend_node()["data"]["node"]["template"]
    fields = await made.update_build_config(fields, "", "model_name")
    assert [name for name in fields["model_name"]["options"] if name.startswith("my ")] == [f"my {TASK_OF[kind]}"]


@pytest.mark.parametrize("kind", TASK_OF)
async def test_no_model_and_no_picture_are_clear_errors(gallery: Gallery, kind: type[Component]) -> None:
    first = node(kind).outputs[0].method
    with pytest.raises(ModelNotFound, match="Choose one"):
        await getattr(node(kind, model_name=""), first)()
    with pytest.raises(InvalidInput, match="no picture to look at"):
        await getattr(node(kind, input_value=[]), first)()


async def test_pictures_come_from_data_messages_files_and_paths(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    for place in (tmp_path / "media" / "a.png", tmp_path / "b.png"):
        place.write_bytes(PNG)
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    inputs: list[dict[str, Any]] = [
        {"input_value": Data(data={"image": url})},
        {"input_value": [Data(data={"image": PNG}), Data(data={"image": url})]},
        {"input_value": None, "path": "a.png"},
    ]
    for given in inputs:
        await node(ImageClassifierComponent, **given).scores()
        assert set(gallery.asks[-1].images) == {Media("image/png", PNG)}
    assert len(gallery.asks[1].images) == 2


async def test_files_of_langflow_are_read_through_langflow(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    monkeypatch.setattr(
        "lfx_local_runtimes.nodes.files.enforce_local_file_access", lambda place, scope_ids: Path(place)
    )
    monkeypatch.setattr("lfx_local_runtimes.nodes.files.get_file_size", lambda place: Path(place).stat().st_size)
    message = Message(text="look", files=[str(tmp_path / "a.png")])
    for given in ({"input_value": message}, {"input_value": None, "image_file": [str(tmp_path / "a.png")]}):
        await node(ImageClassifierComponent, **given).label()
        assert gallery.asks[-1].images == (Media("image/png", PNG),)

    def refuse(place: str, scope_ids: Any) -> Path:
        raise ValueError("outside")

    monkeypatch.setattr("lfx_local_runtimes.nodes.files.enforce_local_file_access", refuse)
    with pytest.raises(NotAllowed, match=r"read a\.png: outside"):
        await node(ImageClassifierComponent, input_value=message).label()


@pytest.mark.parametrize("value", [Data(data={"image": "no base64!"}), Data(data={}), DataFrame([{"a": 1}])])
async def test_what_is_no_picture_is_refused(gallery: Gallery, value: Any) -> None:
    with pytest.raises(InvalidInput, match=r"picture|neither a message nor data"):
        await node(ImageClassifierComponent, input_value=value).label()
    assert not gallery.asks


async def test_labels_of_pictures(gallery: Gallery) -> None:
    made = node(ImageClassifierComponent, input_value=[Data(data={"image": PNG})] * 2, top_k=2, multi_label="yes")
    assert records(await made.scores())[2] == {"image": 2, "label": "cat", "score": 0.75}
    assert (await made.label()).text == "cat"
    assert made.status == "cat 0.75"
    (ask,) = gallery.asks  # one for both outputs
    assert (ask.top_k, ask.multi_label) == (2, True)


async def test_a_picture_is_routed_by_its_best_label(gallery: Gallery) -> None:
    message = Data(data={"image": PNG})
    made = node(ZeroShotImageClassifierComponent, labels=["dog", "cat"], input_value=message, hypothesis="A {}.")
    made._current_output = "label_2"
    passed = await made.route()
    assert len(passed.files) == 1
    made._current_output = "label_1"
    assert not (await made.route()).files
    assert gallery.asks[-1].hypothesis == "A {}."
    strict = node(ZeroShotImageClassifierComponent, labels=["dog", "cat"], threshold=0.9)
    strict._current_output = "else"
    assert (await strict.route()).files


async def test_boxes_are_rows_and_a_picture(gallery: Gallery) -> None:
    made = node(ObjectDetectorComponent, threshold=0.3)
    assert records(await made.objects())[0] == {
        "image": 1, "label": "cat", "score": 0.9, "xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4,
    }  # fmt: skip
    shown = await made.picture()
    assert shown.text == "cat: 2"
    assert content_of(shown) == DRAWING.data
    assert (gallery.asks[-1].threshold, gallery.asks[-1].draw) == (0.3, True)


async def test_depths_and_classes_are_rows_and_pictures(gallery: Gallery) -> None:
    depth = node(DepthComponent)
    (row,) = records(await depth.depths())
    assert (row["image"], row["min"], row["median"]) == (1, 0.5, 2.0)
    assert content_of(await depth.picture()) == DRAWING.data
    segmenter = node(SegmenterComponent)
    assert [row["label"] for row in records(await segmenter.segments())] == ["sky", "tree"]
    assert (await segmenter.picture()).text == "sky 60%, tree 40%"
    assert content_of(await segmenter.class_map()) == DRAWING.data


def content_of(message: Message) -> bytes:
    """The content of a message's one file."""
    (file,) = message.files or []
    return Path(file if isinstance(file, str) else str(file.path)).read_bytes()


async def test_a_picture_goes_through_a_flow_to_the_chat(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.png").write_bytes(PNG)
    detector = ObjectDetectorComponent(
        _id="ObjectDetector-a", model_name="my object_detection", input_value=None, path="a.png"
    )
    chat = ChatOutput(_id="ChatOutput-a", should_store_message=False).set(input_value=detector.picture)
    assert [result async for result in Graph(detector, chat).async_start()]
    shown = chat._outputs_map["message"].value
    assert shown.text == "cat: 2"
    assert content_of(shown) == DRAWING.data
    assert len(gallery.asks) == 1


async def test_a_drawn_picture_is_in_the_text_for_the_playground_and_a_routed_one_is_not(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Playground shows the files of a user's message, but not those of an answer."""
    kept: dict[str, bytes] = {}

    class Storage:
        async def save_file(self, flow: str, name: str, data: bytes) -> None:
            kept[f"{flow}/{name}"] = data

    monkeypatch.setattr("lfx_local_runtimes.nodes.files.get_storage_service", Storage)
    detector = ObjectDetectorComponent(
        _id="ObjectDetector-a", model_name="my object_detection", input_value=[Data(data={"image": PNG})] * 2
    )
    chat = ChatOutput(_id="ChatOutput-a", should_store_message=False).set(input_value=detector.picture)
    assert [result async for result in Graph(detector, chat, flow_id="flow").async_start()]
    first, second = kept
    shown = chat._outputs_map["message"].value
    assert shown.text == (
        f"cat: 4\n\n![Picture 1](/api/v1/files/images/{first})\n\n![Picture 2](/api/v1/files/images/{second})"
    )
    assert kept[first] == DRAWING.data

    router = node(ZeroShotImageClassifierComponent, labels=["cat", "dog"], _id="Router-a")
    router._vertex, router._current_output = detector._vertex, "label_1"
    passed = await router.route()
    assert (passed.text, len(passed.files)) == ("", 1)


# -- Local Embeddings ----------------------------------------------------------------------------------------------------


def embedder(**options: Any) -> LocalEmbeddingsComponent:
    return LocalEmbeddingsComponent(model_name=EMBEDDER, **options)


async def test_pictures_become_vectors(gallery: Gallery) -> None:
    made = embedder(images=[Data(data={"image": PNG})] * 2, dimensions=2, normalize="no")
    assert records(await made.image_vectors()) == [
        {"image": number, "embeddings": [0.5, -0.25], "model_name": EMBEDDER} for number in (1, 2)
    ]
    assert made.status == "2 pictures, 2 dimensions"
    (ask,) = gallery.asks
    assert (ask.images, ask.dimensions, ask.normalize) == ((Media("image/png", PNG),) * 2, 2, False)


async def test_embeddings_without_pictures_say_so(gallery: Gallery) -> None:
    with pytest.raises(InvalidInput, match="no picture to look at"):
        await embedder().image_vectors()
    alone = embedder(_id="LocalEmbeddings-a")
    assert [result async for result in Graph(alone, alone).async_start()]
    assert gallery.asks == []


async def test_models_for_pictures_come_after_those_for_texts(gallery: Gallery) -> None:
    made = embedder()
    fields = made.to_frontend_node()["data"]["node"]["template"]
    names = (await made.update_build_config(fields, "", "model_name"))["model_name"]["options"]
    assert [name for name in names if name.startswith("my ")] == [EMBEDDER, "my zero_shot_image_classification"]


async def test_programs_embed_pictures(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.png").write_bytes(PNG)
    model = LocalRuntimeEmbeddings(model=EMBEDDER)
    assert model.embed_images([PNG, drawn()]) == [[0.5, -0.25]] * 2
    assert await model.aembed_images([{"path": "a.png"}]) == model.embed_images([{"path": "a.png"}]) == [[0.5, -0.25]]
    assert gallery.asks[-1].images == (Media("image/png", PNG),)
    assert model.embed_images([]) == await model.aembed_images([]) == []
    assert len(gallery.asks) == 3
    with pytest.raises(InvalidInput, match="images"):
        model.embed_images([b""])
