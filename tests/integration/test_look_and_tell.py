"""The flow that tells what is to be seen in a picture, headless, with a detector of random weights."""

from pathlib import Path

import pytest

from lfx_local_runtimes.flows.pictures import DETECTOR, PHOTO, REQUEST
from lfx_local_runtimes.runtimes.sources.packages import SMOLLM
from lfx_local_runtimes.settings import PREFIX
from tests import vision_models
from tests.lfx_process import lfx_run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not SMOLLM.installed, reason="the demo's SmolLM2 is not installed"),
]


def test_the_answer_names_what_the_detector_found(tmp_path: Path) -> None:
    vision_models.photo().save(tmp_path / PHOTO)
    detector = vision_models.detr(tmp_path / "detr")  # finds four cats and four birds, no dog
    models = tmp_path / "models.yaml"
    models.write_text(f"models: [{{name: {DETECTOR}, model: {detector}}}]")
    environment = {f"{PREFIX}MODELS_FILE": str(models), f"{PREFIX}MEDIA_DIRS": str(tmp_path)}
    answer = lfx_run("look_and_tell", REQUEST, **environment)
    assert "cat" in answer
    assert "bird" in answer
    assert "dog" not in answer
