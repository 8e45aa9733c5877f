"""Arrays and bytes inside asks and results: attachments on a wire, lists or base64 in plain JSON.

pydantic writes and reads asks and results. Given a list as its context, it puts binary values there and a reference in
their place; given the attachments as its context, it reads them back. Without a context an array becomes a list.
"""

import base64
import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PlainSerializer, PlainValidator, SerializationInfo, ValidationInfo, WithJsonSchema

if TYPE_CHECKING:
    import numpy as np

_DTYPES = ("float32", "float16", "int32", "int64", "uint8", "bool")


def _write_array(value: "np.ndarray[Any, Any]", info: SerializationInfo) -> Any:
    attachments = info.context
    if attachments is None:
        return value.tolist()
    import numpy as np

    data = np.ascontiguousarray(value).data
    attachments.append(data.cast("B") if data.nbytes else b"")  # Python refuses to cast an empty view
    return {"attachment": len(attachments) - 1, "dtype": str(value.dtype), "shape": value.shape}


def _read_array(value: Any, info: ValidationInfo) -> Any:
    import numpy as np

    if not isinstance(value, dict):
        if info.context is not None:
            raise ValueError("an array is an attachment")
        return np.asarray(value)
    data, dtype, shape = _attachment(value, info), value.get("dtype"), value.get("shape")
    if dtype not in _DTYPES or not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError("an array needs a dtype and a shape")
    kind = np.dtype(dtype)
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"{len(data):,} bytes are not an array of shape {shape} in {dtype}")
    return np.frombuffer(data, kind).reshape(shape)


def _write_bytes(value: bytes, info: SerializationInfo) -> Any:
    attachments = info.context
    if attachments is None:
        return base64.b64encode(value).decode()
    attachments.append(value)
    return {"attachment": len(attachments) - 1}


def _read_bytes(value: Any, info: ValidationInfo) -> bytes:
    if isinstance(value, dict):
        return bytes(_attachment(value, info))
    if isinstance(value, str):
        return base64.b64decode(value, validate=True)
    if isinstance(value, bytes):
        return value
    raise ValueError("bytes, or their base64 text, are needed")


def _attachment(reference: dict[str, Any], info: ValidationInfo) -> Any:
    index, attachments = reference.get("attachment"), info.context or ()
    if not isinstance(index, int) or not 0 <= index < len(attachments):
        raise ValueError(f"there is no attachment {index!r}")
    return attachments[index]


Array = Annotated[
    Any, PlainSerializer(_write_array), PlainValidator(_read_array), WithJsonSchema({"type": "array", "items": {}})
]
"""A numpy array."""

Blob = Annotated[
    bytes, PlainSerializer(_write_bytes), PlainValidator(_read_bytes),
    WithJsonSchema({"type": "string", "format": "byte"}),
]  # fmt: skip
"""Bytes."""
