"""Which of a repository's files are fetched, and which cached ones will do."""

from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import ModelNotFound, PickleRefused
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.sources import hub
from lfx_local_runtimes.settings import Settings

NAMES = ("config.json", "tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_quantized.onnx")


@pytest.mark.parametrize(
    ("names", "options", "weights"),
    [
        (NAMES, {}, ["onnx/model.onnx_data", "onnx/model.onnx"]),
        (NAMES, {"dtype": "int8"}, ["onnx/model_quantized.onnx"]),
        ((*NAMES, "model.safetensors"), {}, ["model.safetensors"]),
        ((*NAMES, "model.safetensors"), {"onnx": True}, ["onnx/model.onnx_data", "onnx/model.onnx"]),
        ((*NAMES, "model.safetensors"), {"onnx": True, "dtype": "fp16"}, ["model.safetensors"]),
    ],
)
def test_the_files_to_fetch(names: tuple[str, ...], options: dict[str, Any], weights: list[str]) -> None:
    found = hub.choose(names, hub.Wish(**options), "org/name").files
    assert list(found) == ["config.json", "tokenizer.json", *weights]


def test_what_a_repository_lacks() -> None:
    with pytest.raises(ModelNotFound, match="no ONNX file in fp16"):
        hub.choose(NAMES, hub.Wish(dtype="fp16"), "org/name")
    with pytest.raises(ModelNotFound, match="ONNX files only, which Transformers"):
        hub.choose(NAMES, hub.Wish(tensors=True), "org/name")


def test_pickle_is_not_fetched_where_onnx_is() -> None:
    pickled = (*NAMES, "pytorch_model.bin")
    assert hub.choose(pickled, hub.Wish(onnx=True), "org/name").files[-1] == "onnx/model.onnx"
    with pytest.raises(PickleRefused):
        hub.choose(pickled, hub.Wish(onnx=True, dtype="fp16"), "org/name")


PIPELINE = (*NAMES, "modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors")


@pytest.mark.parametrize(
    ("more", "options"),
    [([], {}), (["model.safetensors"], {"onnx": True}), (["pytorch_model.bin"], {"onnx": True})],
)
def test_dense_layers_come_with_the_onnx_file(more: list[str], options: dict[str, Any]) -> None:
    files = hub.choose((*PIPELINE, *more), hub.Wish(**options), "org/name").files
    assert files[-3:] == ("2_Dense/model.safetensors", "onnx/model.onnx_data", "onnx/model.onnx")
    assert "2_Dense/config.json" in files
    assert not set(more) & set(files)


TENSORS = ("config.json", "model.safetensors")


@pytest.mark.parametrize(
    ("names", "config", "enough"),
    [
        (NAMES[:4], {}, True),
        (NAMES[:4], {"quantization": "int8"}, False),
        (NAMES[:4], {"quantization": "int8", "runtime_type": "onnx"}, False),
        (NAMES, {"quantization": "int8"}, True),
        (NAMES, {"runtime_type": "transformers"}, False),
        ((*NAMES, "model.safetensors"), {"runtime_type": "transformers"}, True),
        (TENSORS, {"runtime_type": "transformers", "quantization": "int8"}, True),
        (TENSORS, {"runtime_type": "onnx", "quantization": "int8"}, True),
        (TENSORS, {"runtime_type": "onnx", "quantization": "fp16"}, False),
        (("config.json", "pytorch_model.bin"), {"runtime_type": "onnx"}, False),
        (("config.json", "pytorch_model.bin", "onnx/model.onnx"), {"runtime_type": "onnx"}, True),
    ],
)
def test_what_is_cached_has_to_be_what_is_wanted(
    names: tuple[str, ...], config: dict[str, str], enough: bool, tmp_path: Path
) -> None:
    ref = hub.HubRef("org/name")
    snapshot = hub.repo_folder(tmp_path, ref.repo) / "snapshots" / ("0123456789" * 4)
    for name in names:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).touch()
    wanted = ModelConfig.model_validate({"model_id": "org/name", "model_name": "m", **config})
    online, offline = (hub.Wish.of(wanted, ref, Settings(offline=offline)) for offline in (False, True))
    assert hub.cached_model(tmp_path, ref, None, online) == (snapshot if enough else None)
    assert hub.cached_model(tmp_path, ref, None, offline) == snapshot, "planning says what it lacks"
