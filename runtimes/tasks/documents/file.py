"""`DocumentFile`: the field of an ask that takes a document."""

from typing import Annotated, Any

from lfx_local_runtimes.runtimes.tasks.media import (
    Media,
    MediaField,
    Source,
    decoded,
    form_of,
    image_mime,
    media_of_url,
)

MAX_DOCUMENT_BYTES = 128 * 2**20
"""The most bytes of a document."""

_UNKNOWN = "application/octet-stream"
_KINDS = ("application/pdf", "application/vnd.openxmlformats-officedocument.", "image/", _UNKNOWN)
_DATA_TYPES = r"[a-z]+/[a-z0-9.+-]+"


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
        raise ValueError(form_of("a document"))
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


DocumentFile = Annotated[
    Media | Source,
    MediaField("a document", _DATA_TYPES, MAX_DOCUMENT_BYTES, as_document, lambda path: document_source(path=path)),
]
"""A document in an ask. In Python also bytes. See `MediaField`."""
