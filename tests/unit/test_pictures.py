"""Pictures are decoded in one defined way, and what is broken or too large is refused by name."""

import struct
from io import BytesIO

import pytest
from PIL import Image

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.media import pictures
from lfx_local_runtimes.runtimes.media.pictures import open_picture
from lfx_local_runtimes.runtimes.tasks.media import MAX_IMAGE_BYTES, Media, Source
from tests.pictures import drawn, file_of, media_of, png_that_says


def opened(data: bytes) -> Image.Image:
    picture = open_picture(Media("image/any", data), "images.0")
    assert picture.mode == "RGB"
    return picture


def refused(data: bytes) -> str:
    with pytest.raises(InvalidInput, match=r"images\.0") as caught:
        opened(data)
    return str(caught.value)


@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_each_format_is_decoded(kind: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    assert opened(file_of(drawn(), kind, **options)).size == (64, 48)
    assert opened(file_of(drawn(), kind, **options)).getpixel((2, 2))[2] > 200


@pytest.mark.parametrize("kind", pictures.FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_truncated_file_is_refused_or_complete(kind: str, share: float) -> None:
    noise = Image.effect_noise((200, 150), 90).convert("RGB")
    data = file_of(noise, kind)
    complete = kind in ("TIFF",) and share == 0.98
    if not complete:
        refused(data[: int(len(data) * share)])


def test_a_header_that_lies_is_refused() -> None:
    assert "decoded" in refused(png_that_says(500, 500, b"\0" * 30))
    jpeg = bytearray(file_of(drawn(), "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 4000, 4000)
    assert opened(bytes(jpeg)).size == (4000, 4000)  # libjpeg fills what is missing with grey
    webp = bytearray(file_of(drawn(), "WEBP", lossless=True))
    webp[21:24] = b"\xff\xff\xff"
    refused(bytes(webp))
    tiff = bytearray(file_of(drawn(), "TIFF"))
    tiff[4:8] = struct.pack("<I", 0xFFFFFFF0)
    refused(bytes(tiff))


@pytest.mark.parametrize("data", [b"no picture", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", b"<svg/>", b"\0" * 100])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert "PNG, JPEG" in refused(data) or "decoded" in refused(data)


@pytest.mark.parametrize("size", [(8_000, 8_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_not_decoded(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    assert "40,000,000" in refused(png_that_says(*size))


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_odd_sizes_are_decoded(size: tuple[int, int]) -> None:
    assert opened(file_of(Image.new("RGB", size))).size == size


def test_too_many_bytes_are_refused() -> None:
    assert "20 MiB" in refused(b"\x89PNG\r\n\x1a\n" + bytes(MAX_IMAGE_BYTES))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animated_picture_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("lime", "red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert opened(data).getpixel((4, 4)) == (0, 255, 0)


def test_sixteen_bits_are_scaled() -> None:
    grey = Image.new("I;16", (3, 1))
    for place, value in enumerate((0, 32_768, 65_535)):
        grey.putpixel((place, 0), value)
    picture = opened(file_of(grey))
    assert [picture.getpixel((place, 0))[0] for place in range(3)] == [0, 127, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bits_are_refused(mode: str) -> None:
    assert "8 or 16 bits" in refused(file_of(Image.new(mode, (3, 3)), "TIFF"))


def test_transparent_parts_are_white() -> None:
    assert opened(file_of(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    half = opened(file_of(Image.new("LA", (2, 2), (0, 128)))).getpixel((0, 0))
    assert half == (127, 127, 127)
    palette = Image.new("P", (2, 2), 0)
    assert opened(file_of(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    assert opened(file_of(drawn(mode=mode), kind)).size == (64, 48)


def test_the_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    turned = opened(file_of(drawn(), "JPEG", exif=exif, quality=100))
    assert turned.size == (48, 64)
    assert turned.getpixel((46, 2))[2] > 200
    assert turned.getexif().get(0x0112) is None


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_says_nothing() -> None:
    data = file_of(drawn(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert opened(data).size == (64, 48)


def test_a_file_that_was_not_read_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"images\.3 names a file"):
        open_picture(Source(path="/a/file.png"), "images.3")


def test_an_ordinary_picture_is_as_pillow_has_it() -> None:
    assert open_picture(media_of(drawn()), "images.0").tobytes() == drawn().tobytes()
    assert Image.open(BytesIO(media_of(drawn()).data)).format == "PNG"
