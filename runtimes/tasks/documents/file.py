"""`DocumentFile`: the field of an ask that takes a document."""

from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, SerializationInfo, TypeAdapter, ValidationInfo, WithJsonSchema

from lfx_local_runtimes.runtimes.tasks.media import Media, Source, decoded, image_mime, media_of_url

MAX_DOCUMENT_BYTES = 128 * 2**20
"""The most bytes of a document."""

_UNKNOWN = "application/octet-stream"
_KINDS = ("application/pdf", "application/vnd.openxmlformats-officedocument.", "image/", _UNKNOWN)
_FORM = 'a document must be a data URL, base64, {"path": …} or {"url": …}'
_MEDIA: TypeAdapter[Media] = TypeAdapter(Media)


def document_source(*, path: str | None = None, url: str | None = None) -> Source:
    """A document that still has to be read: a file, or a URL."""
    return Source(path, url, _KINDS, MAX_DOCUMENT_BYTES)


def as_document(value: Any) -> Media | Source:
    """A document in any form that callers have: `Media`, `Source`, bytes, or a text (see `DocumentFile`).

    Raises:
        ValueError: it is in none of these forms, empty, or too large.
    """
    found: Media | Source
    if isinstance(value, Media | Source):
        found = value
    elif isinstance(value, bytes | bytearray | memoryview):
        found = Media(_UNKNOWN, bytes(value))
    elif isinstance(value, str) and value.strip():
        found = _of_text(value)
    else:
        raise ValueError(_FORM)
    if isinstance(found, Media):
        if not found.data:
            raise ValueError("the document is empty")
        if len(found.data) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"the document is larger than {MAX_DOCUMENT_BYTES // 2**20} MiB; divide it")
    return found


def _of_text(text: str) -> Media | Source:
    if text[:8].lower().startswith(("http://", "https://")):
        return document_source(url=text)
    if text[:5].lower() == "data:":
        return media_of_url(text, MAX_DOCUMENT_BYTES)
    data = decoded(text, MAX_DOCUMENT_BYTES)
    return Media(image_mime(data), data)


def _read(value: Any, info: ValidationInfo) -> Media | Source:
    if not isinstance(value, dict):
        return as_document(value)
    if info.context is not None and "data" in value:  # from one half of an engine to the other
        return _MEDIA.validate_python(value, context=info.context)
    names = value.keys()
    if names in ({"path"}, {"url"}):
        (text,) = value.values()
        if isinstance(text, str) and text:
            return as_document(text) if "url" in names else document_source(path=text)
    elif names == {"mime", "data"} and isinstance(value["data"], str):
        return as_document(Media(str(value["mime"]), decoded(value["data"], MAX_DOCUMENT_BYTES)))
    raise ValueError(_FORM)


def _write(value: Media | Source, info: SerializationInfo) -> Any:
    if isinstance(value, Source):
        return {"path": value.path} if value.url is None else {"url": value.url}
    return _MEDIA.dump_python(value, mode="json", context=info.context)


def _named(name: str, about: str) -> dict[str, Any]:
    return {
        "type": "object", "properties": {name: {"type": "string"}}, "required": [name], "additionalProperties": False,
        "description": about,
    }  # fmt: skip


DocumentFile = Annotated[
    Media | Source, PlainValidator(_read), PlainSerializer(_write),
    WithJsonSchema({
        "anyOf": [
            {"type": "string", "description": "A data URL, an http URL, or the file in base64."},
            _named("path", "A file in a folder of LOCAL_RUNTIMES_MEDIA_DIRS."),
            _named("url", "A data URL, or an http URL if the operator allows it."),
        ]
    }),
]  # fmt: skip
"""A document in an ask. In JSON: a data URL, base64, `{"path": …}` or `{"url": …}`. In Python also bytes.

A path or an http URL becomes a `Source`. A route or a node reads it before the request starts."""
