"""Model files made by hand: small, valid, the same for the same seed.

`write_gguf` writes a two-layer llama that llama.cpp really loads and runs (its answers are noise). `encode_gguf` and
`encode_safetensors` turn any description into bytes, broken ones included.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {
    "u8": 0,
    "i8": 1,
    "u16": 2,
    "i16": 3,
    "u32": 4,
    "i32": 5,
    "f32": 6,
    "bool": 7,
    "str": 8,
    "u64": 10,
    "i64": 11,
    "f64": 12,
}
_CODES = {
    "u8": "B",
    "i8": "b",
    "u16": "H",
    "i16": "h",
    "u32": "I",
    "i32": "i",
    "f32": "f",
    "bool": "?",
    "u64": "Q",
    "i64": "q",
    "f64": "d",
}
_ARRAY = 9
F32 = 0

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
WORDS = (
    "▁the",
    "▁a",
    "▁model",
    "▁says",
    "▁yes",
    "▁no",
    "▁one",
    "▁two",
    "▁three",
    "▁and",
    "▁or",
    "▁it",
    "▁is",
    "▁",
    ".",
    ",",
    "?",
    ":",
)

Typed = tuple[str, Any]
"""A GGUF value: a type name and the value; `[f32]` is an array of f32."""


@dataclass
class GgufTensorSpec:
    """One tensor; shape in GGUF's order, fastest dimension first. `offset` None: after the one before."""

    name: str
    shape: tuple[int, ...]
    data: bytes
    type: int = F32
    offset: int | None = None


@dataclass
class GgufSpec:
    """A whole file, as data to be changed before it is encoded."""

    metadata: dict[str, Typed]
    tensors: list[GgufTensorSpec]
    version: int = 3
    alignment: int = 32
    extra: dict[str, int] = field(default_factory=dict)
    """`keys` and `tensors` replace the true counts."""


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: str, value: Any) -> bytes:
    if kind.startswith("["):
        inner = kind[1:-1]
        items = list(value)
        numbers = inner != "str"
        body = struct.pack(f"<{len(items)}{_CODES[inner]}", *items) if numbers else b"".join(map(_string, items))
        return struct.pack("<IIQ", _ARRAY, KINDS[inner], len(items)) + body
    if kind == "str":
        return struct.pack("<I", KINDS["str"]) + _string(value)
    return struct.pack(f"<I{_CODES[kind]}", KINDS[kind], value)


def encode_gguf(spec: GgufSpec) -> bytes:
    """The bytes of a GGUF file."""
    keys, count = spec.extra.get("keys", len(spec.metadata)), spec.extra.get("tensors", len(spec.tensors))
    head = [b"GGUF", struct.pack("<IQQ", spec.version, count, keys)]
    head += [_string(key) + _value(*typed) for key, typed in spec.metadata.items()]
    data, place = [], 0
    for tensor in spec.tensors:
        head.append(_string(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
        head.append(struct.pack("<IQ", tensor.type, place if tensor.offset is None else tensor.offset))
        padding = -len(tensor.data) % spec.alignment
        data.append(tensor.data + bytes(padding))
        place += len(tensor.data) + padding
    start = b"".join(head)
    return start + bytes(-len(start) % spec.alignment) + b"".join(data)


def tiny_llama(
    *, seed: int = 0, layers: int = 2, width: int = 64, heads: int = 4, kv_heads: int = 2, feed_forward: int = 128,
    context: int = 2048,
) -> GgufSpec:  # fmt: skip
    """A llama with random weights and a SentencePiece vocabulary of bytes, special tokens and a few words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(WORDS)]
    metadata: dict[str, Typed] = {
        "general.architecture": ("str", "llama"),
        "general.name": ("str", "Tiny"),
        "general.file_type": ("u32", 0),
        "llama.context_length": ("u32", context),
        "llama.embedding_length": ("u32", width),
        "llama.block_count": ("u32", layers),
        "llama.feed_forward_length": ("u32", feed_forward),
        "llama.attention.head_count": ("u32", heads),
        "llama.attention.head_count_kv": ("u32", kv_heads),
        "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
        "llama.rope.dimension_count": ("u32", width // heads),
        "llama.rope.freq_base": ("f32", 10000.0),
        "tokenizer.ggml.model": ("str", "llama"),
        "tokenizer.ggml.tokens": ("[str]", tokens),
        "tokenizer.ggml.scores": ("[f32]", [-float(index) for index in range(len(tokens))]),
        "tokenizer.ggml.token_type": ("[i32]", types),
        "tokenizer.ggml.bos_token_id": ("u32", 1),
        "tokenizer.ggml.eos_token_id": ("u32", 2),
        "tokenizer.ggml.unknown_token_id": ("u32", 0),
        "tokenizer.ggml.add_bos_token": ("bool", True),
    }
    kv_width = width // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (width, len(tokens)), "output_norm.weight": (width,)}
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (width,),
            f"blk.{layer}.attn_q.weight": (width, width),
            f"blk.{layer}.attn_k.weight": (width, kv_width),
            f"blk.{layer}.attn_v.weight": (width, kv_width),
            f"blk.{layer}.attn_output.weight": (width, width),
            f"blk.{layer}.ffn_norm.weight": (width,),
            f"blk.{layer}.ffn_gate.weight": (width, feed_forward),
            f"blk.{layer}.ffn_up.weight": (width, feed_forward),
            f"blk.{layer}.ffn_down.weight": (feed_forward, width),
        }
    random = np.random.default_rng(seed)
    tensors = []
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        numbers = np.ones(size) if "norm" in name else random.standard_normal(size) / np.sqrt(shape[0])
        tensors.append(GgufTensorSpec(name, shape, numbers.astype("<f4").tobytes()))
    return GgufSpec(metadata, tensors)


def write_gguf(path: Path, *, metadata: Mapping[str, Typed | None] | None = None, **shape: int) -> Path:
    """Write a tiny llama that loads. `metadata` adds, replaces or (None) drops keys; `shape` goes to `tiny_llama`."""
    spec = tiny_llama(**shape)
    for key, typed in (metadata or {}).items():
        if typed is None:
            spec.metadata.pop(key, None)
        else:
            spec.metadata[key] = typed
    path.write_bytes(encode_gguf(spec))
    return path


def write_split_gguf(folder: Path, stem: str = "tiny", parts: int = 3) -> list[Path]:
    """Write a tiny llama in parts, as llama.cpp's splitter names them."""
    spec = tiny_llama()
    share = -(-len(spec.tensors) // parts)
    paths = []
    for number in range(parts):
        split: dict[str, Typed] = {
            "split.no": ("u16", number), "split.count": ("u16", parts), "split.tensors.count": ("i32", len(spec.tensors)),
        }  # fmt: skip
        metadata = spec.metadata | split if number == 0 else split
        path = folder / f"{stem}-{number + 1:05}-of-{parts:05}.gguf"
        path.write_bytes(encode_gguf(GgufSpec(metadata, spec.tensors[number * share : (number + 1) * share])))
        paths.append(path)
    return paths


SAFETENSORS_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "I64": 8, "BOOL": 1}


def encode_safetensors(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    """The bytes of a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors_header(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> tuple[dict[str, Any], int]:
    """A header for tensors (type, shape) one after the other, and the bytes they take."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, (dtype, shape) in tensors.items():
        size = int(np.prod(shape)) * SAFETENSORS_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    return header, place


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> Path:
    """Write tensors of zeros."""
    header, size = safetensors_header(tensors)
    path.write_bytes(encode_safetensors(header, bytes(size)))
    return path
