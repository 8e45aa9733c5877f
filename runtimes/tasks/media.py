"""`Media`: the one binary value of asks and results: an image, a sound, a document. `Image`: the field of an ask that takes one.

Asks and results hold bytes, never paths: the model's process cannot open a caller's files. Whoever takes a request reads them
first (`runtimes.media.sources`).
"""

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo, TypeAdapter, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from lfx_local_runtimes.runtimes.tasks.binary import Blob

MAX_IMAGE_BYTES = 20 * 2**20
"""The most bytes of an image's file."""

MEDIA_BODY_BYTES = 64 * 2**20
"""The most bytes of a body with media in it, for a task's row."""

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.ASCII)
_UNKNOWN = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Media:
    """Bytes with their MIME type.

    Args:
        mime: such as `image/png` or `audio/wav`.
        data: the bytes.
    """

    mime: str
    data: Blob = field(repr=False)

    @property
    def data_url(self) -> str:
        """The same as a text that browsers and other APIs take."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True, slots=True)
class Source:
    """Media that still has to be read: a file, or a URL. `runtimes.media.sources.fetched` reads those of an ask.

    Args:
        path: the file.
        url: of http or https.
        kinds: the beginnings of the MIME types that are accepted.
        max_bytes: the most bytes.

    Raises:
        ValueError: neither or both of path and url are given.
    """

    path: str | None = None
    url: str | None = None
    kinds: tuple[str, ...] = ("image/",)
    max_bytes: int = MAX_IMAGE_BYTES

    def __post_init__(self) -> None:
        if (self.path is None) == (self.url is None):
            raise ValueError("give either path or url")


def image_mime(data: bytes) -> str:
    """The MIME type of an image, by its first bytes; `application/octet-stream` if they are none of an image."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    for start, mime in _STARTS:
        if data.startswith(start):
            return mime
    return _UNKNOWN


_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"), (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"), (b"MM\0*", "image/tiff"),
)  # fmt: skip


def media_of_url(text: str, max_bytes: int = MAX_IMAGE_BYTES) -> Media | Source:
    """What a URL stands for: the content of a data URL, or a source that is to be fetched.

    Args:
        text: the URL.
        max_bytes: the most bytes of a data URL.

    Raises:
        ValueError: it is neither a data URL in base64 nor an http URL.
    """
    if text[:5].lower() != "data:":
        if text[:8].lower().startswith(("http://", "https://")):
            return Source(url=text)
        raise ValueError("the URL must begin with data:, http:// or https://")
    head = _DATA_URL.match(text[:1000])
    if head is None or head[3] is None:
        raise ValueError("the data URL must have the form data:image/png;base64,…")
    data = decoded(text[head.end() :], max_bytes)
    return Media(head[1] or image_mime(data), data)


def decoded(text: str, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """The bytes of a base64 text.

    Raises:
        ValueError: it is none, or they are too many.
    """
    if len(text) * 3 // 4 > max_bytes + max_bytes // 16:  # some room for line breaks
        raise ValueError(_too_large(max_bytes))
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the base64 text is not valid: {error}") from error


def _too_large(max_bytes: int = MAX_IMAGE_BYTES) -> str:
    return f"it is larger than {max_bytes // 2**20} MiB; send a smaller one"


def as_image(value: Any) -> Media | Source:
    """An image in any form that callers in Python have: `Media`, bytes, a text (see `Image`), a PIL image, a numpy array.

    A numpy array is uint8, of shape (height, width), (height, width, 3) or (height, width, 4).

    Raises:
        ValueError: it is in none of these forms, or too large.
    """
    if isinstance(value, Source):
        return value
    if isinstance(value, Media):
        found: Media | Source = value
    elif isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        found = Media(image_mime(data), data)
    elif isinstance(value, str):
        found = _of_text(value)
    else:
        found = _of_pixels(value)
    if isinstance(found, Media):
        if not found.data:
            raise ValueError("the image is empty")
        if len(found.data) > MAX_IMAGE_BYTES:
            raise ValueError(_too_large())
    return found


def _of_text(text: str) -> Media | Source:
    if is_url(text):
        return media_of_url(text)
    if not text.strip():
        raise ValueError(form_of("an image"))
    data = decoded(text)
    return Media(image_mime(data), data)


def _of_pixels(value: Any) -> Media:
    """A PNG file of a PIL image or an array. Neither library is imported unless the caller has a value of it."""
    kind = type(value).__module__.partition(".")[0]
    if kind == "numpy":
        if str(value.dtype) != "uint8" or value.ndim not in (2, 3) or value.shape[2:] not in ((), (3,), (4,)):
            raise ValueError("an array must be uint8, of shape (height, width) or (height, width, 3 or 4)")
        from PIL import Image as pillow  # noqa: N813

        value, kind = pillow.fromarray(value), "PIL"
    if kind != "PIL":
        raise ValueError(form_of("an image"))
    plain = value if value.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else value.convert("RGB")
    file = BytesIO()
    plain.save(file, "PNG", compress_level=1)
    return Media("image/png", file.getvalue())


# -- as a field of an ask ----------------------------------------------------------------------------------------------

_MEDIA: TypeAdapter[Media] = TypeAdapter(Media)
_BASE64 = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})"


def url_schema(types: str) -> dict[str, Any]:
    """JSON schema of a URL of media whose MIME types match an expression."""
    return {
        "type": "string", "pattern": f"^(?:https?://|data:{types};base64,{_BASE64}$)",
        "description": "A data URL, or an http URL if the operator allows it.",
    }  # fmt: skip


def _write(value: Media | Source, info: SerializationInfo) -> Any:
    if isinstance(value, Source):
        return {"path": value.path} if value.url is None else {"url": value.url}
    return _MEDIA.dump_python(value, mode="json", context=info.context)


@dataclass(frozen=True)
class MediaField:
    """How a field of an ask takes media. In JSON: a data URL, base64, `{"path": …}` or `{"url": …}`.

    A path or an http URL becomes a `Source`. A route or a node reads it before the request starts.

    Args:
        noun: what it takes, for errors.
        types: of the MIME types in data URLs, a regular expression.
        max_bytes: the most bytes.
        accept: the media of a value in any form but an object; raises ValueError.
        at_path: the source of a path.
    """

    noun: str
    types: str
    max_bytes: int
    accept: Callable[[Any], Media | Source]
    at_path: Callable[[str], Source]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        write = core_schema.plain_serializer_function_ser_schema(_write, info_arg=True)
        return core_schema.with_info_plain_validator_function(self._read, serialization=write)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        url = url_schema(self.types)
        return {
            "anyOf": [
                {"type": "string", "pattern": f"^{_BASE64}$", "description": "The file in base64."},
                url,
                {
                    "type": "object", "properties": {"path": {"type": "string", "minLength": 1}}, "required": ["path"],
                    "additionalProperties": False, "description": "A file in a folder of LOCAL_RUNTIMES_MEDIA_DIRS.",
                },
                {"type": "object", "properties": {"url": url}, "required": ["url"], "additionalProperties": False},
            ]
        }  # fmt: skip

    def _read(self, value: Any, info: ValidationInfo) -> Media | Source:
        if not isinstance(value, dict):
            return self.accept(value)
        if info.context is not None and "data" in value:  # from one half of an engine to the other
            return _MEDIA.validate_python(value, context=info.context)
        names = value.keys()
        text = next(iter(value.values()), None)
        if names == {"path"} and isinstance(text, str) and text:
            return self.at_path(text)
        if names == {"url"} and isinstance(text, str) and is_url(text):
            return self.accept(text)
        if names == {"mime", "data"} and isinstance(value["data"], str):
            return self.accept(Media(str(value["mime"]), decoded(value["data"], self.max_bytes)))
        raise ValueError(form_of(self.noun))


def is_url(text: str) -> bool:
    """Whether a text is a URL, and not base64."""
    return text[:8].lower().startswith(("data:", "http://", "https://"))


def form_of(noun: str) -> str:
    """What a value that is no media is told."""
    return f'{noun} must be a data URL, base64, {{"path": …}} or {{"url": …}}'


Image = Annotated[
    Media | Source, MediaField("an image", "image/[a-z]+", MAX_IMAGE_BYTES, as_image, lambda path: Source(path=path))
]
"""An image in an ask. In Python also bytes, a PIL image, an array. See `MediaField`."""
