"""Lists the fields of a protobuf message in a file, with their places. Only the values of varints are read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types (protobuf.dev/programming-guides/encoding)."""

_MAX_HEAD = 20


@dataclass(frozen=True, slots=True)
class Field:
    """A field: `value` is the number of a varint, otherwise 0. The content is at bytes `start` to `end`."""

    number: int
    kind: int
    start: int
    end: int
    value: int = 0


def fields(file: BinaryIO, start: int, end: int, limit: int) -> Iterator[Field]:
    """The fields of the message at `start` to `end`, at most `limit`. Stops where the bytes are not valid protobuf.

    The last field may claim to end beyond the message: the caller must check.
    """
    place = start
    for _ in range(limit):
        if place >= end:
            return
        file.seek(place)
        head = file.read(_MAX_HEAD)
        tag, used = varint(head, 0)
        kind = tag & 7
        if not 0 < tag < 2**32 or kind not in (VARINT, FIXED64, BYTES, FIXED32):
            return
        value, after = varint(head, used) if kind in (VARINT, BYTES) else (0, used)
        if not after:
            return
        begin = place + after
        place = begin + {VARINT: 0, FIXED64: 8, BYTES: value, FIXED32: 4}[kind]
        yield Field(tag >> 3, kind, begin, place, value if kind == VARINT else 0)


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at` and the place after it. The place is 0 if there is no valid number."""
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    return 0, 0
