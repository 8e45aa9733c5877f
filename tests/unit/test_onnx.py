"""ONNX files, read from their outline, and which of several is loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lfx_local_runtimes.errors import DeviceFailed, InvalidInput, InvalidModelFile, PickleRefused
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.devices import Device, Memory
from lfx_local_runtimes.runtimes.engines.onnx.encoder import OnnxNetwork
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.onnx import OnnxTensor, choose, read_onnx
from lfx_local_runtimes.runtimes.planning import LoadPlan, inspect_model, plan_loads
from lfx_local_runtimes.runtimes.planning.rules import Rules
from lfx_local_runtimes.runtimes.sources import hub
from lfx_local_runtimes.runtimes.tasks.text.reading import Tokens
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


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../b", "..\\b", "", "*/_ORT_MEM_ADDR_/*"])
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


def outside(name: str = "t") -> Any:
    """A tensor whose numbers are in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    return tensor


def node_with(**attribute: Any) -> Any:
    node = onnx.NodeProto(op_type="Constant", output=["c"])
    node.attribute.add(name="value", **attribute)
    return node


def graph_with(*nodes: Any, initializers: Any = ()) -> Any:
    return onnx.GraphProto(name="g", node=nodes, initializer=initializers)


HIDDEN = {
    "a constant": lambda model: model.graph.node.append(node_with(t=outside())),
    "a list of constants": lambda model: model.graph.node.append(node_with(tensors=[outside()])),
    "a branch": lambda model: model.graph.node.append(node_with(g=graph_with(initializers=[outside()]))),
    "a branch of a branch": lambda model: model.graph.node.append(
        node_with(g=graph_with(node_with(graphs=[graph_with(node_with(t=outside()))])))
    ),
    "a sparse constant": lambda model: model.graph.node.append(
        node_with(sparse_tensor=onnx.SparseTensorProto(values=outside()))
    ),
    "a sparse initializer": lambda model: model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=outside())
    ),
    "a function": lambda model: model.functions.append(onnx.FunctionProto(name="f", node=[node_with(t=outside())])),
    "a function's attribute": lambda model: model.functions.append(
        onnx.FunctionProto(name="f", attribute_proto=list(node_with(t=outside()).attribute))
    ),
}


@pytest.mark.parametrize("place", HIDDEN)
def test_no_other_tensor_may_come_from_another_file(place: str, tmp_path: Path) -> None:
    model = onnx.load(write(tmp_path / "m.onnx", FLOATS))
    HIDDEN[place](model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModelFile, match="not initializers of its main graph"):
        read_onnx(tmp_path / "m.onnx")


def test_what_protobuf_would_merge_is_refused(tmp_path: Path) -> None:
    """It takes the last of what is said twice; a reader that takes the first would look at another file."""
    file = write(tmp_path / "m.onnx", FLOATS)
    data = file.read_bytes()
    second = onnx.ModelProto(graph=graph_with(initializers=[outside()])).SerializeToString()
    file.write_bytes(data + second)
    with pytest.raises(InvalidModelFile, match="more than one"):
        read_onnx(file)

    good = b"\x0a\x08location\x12\x06m.data"
    twice = good + b"\x12\x09../secret"
    model = onnx.load(with_weights_in(file, "m.data"), load_external_data=False)
    (tmp_path / "m.data").write_bytes(bytes(320))
    whole = model.SerializeToString()
    assert good in whole
    assert read_onnx(file).files[1].name == "m.data"
    grown = len(twice) - len(good)
    tensor = model.graph.initializer[0].SerializeToString()
    longer = tensor.replace(bytes([len(good)]) + good, bytes([len(twice)]) + twice)
    assert len(longer) == len(tensor) + grown
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.graph.ClearField("initializer")
    graph = rest.graph.SerializeToString() + b"\x2a" + bytes([len(longer)]) + longer
    rest.ClearField("graph")
    file.write_bytes(rest.SerializeToString() + b"\x3a" + _varint(len(graph)) + graph)
    assert onnx.load(file, load_external_data=False).graph.initializer[0].external_data[0].value == "../secret"
    with pytest.raises(InvalidModelFile, match="not valid ONNX"):
        read_onnx(file)


def _varint(number: int) -> bytes:
    found = []
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def test_many_tiny_fields_are_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One limit for the file, not one for each of its messages."""
    monkeypatch.setattr("lfx_local_runtimes.runtimes.formats.onnx._MAX_FIELDS", 200)
    model = onnx.load(write(tmp_path / "m.onnx", FLOATS))
    for _ in range(20):
        model.graph.node.append(onnx.NodeProto(op_type="Add", input=["a"] * 30))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModelFile, match="cut off"):
        read_onnx(tmp_path / "m.onnx")


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
        ("x", 8, "unsupported"),
    ],
)
def test_without_a_config_the_outputs_tell(output: str, width: int, task: str, tmp_path: Path) -> None:
    info = inspect_model(write(tmp_path / "m.onnx", FLOATS, output=output, width=width))
    assert info.task == task
    assert info.problems == ()


def test_without_a_config_the_tokenizer_tells_how_long_a_text_may_be(tmp_path: Path) -> None:
    write(tmp_path / "model.onnx", FLOATS, output="logits", width=1)
    tokenizer = tmp_path / "tokenizer_config.json"
    for text, length in (('{"model_max_length": 512}', 512), ('{"model_max_length": 1e30}', None), ("{}", None)):
        tokenizer.write_text(text)
        assert inspect_model(tmp_path).context_length == length
    tokenizer.write_text("{")
    assert "tokenizer_config.json" in inspect_model(tmp_path).problems[0]


def test_an_output_without_a_shape_is_no_reason_to_fail(tmp_path: Path) -> None:
    model = onnx.load(write(tmp_path / "m.onnx", FLOATS, output="logits"))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert inspect_model(tmp_path / "m.onnx").metadata == {"num_labels": None}


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

    def memory(self, device: Device) -> Memory:
        return Memory(2**34, 2**34)

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
    return ModelInfo(folder, ModelFormat.SAFETENSORS, (weights,), 320, parameters=80, onnx=found.onnx, task="embedding")


def test_auto_takes_what_is_fastest_at_equal_quality(both: ModelInfo) -> None:
    torch, onnx = ("transformers", "fp32", "model.safetensors"), ("onnx", "fp32", "model.onnx")
    assert chosen(planned(both)) == [onnx, torch]
    assert chosen(planned(both, bf16=True)) == [("transformers", "bf16", "model.safetensors"), onnx]
    assert chosen(planned(both, bf16=True, model_type="rerank")) == [onnx, torch]
    assert chosen(planned(both, quantization="int8"))[0] == ("onnx", "int8", "model_quantized.onnx")


def test_what_a_file_is_made_from_has_to_be_asked_for(both: ModelInfo) -> None:
    bare = ModelInfo(both.path, both.format, both.files, 320, parameters=80, task="embedding")
    assert chosen(planned(bare)) == [("transformers", "fp32", "model.safetensors")]
    assert chosen(planned(bare, runtime_type="onnx")) == [("onnx", "fp32", "model.safetensors")]
    assert chosen(planned(bare, runtime_type="onnx", quantization="int8"))[0] == ("onnx", "int8", "model.safetensors")
    with pytest.raises(InvalidInput, match="No ONNX file in fp16 can be made"):
        planned(bare, runtime_type="onnx", quantization="fp16")


def test_what_is_not_there_is_said(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="no ONNX file in fp16; it has fp32, int8"):
        planned(inspect_model(folder), quantization="fp16")
    with pytest.raises(InvalidInput, match=r"encoders only, and the task of .* is llm"):
        planned(inspect_model(folder), model_type="llm")


def test_pickle_beside_onnx_is_left_alone(both: ModelInfo) -> None:
    pickled = replace(both, format=ModelFormat.PICKLE, files=(both.path / "pytorch_model.bin",))
    assert chosen(planned(pickled, runtime_type="onnx")) == [("onnx", "fp32", "model.onnx")]
    for refused, options in ((pickled, {}), (replace(pickled, onnx=()), {"runtime_type": "onnx"})):
        with pytest.raises(PickleRefused):
            planned(refused, **options)


def test_transformers_loads_no_onnx_files(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="Transformers does not load ONNX files"):
        planned(inspect_model(folder), runtime_type="transformers")


INT8 = [f"model_{name}.onnx" for name in ("qint8_arm64", "quint8_avx2", "qint8_avx512_vnni", "quantized")]


@pytest.mark.parametrize(
    ("machine", "there", "name"),
    [
        ("x86_64", INT8, INT8[3]),
        ("x86_64", INT8[:3], INT8[1]),
        ("AMD64", [INT8[0], INT8[2]], INT8[2]),
        ("aarch64", INT8[:3], INT8[0]),
        ("arm64", ["model_O4_int8.onnx", INT8[1]], "model_O4_int8.onnx"),
        ("arm64", INT8[1:3], INT8[1]),
    ],
)
def test_a_file_for_another_processor_is_last(
    machine: str, there: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    header = choose([read_onnx(write(tmp_path / one, BYTES)) for one in there], "int8")
    assert header is not None
    assert header.path.name == name
    names = ["config.json", *(f"onnx/{one}" for one in there)]
    assert hub.choose(names, hub.Wish(dtype="int8"), "org/name").files[-1] == f"onnx/{name}"


# -- a device that fails -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "fault"), [(DeviceType.CUDA, DeviceFailed), (DeviceType.CPU, RuntimeError)], ids=["card", "cpu"]
)
def test_an_error_of_the_card_ends_the_model(device: DeviceType, fault: type[Exception]) -> None:
    class Session:
        def run(self, outputs: list[str], feed: dict[str, Any]) -> None:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    network = OnnxNetwork.__new__(OnnxNetwork)
    network._session, network._device = Session(), Device(device)
    network._names, network._output, network._pad = ["input_ids"], "logits", 0
    with pytest.raises(fault, match="illegal memory access"):
        network.compute([Tokens([1, 2], [0, 0])])
