"""A Hugging Face hub on loopback: the model API, files with ranges, a second host to redirect to, faults on demand."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

os.environ["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1")))

COMMIT = "c0ffee" * 6 + "abcd"


@dataclass
class FakeHub:
    """Repositories by name, each a mapping of file name to content.

    Faults are used up, one per request for a file. Requests for the first bytes of a file have none.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    lfs: tuple[str, ...] = (".gguf", ".safetensors", ".bin")
    cuts: list[int] = field(default_factory=list)
    """Break the connection after so many bytes of the body."""
    flips: list[int] = field(default_factory=list)
    """Invert the byte at this place of the body."""
    statuses: list[int] = field(default_factory=list)
    """Answer with this status instead of the file."""
    api_statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    sizes: dict[str, int] = field(default_factory=dict)
    """Claim that these files are so large. Their content is the first bytes."""
    redirect: str | None = None
    """Where the files really are: another host's address."""
    hold: threading.Event | None = None
    """Send half of each file, then wait for this."""
    half_sent: threading.Event = field(default_factory=threading.Event)
    log: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """(path, Range, Authorization) of every request."""
    url: str = ""

    def downloads(self, name: str) -> list[str | None]:
        """The Range headers of the requests for a file."""
        return [where for path, where, _ in list(self.log) if path.endswith(f"/{name}")]

    def info(self, repo: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.repos[repo].items():
            entry: dict[str, Any] = {
                "rfilename": name,
                "size": self.sizes.get(name, len(content)),
                "blobId": hashlib.sha1(b"pointer" + content).hexdigest(),
            }
            if name.endswith(self.lfs):
                entry["lfs"] = {
                    "size": entry["size"],
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "pointerSize": 130,
                }
            else:
                entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            siblings.append(entry)
        return {"id": repo, "sha": COMMIT, "siblings": siblings}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        hub, path = self.server.hub, self.path.partition("?")[0]
        hub.log.append((path, self.headers["Range"], self.headers["Authorization"]))
        if path.startswith("/api/models/"):
            repo = "/".join(path.split("/")[3:5])
            status = hub.api_statuses.pop(0) if hub.api_statuses else 200 if repo in hub.repos else 404
            if status != 200:
                self._answer(status, b"{}", {"X-Error-Code": "RepoNotFound"} if status == 404 else {})
            else:
                self._answer(200, json.dumps(hub.info(repo)).encode(), {"Content-Type": "application/json"})
            return
        repo, _, rest = path[1:].partition("/resolve/")
        content = hub.repos[repo][rest.partition("/")[2]]
        if hub.statuses:
            self._answer(hub.statuses.pop(0), b"", {})
        elif hub.redirect is not None:
            self._answer(302, b"", {"Location": hub.redirect + path})
        else:
            asked = self.headers["Range"] if hub.ranges else None
            first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
            start, stop = int(first), int(last) + 1 if last else len(content)
            where = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"} if hub.ranges else {}
            self._answer(206 if where else 200, content[start:stop], where, faulty=not last)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], *, faulty: bool = False) -> None:
        hub = self.server.hub
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if faulty and hub.flips:
            place = hub.flips.pop(0)
            body = body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :]
        if faulty and hub.cuts:
            self.wfile.write(body[: hub.cuts.pop(0)])
            self.close_connection = True
            return
        half = len(body) // 2 if faulty and hub.hold else 0
        self.wfile.write(body[:half])
        if faulty and hub.hold:
            hub.half_sent.set()
            hub.hold.wait(30)
        try:
            self.wfile.write(body[half:])
        except OSError:  # the client has gone
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: FakeHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Run the hub; its `url` is then set."""
    with _Server(hub) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="fake hub")
        thread.start()
        try:
            yield hub
        finally:
            if hub.hold:
                hub.hold.set()
            server.shutdown()
            thread.join()
