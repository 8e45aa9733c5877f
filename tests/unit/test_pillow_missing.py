"""Without Pillow, models that take pictures are not offered, and lists say which extra installs it."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes import optional
from lfx_local_runtimes.errors import MissingExtra
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager
from lfx_local_runtimes.settings import Settings
from tests.routes_app import write_model

SEEING: dict[str, dict[str, Any]] = {
    "image_classification": {"model_type": "vit", "architectures": ["ViTForImageClassification"]},
    "image_embedding": {"model_type": "dinov2", "architectures": ["Dinov2Model"]},
    "caption": {"model_type": "blip", "architectures": ["BlipForConditionalGeneration"]},
    "llm": {"model_type": "idefics3", "architectures": ["Idefics3ForConditionalGeneration"], "vision_config": {}},
}


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    """A manager with a model for each task, and `writer`, which takes no pictures."""
    made = RuntimeManager(Settings(home=tmp_path, offline=True, spare_processes=0))
    for name, config in SEEING.items():
        folder = tmp_path / "models" / name
        write_model(folder)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "processor_config.json").write_text("{}")
        made.register_model(ModelConfig(model_id=str(folder), model_name=name))
    write_model(tmp_path / "models" / "writer")
    made.register_model(ModelConfig(model_id=str(tmp_path / "models" / "writer"), model_name="writer"))
    yield made
    made.close()


def problems(manager: RuntimeManager) -> dict[str, str | None]:
    return {one.model_name: one.error for one in manager.list_models() if one.model_name in (*SEEING, "writer")}


async def test_models_that_take_pictures_name_the_extra(
    manager: RuntimeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(problems(manager).values()) == {None}
    monkeypatch.setattr(optional, "find_spec", lambda name: None if name == "PIL" else find_spec(name))
    found = problems(manager)
    assert found.pop("writer") is None
    assert set(found) == set(SEEING)
    for name, error in found.items():
        assert error == f"{name}: PIL is not installed. Run: pip install 'lfx-local-runtimes[vision]'"
    with pytest.raises(MissingExtra, match=r"\[vision\]"):
        await manager.load_model("image_classification")
