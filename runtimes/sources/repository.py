"""A model repository on the Hugging Face hub: its files, and ranges of their bytes.

What fails for a moment is tried again. Every other failure is a fault that says what to do.
"""

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import httpx
from huggingface_hub import constants

from lfx_local_runtimes.errors import DownloadFailed, ModelNotFound, RuntimeFault
from lfx_local_runtimes.runtimes.sources.hub import safe_name

if TYPE_CHECKING:
    from hashlib import _Hash

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds to wait after each failure; after these the download fails. A failure a MiB further on counts as the first."""

_ADVANCE = 1 << 20
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


class Broken(Exception):
    """A transfer failed. It may be tried again after `wait` seconds or more."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Repository:
    """One repository.

    Args:
        repo: `org/name`.
        endpoint: the hub's address; if unset, the one the environment names.
        token: for gated models; if unset, the one the hub's client has saved, if any.
        cancelled: called for every piece; True stops with `DownloadFailed`.
        backoff: see `BACKOFF_S`.
    """

    def __init__(
        self, repo: str, *, endpoint: str | None, token: str | None, cancelled: Callable[[], bool],
        backoff: Sequence[float] = BACKOFF_S,
    ) -> None:  # fmt: skip
        from huggingface_hub import get_token

        self.name = repo
        self._endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._token = token or (None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token())
        self.cancelled, self._backoff = cancelled, backoff
        self._furthest = 0

    def client(self) -> httpx.Client:
        """A client that sends the token to the hub, and nowhere else: httpx leaves it out of redirects to other hosts."""
        headers = {"User-Agent": "lfx-local-runtimes", "Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        timeout = httpx.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        return httpx.Client(headers=headers, timeout=timeout, follow_redirects=True, max_redirects=5)

    def url(self, commit: str, name: str) -> str:
        """The address of a file."""
        return f"{self._endpoint}/{self.name}/resolve/{commit}/{quote(name)}"

    def listing(self, revision: str) -> tuple[str, dict[str, RemoteFile]]:
        """The commit of a revision, and its files by name.

        Raises:
            ModelNotFound: no such repository or revision.
            DownloadFailed: no connection, no permission, or a list that cannot be used.
        """
        return self.retrying(lambda: self._listing(revision))

    def _listing(self, revision: str) -> tuple[str, dict[str, RemoteFile]]:
        from huggingface_hub import HfApi, errors

        api = HfApi(endpoint=self._endpoint, token=self._token or False)
        try:
            info = api.model_info(
                self.name, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            )
        except errors.RevisionNotFoundError as error:
            raise ModelNotFound(f"{self.name} has no revision {revision}.") from error
        except errors.GatedRepoError as error:
            raise self._refused(403) from error
        except errors.RepositoryNotFoundError as error:
            raise self._refused(error.response.status_code) from error
        except errors.HfHubHTTPError as error:
            raise self._status_fault(error.response) from error
        except (httpx.TransportError, ValueError) as error:  # ValueError: the answer is not JSON
            raise Broken(f"{self._endpoint} does not answer ({error or type(error).__name__})") from error
        files = {}
        for sibling in info.siblings or ():
            digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
            size = sibling.lfs.size if sibling.lfs else sibling.size
            if not safe_name(sibling.rfilename) or not _DIGEST.fullmatch(digest or "") or size is None or size < 0:
                raise DownloadFailed(
                    f"The hub lists a file of {self.name} that cannot be stored: {ascii(sibling.rfilename)[:200]}."
                )
            files[sibling.rfilename] = RemoteFile(sibling.rfilename, size, str(digest))
        if not _COMMIT.fullmatch(info.sha or ""):
            raise DownloadFailed(f"The hub does not give the commit of {self.name}.")
        return str(info.sha), files

    def read(self, client: httpx.Client, url: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` to `stop`, which must lie inside it.

        Raises:
            DownloadFailed: no connection, no permission, or cancelled.
        """
        return self.retrying(lambda: self._read(client, url, start, stop)) if stop > start else b""

    def _read(self, client: httpx.Client, url: str, start: int, stop: int) -> bytes:
        body = bytearray()
        try:
            with client.stream("GET", url, headers={"Range": f"bytes={start}-{stop - 1}"}) as response:
                self.check(response)
                skip = 0 if response.status_code == 206 else start  # 200: the server does not support ranges
                for chunk in response.iter_raw():
                    self.stop_if_cancelled()
                    body += chunk
                    if len(body) >= skip + stop - start:
                        break
        except httpx.TransportError as error:
            raise Broken(f"the connection broke ({error or type(error).__name__})") from error
        if len(body) < skip + stop - start:
            raise Broken("the connection broke")
        return bytes(body[skip : skip + stop - start])

    # -- failures ----------------------------------------------------------------------------------------------------

    def check(self, response: httpx.Response) -> None:
        """Raise the fault of a response that is neither 200 nor 206."""
        if response.status_code not in (200, 206):
            raise self._status_fault(response)

    def _refused(self, status: int) -> RuntimeFault:
        if status == 404:
            return ModelNotFound(f"The hub has no model {self.name}.", hint="Check the name.")
        if status == 401 and not self._token:
            return DownloadFailed(
                f"{self.name} is gated, is private, or does not exist (HTTP 401).",
                hint="Set HF_TOKEN to a token that may read it.",
            )
        return DownloadFailed(
            f"The hub refuses access to {self.name} (HTTP {status}).",
            hint=f"Accept its conditions at {self._endpoint}/{self.name} and set HF_TOKEN to a token that may read it.",
        )

    def _status_fault(self, response: httpx.Response) -> Exception:
        status = response.status_code
        if status in (401, 403, 404):
            return self._refused(status)
        if status in (408, 429) or status >= 500:
            after = response.headers.get("retry-after", "")
            return Broken(f"the hub answered HTTP {status}", min(float(after), 60.0) if after.isdigit() else 0.0)
        return DownloadFailed(f"The hub answered HTTP {status} for {self.name}.")

    def retrying(self, attempt: Callable[[], _T], done: Callable[[], int] = lambda: 0) -> _T:
        """The result of `attempt`, which is tried again if it raises `Broken`. `done` says how many bytes are there."""
        failures = 0
        while True:
            self.stop_if_cancelled()
            try:
                return attempt()
            except Broken as broken:
                moved_on = done() >= self._furthest + _ADVANCE
                self._furthest = max(self._furthest, done())
                failures = 1 if moved_on else failures + 1
                if failures > len(self._backoff):
                    raise DownloadFailed(
                        f"{self.name} could not be downloaded: {broken}.",
                        hint="Try again later. What was downloaded is kept.",
                    ) from broken
                logger.info("%s: %s; trying again", self.name, broken)
                self._wait(max(broken.wait, self._backoff[failures - 1]))

    def _wait(self, seconds: float) -> None:
        deadline, never_set = time.monotonic() + seconds, threading.Event()
        while (left := deadline - time.monotonic()) > 0:
            self.stop_if_cancelled()
            never_set.wait(min(left, 0.1))

    def stop_if_cancelled(self) -> None:
        """Raise `DownloadFailed` if the download is no longer wanted."""
        if self.cancelled():
            raise DownloadFailed(
                f"The download of {self.name} was cancelled.", hint="Start it again. What was downloaded is kept."
            )
