"""Downloads over REST, as jobs. Plain `def` endpoints run in a thread."""

from functools import partial
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from lfx_local_runtimes.routes.access import Manager, ModelRef
from lfx_local_runtimes.routes.faults import FaultRoute
from lfx_local_runtimes.runtimes.status import DownloadStatus

router = APIRouter(route_class=FaultRoute)

_HUB_THREADS = CapacityLimiter(8)
"""Who waits for the hub does so in these threads: a hub that does not answer would otherwise take all threads from the other
routes."""

DownloadId = Annotated[
    str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9]+$"), Path(description="The `id` of the download.")
]


class DownloadBody(BaseModel):
    """Which model to download."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: ModelRef = Field(
        description="A repository on the hub, as `org/name` or `org/name-GGUF:Q4_K_M`, or the name of a known model.",
        examples=["org/name-GGUF:Q4_K_M"],
    )
    revision: Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9_./-]+$")] | None = Field(
        default=None, description="Branch, tag or commit. By default that of the model's configuration, or `main`."
    )


class DownloadList(BaseModel):
    """The downloads of this server."""

    downloads: list[DownloadStatus]


@router.post(
    "/downloads",
    status_code=202,
    responses={200: {"model": DownloadStatus, "description": "The model is on this machine already"}},
)
async def start_download(body: DownloadBody, response: Response, manager: Manager) -> DownloadStatus:
    """Download a model in the background. Whoever asks for the same model meanwhile joins the same download.

    The repository is looked at first: the list of files, the configuration and the headers of the weights. A model that
    this machine cannot serve, or has no disk or memory for, is refused with the reason before anything is fetched. So is
    one that is larger than LOCAL_RUNTIMES_MAX_DOWNLOAD_GB. The answer has the sizes. A download that was paused goes on.
    """
    start = partial(manager.download_model, body.model_name, body.revision, limited=True)
    status = await to_thread.run_sync(start, limiter=_HUB_THREADS)
    response.status_code = 200 if status.state == "done" else 202
    return status


@router.get("/downloads")
def list_downloads(manager: Manager) -> DownloadList:
    """The downloads that run, those that are paused, and the last ones that ended. The newest is the last."""
    return DownloadList(downloads=list(manager.downloads.list()))


@router.get("/downloads/{download_id}")
def download_status(download_id: DownloadId, manager: Manager) -> DownloadStatus:
    """One download: its state, bytes, speed and the seconds left."""
    return manager.downloads.status(download_id)


@router.post("/downloads/{download_id}/pause")
def pause_download(download_id: DownloadId, manager: Manager) -> DownloadStatus:
    """Stop a download and keep what came. Requests that wait for the model fail."""
    return manager.downloads.pause(download_id)


@router.post("/downloads/{download_id}/resume")
async def resume_download(download_id: DownloadId, manager: Manager) -> DownloadStatus:
    """Go on with a download that was paused, or that failed."""
    return await to_thread.run_sync(manager.downloads.resume, download_id, limiter=_HUB_THREADS)


@router.delete("/downloads/{download_id}")
def cancel_download(download_id: DownloadId, manager: Manager) -> DownloadStatus:
    """End a download, delete what it fetched, and forget it. A model that is complete stays on the disk."""
    return manager.downloads.cancel(download_id)
