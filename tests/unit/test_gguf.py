"""The GGUF reader and its check: what they read, what they refuse, and how much they take to do it."""

import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lfx_local_runtimes.errors import InvalidModelFile, ModelNotFound
from lfx_local_runtimes.runtimes.formats.gguf import read_gguf, read_strings
from lfx_local_runtimes.runtimes.formats.gguf_check import check_gguf
from lfx_local_runtimes.runtimes.formats.info import AttentionLayer, ModelFormat
from lfx_local_runtimes.runtimes.planning import inspect_model
from tests.builders import GgufSpec, GgufTensorSpec, encode_gguf, tiny_llama, write_gguf, write_split_gguf


def small(**metadata: Any) -> GgufSpec:
    """A file with one tensor."""
    typed = {"general.architecture": ("str", "llama")} | {
        key.replace("__", "."): value for key, value in metadata.items()
    }
    return GgufSpec(typed, [GgufTensorSpec("w", (4, 2), bytes(32))])


def write(path: Path, spec: GgufSpec) -> Path:
    path.write_bytes(encode_gguf(spec))
    return path


# -- reading -------------------------------------------------------------------------------------------------------------


def test_a_whole_model(tmp_path: Path) -> None:
    info = inspect_model(write_gguf(tmp_path / "tiny-it.gguf"), 512, thorough=True)
    assert info.valid
    assert (info.format, info.engine, info.architecture) == (ModelFormat.GGUF, "llama_cpp", "llama")
    assert (info.name, info.instruct, info.chat_template) == (
        "Tiny",
        True,
        None,
    )  # the header's name; the file's says -it
    assert (info.parameters, info.context_length, info.quantization) == (91_776, 2048, "F32")
    assert (info.embedding_length, info.vocabulary, info.heads) == (64, 277, 4)
    assert info.layers == (AttentionLayer(kv_heads=2, key_length=16, value_length=16),) * 2
    assert info.weight_bytes == 4 * 91_776
    assert info.memory is not None
    assert (info.memory.context_length, info.memory.weights) == (512, 4 * 91_776)
    assert info.memory.kv_cache == 512 * 2 * (16 + 16) * 2 * 2  # cells · layers · (k + v) · KV heads · two bytes


def test_every_kind_of_value(tmp_path: Path) -> None:
    values = {
        "a": ("u8", 200), "b": ("i8", -3), "c": ("u16", 60000), "d": ("i16", -5), "e": ("u32", 2**32 - 1), "f": ("i32", -7),
        "g": ("f32", 0.5), "h": ("bool", True), "i": ("u64", 2**64 - 1), "j": ("i64", -(2**63)), "k": ("f64", 0.1),
        "l": ("str", "Zoë"), "m": ("[i32]", [1, -2]), "n": ("[bool]", [True, False]), "o": ("[str]", ["x", "", "Zoë"]),
    }  # fmt: skip
    header = read_gguf(write(tmp_path / "m.gguf", small(**values)))
    assert {key: header.metadata[key] for key in "abcdefghijkl"} == {key: values[key][1] for key in "abcdefghijkl"}
    numbers, strings = header.array("m"), header.array("o")
    assert numbers is not None
    assert numbers.values == (1, -2)
    assert strings is not None
    assert read_strings(header, strings) == [b"x", b"", "Zoë".encode()]


def test_strings_longer_than_the_fast_walk_believes(tmp_path: Path) -> None:
    strings = ["x" * length for length in (0, 1, 254, 255, 256, 257, 70_000, 3)]
    path = write(tmp_path / "m.gguf", small(long=("[str]", strings), after=("u32", 5)))
    header = read_gguf(path)
    assert header.metadata["after"] == 5
    assert header.exact
    assert header.tensors == read_gguf(path, exact=True).tensors


def test_an_array_wider_than_the_window(tmp_path: Path) -> None:
    strings = [f"{index:020}" * 3 for index in range(40_000)]
    header = read_gguf(write(tmp_path / "m.gguf", small(many=("[str]", strings), after=("u32", 5))))
    many = header.array("many")
    assert many is not None
    assert [text.decode() for text in read_strings(header, many)] == strings
    assert (header.metadata["after"], header.exact) == (5, False)


def test_sliding_windows_and_per_layer_heads(tmp_path: Path) -> None:
    metadata = {
        "llama.attention.head_count_kv": ("[u32]", [1, 2, 4]), "llama.attention.sliding_window": ("u32", 64),
        "llama.attention.sliding_window_pattern": ("[bool]", [True, False, True]), "llama.attention.key_length": ("u32", 8),
    }  # fmt: skip
    info = inspect_model(write_gguf(tmp_path / "m.gguf", layers=3, metadata=metadata))
    assert [(layer.kv_heads, layer.window) for layer in info.layers] == [(1, 64), (2, 0), (4, 64)]
    assert {(layer.key_length, layer.value_length) for layer in info.layers} == {(8, 16)}


def test_sizes_by_type() -> None:
    from gguf.constants import GGML_QUANT_SIZES  # the project's own tables

    from lfx_local_runtimes.runtimes.formats.ggml_types import TENSOR_TYPES

    ours = {number: (kind.name, kind.block, kind.size) for number, kind in TENSOR_TYPES.items()}
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {number: ours.get(number) for number in theirs} == theirs


def test_names_that_say_instruct(tmp_path: Path) -> None:
    for name, expected in (
        ("gemma-3-1b-it-Q4_K_M", True),
        ("Llama-3-Instruct", True),
        ("kit-7b", False),
        ("base", False),
    ):
        path = write_gguf(tmp_path / f"{name}.gguf", metadata={"general.name": None})
        assert inspect_model(path).instruct is expected, name
    tuned = write_gguf(tmp_path / "m.gguf", metadata={"general.finetune": ("str", "Instruct")})
    assert inspect_model(tuned).instruct


# -- split files ---------------------------------------------------------------------------------------------------------


def test_a_split_model_is_one_model(tmp_path: Path) -> None:
    parts = write_split_gguf(tmp_path)
    whole = inspect_model(write_gguf(tmp_path / "whole.gguf"))
    for path in (parts[0], parts[2]):
        info = inspect_model(path, thorough=True)
        assert info.valid
        assert info.files == tuple(parts)
        assert (info.parameters, info.weight_bytes) == (whole.parameters, whole.weight_bytes)


def test_a_missing_part_is_a_problem(tmp_path: Path) -> None:
    parts = write_split_gguf(tmp_path)
    parts[1].unlink()
    assert inspect_model(tmp_path).problems == ("1 of 3 parts are missing: tiny-00002-of-00003.gguf",)
    parts[0].unlink()
    assert inspect_model(parts[2]).problems == ("tiny-00001-of-00003.gguf is missing",)


def test_a_corrupt_part_is_a_problem(tmp_path: Path) -> None:
    parts = write_split_gguf(tmp_path)
    parts[1].write_bytes(parts[1].read_bytes()[:-100])
    (problem,) = inspect_model(tmp_path, thorough=True).problems
    assert problem.startswith("tiny-00002-of-00003.gguf: tensor ")


# -- refusing ------------------------------------------------------------------------------------------------------------


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no model at"):
        inspect_model(tmp_path / "nothing.gguf")
    with pytest.raises(ModelNotFound):
        inspect_model(write_gguf(tmp_path / "m.gguf") / "below")


def spec_with(**changes: Any) -> GgufSpec:
    spec = small()
    for name, value in changes.items():
        setattr(spec if hasattr(spec, name) else spec.tensors[0], name, value)
    return spec


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (spec_with(version=1), "version 1 is not supported"),
        (spec_with(version=3 << 24), "big-endian"),
        (spec_with(extra={"keys": 2**63}), "claims 1 tensors and 9,223,372,036,854,775,808 keys"),
        (spec_with(extra={"tensors": 30}), "a tensor's name runs past the end of the file"),
        (spec_with(name="x" * 64), "a tensor's name has a length of 64"),
        (spec_with(shape=(1,) * 5), "has 5 dimensions"),
        (spec_with(shape=(2**40, 2**40)), "impossible shape"),
        (spec_with(shape=(0, 4)), "impossible shape"),
        (spec_with(type=5), "unknown type 5"),
        (spec_with(type=12), "rows of 4, not a multiple of Q4_K's 256"),
        (spec_with(offset=8), "not aligned"),
        (spec_with(offset=64), "64 bytes past the file"),
        (spec_with(tensors=[GgufTensorSpec("w", (8,), bytes(32))] * 2), "'w' is there twice"),
        (small(general__alignment=("u32", 24)), "not a power of two"),
        (small(general__alignment=("u32", 2**17)), "not a power of two up to 65,536"),
        (small(general__alignment=("u64", 32)), "not an unsigned 32-bit number"),
        (small(x=("str", "x" * (2**22 + 1))), "key 'x' has a length of 4,194,305"),
        (spec_with(metadata={"": ("u8", 1)}), "empty"),
    ],
)  # fmt: skip
def test_malformed_files_say_what_is_wrong(tmp_path: Path, spec: GgufSpec, complaint: str) -> None:
    path = write(tmp_path / "m.gguf", spec)
    with pytest.raises(InvalidModelFile, match=r"m.gguf: .*at byte") as caught:
        read_gguf(path)
    assert complaint in caught.value.message
    assert inspect_model(path).problems == (caught.value.message,)


def test_a_key_given_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", small(aa=("u8", 1), ab=("u8", 2)))
    path.write_bytes(path.read_bytes().replace(b"ab", b"aa", 1))
    with pytest.raises(InvalidModelFile, match="'aa' is there twice"):
        read_gguf(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = encode_gguf(small(tokens=("[str]", ["a", "bc"]), numbers=("[f32]", [1.0])))
    path = tmp_path / "m.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidModelFile):
            read_gguf(path)


TOKENS = tiny_llama().metadata["tokenizer.ggml.tokens"][1]


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"general.architecture": None}, "general.architecture is missing"),
        ({"llama.block_count": ("u32", 0)}, "llama.block_count is 0"),
        ({"llama.block_count": ("u32", 513)}, "llama.block_count is 513"),
        ({"llama.nextn_predict_layers": ("u32", 3)}, "more than the 2 layers"),
        ({"llama.rope.scaling.type": ("str", "odd")}, "rope.scaling.type is 'odd'"),
        ({"llama.rope.dimension_count": ("u32", 17)}, "more than the 16 of a head"),
        ({"llama.attention.layer_norm_rms_epsilon": ("f32", float("nan"))}, "epsilon is nan"),
        ({"llama.expert_used_count": ("u32", 2)}, "2 experts used of 0"),
        ({"llama.expert_count": ("u32", 2048), "llama.expert_used_count": ("u32", 2)}, "2,048 experts are more"),
        ({"tokenizer.ggml.tokens": None}, "holds no vocabulary"),
        ({"tokenizer.ggml.tokens": ("[u32]", [1])}, "holds no vocabulary"),
        ({"tokenizer.ggml.model": ("str", "none")}, "names no tokenizer"),
        ({"tokenizer.ggml.scores": ("[f32]", [0.0])}, "scores has 1 entries for 277 tokens"),
        ({"tokenizer.ggml.scores": ("[u8]", [0] * 277)}, "scores is not an array of the right type"),
        ({"tokenizer.ggml.token_type": ("[u32]", [1] * 277)}, "token_type is not an array of the right type"),
        ({"tokenizer.ggml.merges": ("str", "a b")}, "merges is not an array of strings"),
        ({"tokenizer.ggml.eos_token_id": ("u32", 277)}, "eos_token_id is 277, beyond the 277 tokens"),
        ({"tokenizer.ggml.tokens": ("[str]", [*TOKENS[:-1], "<s>"])}, "token 276 (b'<s>') is in the vocabulary twice"),
        ({"tokenizer.ggml.tokens": ("[str]", [*TOKENS[:-1], "<s>\0x"])}, "token 276 (b'<s>') is in the vocabulary twice"),
        ({"tokenizer.ggml.tokens": ("[str]", [*TOKENS[:-2], "[EMPTY_276]", ""])}, "is in the vocabulary twice"),
        ({"tokenizer.ggml.tokens": ("[str]", [*TOKENS[:3], "odd", *TOKENS[4:]])}, "no token for 1 of the 256 bytes, such as 0x00"),
        ({"tokenizer.ggml.model": ("str", "bert")}, "WordPiece vocabulary holds byte tokens"),
    ],
)  # fmt: skip
def test_the_check_refuses_what_llama_cpp_asserts(tmp_path: Path, metadata: dict[str, Any], complaint: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata=metadata)
    assert any(complaint in problem for problem in check_gguf(read_gguf(path)))


def test_minus_one_stands_for_no_token(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata={"tokenizer.ggml.padding_token_id": ("u32", 2**32 - 1)})
    assert check_gguf(read_gguf(path)) == ()


def test_the_check_refuses_tensors_llama_cpp_cannot_use(tmp_path: Path) -> None:
    spec = tiny_llama()
    spec.tensors[1].type, spec.tensors[1].data = 1, bytes(128)
    spec.tensors[3].type, spec.tensors[3].data = 24, bytes(64 * 64)
    spec.tensors[-1].offset = 0
    problems = check_gguf(read_gguf(write(tmp_path / "m.gguf", spec)))
    assert len(problems) == 3
    for complaint in ("is a vector of F16", "is a matrix of I8", "overlap"):
        assert any(complaint in problem for problem in problems)


def test_the_check_sees_the_true_face_of_a_file(tmp_path: Path) -> None:
    """A string of 256 bytes, whose length the fast walk misreads, holds another continuation of the file."""
    hidden = struct.pack("<Q", 1) + b"z" + struct.pack("<IB", 0, 7)
    path = write(tmp_path / "m.gguf", small(s=("[str]", [hidden + bytes(256 - len(hidden))]), general__x=("u8", 1)))
    fast = read_gguf(path)
    assert "z" in fast.metadata
    assert "general.x" in read_gguf(path, exact=True).metadata
    spec = tiny_llama()
    spec.metadata = {"general.trick": ("[str]", [hidden + bytes(256 - len(hidden))]), **spec.metadata}
    spec.metadata["llama.block_count"] = ("u32", 513)
    assert "llama.block_count is 513, not 1 to 512" in check_gguf(read_gguf(write(path, spec)))


# -- limits --------------------------------------------------------------------------------------------------------------


def peak_of(path: Path) -> int:
    tracemalloc.start()
    try:
        inspect_model(path, thorough=True)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [2**17, 2**40, 2**64 - 1])
@pytest.mark.parametrize("kind", [4, 8])
def test_claims_cost_nothing(tmp_path: Path, count: int, kind: int) -> None:
    """A file that claims a huge array, and is itself large."""
    path = tmp_path / "m.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, kind, count)
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(2**33)  # sparse
    assert peak_of(path) < 8 * 2**20


def test_endless_tokens_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    key = b"tokenizer.ggml.tokens"
    head = (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", len(key))
        + key
        + struct.pack("<IIQ", 9, 8, 2**22 + 1)
    )
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(2**30)
    (problem,) = inspect_model(path).problems
    assert "claims 4,194,305 strings" in problem


HEALTHY = encode_gguf(small(tokens=("[str]", ["a", "bc", "def"]), numbers=("[f32]", [1.0, 2.0]), name=("str", "x")))
EDIT = st.tuples(st.integers(0, len(HEALTHY) - 1), st.binary(min_size=0, max_size=9), st.integers(0, 9))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(EDIT, min_size=1, max_size=4))
def test_broken_bytes_raise_nothing_else(tmp_path: Path, edits: list[tuple[int, bytes, int]]) -> None:
    data = bytearray(HEALTHY)
    for place, new, dropped in edits:
        data[place : place + dropped] = new
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    try:
        header = read_gguf(path)
    except InvalidModelFile:
        return
    assert isinstance(check_gguf(header), tuple)
    assert all(tensor.offset + tensor.size <= header.file_size - header.data_offset for tensor in header.tensors)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400))
def test_noise_raises_nothing_else(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + data)
    with suppress(InvalidModelFile):
        read_gguf(path)
