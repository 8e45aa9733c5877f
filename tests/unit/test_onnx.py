"""ONNX files, read from their outline, and which of several is loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lfx_local_runtimes.errors import InvalidInput, InvalidModelFile, ModelNotFound
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.inspect import inspect_model
from lfx_local_runtimes.runtimes.formats.onnx import OnnxTensor, choose, read_onnx
from lfx_local_runtimes.runtimes.planning import LoadPlan, plan_loads
from lfx_local_runtimes.runtimes.rules import Rules
from lfx_local_runtimes.runtimes.sources import hub
from lfx_local_runtimes.settings import Settings


def write(path: Path, *weights: Any, output: str = "last_hidden_state", width: int = 8, **options: Any) -> Path:
    """A model with these weights; it reads token ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = [numpy_helper.from_array(array, f"w{index}") for index, array in enumerate(weights)]
    shape = ["batch", "sequence", width] if output == "last_hidden_state" else ["batch", width]
    graph = helper.make_graph(
        [helper.make_node(options.get("operator", "Identity"), ["input_ids"], [output])],
        "graph",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        tensors,
    )
    onnx.save(helper.make_model(graph), path)
    return path


FLOATS, BYTES = np.zeros((10, 8), np.float32), np.zeros((10, 8), np.int8)


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ([FLOATS], "fp32"),
        ([FLOATS.astype(np.float16)], "fp16"),
        ([BYTES, FLOATS], "int8"),
        ([BYTES, FLOATS, FLOATS], "int8"),
        ([BYTES.astype(np.uint8)], "int8"),
        ([BYTES[:1], FLOATS], "fp32"),
    ],
)
def test_weights_are_counted(weights: list[Any], dtype: str, tmp_path: Path) -> None:
    header = read_onnx(write(tmp_path / "m.onnx", *weights))
    assert header.dtype == dtype
    assert header.parameters == sum(array.size for array in weights)
    assert header.weight_bytes == sum(array.nbytes for array in weights)
    assert header.inputs == (OnnxTensor("input_ids", (None, None)),)
    assert header.outputs == (OnnxTensor("last_hidden_state", (None, None, 8)),)


def test_packed_nibbles_are_four_bits(tmp_path: Path) -> None:
    assert read_onnx(write(tmp_path / "m.onnx", BYTES.astype(np.uint8), operator="MatMulNBits")).dtype == "int4"


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.99])
def test_a_file_that_is_cut_off_is_refused(keep: float, tmp_path: Path) -> None:
    data = write(tmp_path / "m.onnx", FLOATS, BYTES).read_bytes()
    (tmp_path / "m.onnx").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InvalidModelFile, match=r"m\.onnx"):
        read_onnx(tmp_path / "m.onnx")


def with_weights_in(path: Path, location: str) -> Path:
    model = onnx.load(write(path, FLOATS))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../b", "..\\b", ""])
def test_weights_outside_of_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFile, match="outside of its folder"):
        read_onnx(with_weights_in(tmp_path / "in" / "m.onnx", location))


def test_weights_behind_a_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(320))
    file = with_weights_in(tmp_path / "in" / "m.onnx", "m.data")
    with pytest.raises(InvalidModelFile, match=r"m\.data, which is missing"):
        read_onnx(file)
    (tmp_path / "in" / "m.data").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidModelFile, match="leads outside"):
        read_onnx(file)
    (tmp_path / "in" / "m.data").unlink()
    (tmp_path / "in" / "m.data").write_bytes(bytes(320))
    assert [one.name for one in read_onnx(file).files] == ["m.onnx", "m.data"]


# -- a folder of them ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As exporters lay it out."""
    write(tmp_path / "onnx" / "model.onnx", FLOATS)
    write(tmp_path / "onnx" / "model_O3.onnx", FLOATS)
    write(tmp_path / "onnx" / "model_quantized.onnx", BYTES)
    write(tmp_path / "onnx" / "model_qint8_avx512_vnni.onnx", BYTES)
    (tmp_path / "config.json").write_text(
        '{"architectures": ["BertModel"], "model_type": "bert", "max_position_embeddings": 64}'
    )
    return tmp_path


@pytest.mark.parametrize(("dtype", "name"), [(None, "model.onnx"), ("int8", "model_quantized.onnx"), ("fp16", None)])
def test_one_of_several_is_chosen(dtype: str | None, name: str | None, folder: Path) -> None:
    header = choose(inspect_model(folder).onnx, dtype)
    assert (header.path.name if header else None) == name


def test_a_folder_tells_what_it_is(folder: Path) -> None:
    info = inspect_model(folder)
    assert (info.format, info.engine, info.task, info.quantization) == (ModelFormat.ONNX, "onnx", "embedding", "fp32")
    assert (info.parameters, info.context_length, info.problems) == (80, 64, ())
    assert info.size_bytes == (folder / "onnx" / "model.onnx").stat().st_size


@pytest.mark.parametrize(
    ("output", "width", "task"),
    [
        ("logits", 1, "rerank"),
        ("logits", 3, "classification"),
        ("last_hidden_state", 8, "embedding"),
        ("x", 8, "other"),
    ],
)
def test_without_a_config_the_outputs_tell(output: str, width: int, task: str, tmp_path: Path) -> None:
    info = inspect_model(write(tmp_path / "m.onnx", FLOATS, output=output, width=width))
    assert info.task == task
    assert info.problems == ()


def test_a_folder_of_broken_files_says_why(tmp_path: Path) -> None:
    file = write(tmp_path / "m.onnx", FLOATS)
    with_weights_in(file, "gone.data")
    assert inspect_model(tmp_path).problems == ("m.onnx keeps weights in gone.data, which is missing.",)


# -- which load is planned -----------------------------------------------------------------------------------------------


class Machine:
    def __init__(self, *, bf16: bool) -> None:
        self._bf16 = bf16

    def accelerators(self) -> tuple[()]:
        return ()

    def cpu_has_bf16(self) -> bool:
        return self._bf16


def planned(info: ModelInfo, *, bf16: bool = False, **config: Any) -> tuple[LoadPlan, ...]:
    wanted = ModelConfig.model_validate({"model_id": "m", "model_name": "m", **config})
    machine: Any = Machine(bf16=bf16)
    return plan_loads(wanted, info, settings=Settings(), rules=Rules.load(), probe=machine)


def chosen(plans: tuple[LoadPlan, ...]) -> list[tuple[str, str, str]]:
    return [(plan.engine, plan.dtype, plan.info.files[0].name) for plan in plans]


@pytest.fixture
def both(folder: Path) -> ModelInfo:
    """Safetensors, and ONNX files beside them."""
    found = inspect_model(folder)
    weights = folder / "model.safetensors"
    return ModelInfo(
        folder, ModelFormat.SAFETENSORS, (weights,), None, 320, parameters=80, onnx=found.onnx, task="embedding"
    )


def test_auto_takes_what_is_fastest_at_equal_quality(both: ModelInfo) -> None:
    torch, onnx = ("transformers", "fp32", "model.safetensors"), ("onnx", "fp32", "model.onnx")
    assert chosen(planned(both)) == [onnx, torch]
    assert chosen(planned(both, bf16=True)) == [("transformers", "bf16", "model.safetensors"), onnx]
    assert chosen(planned(both, bf16=True, model_type="rerank")) == [onnx, torch]
    assert chosen(planned(both, quantization="int8"))[0] == ("onnx", "int8", "model_quantized.onnx")


def test_what_a_file_is_made_from_has_to_be_asked_for(both: ModelInfo) -> None:
    bare = ModelInfo(both.path, both.format, both.files, None, 320, parameters=80, task="embedding")
    assert chosen(planned(bare)) == [("transformers", "fp32", "model.safetensors")]
    assert chosen(planned(bare, runtime_type="onnx")) == [("onnx", "fp32", "model.safetensors")]
    assert chosen(planned(bare, runtime_type="onnx", quantization="int8")) == [("onnx", "int8", "model.safetensors")]
    with pytest.raises(InvalidInput, match="No ONNX file in fp16 can be made"):
        planned(bare, runtime_type="onnx", quantization="fp16")


def test_what_is_not_there_is_said(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="no ONNX file in fp16; it has fp32, int8"):
        planned(inspect_model(folder), quantization="fp16")
    with pytest.raises(InvalidInput, match="is llm"):
        planned(inspect_model(folder), model_type="llm")


# -- on the hub ----------------------------------------------------------------------------------------------------------

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


def test_a_type_that_a_repository_lacks() -> None:
    with pytest.raises(ModelNotFound, match="no ONNX file in fp16"):
        hub.choose(NAMES, hub.Wish(dtype="fp16"), "org/name")
