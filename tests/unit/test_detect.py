"""Recognition by content, and what a folder's configuration says."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.runtimes.formats.detect import detect, file_format
from lfx_local_runtimes.runtimes.formats.info import ModelFormat
from lfx_local_runtimes.runtimes.planning import inspect_model
from tests.builders import write_gguf, write_safetensors, write_split_gguf

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 100,
}  # fmt: skip


def field(number: int, payload: bytes | int) -> bytes:
    """One field of a protobuf message, shorter than 128 bytes."""
    return (
        bytes([number << 3, payload]) if isinstance(payload, int) else bytes([number << 3 | 2, len(payload)]) + payload
    )


ONNX = field(1, 8) + field(2, b"pytorch") + field(7, field(2, b"graph")) + field(8, field(2, b"\x0d"))
CTRANSLATE2 = struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<I", 3)


def torch_zip(prefix: str = "archive") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{prefix}/data.pkl", pickle.dumps({}, 2))
    return out.getvalue()


def files(folder: Path, content: dict[str, bytes | dict[str, Any]]) -> Path:
    for name, value in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return folder


def model_folder(folder: Path, config: dict[str, Any], dtype: str = "BF16") -> Path:
    write_safetensors(folder / "model.safetensors", {"w": (dtype, (100, 64)), "n": ("F32", (64,))})
    return files(folder, {"config.json": config})


# -- files ---------------------------------------------------------------------------------------------------------------


def test_files_are_known_by_content_whatever_their_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.bin")
    write_safetensors(tmp_path / "b.bin", {"w": ("F32", (2,))})
    files(tmp_path, {
        "c.gguf": torch_zip(), "d.onnx": pickle.dumps({"a": 1}, 2), "e.pt": ONNX, "f.safetensors": CTRANSLATE2,
        "voice.onnx": ONNX, "voice.onnx.json": {"audio": {"sample_rate": 22050}, "espeak": {"voice": "en"}},
        "g.gguf": b"", "h.bin": b"hello", "i.onnx": b"\x08\x08" * 3, "j.bin": b"PK\x03\x04" + bytes(40), "k.bin": bytes(600),
    })  # fmt: skip
    expected = {
        "a.bin": "gguf", "b.bin": "safetensors", "c.gguf": "pickle", "d.onnx": "pickle", "e.pt": "onnx",
        "f.safetensors": "ctranslate2", "voice.onnx": "piper", "g.gguf": "unknown", "h.bin": "unknown", "i.onnx": "unknown",
        "j.bin": "unknown", "k.bin": "unknown",
    }  # fmt: skip
    assert {name: file_format(tmp_path / name).value for name in expected} == expected


def test_torch_files_of_both_ages(tmp_path: Path) -> None:
    old = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(
        1001, 2
    )  # the magic number and version torch began with
    files(tmp_path, {"new.pt": torch_zip("anything"), "old.pt": old})
    assert {file_format(tmp_path / name) for name in ("new.pt", "old.pt")} == {ModelFormat.PICKLE}


def test_an_unknown_file_is_a_problem(tmp_path: Path) -> None:
    info = inspect_model(files(tmp_path, {"notes.txt": b"hello"}) / "notes.txt")
    assert (info.format, info.engine) == (ModelFormat.UNKNOWN, None)
    assert info.problems == ("notes.txt is not in a known format",)


# -- folders -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected", "found"),
    [
        ({"pytorch_model.bin": torch_zip(), "config.json": LLAMA, "training_args.bin": torch_zip()}, "pickle", ["pytorch_model.bin"]),
        ({"model.bin": CTRANSLATE2, "config.json": {}, "vocabulary.json": b"[]"}, "ctranslate2", ["model.bin"]),
        ({"config.json": LLAMA, "onnx/model.onnx": ONNX}, "onnx", ["model.onnx"]),
        ({"model.onnx": ONNX, "fake.onnx": b"x"}, "onnx", ["model.onnx"]),
        ({"v.onnx": ONNX, "v.onnx.json": {"audio": {}, "phoneme_id_map": {}}}, "piper", ["v.onnx"]),
        ({"README.md": b"hello"}, "unknown", []),
        (
            {"model_index.json": {"_class_name": "X", "unet": ["diffusers", "U"]}, "unet/w.safetensors": b"", "other/w.safetensors": b""},
            "diffusers", ["w.safetensors"],
        ),
        ({"model_index.json": {"../up": ["a", "b"]}}, "diffusers", []),
    ],
)  # fmt: skip
def test_folders(tmp_path: Path, content: dict[str, Any], expected: str, found: list[str]) -> None:
    detected = detect(files(tmp_path, content))
    assert (detected.format.value, [file.name for file in detected.files]) == (expected, found)
    assert bool(detected.problems) is not bool(found)


def test_safetensors_before_pickle_and_gguf(tmp_path: Path) -> None:
    files(model_folder(tmp_path, LLAMA), {"pytorch_model.bin": torch_zip()})
    write_gguf(tmp_path / "m.gguf")
    assert detect(tmp_path).files == (tmp_path / "model.safetensors",)


def test_a_folder_of_ggufs(tmp_path: Path) -> None:
    write_split_gguf(tmp_path)
    (tmp_path / "mmproj-tiny.gguf").write_bytes(b"GGUF")
    assert inspect_model(tmp_path).valid
    write_gguf(tmp_path / "other.gguf")
    assert inspect_model(tmp_path).problems == (
        "the folder holds 2 models: give the path of one of other.gguf, tiny-00001-of-00003.gguf",
    )


# -- what the configuration says -------------------------------------------------------------------------------------------


def test_a_transformers_folder(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-chat"
    folder.mkdir()
    info = inspect_model(model_folder(folder, LLAMA), 256)
    assert info.valid
    assert (info.format, info.engine, info.architecture, info.name) == (
        ModelFormat.SAFETENSORS,
        "transformers",
        "llama",
        "tiny-chat",
    )
    assert (info.parameters, info.context_length, info.quantization, info.instruct) == (6464, 512, "bf16", True)
    assert (info.embedding_length, info.vocabulary, info.heads, len(info.layers)) == (64, 100, 4, 2)
    assert info.memory is not None
    assert (info.memory.context_length, info.memory.weights) == (256, 6400 * 2 + 64 * 4)


def test_weights_that_are_quantized_already(tmp_path: Path) -> None:
    quantized = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    assert inspect_model(model_folder(tmp_path, LLAMA | quantized)).quantization == "awq-int4"


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, [0, 0, 0, 0, 0, 0]),
        ({"sliding_window": 128}, [128] * 6),
        ({"sliding_window": None}, [0] * 6),
        ({"sliding_window": 128, "use_sliding_window": False}, [0] * 6),
        ({"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 4}, [0, 0, 0, 0, 128, 128]),
        ({"sliding_window": 128, "sliding_window_pattern": 3}, [128, 128, 0, 128, 128, 0]),
        ({"sliding_window": 128, "model_type": "gemma3_text"}, [128] * 5 + [0]),
        ({"sliding_window": 128, "model_type": "gemma2"}, [128, 0] * 3),
        ({"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 3}, [128, 0] * 3),
    ],
)
def test_sliding_windows(tmp_path: Path, changes: dict[str, Any], windows: list[int]) -> None:
    info = inspect_model(model_folder(tmp_path, LLAMA | {"num_hidden_layers": 6} | changes))
    assert [layer.window for layer in info.layers] == windows


def test_layers_without_a_cache(tmp_path: Path) -> None:
    mixed = LLAMA | {"layer_types": ["linear_attention", "full_attention"]}
    assert [layer.kv_heads for layer in inspect_model(model_folder(tmp_path, mixed)).layers] == [0, 2]
    encoder = LLAMA | {"architectures": ["BertModel"]}
    assert inspect_model(model_folder(tmp_path, encoder)).layers == ()


def test_nested_text_configuration(tmp_path: Path) -> None:
    nested = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": LLAMA | {"head_dim": 32},
    }
    info = inspect_model(model_folder(tmp_path, nested))
    assert (info.architecture, info.context_length, info.layers[0].key_length) == ("gemma3", 512, 32)


@pytest.mark.parametrize(
    ("name", "content", "template"),
    [
        ("tokenizer_config.json", {"chat_template": "one"}, "one"),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]},
            "two",
        ),
        ("tokenizer_config.json", {"chat_template": 5}, None),
        ("chat_template.json", {"chat_template": "three"}, "three"),
        ("chat_template.jinja", b"four", "four"),
    ],
)
def test_chat_templates(tmp_path: Path, name: str, content: Any, template: str | None) -> None:
    assert inspect_model(files(model_folder(tmp_path, LLAMA), {name: content})).chat_template == template


def test_remote_code_is_seen(tmp_path: Path) -> None:
    assert not inspect_model(model_folder(tmp_path, LLAMA)).remote_code
    files(tmp_path, {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["x.Y", None]}}})
    assert inspect_model(tmp_path).remote_code
    files(tmp_path, {"tokenizer_config.json": {}, "config.json": LLAMA | {"auto_map": {"AutoModel": "x.Y"}}})
    assert inspect_model(tmp_path).remote_code


def test_a_snapshot_of_the_hub_cache_is_called_by_its_repository(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--Tiny-Instruct" / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    info = inspect_model(model_folder(folder, LLAMA))
    assert (info.name, info.instruct) == ("Tiny-Instruct", True)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (b"{", "config.json: not valid JSON"),
        (b"[1]", "config.json: not a JSON object"),
        (b'{"a":' * 50_000, "config.json: not valid JSON"),
        (b'{"a": 1, "a": 2}', "a key is given twice"),
    ],
)
def test_a_broken_configuration_is_a_problem(tmp_path: Path, config: bytes, complaint: str) -> None:
    files(model_folder(tmp_path, LLAMA), {"config.json": config})
    assert complaint in inspect_model(tmp_path).problems[0]


@pytest.mark.parametrize("value", [None, -1, 0, True, 1.5, "64", [64], {}, 10**30])
@pytest.mark.parametrize(
    "key",
    [*LLAMA, "sliding_window", "head_dim", "layer_types", "text_config", "quantization_config", "dtype", "auto_map"],
)
def test_odd_values_do_no_harm(tmp_path: Path, key: str, value: object) -> None:
    info = inspect_model(model_folder(tmp_path, LLAMA | {key: value}))
    assert info.memory is not None
    assert info.parameters == 6464


def test_unreadable_things_are_problems(tmp_path: Path) -> None:
    (tmp_path / "dangling.gguf").symlink_to(tmp_path / "gone")
    info = inspect_model(tmp_path)
    assert not info.valid
    assert "missing" in info.problems[0]
    loop = tmp_path / "loop.gguf"
    loop.symlink_to(loop)
    assert not inspect_model(loop).valid
