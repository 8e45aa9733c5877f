"""Reads safetensors headers. Every file is treated as hostile.

A file is eight bytes of length, a JSON header of that length, and the tensors' bytes. The weights are never read. The
checks are those of the format's own library, so a file that passes here also opens with that library.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import InvalidModelFile
from lfx_local_runtimes.runtimes.formats.jsonfile import parse_json, read_json

INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER = 100 * 10**6
"""Bytes; the format's own limit."""
MAX_TENSORS = 200_000
MAX_SHARDS = 1000
MAX_DIMENSIONS = 32
MAX_SIZE = 2**63

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """One tensor; `size` is in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    size: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The header of one file: everything before the data."""

    path: Path
    file_size: int
    tensors: tuple[SafetensorsTensor, ...]
    metadata: Mapping[str, str]


def read_safetensors(path: Path) -> SafetensorsHeader:
    """Read and check the header of one file.

    Raises:
        InvalidModelFile: it is not a well-formed safetensors file; the message says what is wrong and where.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        if len(start) < 8:
            raise _fail(path, "this is not a safetensors file")
        (length,) = struct.unpack("<Q", start)
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise _fail(path, f"the header claims {length:,} bytes of a file of {size:,}")
        text = file.read(length)
    if len(text) < length or not text.startswith(b"{"):
        raise _fail(path, "the header is not a JSON object")
    # A parsed object takes more memory than its text. A normal header has one object and two lists per tensor.
    if text.count(b"{") > MAX_TENSORS + 2 or text.count(b"[") > 2 * MAX_TENSORS + 2:
        raise _fail(path, f"the header describes more than {MAX_TENSORS:,} tensors")
    entries = parse_json(text, path.name)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _fail(path, "__metadata__ is not a table of strings")
    return SafetensorsHeader(path, size, _tensors(path, entries, room=size - 8 - length), metadata)


def read_index(path: Path) -> tuple[Path, ...]:
    """The shards that an index file names, in order. They may be missing on disk.

    Raises:
        InvalidModelFile: it is not an index, or names files outside its folder.
        OSError: it cannot be read.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _fail(path, "there is no weight_map")
    names = {str(name) for name in weight_map.values()}
    if len(names) > MAX_SHARDS:
        raise _fail(path, f"names {len(names):,} files")
    for name in sorted(names):
        if not name.endswith(".safetensors") or any(sign in name for sign in "/\\\0:"):
            raise _fail(path, f"names {name[:80]!r}, which is not a safetensors file of this folder")
    return tuple(path.with_name(name) for name in sorted(names))


def _tensors(path: Path, entries: Mapping[str, Any], room: int) -> tuple[SafetensorsTensor, ...]:
    """Check every tensor. Together they must fill the data section without a gap."""
    tensors: list[SafetensorsTensor] = []
    places: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        dtype, shape, (begin, end) = _entry(path, name, entry)
        elements = 1
        for length in shape:
            elements *= length
            if elements >= MAX_SIZE:
                raise _fail(path, f"tensor {name[:80]!r} has the impossible shape {shape}")
        if elements * DTYPE_BITS[dtype] != 8 * (end - begin):
            raise _fail(path, f"tensor {name[:80]!r} of {elements:,} {dtype} does not fill its {end - begin:,} bytes")
        tensors.append(SafetensorsTensor(name, dtype, shape, elements, end - begin))
        places.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(places):
        if begin != reached:
            kind = "overlaps the one before it" if begin < reached else "leaves a gap before it"
            raise _fail(path, f"tensor {name[:80]!r} {kind} (at byte {begin:,} of the data)")
        reached = end
    if reached != room:
        where = (
            f"{reached - room:,} bytes past the file"
            if reached > room
            else f"{room - reached:,} bytes before the file's end"
        )
        raise _fail(path, f"the last tensor ends {where}")
    return tuple(tensors)


def _entry(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _fail(path, f"tensor {name[:80]!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _fail(path, f"tensor {name[:80]!r} is of unknown type {json.dumps(dtype)[:40]}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise _fail(path, f"tensor {name[:80]!r} has the impossible shape {json.dumps(shape)[:80]}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _fail(path, f"tensor {name[:80]!r} lies at the impossible place {json.dumps(offsets)[:80]}")
    return dtype, tuple(shape), (offsets[0], offsets[1])


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < MAX_SIZE for number in value)


def _fail(path: Path, what: str) -> InvalidModelFile:
    return InvalidModelFile(f"{path.name}: {what}")
