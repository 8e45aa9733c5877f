"""Files of Langflow: those that a node's field or a message names are read, and pictures are kept for the Playground."""

import asyncio
import tempfile
import uuid
from pathlib import Path, PurePath
from typing import Any

from lfx.base.data.storage_utils import get_file_size, read_file_bytes
from lfx.custom.custom_component.component import Component
from lfx.services.deps import get_storage_service
from lfx.utils.file_path_security import component_file_access_scopes, enforce_local_file_access

from lfx_local_runtimes.errors import InvalidInput, NotAllowed
from lfx_local_runtimes.nodes.inputs import value_of

_IMAGE_URL = "/api/v1/files/images"
"""Langflow's route for the pictures of a flow."""


def listed(value: Any) -> list[Any]:
    """An input's values, without those left empty."""
    return [one for one in (value if isinstance(value, list) else [value]) if value_of(one) is not None]


async def read_stored(node: Component, path: str, limit: int, too_large: str) -> bytes:
    """A file of Langflow's storage, or one that Langflow lets this flow read.

    Args:
        node: the node that reads it.
        path: its path in the storage or on the disk.
        limit: the largest size, in bytes.
        too_large: what to do if it is larger.

    Raises:
        InvalidInput: there is no such file, or it is too large.
        NotAllowed: Langflow does not let this flow read it.
    """
    name = PurePath(path).name
    scopes = component_file_access_scopes(node)

    def allowed(place: str) -> str:
        return str(enforce_local_file_access(place, scope_ids=scopes))

    try:
        if await asyncio.to_thread(get_file_size, path) > limit:
            raise InvalidInput(f"{name} is larger than {limit // 2**20} MiB.", hint=too_large)
        data: bytes = await read_file_bytes(path, resolve_path=allowed)
    except FileNotFoundError as error:
        raise InvalidInput(f"There is no file {name}.", hint="Upload it again.") from error
    except ValueError as error:
        raise NotAllowed(
            f"Langflow does not let this flow read {name}: {error}",
            hint="Upload the file, or name it in Path and its folder in LOCAL_RUNTIMES_MEDIA_DIRS.",
        ) from error
    return data


async def store_picture(node: Component, data: bytes) -> tuple[str, str | None]:
    """Keep a PNG file for a message: its path, and its address in Langflow.

    Without Langflow's storage, as in `lfx run`, it is a temporary file and has no address.
    """
    name = f"{uuid.uuid4().hex}.png"
    storage = get_storage_service()
    if storage is None or node._vertex is None:
        place = Path(tempfile.gettempdir()) / f"local-runtimes-{name}"
        await asyncio.to_thread(place.write_bytes, data)
        return str(place), None
    flow = str(node.graph.flow_id)
    await storage.save_file(flow, name, data)
    return f"{flow}/{name}", f"{_IMAGE_URL}/{flow}/{name}"
