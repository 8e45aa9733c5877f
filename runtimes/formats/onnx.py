"""What an ONNX file holds, from its outline: weights are counted, never read.

Field numbers and types are those of onnx.proto.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from lfx_local_runtimes.errors import InvalidModelFile
from lfx_local_runtimes.runtimes.formats.protobuf import BYTES, VARINT, Field, fields, varint

PRECISION = ("fp32", "fp16", "bf16", "int8", "int4", "fp64")
"""What is taken where nobody says: equal quality first."""

_MAX_PARTS = 200_000
"""Nodes and tensors that are looked at; encoders have some thousands."""
_MAX_NAME = 1000

_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_OP_TYPE = 4
_DIMS, _DATA_TYPE, _EXTERNAL_DATA = 1, 2, 13

_BITS = {
    1: 32,
    2: 8,
    3: 8,
    4: 16,
    5: 16,
    6: 32,
    7: 64,
    9: 8,
    10: 16,
    11: 64,
    12: 32,
    13: 64,
    16: 16,
    17: 8,
    21: 4,
    22: 4,
}
_EIGHT_BITS, _FOUR_BITS = (2, 3), (21, 22)
_FLOATS = {1: "fp32", 10: "fp16", 16: "bf16", 11: "fp64"}
_GENERAL = ("model", "model_quantized", "model_int8", "model_fp16", "model_q4")
_FOUR_BIT_OPERATORS = frozenset({"MatMulNBits", "MatMulBnb4"})


@dataclass(frozen=True, slots=True)
class OnnxTensor:
    """An input or output of the model; a dimension without a fixed size is None."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class OnnxHeader:
    """The outline of a model."""

    path: Path
    dtype: str
    """fp32, fp16, bf16, fp64, int8 or int4: what most of the weights are."""
    parameters: int
    weight_bytes: int
    files: tuple[Path, ...]
    """The file, and those that keep its weights."""
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]


def choose(headers: Sequence[OnnxHeader], dtype: str | None) -> OnnxHeader | None:
    """The file to load of those a folder has: of the type that is asked for, otherwise the most exact one.

    Several of one type (made for one processor, say) are told apart by name: model.onnx and model_quantized.onnx are
    for all.
    """
    for wanted in PRECISION if dtype is None else (dtype,):
        found = [header for header in headers if header.dtype == wanted]
        if found:
            return min(found, key=lambda one: (one.path.stem not in _GENERAL, len(one.path.name), one.path.name))
    return None


def read_onnx(path: Path) -> OnnxHeader:
    """Read the outline.

    Raises:
        InvalidModelFile: it is not what it should be, is cut off, or keeps weights outside of its folder.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    elements: Counter[int] = Counter()
    outside: dict[str, None] = {}
    inputs: list[OnnxTensor] = []
    outputs: list[OnnxTensor] = []
    operators, initialized = set[str](), set[str]()
    with path.open("rb") as file:
        graph = next((field for field in _parts(file, 0, size, path) if field.number == _GRAPH), None)
        if graph is None or graph.kind != BYTES:
            raise InvalidModelFile(f"{path.name} has no ONNX graph.")
        for part in _parts(file, graph.start, graph.end, path):
            if part.number == _NODE:
                operators.add(_text_of(file, part, _OP_TYPE, path))
            elif part.number == _INITIALIZER:
                name, kind, count, location = _tensor(file, part, path)
                initialized.add(name)
                elements[kind] += count
                outside.update(dict.fromkeys(location))
            elif part.number in (_INPUT, _OUTPUT):
                (inputs if part.number == _INPUT else outputs).append(_value(file, part, path))
    return OnnxHeader(
        path=path,
        dtype=_dtype(elements, operators),
        parameters=sum(elements.values()),
        weight_bytes=sum(count * _BITS.get(kind, 8) for kind, count in elements.items()) // 8,
        files=(path, *(_beside(path, location) for location in outside)),
        inputs=tuple(one for one in inputs if one.name not in initialized),
        outputs=tuple(outputs),
    )


def _dtype(elements: Counter[int], operators: set[str]) -> str:
    """A quarter of eight-bit numbers makes a model int8: tables of embeddings often stay in floating point."""
    if operators & _FOUR_BIT_OPERATORS or any(elements[kind] for kind in _FOUR_BITS):
        return "int4"
    if 4 * sum(elements[kind] for kind in _EIGHT_BITS) >= sum(elements.values()) > 0:
        return "int8"
    return _FLOATS[max(_FLOATS, key=lambda kind: elements[kind])]


def _beside(path: Path, location: str) -> Path:
    """The file of external weights."""
    place = PurePosixPath(location)
    if not location or place.is_absolute() or ".." in place.parts or "\\" in location or "\0" in location:
        raise InvalidModelFile(f"{path.name} keeps weights in {location[:60]!r}, outside of its folder.")
    file = path.parent / place
    if not file.is_file():
        raise InvalidModelFile(f"{path.name} keeps weights in {place}, which is missing.")
    if not file.resolve().is_relative_to(path.parent.resolve()) and not _in_hub_cache(path, file):
        raise InvalidModelFile(f"{path.name} keeps weights in {place}, which leads outside of its folder.")
    return file


def _in_hub_cache(path: Path, file: Path) -> bool:
    """A snapshot of the hub's cache is links to files of the same repository's `blobs`."""
    return path.is_symlink() and file.resolve().parent == path.resolve().parent


def _parts(file: BinaryIO, start: int, end: int, path: Path) -> Iterator[Field]:
    """The fields of a message, all of them.

    Raises:
        InvalidModelFile: they do not fill it, or are too many.
    """
    place, count = start, 0
    for field in fields(file, start, end, _MAX_PARTS + 1):
        place, count = field.end, count + 1
        if place > end or count > _MAX_PARTS:
            break
        yield field
    if place != end:
        raise InvalidModelFile(f"{path.name} is cut off or not valid ONNX.")


def _bytes(file: BinaryIO, field: Field, limit: int, path: Path) -> bytes:
    if field.kind != BYTES or field.end - field.start > limit:
        raise InvalidModelFile(f"{path.name} is not valid ONNX.")
    file.seek(field.start)
    return file.read(field.end - field.start)


def _text(file: BinaryIO, field: Field, path: Path) -> str:
    return _bytes(file, field, _MAX_NAME, path).decode("utf-8", "replace")


def _text_of(file: BinaryIO, message: Field, number: int, path: Path) -> str:
    found = next((one for one in _parts(file, message.start, message.end, path) if one.number == number), None)
    return "" if found is None else _text(file, found, path)


def _tensor(file: BinaryIO, message: Field, path: Path) -> tuple[str, int, int, Sequence[str]]:
    """Name, data type, number of elements and places of external data."""
    name, kind, dims = "", 0, list[int]()
    location = []
    for part in _parts(file, message.start, message.end, path):
        if part.number == _DIMS:
            dims += [part.value] if part.kind == VARINT else _packed(_bytes(file, part, 1000, path))
        elif part.number == _DATA_TYPE:
            kind = part.value
        elif part.number == 8:
            name = _text(file, part, path)
        elif part.number == _EXTERNAL_DATA and _text_of(file, part, 1, path) == "location":
            location.append(_text_of(file, part, 2, path))
    count = 1
    for dim in dims:
        count *= dim
        if count > 2**48:
            raise InvalidModelFile(f"{path.name} has a tensor of an impossible size.")
    return name, kind, count, location


def _packed(data: bytes) -> list[int]:
    found, place = [], 0
    while place < len(data):
        value, place = varint(data, place)
        if not place:
            break
        found.append(value)
    return found


def _value(file: BinaryIO, message: Field, path: Path) -> OnnxTensor:
    """An input or output: its name, and its shape, which is type.tensor_type.shape."""
    name, shape = "", list[int | None]()
    for part in _parts(file, message.start, message.end, path):
        if part.number == 1:
            name = _text(file, part, path)
    for field in _inside(file, [message], (2, 1, 2, 1), path):
        fixed = [one.value for one in _parts(file, field.start, field.end, path) if one.number == 1]
        shape.append(fixed[0] if fixed and fixed[0] < 2**31 else None)
    return OnnxTensor(name, tuple(shape))


def _inside(file: BinaryIO, messages: Sequence[Field], numbers: Sequence[int], path: Path) -> Sequence[Field]:
    """The messages that a path of field numbers leads to."""
    for number in numbers:
        messages = [
            part
            for message in messages
            for part in _parts(file, message.start, message.end, path)
            if part.number == number and part.kind == BYTES
        ]
    return messages
