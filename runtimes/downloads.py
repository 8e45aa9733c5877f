"""Downloads as jobs: who asks for the same model shares one, and a load that needs it waits for it.

A job looks at the repository first and refuses what cannot be served. A pause stops the transfer and keeps what came; to
resume starts it again from there. So does asking again after a failure, or in another process.
"""

import shlex
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING

from lfx_local_runtimes.errors import (
    DownloadFailed,
    DownloadNotFound,
    DownloadTooLarge,
    InvalidInput,
    NotDownloaded,
    RuntimeFault,
    as_fault,
)
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.planning.servable import Fit
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.runtimes.status import DownloadState, DownloadStatus

if TYPE_CHECKING:
    from lfx_local_runtimes.runtimes.sources.download import Transfer

KEPT = 100
"""So many downloads that have ended are listed."""

_ACTIVE = ("checking", "downloading")
_WINDOW_S = 10.0
"""The speed is that of the last seconds."""
_POLL_S = 0.2
_STOP_S = 5.0

Inspect = Callable[[ModelConfig, "Transfer"], Fit]
"""Looks at a model on the hub. Raises a `RuntimeFault` if this machine cannot serve it."""


class _Job:
    """One download. The lock of `Downloads` guards it."""

    def __init__(self, key: Hashable, config: ModelConfig, *, limited: bool, asked: bool) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.key, self.config = key, config
        self.limited = limited
        self.asked = asked
        """Somebody asked for the download itself. Otherwise it ends when nobody waits for it."""
        self.state: DownloadState = "checking"
        self.stop = threading.Event()
        """Ends the attempt that runs. Each has its own."""
        self.thread: threading.Thread | None = None
        self.waiting = 0
        self.progress: Progress | None = None
        self.transfers: list[Transfer] = []
        """One for each attempt; each knows what it fetched."""
        self.discard = False
        self.fit: Fit | None = None
        self.received: deque[tuple[float, int]] = deque()
        self.path: Path | None = None
        self.fault: RuntimeFault | None = None


class Downloads:
    """The downloads of a manager. Safe to use from any thread.

    Args:
        catalog: fetches models; its settings say what may be downloaded.
        inspect: asked before the first byte of a download.
        clock: seconds, for speeds.
    """

    def __init__(self, catalog: Catalog, inspect: Inspect, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog, self._inspect, self._clock = catalog, inspect, clock
        self._settings = catalog.settings
        self._jobs: dict[str, _Job] = {}
        self._changed = threading.Condition()
        self._closed = False

    # -- asking for a download ---------------------------------------------------------------------------------------

    def start(self, config: ModelConfig, *, limited: bool = False) -> DownloadStatus:
        """Begin a download, or join the one that runs. Return once it is known what it takes, before its first byte.

        Args:
            config: the model.
            limited: refuse a model over `max_download_gb`; set for input from outside.

        Raises:
            DownloadTooLarge: see `limited`.
            RuntimeFault: it cannot be served, does not fit on the disk, or cannot be reached.
        """
        job = self._join(config, limited=limited, asked=True)
        with self._changed:
            return self._checked(job)

    def fetch(
        self, config: ModelConfig, report: Callable[[Progress], None], cancelled: Callable[[], bool], *,
        first_use: bool = False,
    ) -> Path:  # fmt: skip
        """The file or folder of a model, downloaded if it is not on this machine. Blocks.

        Args:
            config: the model.
            report: called with the progress, on this thread.
            cancelled: asked while it waits; True leaves. The download ends too if nobody else wants it.
            first_use: somebody uses the model and did not ask for a download. The settings may refuse it or limit its size.

        Raises:
            NotDownloaded: a first use may not download, or the download was paused or cancelled.
            DownloadTooLarge: it is over the limit for a first use.
            RuntimeFault: it cannot be served, or the download failed.
        """
        if (path := self._catalog.locate(config)) is not None:
            return path
        if first_use and self._settings.downloads == "ask" and self._running(config) is None:
            return self._catalog.fetch(
                config, report, cancelled, lambda transfer: self._refuse_first_use(config, transfer)
            )
        job = self._join(config, limited=first_use, asked=not first_use)
        with self._changed:
            job.waiting += 1
        try:
            return self._wait(job, report, cancelled)
        finally:
            with self._changed:
                job.waiting -= 1
                if not job.waiting and not job.asked and job.state in _ACTIVE:
                    self._stop(job, "cancelled")

    def _refuse_first_use(self, config: ModelConfig, transfer: "Transfer") -> None:
        self._inspect(config, transfer)
        raise NotDownloaded(
            f"{config.model_id} is not on this machine. It is {transfer.total / 1e9:,.2f} GB to download, and a first use does "
            "not download (LOCAL_RUNTIMES_DOWNLOADS=ask).",
            model_name=config.model_name, hint=f"Fetch it with POST downloads, or with: {pull_command(config)}",
        )  # fmt: skip

    def _wait(self, job: _Job, report: Callable[[Progress], None], cancelled: Callable[[], bool]) -> Path:
        seen: Progress | None = None
        state = job.state
        while state in _ACTIVE:
            if cancelled():
                raise NotDownloaded(
                    f"Nobody waits for the download of {job.config.model_id} here any more.",
                    model_name=job.config.model_name, hint="Ask again. What was downloaded is kept.",
                )  # fmt: skip
            with self._changed:
                if job.state == state and job.progress == seen:
                    self._changed.wait(_POLL_S)
                state, progress = job.state, job.progress
            if progress is not None and progress != seen:
                report(progress)
                seen = progress
        if job.path is not None:
            return job.path
        raise job.fault or self._ended_early(job)

    def _ended_early(self, job: _Job) -> NotDownloaded:
        paused = job.state == "paused"
        return NotDownloaded(
            f"{job.config.model_id} is not on this machine: its download is {job.state}.", model_name=job.config.model_name,
            hint=f"Go on with POST downloads/{job.id}/resume." if paused else "Start it again.",
        )  # fmt: skip

    # -- jobs --------------------------------------------------------------------------------------------------------

    def list(self) -> tuple[DownloadStatus, ...]:
        """Every download, the newest last."""
        with self._changed:
            return tuple(self._status(job) for job in self._jobs.values())

    def status(self, download_id: str) -> DownloadStatus:
        """One download.

        Raises:
            DownloadNotFound: none has this id.
        """
        with self._changed:
            return self._status(self._job(download_id))

    def pause(self, download_id: str) -> DownloadStatus:
        """Stop a download and keep what came. Loads that wait for it fail.

        Raises:
            DownloadNotFound: none has this id.
            InvalidInput: it has ended.
        """
        with self._changed:
            job = self._job(download_id)
            if job.state in _ACTIVE:
                self._stop(job, "paused")
            elif job.state != "paused":
                raise InvalidInput(
                    f"The download {download_id} is {job.state}.", hint="Only one that runs can be paused."
                )
            return self._status(job)

    def resume(self, download_id: str) -> DownloadStatus:
        """Go on with a download that was paused or failed.

        Raises:
            DownloadNotFound: none has this id.
            InvalidInput: it is complete, or was cancelled.
            RuntimeFault: as `start`.
        """
        with self._changed:
            job = self._job(download_id)
            if job.state in ("paused", "failed"):
                job.asked = True
                self._begin(job)
            elif job.state not in _ACTIVE:
                raise InvalidInput(f"The download {download_id} is {job.state}.", hint="Start a new one.")
            return self._checked(job)

    def cancel(self, download_id: str) -> DownloadStatus:
        """End a download, delete what it fetched, and forget it. A complete model stays.

        Raises:
            DownloadNotFound: none has this id.
        """
        with self._changed:
            job = self._job(download_id)
            if job.state != "done":
                self._stop(job, "cancelled")
                job.discard = True
            del self._jobs[job.id]
            status, thread = self._status(job), job.thread
        if thread is not None:
            thread.join(_STOP_S)
        if status.state == "cancelled" and (thread is None or not thread.is_alive()):  # else it discards at its end
            _discard(job)
        return status

    def close(self, timeout: float = 2.0) -> None:
        """Stop every download and wait for its thread, at most `timeout` seconds in all. What came is kept."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            threads = [job.thread for job in self._jobs.values() if job.thread is not None]
            for job in self._jobs.values():
                if job.state in _ACTIVE:
                    self._stop(job, "paused")
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # -- one attempt -------------------------------------------------------------------------------------------------

    def _running(self, config: ModelConfig) -> _Job | None:
        """The job for these files that has not ended."""
        key = self._catalog.download_key(config)
        with self._changed:
            return next(
                (job for job in self._jobs.values() if job.key == key and job.state in (*_ACTIVE, "paused")), None
            )

    def _join(self, config: ModelConfig, *, limited: bool, asked: bool) -> _Job:
        """The job for a model, which is begun if there is none. Somebody who asks for a paused one resumes it."""
        path = self._catalog.locate(config)
        with self._changed:
            job = self._running(config)
            if job is None:
                job = _Job(self._catalog.download_key(config), config, limited=limited, asked=asked)
                self._forget_old()
                if path is None:
                    self._begin(job)
                else:
                    job.state, job.path, self._jobs[job.id] = "done", path, job
            elif asked:
                job.asked, job.limited = True, job.limited and limited
                if job.state == "paused":
                    self._begin(job)
            return job

    def _checked(self, job: _Job) -> DownloadStatus:
        """The download once it has been looked at. Raises the fault of the look; a later one is in the status."""
        self._changed.wait_for(lambda: job.state != "checking")
        if job.state == "failed" and job.fit is None and job.fault is not None:
            raise job.fault
        return self._status(job)

    def _begin(self, job: _Job) -> None:
        if self._closed:
            raise DownloadFailed("The runtime manager is closed.", model_name=job.config.model_name)
        self._jobs[job.id] = job
        job.state, job.fault, job.fit, job.stop = "checking", None, None, threading.Event()
        job.received.clear()
        name = f"download {job.config.model_name}"
        job.thread = threading.Thread(target=self._run, args=(job, job.stop), name=name, daemon=True)
        job.thread.start()

    def _stop(self, job: _Job, state: DownloadState) -> None:
        job.stop.set()
        job.state = state
        self._changed.notify_all()

    def _run(self, job: _Job, stop: threading.Event) -> None:
        path: Path | None = None
        fault: RuntimeFault | None = None
        try:
            path = self._catalog.fetch(
                job.config, lambda progress: self._report(job, stop, progress), stop.is_set,
                lambda transfer: self._check(job, stop, transfer),
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - who waits gets it
            what = f"{job.config.model_id} could not be downloaded"
            fault = as_fault(error, DownloadFailed, what, job.config.model_name)
        with self._changed:
            if job.stop is stop and not stop.is_set():
                job.state, job.path, job.fault = ("done" if path is not None else "failed"), path, fault
                self._changed.notify_all()
            discard = job.discard
        if discard:
            _discard(job)

    def _check(self, job: _Job, stop: threading.Event, transfer: "Transfer") -> None:
        limit = self._settings.max_download_gb
        if job.limited and limit is not None and transfer.total > limit * 2**30:
            raise DownloadTooLarge(
                f"{job.config.model_id} is {transfer.total / 2**30:,.2f} GiB to download, and a request may download {limit:g} GiB "
                "(LOCAL_RUNTIMES_MAX_DOWNLOAD_GB).",
                model_name=job.config.model_name,
                hint=f"Choose a smaller model, or run on this machine: {pull_command(job.config)}",
            )  # fmt: skip
        fit = self._inspect(job.config, transfer)
        with self._changed:
            if job.stop is stop:
                job.transfers.append(transfer)
                job.fit = fit

    def _report(self, job: _Job, stop: threading.Event, progress: Progress) -> None:
        with self._changed:
            if job.stop is not stop or stop.is_set():
                return
            job.state, job.progress = "downloading", progress
            if job.transfers:
                now = self._clock()
                job.received.append((now, job.transfers[-1].received))
                while len(job.received) > 2 and now - job.received[0][0] > _WINDOW_S:
                    job.received.popleft()
            self._changed.notify_all()

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _job(self, download_id: str) -> _Job:
        if (job := self._jobs.get(download_id)) is None:
            raise DownloadNotFound(f"There is no download {download_id}.")
        return job

    def _forget_old(self) -> None:
        ended = [job for job in self._jobs.values() if job.state in ("done", "failed", "cancelled")]
        for job in ended[: max(0, len(ended) - KEPT + 1)]:
            del self._jobs[job.id]

    def _status(self, job: _Job) -> DownloadStatus:
        fit, transfer = job.fit, job.transfers[-1] if job.transfers else None
        progress = job.progress if transfer is None else Progress("download", transfer.done, transfer.total)
        done, total = (progress.done, progress.total) if progress is not None else (0, None)
        speed = self._speed(job)
        return DownloadStatus(
            id=job.id, model_name=job.config.model_name, model_id=job.config.model_id, revision=job.config.revision,
            state=job.state, done_bytes=done, total_bytes=total, bytes_per_second=speed and round(speed, 1),
            seconds_left=round((total - done) / speed, 1) if speed and total is not None else None,
            disk_free_bytes=transfer.free_bytes if transfer else None, engine=fit.engine if fit else None,
            device=fit.device if fit else None, memory_bytes=fit.memory if fit else None,
            memory_budget_bytes=fit.budget if fit else None, path=str(job.path) if job.path else None,
            error=str(job.fault) if job.fault else None,
        )  # fmt: skip

    def _speed(self, job: _Job) -> float | None:
        """Bytes per second; None if the download does not run or has just begun."""
        if job.state != "downloading" or len(job.received) < 2:
            return None
        (begun, before), (_, now) = job.received[0], job.received[-1]
        seconds = self._clock() - begun
        return (now - before) / seconds if seconds > 0 else None


def pull_command(config: ModelConfig) -> str:
    """What a user types to download a model."""
    return f"lfx-local-runtimes pull {shlex.quote(config.model_name)}"


def _discard(job: _Job) -> None:
    for transfer in job.transfers:
        transfer.discard()
