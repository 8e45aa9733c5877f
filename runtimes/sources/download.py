"""Downloads from the Hugging Face hub, into the hub's own cache layout.

The hub's client fetches the metadata. The files are downloaded here, because the client does not do all of this: resume
in another process, check the SHA-256 that the hub gave, report progress in bytes, and cancel reliably.

    blobs/<digest>               the content; `<digest>.incomplete` while it is downloaded
    snapshots/<commit>/<name>    links to the blobs (or the files themselves if the system has no links)
    refs/<revision>              the commit, written last
"""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import filelock
import httpx
from huggingface_hub import constants

from lfx_local_runtimes.errors import DiskFull, DownloadFailed, ModelNotFound, RuntimeFault
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.size_limit import check_size
from lfx_local_runtimes.runtimes.sources.hub import HubRef, Wish, choose, repo_folder, safe_name
from lfx_local_runtimes.runtimes.sources.locks import held_lock, lock_folder
from lfx_local_runtimes.runtimes.sources.repository import BACKOFF_S, Broken, RemoteFile, Repository

_PIECE = 1 << 20
_SPARE_BYTES = 64 << 20
_REPORT_EVERY_S = 0.2


def download_model(
    ref: HubRef, revision: str | None, wish: Wish, *, cache: Path, token: str | None, report: Callable[[Progress], None],
    cancelled: Callable[[], bool], endpoint: str | None = None, backoff: Sequence[float] = BACKOFF_S,
    check: "Callable[[Transfer], None]" = lambda transfer: None,
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
        check: called when it is known what has to be fetched, before the first byte of it. It may refuse by raising.

    Raises:
        ModelNotFound: no such repository or revision, or no model in it that can be served.
        PickleRefused: it holds only pickle weights.
        DiskFull: no room.
        NotAllowed: it is larger than the operator allows.
        DownloadFailed: no connection, no permission, a checksum that differs, or cancelled.
    """
    remote = Repository(ref.repo, endpoint=endpoint, token=token, cancelled=cancelled, backoff=backoff)
    try:
        transfer = Transfer(remote, revision or constants.DEFAULT_REVISION, wish, cache, report)
        check(transfer)
        return transfer.run()
    except RuntimeFault as fault:
        fault.model_name = fault.model_name or ref.repo
        raise
    except OSError as error:
        raise DownloadFailed(
            f"{ref.repo} could not be written to {cache}: {error.strerror or error}.", model_name=ref.repo,
            hint="Check that the disk has room and that you may write to the folder. What was downloaded is kept.",
        ) from error  # fmt: skip


class Transfer:
    """What has to be fetched of one model, and its way into the cache. Making one asks the hub for the list of files.

    Raises:
        ModelNotFound, PickleRefused, DiskFull, DownloadFailed: see `download_model`.
    """

    def __init__(
        self, remote: Repository, revision: str, wish: Wish, cache: Path, report: Callable[[Progress], None]
    ) -> None:
        if not safe_name(revision):
            raise ModelNotFound(f"{revision} is not a valid revision.")
        self.remote, self.cache = remote, cache
        self._revision, self._report = revision, report
        self._folder = repo_folder(cache, remote.name)
        self.commit, files = remote.listing(revision)
        choice = choose(list(files), wish, remote.name, {name: file.size for name, file in files.items()})
        self.entry = choice.entry
        self.files = tuple(files[name] for name in choice.files)
        """All files of the model, also those that are there already."""
        self._snapshot = self._folder / "snapshots" / self.commit
        self._missing = self._not_here()
        self._made: set[Path] = set()
        self.total = sum(file.size for file in self.files)
        """Bytes of the whole model."""
        check_size(remote.name, self.total, wish.size_limit)
        self.received = 0
        """Bytes that came over the network."""
        self._complete = self.total - sum(file.size for file in self._missing)
        need, self.free_bytes = self._check_room()
        """Free bytes of the disk, before anything is fetched."""
        self.done = self.total - need
        """Bytes of it that are there."""
        self._reported = 0.0

    def run(self) -> Path:
        """Fetch what is missing. Return the model's file or folder in the cache."""
        self._missing = self._not_here()  # again: somebody may have deleted files while the model was looked at
        self._complete = self.total - sum(file.size for file in self._missing)
        self._report_progress(force=True)
        with self.remote.client() as client:
            for file in self._missing:
                self._get(client, file)
        self._report_progress(force=True)
        if self._revision != self.commit:
            _write_text(self._folder.joinpath("refs", *self._revision.split("/")), self.commit)
        return self._snapshot / self.entry

    def _not_here(self) -> list[RemoteFile]:
        return [file for file in self.files if not _has(self._snapshot / file.name, file.size)]

    def discard(self) -> None:
        """Delete what this transfer fetched, and the parts of its files. What another program is fetching stays."""
        for file in self._missing:
            blob, pointer, lock = self._places(file)
            if not lock.parent.is_dir():
                continue
            with suppress(filelock.Timeout), filelock.FileLock(lock).acquire(timeout=0):
                _part_of(blob).unlink(missing_ok=True)
                for path in self._made & {pointer, blob}:
                    path.unlink(missing_ok=True)
        folders = {folder for path in self._made for folder in path.parents if folder.is_relative_to(self._folder)}
        for folder in sorted(
            {*folders, self._folder / "blobs", self._snapshot, self._snapshot.parent, self._folder}, reverse=True
        ):
            with suppress(OSError):  # it is not empty, or not there
                folder.rmdir()

    # -- one file ----------------------------------------------------------------------------------------------------

    def _places(self, file: RemoteFile) -> tuple[Path, Path, Path]:
        """Blob, link and lock. The hub's client uses the same ones."""
        blob = self._folder / "blobs" / file.digest
        return blob, self._snapshot / file.name, lock_folder(self._folder) / f"{file.digest}.lock"

    def _get(self, client: httpx.Client, file: RemoteFile) -> None:
        """Download one file and link it into its snapshot. Only one process at a time downloads a file."""
        blob, pointer, lock = self._places(file)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with held_lock(lock, self.remote.cancelled):
            for folder in (blob.parent, pointer.parent):  # under the lock: who deletes the repository holds it too
                folder.mkdir(parents=True, exist_ok=True)
            fresh = not _has(pointer, file.size) and not _has(blob, file.size)
            if fresh:
                part = _part_of(blob)
                self.remote.retrying(lambda: self._transfer(client, file, part), lambda: self.done)
                part.replace(blob)
                self._made.add(blob)
            if not _has(pointer, file.size):
                _link(blob, pointer, move=fresh)
                self._made.add(pointer)
        self._complete += file.size
        self.done = self._complete
        self._report_progress()

    def _transfer(self, client: httpx.Client, file: RemoteFile, path: Path) -> None:
        """Download the rest of the part at `path`, and check the complete file."""
        with path.open("ab+") as out:
            part = _Part(file, out)
            part.resume(self.remote.stop_if_cancelled)
            self.done = self._complete + part.size
            if part.size < file.size:
                self._stream(client, part)
            out.flush()
            os.fsync(out.fileno())
        if part.hasher.hexdigest() != file.digest:
            path.unlink()
            raise DownloadFailed(
                f"{file.name} of {self.remote.name} does not match its checksum; it was deleted.",
                hint="Download it again. If it happens again, something between you and the hub changes the files.",
            )

    def _stream(self, client: httpx.Client, part: "_Part") -> None:
        url = self.remote.url(self.commit, part.file.name)
        try:
            with client.stream("GET", url, headers={"Range": f"bytes={part.size}-"}) as response:
                self._check_start(response, part)
                for chunk in response.iter_raw():
                    self.remote.stop_if_cancelled()
                    part.add(chunk)
                    self.received += len(chunk)
                    self.done = self._complete + part.size
                    self._report_progress()
        except httpx.TooManyRedirects as error:
            raise DownloadFailed(f"The hub redirects {part.file.name} too often.") from error
        except httpx.TransportError as error:
            raise Broken(f"the connection broke ({error or type(error).__name__})") from error
        if part.size < part.file.size:
            raise Broken("the connection broke")

    def _check_start(self, response: httpx.Response, part: "_Part") -> None:
        """Check that the body continues the part, or start the part again."""
        if response.status_code == 416:
            part.restart()
            raise Broken("the hub refused to continue")
        self.remote.check(response)
        if response.status_code == 200:  # the server does not support ranges
            part.restart()
        elif not response.headers.get("content-range", "").startswith(f"bytes {part.size}-"):
            raise Broken("the hub continued at another place")

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _report_progress(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._reported >= _REPORT_EVERY_S:
            self._reported = now
            self._report(Progress("download", self.done, self.total))

    def _check_room(self) -> tuple[int, int]:
        """The bytes that have to be fetched, and the free bytes of the disk. Raises DiskFull if they do not fit."""
        need = 0
        for file in {file.digest: file for file in self._missing}.values():
            blob = self._places(file)[0]
            if not _has(blob, file.size):
                need += file.size - min(file.size, _size(_part_of(blob)))
        self.cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.cache).free
        if need and need + _SPARE_BYTES > free:
            raise DiskFull(
                f"{self.remote.name} needs {need / 1e9:,.2f} GB more in {self.cache}, and {free / 1e9:,.2f} GB are free.",
                hint="Free some space, choose a smaller quantization, or set HF_HUB_CACHE to a larger disk.",
            )
        return need, free


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
        """Append a chunk. Raises `Broken` if the file gets longer than it should be."""
        if self.size + len(chunk) > self.file.size:
            self.restart()
            raise Broken(f"{self.file.name} is longer than the hub said")
        self._out.write(chunk)
        self.hasher.update(chunk)
        self.size += len(chunk)


def _part_of(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


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
