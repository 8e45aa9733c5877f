"""Models that see give what Transformers gives on the same weights, inline and in a confined process."""

import asyncio
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import ContextOverflow, InvalidInput, RequestCancelled, WrongTask
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.transformers.sight import TransformersSight
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.media.pictures import open_picture
from lfx_local_runtimes.runtimes.requests import RequestState
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk
from lfx_local_runtimes.runtimes.tasks.vision.classification import ImageClassificationAsk
from lfx_local_runtimes.runtimes.tasks.vision.depth import DepthAsk
from lfx_local_runtimes.runtimes.tasks.vision.detection import ObjectDetectionAsk
from lfx_local_runtimes.runtimes.tasks.vision.embedding import ImageEmbeddingAsk
from lfx_local_runtimes.runtimes.tasks.vision.segmentation import SegmentationAsk
from lfx_local_runtimes.runtimes.tasks.vision.zero_shot import ImageZeroShotAsk
from lfx_local_runtimes.settings import Settings
from tests import vision_models
from tests.encoder_models import answer, begin, unload
from tests.pictures import drawn, file_of, png_that_says
from tests.vision_models import load_sight, photo

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sight")


def of(architecture: str) -> Any:
    """A fixture: a tiny model of an architecture, loaded in this process."""

    @pytest.fixture(scope="module", name=architecture)
    def loaded(folder: Path) -> Iterator[TransformersSight]:
        runtime = load_sight(getattr(vision_models, architecture)(folder / architecture))
        yield runtime
        unload(runtime)

    return loaded


def one_of(name: str, *architectures: str) -> Any:
    """The same for each of several architectures."""

    @pytest.fixture(scope="module", name=name, params=architectures)
    def loaded(folder: Path, request: pytest.FixtureRequest) -> Iterator[TransformersSight]:
        runtime = load_sight(getattr(vision_models, request.param)(folder / request.param))
        yield runtime
        unload(runtime)

    return loaded


vit, clip, dinov2, segformer = of("vit"), of("clip"), of("dinov2"), of("segformer")
detector = one_of("detector", "detr", "rt_detr", "yolos")
both = one_of("both", "clip", "siglip")
depths = one_of("depths", "dpt", "depth_anything")


def upstream(task: str, model: TransformersSight) -> Any:
    """The library's own pipeline with the same weights."""
    import transformers

    return transformers.pipeline(task, model=model.config.model_id, device="cpu")


# -- image classification ------------------------------------------------------------------------------------------------


def test_labels_are_those_of_the_library(vit: TransformersSight) -> None:
    pictures = [photo(), drawn(), photo().rotate(90, expand=True)]
    result = answer(vit, ImageClassificationAsk(images=tuple(pictures), top_k=None))
    pipeline = upstream("image-classification", vit)
    for picture, found in zip(pictures, result.labels, strict=True):
        expected = pipeline(picture, top_k=3)
        assert [one.label for one in found] == [one["label"] for one in expected]
        assert [one.score for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-4)
    assert result.metadata["pixels"] == 3 * 32 * 32
    assert [len(found) for found in answer(vit, ImageClassificationAsk(images=(photo(),), top_k=1)).labels] == [1]


def test_pictures_of_several_callers_share_batches(vit: TransformersSight) -> None:
    first = answer(vit, ImageClassificationAsk(images=(photo(),)))
    before = vit._scheduler.batches  # type: ignore[union-attr]
    data = file_of(photo())
    runs = [begin(vit, ImageClassificationAsk(images=(data,) * 4)) for _ in range(8)]
    results = [run.wait() for run in runs]
    assert vit._scheduler.batches - before < 32  # type: ignore[union-attr]
    for result in results:
        for found in result.labels:
            assert [one.score for one in found] == pytest.approx([one.score for one in first.labels[0]], abs=1e-5)


# -- object detection ----------------------------------------------------------------------------------------------------


def test_boxes_are_those_of_the_library(detector: TransformersSight) -> None:
    pictures = [photo(), photo().resize((300, 500))]
    result = answer(detector, ObjectDetectionAsk(images=tuple(pictures), threshold=0.2, draw=True))
    for picture, found, drawing in zip(pictures, result.objects, result.drawings, strict=True):
        expected = library_boxes(detector, picture, 0.2)
        assert len(found) == len(expected) > 0
        for one, (score, label, box) in zip(found, expected, strict=True):
            assert (one.label, one.score) == (vision_models.ANIMALS[label], pytest.approx(score, abs=1e-4))
            assert (one.xmin, one.ymin, one.xmax, one.ymax) == pytest.approx(box, abs=1)
        shown = open_picture(drawing, "drawing")
        assert shown.size == picture.size
        assert shown.tobytes() != picture.tobytes()
    assert answer(detector, ObjectDetectionAsk(images=(photo(),), threshold=1)).objects == ((),)


def library_boxes(model: TransformersSight, picture: Any, threshold: float) -> list[tuple[float, int, list[float]]]:
    """Score, label and box inside the picture, best first."""
    import torch
    import transformers

    folder = model.config.model_id
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    network = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    with torch.inference_mode():
        output = network(**processor(images=picture, return_tensors="pt"))
    size = torch.tensor([picture.size[::-1]])
    found = processor.post_process_object_detection(output, threshold=threshold, target_sizes=size)[0]
    width, height = picture.size
    boxes = found["boxes"].clamp(min=0).minimum(torch.tensor([width, height, width, height])).tolist()
    return sorted(zip(found["scores"].tolist(), found["labels"].tolist(), boxes, strict=True), key=lambda one: -one[0])


# -- pictures and texts ------------------------------------------------------------------------------------------------


def test_labels_of_ones_own_are_scored_as_by_the_library(both: TransformersSight) -> None:
    labels = ("a temple", "a cat", "two dogs on a sofa")
    pictures = (photo(), drawn())
    result = answer(both, ImageZeroShotAsk(images=pictures, labels=labels))
    pipeline = upstream("zero-shot-image-classification", both)
    for picture, found in zip(pictures, result.labels, strict=True):
        expected = pipeline(picture, candidate_labels=list(labels))
        assert [one.label for one in found] == [one["label"] for one in expected]
        assert [one.score for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-4)
    assert result.metadata["pixels"] == 2 * 32 * 32
    assert result.metadata["tokens"] > 0


def test_pictures_and_texts_have_vectors_in_one_space(clip: TransformersSight) -> None:
    import numpy as np
    import torch
    import transformers

    texts = ("a temple", "a cat")
    result = answer(clip, ImageEmbeddingAsk(images=(photo(),), texts=texts))
    folder = clip.config.model_id
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(list(texts), padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = network(**processor(images=photo(), return_tensors="pt"), **tokens)
    expected = torch.cat([output.image_embeds, output.text_embeds]).numpy()
    assert np.allclose(result.vectors, expected, atol=1e-4)
    assert np.allclose(answer(clip, EmbeddingAsk(texts=texts)).vectors, expected[1:], atol=1e-4)
    long = answer(clip, EmbeddingAsk(texts=("a", "a" * 200)))
    assert long.metadata["truncated"] == {1: 200 + 2 - 77}
    with pytest.raises(ContextOverflow, match="Input 1 has 202 tokens"):
        answer(clip, EmbeddingAsk(texts=("a", "a" * 200), overflow="error"))


def test_a_model_of_pictures_alone_gives_its_own_vectors(dinov2: TransformersSight) -> None:
    import numpy as np

    expected = upstream("image-feature-extraction", dinov2)(photo(), pool=True)
    assert np.allclose(answer(dinov2, ImageEmbeddingAsk(images=(photo(),))).vectors, expected, atol=1e-4)
    with pytest.raises(WrongTask, match="reads no texts"):
        answer(dinov2, ImageEmbeddingAsk(images=(photo(),), texts=("a",)))


# -- depth and classes ---------------------------------------------------------------------------------------------------


def test_depths_are_those_of_the_library(depths: TransformersSight) -> None:
    import numpy as np

    result = answer(depths, DepthAsk(images=(photo(), drawn()), raw=True, draw=True))
    for picture, found in zip((photo(), drawn()), result.depths, strict=True):
        expected = upstream("depth-estimation", depths)(picture)["predicted_depth"].numpy()
        assert np.allclose(found.values, expected, atol=1e-3)
        assert (found.width, found.height) == picture.size
        assert (found.min, found.max) == pytest.approx((expected.min(), expected.max()), abs=1e-3)
        assert (found.mean, found.median) == pytest.approx((expected.mean(), np.median(expected)), abs=1e-3)
        assert open_picture(found.drawing, "drawing").size == picture.size
    plain = answer(depths, DepthAsk(images=(photo(),))).depths[0]
    assert (plain.values, plain.drawing) == (None, None)


def test_classes_are_those_of_the_library(segformer: TransformersSight) -> None:
    import numpy as np
    from PIL import Image

    result = answer(segformer, SegmentationAsk(images=(photo(),), rle=True, draw=True)).segmentations[0]
    classes = np.asarray(Image.open(BytesIO(result.class_map.data)))
    expected = {one["label"]: np.asarray(one["mask"]) > 0 for one in upstream("image-segmentation", segformer)(photo())}
    assert {one.label for one in result.segments} == expected.keys()
    assert len(expected) > 1
    for one in result.segments:
        mask, theirs = classes == one.class_id, expected[one.label]
        assert (mask & theirs).sum() / (mask | theirs).sum() >= 0.999
        assert (one.area, one.rle.size) == (mask.sum(), mask.shape)
        assert one.share == pytest.approx(mask.mean())
        assert sum(one.rle.counts[1::2]) == one.area
    assert open_picture(result.drawing, "drawing").size == photo().size


# -- a confined process --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manager(vit: TransformersSight, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeManager]:
    home = tmp_path_factory.mktemp("home")
    made = RuntimeManager(Settings(home=home, model_dirs=(folder,), offline=True, spare_processes=0))
    made.register_model(ModelConfig(model_id=str(folder / "vit"), model_name="vit", threads=1))
    asyncio.run(made.load_model("vit"))
    yield made
    made.close()


def test_a_confined_process_gives_the_same(manager: RuntimeManager, vit: TransformersSight) -> None:
    ask = ImageClassificationAsk(images=(photo(), drawn()))
    inline, process = answer(vit, ask), manager.start("vit", ask).wait()
    assert process.labels == inline.labels
    status = manager.model_status("vit")
    assert status.model_type == "image_classification"
    assert status.confined == "full"


def test_marks_are_drawn_in_the_confined_process(manager: RuntimeManager, folder: Path) -> None:
    vision_models.yolos(folder / "marks")
    manager.register_model(ModelConfig(model_id=str(folder / "marks"), model_name="marks", threads=1, keep_alive=0))
    ask = ObjectDetectionAsk(images=(photo(),), threshold=0.2, draw=True)
    result = manager.start("marks", ask).wait()
    assert result.objects[0]
    assert open_picture(result.drawings[0], "drawing").size == photo().size


@pytest.mark.parametrize(
    "data", [file_of(photo())[:5000], png_that_says(30_000, 30_000), b"no picture", file_of(photo(), "JPEG")[:3000]]
)
def test_a_hostile_picture_harms_nobody(data: bytes, manager: RuntimeManager) -> None:
    pid = manager.start("vit", ImageClassificationAsk(images=(drawn(),))).wait() and manager.model_status("vit").pid
    good = manager.start("vit", ImageClassificationAsk(images=(photo(),) * 3))
    with pytest.raises(InvalidInput, match=r"images\.1"):
        manager.start("vit", ImageClassificationAsk(images=(drawn(), data))).wait()
    assert len(good.wait().labels) == 3
    assert manager.model_status("vit").pid == pid


def test_the_largest_picture_is_decoded_within_the_limits_of_the_process(manager: RuntimeManager) -> None:
    from PIL import Image

    large = file_of(Image.new("RGB", (8000, 5000)))
    assert len(manager.start("vit", ImageClassificationAsk(images=(large,))).wait().labels) == 1
    for size in ((1, 1), (20_000, 1)):
        assert len(manager.start("vit", ImageClassificationAsk(images=(Image.new("RGB", size),))).wait().labels) == 1


def test_a_cancel_ends_a_large_request(manager: RuntimeManager) -> None:
    run = manager.start("vit", ImageClassificationAsk(images=(file_of(photo()),) * 1000))
    run.cancel()
    with pytest.raises(RequestCancelled):
        run.wait()
    assert run.request.state is RequestState.CANCELLED
    assert manager.start("vit", ImageClassificationAsk(images=(drawn(),))).wait().labels
