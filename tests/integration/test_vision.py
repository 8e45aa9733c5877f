"""Models that see give what Transformers gives on the same weights, inline and in a confined process."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import InvalidInput, RequestCancelled
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.transformers.sight import TransformersSight
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.requests import RequestState
from lfx_local_runtimes.runtimes.tasks.vision.classification import ImageClassificationAsk
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


vit = of("vit")


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
    runs = [begin(vit, ImageClassificationAsk(images=(photo(),) * 4)) for _ in range(8)]
    results = [run.wait() for run in runs]
    assert vit._scheduler.batches - before < 32  # type: ignore[union-attr]
    for result in results:
        for found in result.labels:
            assert [one.score for one in found] == pytest.approx([one.score for one in first.labels[0]], abs=1e-5)


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
    assert len(manager.start("vit", ImageClassificationAsk(images=(large, large))).wait().labels) == 2
    for size in ((1, 1), (20_000, 1)):
        assert len(manager.start("vit", ImageClassificationAsk(images=(Image.new("RGB", size),))).wait().labels) == 1


def test_a_cancel_ends_a_large_request(manager: RuntimeManager) -> None:
    run = manager.start("vit", ImageClassificationAsk(images=(file_of(photo()),) * 1000))
    run.cancel()
    with pytest.raises(RequestCancelled):
        run.wait()
    assert run.request.state is RequestState.CANCELLED
    assert manager.start("vit", ImageClassificationAsk(images=(drawn(),))).wait().labels
