"""Pictures for tests, drawn by Pillow: no model and no file is needed."""

import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image, ImageDraw

from lfx_local_runtimes.runtimes.tasks.media import Media


def drawn(size: tuple[int, int] = (64, 48), colour: str = "red", mode: str = "RGB") -> Image.Image:
    """A coloured ground with a blue square at the upper left."""
    picture = Image.new("RGB", size, colour)
    ImageDraw.Draw(picture).rectangle((0, 0, size[0] // 4, size[1] // 4), fill="blue")
    return picture.convert(mode)


def file_of(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The picture as a file."""
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def media_of(picture: Image.Image) -> Media:
    """The picture as a PNG."""
    return Media("image/png", file_of(picture))


def png_that_says(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header has a size that its pixels do not have."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
