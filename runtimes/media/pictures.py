"""Decode pictures with Pillow. Only a model's process does this: a fault of a decoder then harms nobody else."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

from lfx_local_runtimes.errors import DoesNotFit, InvalidInput
from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.tasks.media import MAX_IMAGE_BYTES, Media, Source

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 40_000_000
"""The most pixels of a picture: width times height. They take 120 MB while it is decoded."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""As Pillow names them. Its other decoders are not used."""

_EXTRA = "vision"
_WIDE = ("I;16", "I;16L", "I;16B", "I;16N")
_NO_RANGE = ("I", "F")


def open_picture(media: Media | Source, place: str) -> "Image.Image":
    """The picture in RGB, 8 bits a channel, turned as its EXIF orientation says.

    Of an animated picture it is the first frame; the others are not decoded. 16-bit grey is scaled to 8 bits. Transparent
    parts are white. Limits are checked before pixels are decoded.

    Args:
        media: the file.
        place: how errors call it, such as `images.0`.

    Raises:
        InvalidInput: it is no picture in one of `FORMATS`, truncated, over a limit, or has 32-bit pixels.
        DoesNotFit: there is no memory left to decode it.
        MissingExtra: Pillow is not installed.
    """
    if isinstance(media, Source):
        raise InvalidInput(
            f"{place} names a file or a URL, and a model's process can open neither.",
            hint="Read it first, with `fetched` of lfx_local_runtimes.runtimes.media.sources.",
        )
    if len(media.data) > MAX_IMAGE_BYTES:
        raise InvalidInput(f"{place} is larger than {MAX_IMAGE_BYTES // 2**20} MiB.", hint="Scale it down.")
    pillow = require("PIL.Image", _EXTRA)
    try:
        picture = pillow.open(BytesIO(media.data), formats=FORMATS)
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise _too_many_pixels(place, "") from error
    except pillow.UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise InvalidInput(
            f"{place} is not a picture that can be read ({media.mime[:60]}).", hint=f"Send one of: {known}."
        ) from error
    except Exception as error:
        raise _broken(place, error) from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise _too_many_pixels(place, f" ({width:,} × {height:,})")
    try:
        picture.load()
        found: Image.Image = _eight_bits(_upright(picture), place)
    except InvalidInput:
        raise
    except MemoryError as error:
        raise DoesNotFit(f"There is no memory left to decode {place}.", hint="Scale the picture down.") from error
    except Exception as error:
        raise _broken(place, error) from error
    return found


def _upright(picture: Any) -> Any:
    """Turned as its EXIF orientation says. A broken EXIF block says nothing."""
    try:
        return require("PIL.ImageOps", _EXTRA).exif_transpose(picture)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001
        return picture


def _eight_bits(picture: Any, place: str) -> Any:
    if picture.mode in _NO_RANGE:
        raise InvalidInput(
            f"{place} has pixels of 32 bits ({picture.mode}), which have no fixed range.",
            hint="Save it with 8 or 16 bits a channel.",
        )
    if picture.mode in _WIDE:
        return picture.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    if picture.has_transparency_data:
        white = require("PIL.Image", _EXTRA).new("RGBA", picture.size, "white")
        white.alpha_composite(picture.convert("RGBA"))
        return white.convert("RGB")
    return picture.convert("RGB")


def _too_many_pixels(place: str, size: str) -> InvalidInput:
    return InvalidInput(
        f"{place} has too many pixels{size}; the limit is {MAX_PIXELS:,}.", hint="Scale the picture down."
    )


def _broken(place: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{place} cannot be decoded: {str(error)[:200].rstrip('. ') or type(error).__name__}.",
        hint="Save the picture again.",
    )
