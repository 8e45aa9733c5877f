"""Local Embeddings on a tiny CLIP: the vectors of pictures are upstream's, in the space of those of texts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lfx.schema.data import Data

from lfx_local_runtimes.components.local_runtimes.local_embeddings import LocalEmbeddingsComponent
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager
from lfx_local_runtimes.settings import Settings
from tests import vision_models
from tests.pictures import file_of

pytestmark = pytest.mark.integration


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The model's folder; the nodes find it as `clip`."""
    folder = vision_models.clip(tmp_path / "models" / "clip")
    manager = RuntimeManager(Settings(home=tmp_path, offline=True, isolation="inline", model_dirs=(folder.parent,)))
    manager.register_model(ModelConfig(model_id=str(folder), model_name="clip", threads=1))
    monkeypatch.setattr("lfx_local_runtimes.runtimes.manager._shared", manager)
    yield folder
    manager.close()


async def test_pictures_and_texts_have_vectors_in_one_space(clip: Path) -> None:
    import torch
    import transformers

    picture, text = vision_models.photo(), "a temple"
    node = LocalEmbeddingsComponent(model_name="clip", images=[Data(data={"image": file_of(picture)})])
    (row,) = (await node.image_vectors()).to_dict(orient="records")
    embeddings = node.build_embeddings()
    network = transformers.CLIPModel.from_pretrained(clip).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(clip, backend="pil")(picture, return_tensors="pt")
    tokens = transformers.AutoTokenizer.from_pretrained(clip)([text], return_tensors="pt")
    with torch.inference_mode():
        expected = network(**pixels, **tokens)
    assert np.allclose(row["embeddings"], expected.image_embeds[0], atol=1e-4)
    assert np.allclose(await embeddings.aembed_query(text), expected.text_embeds[0], atol=1e-4)
