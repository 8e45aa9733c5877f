"""Reads the outline of an ONNX file. Weights are counted, never read.

Field numbers and types are those of onnx.proto.
"""

import platform
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from lfx_local_runtimes.errors import InvalidModelFile
from lfx_local_runtimes.runtimes.formats.protobuf import BYTES, VARINT, Field, fields, varint

PRECISION = ("fp32", "fp16", "bf16", "int8", "int4", "fp64")
"""The order in which types are chosen if none is asked for: full quality first."""

_MAX_FIELDS = 1_000_000
"""Fields of one file in all. Encoders have about ten thousand."""
_MAX_NAME = 1000
_MAX_DEPTH = 16

_GRAPH, _METADATA, _FUNCTION = 7, 14, 25
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _SPARSE_INITIALIZER = 1, 5, 11, 12, 15
_OP_TYPE, _ATTRIBUTE = 4, 5
_DIMS, _DATA_TYPE, _TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14

_Kind = Literal["tensor", "sparse", "graph", "node", "attribute"]
_SPARSE: Mapping[int, _Kind] = {1: "tensor", 2: "tensor"}
_ATTRIBUTE_PARTS: Mapping[int, _Kind] = {
    5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse",
}  # fmt: skip
_FUNCTION_PARTS: Mapping[int, _Kind] = {7: "node", 11: "attribute"}
_PARTS_OF: Mapping[_Kind, Mapping[int, _Kind]] = {
    "sparse": _SPARSE, "attribute": _ATTRIBUTE_PARTS, "node": {5: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
}  # fmt: skip
"""By kind of message: the fields that can contain tensors."""

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
MADE = ("fp32", "int8")
"""The types that can be made from safetensors if a model has no ONNX file."""

_GENERAL = ("model", "model_quantized", "model_int8", "model_fp16", "model_q4")
_X86, _ARM = re.compile(r"avx|vnni|x86|amd64", re.IGNORECASE), re.compile(r"arm64|aarch64", re.IGNORECASE)
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
    """The file, and the files that hold its external weights."""
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    keys: frozenset[str] = frozenset()
    """The names of what its author noted in it."""


def choose(headers: Sequence[OnnxHeader], dtype: str | None) -> OnnxHeader | None:
    """The file to load: of the type that is asked for, otherwise the most exact one. None if no file fits.

    If several files have that type, `preference` decides.
    """
    for wanted in PRECISION if dtype is None else (dtype,):
        found = [header for header in headers if header.dtype == wanted]
        if found:
            return min(found, key=lambda one: preference(one.path.name))
    return None


def preference(name: str) -> tuple[int, int, str]:
    """A sort key for files of one type: files for every processor, then files named after this one, then the rest.

    Files named after another processor come last: `model_qint8_arm64.onnx` on x86.
    """
    stem = PurePosixPath(name).stem
    own, other = (_ARM, _X86) if platform.machine().lower() in ("arm64", "aarch64") else (_X86, _ARM)
    rank = 0 if stem in _GENERAL else 1 if own.search(stem) else 3 if other.search(stem) else 2
    return rank, len(name), name


def read_onnx(path: Path) -> OnnxHeader:
    """Read the outline.

    Raises:
        InvalidModelFile: it is not valid ONNX, is cut off, or names external weights so that ONNX Runtime could read a
            file that was not checked here.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return _Outline(file, path).header()


class _Outline:
    """One walk over a file. It must read the same values as protobuf, so a file that gives a value twice is refused."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._left = _MAX_FIELDS
        self._keys: set[str] = set()

    def header(self) -> OnnxHeader:
        """The outline of the whole file."""
        elements: Counter[int] = Counter()
        outside: dict[str, None] = {}
        inputs: list[OnnxTensor] = []
        outputs: list[OnnxTensor] = []
        operators, initialized = set[str](), set[str]()
        for part in self._parts(self._graph()):
            if part.number == _NODE:
                operators.add(self._node(part))
            elif part.number == _INITIALIZER:
                name, kind, count, location = self._tensor(part)
                initialized.add(name)
                elements[kind] += count
                outside.update(dict.fromkeys(location))
            elif part.number == _SPARSE_INITIALIZER:
                self._refuse_external(part, _SPARSE)
            elif part.number in (_INPUT, _OUTPUT):
                (inputs if part.number == _INPUT else outputs).append(self._value(part))
        return OnnxHeader(
            path=self._path,
            dtype=_dtype(elements, operators),
            parameters=sum(elements.values()),
            weight_bytes=sum(count * _BITS.get(kind, 8) for kind, count in elements.items()) // 8,
            files=(self._path, *(_external_file(self._path, location) for location in outside)),
            inputs=tuple(one for one in inputs if one.name not in initialized),
            outputs=tuple(outputs),
            keys=frozenset(self._keys),
        )

    def _graph(self) -> Field:
        """The main graph. Functions may hold tensors too, so they are checked on the way."""
        size = self._path.stat().st_size
        graphs = []
        for part in self._parts(Field(0, BYTES, 0, size)):
            if part.number == _GRAPH:
                graphs.append(part)
            elif part.number == _METADATA:
                self._keys.update(self._text(key) for key in self._parts(part) if key.number == 1)
            elif part.number == _FUNCTION:
                self._refuse_external(part, _FUNCTION_PARTS)
        if len(graphs) != 1 or graphs[0].kind != BYTES:
            raise self._fault("has no ONNX graph, or more than one")
        return graphs[0]

    def _node(self, message: Field) -> str:
        """The operator of a node. The node's tensors may not come from another file."""
        operator = ""
        for part in self._parts(message):
            if part.number == _OP_TYPE:
                operator = self._text(part)
            elif part.number == _ATTRIBUTE:
                self._refuse_external(part, _ATTRIBUTE_PARTS)
        return operator

    def _refuse_external(self, message: Field, within: Mapping[int, "_Kind"], depth: int = 0) -> None:
        """Refuse tensors in another file: only the main graph's initializers may have their weights there."""
        if depth > _MAX_DEPTH:
            raise self._fault("is nested too deeply")
        for part in self._parts(message):
            kind = within.get(part.number)
            if kind == "tensor":
                if any(
                    one.number == _EXTERNAL_DATA or (one.number == _DATA_LOCATION and one.value)
                    for one in self._parts(part)
                ):
                    raise self._fault("keeps weights in another file that are not initializers of its main graph")
            elif kind is not None:
                self._refuse_external(part, _PARTS_OF[kind], depth + 1)

    def _tensor(self, message: Field) -> tuple[str, int, int, Sequence[str]]:
        """Name, data type, number of elements and places of external data."""
        name, kind, dims = "", 0, list[int]()
        location: list[str] = []
        for part in self._parts(message):
            if part.number == _DIMS:
                dims += [part.value] if part.kind == VARINT else _packed(self._bytes(part, 1000))
            elif part.number == _DATA_TYPE:
                kind = part.value
            elif part.number == _TENSOR_NAME:
                name = self._text(part)
            elif part.number == _EXTERNAL_DATA:
                location += self._location(part)
        if len(location) > 1:
            raise self._fault("names two files for one tensor")
        count = 1
        for dim in dims:
            count *= dim
            if count > 2**48:
                raise self._fault("has a tensor of an impossible size")
        return name, kind, count, location

    def _location(self, entry: Field) -> list[str]:
        """The file that an entry of external data names; empty if the entry holds something else."""
        parts = list(self._parts(entry))
        if sorted(part.number for part in parts) != [1, 2]:
            raise self._fault("is not valid ONNX")
        key, value = (self._text(part) for part in sorted(parts, key=lambda part: part.number))
        return [value] if key == "location" else []

    def _value(self, message: Field) -> OnnxTensor:
        """An input or output: its name and its shape (`type.tensor_type.shape`)."""
        name, shape = "", list[int | None]()
        for part in self._parts(message):
            if part.number == 1:
                name = self._text(part)
        for field in self._inside([message], (2, 1, 2, 1)):
            fixed = [one.value for one in self._parts(field) if one.number == 1]
            shape.append(fixed[0] if fixed and fixed[0] < 2**31 else None)
        return OnnxTensor(name, tuple(shape))

    def _inside(self, messages: Sequence[Field], numbers: Sequence[int]) -> Sequence[Field]:
        """The messages at the end of a path of field numbers."""
        for number in numbers:
            messages = [
                part
                for message in messages
                for part in self._parts(message)
                if part.number == number and part.kind == BYTES
            ]
        return messages

    def _parts(self, message: Field) -> Iterator[Field]:
        """The fields of a message, all of them.

        Raises:
            InvalidModelFile: they do not fill it, or the file has too many.
        """
        if message.kind != BYTES:
            raise self._fault("is not valid ONNX")
        place = message.start
        for field in fields(self._file, message.start, message.end, self._left + 1):
            place = field.end
            self._left -= 1
            if place > message.end or self._left < 0:
                break
            yield field
        if place != message.end:
            raise self._fault("is cut off or not valid ONNX")

    def _bytes(self, field: Field, limit: int) -> bytes:
        if field.kind != BYTES or field.end - field.start > limit:
            raise self._fault("is not valid ONNX")
        self._file.seek(field.start)
        return self._file.read(field.end - field.start)

    def _text(self, field: Field) -> str:
        return self._bytes(field, _MAX_NAME).decode("utf-8", "replace")

    def _fault(self, what: str) -> InvalidModelFile:
        return InvalidModelFile(f"{self._path.name} {what}.")


def _dtype(elements: Counter[int], operators: set[str]) -> str:
    """A model is int8 if a quarter of its numbers have eight bits: embedding tables often stay in floating point."""
    if operators & _FOUR_BIT_OPERATORS or any(elements[kind] for kind in _FOUR_BITS):
        return "int4"
    if 4 * sum(elements[kind] for kind in _EIGHT_BITS) >= sum(elements.values()) > 0:
        return "int8"
    return _FLOATS[max(_FLOATS, key=lambda kind: elements[kind])]


def _external_file(path: Path, location: str) -> Path:
    """The file of external weights. A name with a * is refused: to ONNX Runtime it means a place in memory."""
    place = PurePosixPath(location)
    if (
        not location
        or "*" in location
        or place.is_absolute()
        or ".." in place.parts
        or "\\" in location
        or "\0" in location
    ):
        raise InvalidModelFile(f"{path.name} keeps weights in {location[:60]!r}, outside of its folder.")
    file = path.parent / place
    if not file.is_file():
        raise InvalidModelFile(f"{path.name} keeps weights in {place}, which is missing.")
    if not file.resolve().is_relative_to(path.parent.resolve()) and not _in_hub_cache(path, file):
        raise InvalidModelFile(f"{path.name} keeps weights in {place}, which leads outside of its folder.")
    return file


def _in_hub_cache(path: Path, file: Path) -> bool:
    """Whether the links lead to blobs of one repository: a snapshot in the hub's cache consists of such links."""
    return path.is_symlink() and file.resolve().parent == path.resolve().parent


def _packed(data: bytes) -> list[int]:
    found, place = [], 0
    while place < len(data):
        value, place = varint(data, place)
        if not place:
            break
        found.append(value)
    return found
