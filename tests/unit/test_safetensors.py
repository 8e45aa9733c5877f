"""The safetensors reader: headers, shards, and what it refuses."""

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lfx_local_runtimes.errors import InvalidModelFile
from lfx_local_runtimes.runtimes.formats.safetensors import INDEX_NAME, read_index, read_safetensors
from lfx_local_runtimes.runtimes.planning import inspect_model
from tests.builders import encode_safetensors, safetensors_header, write_safetensors

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def file_with(path: Path, header: object, data: int = 8) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(encode_safetensors(raw, bytes(data)))
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_file(tmp_path: Path) -> None:
    path = write_safetensors(
        tmp_path / "m.safetensors", {"a": ("F32", (2, 3)), "b": ("BF16", (5,)), "c": ("I8", (0, 4))}
    )
    header = read_safetensors(path)
    assert [(tensor.name, tensor.dtype, tensor.shape, tensor.size) for tensor in header.tensors] == [
        ("a", "F32", (2, 3), 24), ("b", "BF16", (5,), 10), ("c", "I8", (0, 4), 0),
    ]  # fmt: skip
    assert header.metadata == {"format": "pt"}


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"[]", "not a JSON object"),
        (b"{]", "not valid JSON"),
        (b"{\xff}", "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b'{"a": {}, "a": {}}', "a key is given twice"),
        ({"__metadata__": {"a": 1}}, "__metadata__ is not a table of strings"),
        ({"a": 5}, "not described by dtype, shape and data_offsets"),
        ({"a": {**entry(), "more": 1}}, "not described by dtype, shape and data_offsets"),
        ({"a": entry(dtype="F31")}, "unknown type"),
        ({"a": entry(dtype=["F32"])}, "unknown type"),
        ({"a": entry(shape=[-2])}, "impossible shape"),
        ({"a": entry(shape=[2.0])}, "impossible shape"),
        ({"a": entry(shape=[True, 2])}, "impossible shape"),
        ({"a": entry(shape=[2**40, 2**40])}, "impossible shape"),
        ({"a": entry(shape=[1] * 33)}, "impossible shape"),
        ({"a": entry(shape=[3])}, "does not fill its 8 bytes"),
        ({"a": entry(offsets=[8, 0])}, "impossible place"),
        ({"a": entry(offsets=[0])}, "impossible place"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, "'b' overlaps the one before it"),
        ({"a": entry(shape=[1], offsets=[4, 8])}, "'a' leaves a gap before it"),
        ({"a": entry(shape=[4], offsets=[0, 16])}, "8 bytes past the file"),
        ({"a": entry(shape=[1], offsets=[0, 4])}, "4 bytes before the file's end"),
    ],
)
def test_malformed_files_say_what_is_wrong(tmp_path: Path, header: object, complaint: str) -> None:
    path = file_with(tmp_path / "model.safetensors", header)
    with pytest.raises(InvalidModelFile) as caught:
        read_safetensors(path)
    assert caught.value.message.startswith("model.safetensors: ")
    assert complaint in caught.value.message


@pytest.mark.parametrize("length", [0, 1, 9, 2**31, 2**63, 2**64 - 1])
def test_impossible_lengths(tmp_path: Path, length: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(InvalidModelFile, match="claims"):
        read_safetensors(path)


def test_a_header_made_to_fill_memory_is_refused_unparsed(tmp_path: Path) -> None:
    path = file_with(tmp_path / "m.safetensors", b"{" + b'"":{},' * 3_000_000 + b"}")
    tracemalloc.start()
    try:
        with pytest.raises(InvalidModelFile, match="more than 200,000 tensors"):
            read_safetensors(path)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def sharded(folder: Path, names: dict[str, str]) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def test_shards(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    sharded(tmp_path, {"a": second, "b": first})
    write_safetensors(tmp_path / first, {"b": ("F32", (2,))})
    write_safetensors(tmp_path / second, {"a": ("F32", (3,))})
    info = inspect_model(tmp_path)
    assert info.valid
    assert [file.name for file in info.files] == [first, second]
    assert (info.parameters, info.engine) == (5, "transformers")
    (tmp_path / second).unlink()
    assert inspect_model(tmp_path).problems == (f"1 of 2 shards are missing: {second}",)
    (tmp_path / INDEX_NAME).unlink()
    assert inspect_model(tmp_path).problems == (f"{INDEX_NAME} is missing: it lists the shards",)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/../../x.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "x.bin",
        "",
    ],
)
def test_an_index_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    sharded(tmp_path, {"a": name})
    with pytest.raises(InvalidModelFile, match="not a safetensors file of this folder"):
        read_index(tmp_path / INDEX_NAME)
    write_safetensors(tmp_path / "model-00001-of-00001.safetensors", {"a": ("F32", (2,))})
    assert "not a safetensors file of this folder" in inspect_model(tmp_path).problems[0]


def test_weights_without_a_configuration(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"a": ("F32", (2,))})
    assert inspect_model(tmp_path).problems == ("there is no config.json beside the weights",)


HEADER, SIZE = safetensors_header({"a": ("F32", (2,)), "b": ("F16", (1, 3))})
HEALTHY = encode_safetensors(HEADER, bytes(SIZE))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(HEALTHY)), st.binary(max_size=9), st.integers(0, 9)), min_size=1, max_size=4
    )
)
def test_broken_bytes_raise_nothing_else(tmp_path: Path, edits: list[tuple[int, bytes, int]]) -> None:
    data = bytearray(HEALTHY)
    for place, new, dropped in edits:
        data[place : place + dropped] = new
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    try:
        header = read_safetensors(path)
    except InvalidModelFile:
        return
    assert sum(tensor.size for tensor in header.tensors) < header.file_size
