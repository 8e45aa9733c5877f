"""Downloads from the Hugging Face hub, into the hub's own cache layout.

The hub's client fetches the metadata. The files are downloaded here, because the client does not do all of this: resume
in another process, check the SHA-256 that the hub gave, report progress in bytes, and cancel reliably.

    blobs/<digest>               the content; `<digest>.incomplete` while it is downloaded
    snapshots/<commit>/<name>    links to the blobs (or the files themselves if the system has no links)
    refs/<revision>              the commit, written last
"""

import hashlib
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar
from urllib.parse import quote

import httpx
from huggingface_hub import constants

from lfx_local_runtimes.errors import DownloadFailed, ModelNotFound, RuntimeFault
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.size_limit import check_size
from lfx_local_runtimes.runtimes.sources.hub import HubRef, Wish, choose, repo_folder, safe_name
from lfx_local_runtimes.runtimes.sources.locks import held_lock

if TYPE_CHECKING:
    from hashlib import _Hash

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds to wait after each failure; after these the download fails. A failure a MiB further on counts as the first."""

_PIECE = 1 << 20
_SPARE_BYTES = 64 << 20
_REPORT_EVERY_S = 0.2
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the hub. `digest` is the SHA-256 of a large file, git's SHA-1 of a small one; it names the blob."""

    name: str
    size: int
    digest: str

    def hasher(self) -> "_Hash":
        """A hash that computes the digest from the content."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


class _Broken(Exception):
    """A transfer failed. It may be tried again after `wait` seconds or more."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def download_model(
    ref: HubRef, revision: str | None, wish: Wish, *, cache: Path, token: str | None, report: Callable[[Progress], None],
    cancelled: Callable[[], bool], endpoint: str | None = None, backoff: Sequence[float] = BACKOFF_S,
) -> Path:  # fmt: skip
    """Download a model and return its file or folder in the cache. Files that are there already are not fetched again.

    Args:
        ref: the repository.
        revision: branch, tag or commit; if unset, `main`.
        wish: which form of the model, if the repository has several.
        cache: the hub's cache folder.
        token: for gated models; if unset, the one the hub's client has saved, if any.
        report: called with `download` progress in bytes, about five times a second, on this thread.
        cancelled: called for every piece; True stops. What was downloaded is kept for the next time.
        endpoint: the hub's address.
        backoff: see `BACKOFF_S`.

    Raises:
        ModelNotFound: no such repository or revision, or no model in it that can be served.
        PickleRefused: it holds only pickle weights.
        NotAllowed: it is larger than the operator allows.
        DownloadFailed: no room, no connection, no permission, a checksum that differs, or cancelled.
    """
    wanted = revision or constants.DEFAULT_REVISION
    job = _Download(
        repo=ref.repo, cache=cache, token=token, endpoint=(endpoint or constants.ENDPOINT).rstrip("/"), report=report,
        cancelled=cancelled, backoff=backoff,
    )  # fmt: skip
    try:
        return job.run(wanted, wish)
    except RuntimeFault as fault:
        fault.model_name = fault.model_name or ref.repo
        raise
    except OSError as error:
        raise DownloadFailed(
            f"{ref.repo} could not be written to {cache}: {error.strerror or error}.", model_name=ref.repo,
            hint="Check that the disk has room and that you may write to the folder. What was downloaded is kept.",
        ) from error  # fmt: skip


class _Download:
    def __init__(
        self, *, repo: str, cache: Path, token: str | None, endpoint: str, report: Callable[[Progress], None],
        cancelled: Callable[[], bool], backoff: Sequence[float],
    ) -> None:  # fmt: skip
        from huggingface_hub import get_token

        self._repo, self._cache, self._endpoint = repo, cache, endpoint
        self._token = token or (None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token())
        self._folder = repo_folder(cache, repo)
        self._report, self._cancelled, self._backoff = report, cancelled, backoff
        self._done = self._total = self._furthest = 0
        self._reported = 0.0

    def run(self, revision: str, wish: Wish) -> Path:
        if not safe_name(revision):
            raise ModelNotFound(f"{revision} is not a valid revision.")
        commit, files = self._retrying(lambda: self._listing(revision))
        choice = choose(list(files), wish, self._repo)
        snapshot = self._folder / "snapshots" / commit
        missing = [files[name] for name in choice.files if not _has(snapshot / name, files[name].size)]
        self._total = sum(files[name].size for name in choice.files)
        check_size(self._repo, self._total, wish.size_limit)
        self._done = self._total - sum(file.size for file in missing)
        self._check_room(missing)
        self._report_progress(force=True)
        timeout = httpx.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        # Redirects lead to other hosts; httpx does not send the token there.
        headers = {"User-Agent": "lfx-local-runtimes", "Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        with httpx.Client(headers=headers, timeout=timeout, follow_redirects=True, max_redirects=5) as client:
            for file in missing:
                self._get(client, file, commit, snapshot / file.name)
        self._report_progress(force=True)
        if revision != commit:
            _write_text(self._folder.joinpath("refs", *revision.split("/")), commit)
        return snapshot / choice.entry

    # -- metadata ----------------------------------------------------------------------------------------------------

    def _listing(self, revision: str) -> tuple[str, dict[str, RemoteFile]]:
        from huggingface_hub import HfApi, errors

        api = HfApi(endpoint=self._endpoint, token=self._token or False)
        try:
            info = api.model_info(
                self._repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            )
        except errors.RevisionNotFoundError as error:
            raise ModelNotFound(f"{self._repo} has no revision {revision}.") from error
        except errors.GatedRepoError as error:
            raise self._refused(403) from error
        except errors.RepositoryNotFoundError as error:
            raise self._refused(error.response.status_code) from error
        except errors.HfHubHTTPError as error:
            raise self._status_fault(error.response) from error
        except (httpx.TransportError, ValueError) as error:  # ValueError: the answer is not JSON
            raise _Broken(f"{self._endpoint} does not answer ({error or type(error).__name__})") from error
        files = {}
        for sibling in info.siblings or ():
            digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
            size = sibling.lfs.size if sibling.lfs else sibling.size
            if not safe_name(sibling.rfilename) or not _DIGEST.fullmatch(digest or "") or size is None or size < 0:
                raise DownloadFailed(
                    f"The hub lists a file of {self._repo} that cannot be stored: {ascii(sibling.rfilename)[:200]}."
                )
            files[sibling.rfilename] = RemoteFile(sibling.rfilename, size, str(digest))
        if not _COMMIT.fullmatch(info.sha or ""):
            raise DownloadFailed(f"The hub does not give the commit of {self._repo}.")
        return str(info.sha), files

    def _refused(self, status: int) -> RuntimeFault:
        if status == 404:
            return ModelNotFound(f"The hub has no model {self._repo}.", hint="Check the name.")
        if status == 401 and not self._token:
            return DownloadFailed(
                f"{self._repo} is gated, is private, or does not exist (HTTP 401).",
                hint="Set HF_TOKEN to a token that may read it.",
            )
        return DownloadFailed(
            f"The hub refuses access to {self._repo} (HTTP {status}).",
            hint=f"Accept its conditions at {self._endpoint}/{self._repo} and set HF_TOKEN to a token that may read it.",
        )

    def _status_fault(self, response: httpx.Response) -> Exception:
        status = response.status_code
        if status in (401, 403, 404):
            return self._refused(status)
        if status in (408, 429) or status >= 500:
            after = response.headers.get("retry-after", "")
            return _Broken(f"the hub answered HTTP {status}", min(float(after), 60.0) if after.isdigit() else 0.0)
        return DownloadFailed(f"The hub answered HTTP {status} for {self._repo}.")

    # -- one file ----------------------------------------------------------------------------------------------------

    def _get(self, client: httpx.Client, file: RemoteFile, commit: str, pointer: Path) -> None:
        """Download one file and link it into its snapshot. Only one process at a time downloads a file."""
        blob = self._folder / "blobs" / file.digest
        lock = self._cache / ".locks" / self._folder.name / f"{file.digest}.lock"  # the hub's client uses the same lock
        for folder in (blob.parent, pointer.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        before = self._done
        with held_lock(lock, self._cancelled):
            fresh = not _has(pointer, file.size) and not _has(blob, file.size)
            if fresh:
                part = blob.with_name(f"{blob.name}.incomplete")
                url = f"{self._endpoint}/{self._repo}/resolve/{commit}/{quote(file.name)}"
                self._retrying(lambda: self._transfer(client, url, file, part, before))
                part.replace(blob)
            if not _has(pointer, file.size):
                _link(blob, pointer, move=fresh)
        self._done = before + file.size
        self._report_progress()

    def _transfer(self, client: httpx.Client, url: str, file: RemoteFile, path: Path, before: int) -> None:
        """Download the rest of the part at `path`, and check the complete file."""
        with path.open("ab+") as out:
            part = _Part(file, out)
            part.resume(self._stop_if_cancelled)
            self._done = before + part.size
            if part.size < file.size:
                self._stream(client, url, part, before)
            out.flush()
            os.fsync(out.fileno())
        if part.hasher.hexdigest() != file.digest:
            path.unlink()
            raise DownloadFailed(
                f"{file.name} of {self._repo} does not match its checksum; it was deleted.",
                hint="Download it again. If it happens again, something between you and the hub changes the files.",
            )

    def _stream(self, client: httpx.Client, url: str, part: "_Part", before: int) -> None:
        try:
            with client.stream("GET", url, headers={"Range": f"bytes={part.size}-"}) as response:
                self._check_start(response, part)
                for chunk in response.iter_raw():
                    self._stop_if_cancelled()
                    part.add(chunk)
                    self._done = before + part.size
                    self._report_progress()
        except httpx.TooManyRedirects as error:
            raise DownloadFailed(f"The hub redirects {part.file.name} too often.") from error
        except httpx.TransportError as error:
            raise _Broken(f"the connection broke ({error or type(error).__name__})") from error
        if part.size < part.file.size:
            raise _Broken("the connection broke")

    def _check_start(self, response: httpx.Response, part: "_Part") -> None:
        """Check that the body continues the part, or start the part again."""
        if response.status_code == 206:
            if not response.headers.get("content-range", "").startswith(f"bytes {part.size}-"):
                raise _Broken("the hub continued at another place")
        elif response.status_code == 200:  # the server does not support ranges
            part.restart()
        elif response.status_code == 416:
            part.restart()
            raise _Broken("the hub refused to continue")
        else:
            raise self._status_fault(response)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _retrying(self, attempt: Callable[[], _T]) -> _T:
        failures = 0
        while True:
            self._stop_if_cancelled()
            try:
                return attempt()
            except _Broken as broken:
                moved_on = self._done >= self._furthest + _PIECE
                self._furthest = max(self._furthest, self._done)
                failures = 1 if moved_on else failures + 1
                if failures > len(self._backoff):
                    raise DownloadFailed(
                        f"{self._repo} could not be downloaded: {broken}.",
                        hint="Try again later. What was downloaded is kept.",
                    ) from broken
                logger.info("%s: %s; trying again", self._repo, broken)
                self._wait(max(broken.wait, self._backoff[failures - 1]))

    def _wait(self, seconds: float) -> None:
        deadline, never_set = time.monotonic() + seconds, threading.Event()
        while (left := deadline - time.monotonic()) > 0:
            self._stop_if_cancelled()
            never_set.wait(min(left, 0.1))

    def _stop_if_cancelled(self) -> None:
        if self._cancelled():
            raise DownloadFailed(
                f"The download of {self._repo} was cancelled.", hint="Start it again. What was downloaded is kept."
            )

    def _report_progress(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._reported >= _REPORT_EVERY_S:
            self._reported = now
            self._report(Progress("download", self._done, self._total))

    def _check_room(self, missing: Sequence[RemoteFile]) -> None:
        need = 0
        for file in {file.digest: file for file in missing}.values():
            blob = self._folder / "blobs" / file.digest
            if not _has(blob, file.size):
                need += file.size - min(file.size, _size(blob.with_name(f"{blob.name}.incomplete")))
        self._cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._cache).free
        if need and need + _SPARE_BYTES > free:
            raise DownloadFailed(
                f"{self._repo} needs {need / 1e9:,.2f} GB more in {self._cache}, and {free / 1e9:,.2f} GB are free.",
                hint="Free some space, choose a smaller quantization, or set HF_HUB_CACHE to a larger disk.",
            )


class _Part:
    """The downloaded part of a file, with its digest so far. `out` is open for reading and appending."""

    def __init__(self, file: RemoteFile, out: BinaryIO) -> None:
        self.file = file
        self.hasher = file.hasher()
        self.size = 0
        self._out = out

    def resume(self, at_each_piece: Callable[[], None]) -> None:
        """Read what an earlier attempt downloaded."""
        there = self._out.seek(0, os.SEEK_END)
        if there > self.file.size:
            self.restart()
            return
        self._out.seek(0)
        while piece := self._out.read(_PIECE):
            at_each_piece()
            self.hasher.update(piece)
        self.size = there

    def restart(self) -> None:
        """Discard what was downloaded."""
        self._out.truncate(0)
        self.hasher, self.size = self.file.hasher(), 0

    def add(self, chunk: bytes) -> None:
        """Append a chunk. Raises `_Broken` if the file gets longer than it should be."""
        if self.size + len(chunk) > self.file.size:
            self.restart()
            raise _Broken(f"{self.file.name} is longer than the hub said")
        self._out.write(chunk)
        self.hasher.update(chunk)
        self.size += len(chunk)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(text, encoding="ascii")
    temporary.replace(path)


def _link(blob: Path, pointer: Path, *, move: bool) -> None:
    """Make `pointer` a relative link to the blob, or the file itself if links are not possible."""
    temporary = pointer.with_name(f".{pointer.name[:100]}.{uuid.uuid4().hex[:8]}")
    if not constants.HF_HUB_DISABLE_SYMLINKS:
        try:
            temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            pass
        else:
            temporary.replace(pointer)
            return
    if move:
        blob.replace(pointer)
    else:  # other snapshots may be using the blob
        shutil.copyfile(blob, temporary)
        temporary.replace(pointer)
