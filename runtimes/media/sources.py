"""Read the pictures and documents that a request names: files in allowed folders, and URLs if the operator allows them.

Routes and nodes call this before a request starts. A model's process never does: it cannot open files or connections.
"""

import ipaddress
import mimetypes
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from lfx_local_runtimes.errors import InvalidInput, NotAllowed, PathNotAllowed
from lfx_local_runtimes.runtimes.tasks.media import MAX_IMAGE_BYTES, Media, Source, image_mime
from lfx_local_runtimes.settings import Settings

if TYPE_CHECKING:
    import httpx

ValueT = TypeVar("ValueT")

IMAGES = ("image/",)
"""The beginnings of the MIME types of images."""

MAX_REDIRECTS = 3
MAX_SECONDS = 20.0
"""For a URL, redirects included."""
_CONNECT_S = 10.0
_MAX_CHARS = 2000
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is accepted.

    Args:
        place: how errors call it, such as `images.0`.
        kinds: the beginnings of the MIME types.
        max_bytes: the most bytes.
    """

    place: str
    kinds: tuple[str, ...] = IMAGES
    max_bytes: int = MAX_IMAGE_BYTES

    def media(self, data: bytes, said: str | None) -> Media:
        """The content, if it is accepted. `said`: the type by its name or its header; the first bytes of an image count more.

        Raises:
            InvalidInput: it is of another kind, or too large.
        """
        if len(data) > self.max_bytes:
            raise self.too_large()
        seen = image_mime(data)
        mime = seen if seen.startswith("image/") else said or seen
        if not mime.startswith(self.kinds):
            raise self.wrong_kind(mime)
        return Media(mime, data)

    def wrong_kind(self, mime: str) -> InvalidInput:
        wanted = " or ".join(kind.rstrip("/") for kind in self.kinds)
        return InvalidInput(f"{self.place} is of the type {mime[:100] or 'unknown'}.", hint=f"Send {wanted}.")

    def too_large(self) -> InvalidInput:
        return InvalidInput(f"{self.place} is larger than {self.max_bytes / 2**20:g} MiB.", hint="Send a smaller file.")


Resolve = Callable[[str, int], Iterable[str]]


def has_sources(value: Any) -> bool:
    """Whether something in an ask still has to be read."""
    if isinstance(value, Source):
        return True
    if isinstance(value, BaseModel):
        return any(has_sources(getattr(value, name)) for name in type(value).model_fields)
    if not isinstance(value, tuple | list) or (value and isinstance(value[0], str | int | float)):
        return False  # texts, or millions of token ids
    return any(has_sources(one) for one in value)


def fetched(value: ValueT, settings: Settings, place: str = "") -> ValueT:
    """An ask with every image and document that it names read. Blocks.

    Args:
        value: the ask, or a part of one.
        settings: the operator's: which folders, and whether URLs are allowed.
        place: of the part, for errors.

    Raises:
        InvalidInput: one cannot be read, is too large, or of another kind. The message has its place: `images.0`.
        NotAllowed: a path outside the folders, a URL although they are not allowed, or one of a private address.
    """
    found: Any = value
    if isinstance(value, Source):
        found = read_source(value, settings, Wanted(place or "file", value.kinds, value.max_bytes))
    elif isinstance(value, BaseModel):
        parts = {name: getattr(value, name) for name in type(value).model_fields}
        named = {name: f"{place}.{name}".lstrip(".") for name in parts}
        changed = {name: fetched(part, settings, named[name]) for name, part in parts.items() if has_sources(part)}
        found = value.model_copy(update=changed) if changed else value
    elif isinstance(value, tuple | list) and has_sources(value):
        found = tuple(fetched(one, settings, f"{place}.{index}".lstrip(".")) for index, one in enumerate(value))
    typed: ValueT = found
    return typed


def read_source(source: Source, settings: Settings, wanted: Wanted) -> Media:
    """The content of a file or a URL. Blocks.

    Raises:
        InvalidInput, NotAllowed: as `fetched`.
    """
    if source.path is not None:
        return read_file(source.path, settings.media_roots, wanted)
    assert source.url is not None
    if not settings.media_urls:
        raise NotAllowed(
            f"{wanted.place} is a URL, and URLs are not fetched here.",
            hint="Send the content as a data URL, or set LOCAL_RUNTIMES_MEDIA_URLS=true.",
        )
    return read_url(source.url, wanted)


# -- files -------------------------------------------------------------------------------------------------------------


def read_file(path: str | Path, roots: Iterable[Path], wanted: Wanted) -> Media:
    """The content of a file inside one of the folders. A relative path is looked for in each of them.

    Raises:
        PathNotAllowed: it is outside of them, by `..` or a link too.
        InvalidInput: it is not there, no regular file, too large or of another kind.
    """
    folders = tuple(roots)
    told = str(path)[:200]
    outside = PathNotAllowed(
        f"{wanted.place}: {told} is not inside an allowed folder.",
        hint=f"Put the file under {os.pathsep.join(map(str, folders)) or 'such a folder'}, or name its folder in "
        "LOCAL_RUNTIMES_MEDIA_DIRS.",
    )
    try:
        asked = Path(path).expanduser()
        candidates = [asked] if asked.is_absolute() else [folder / asked for folder in folders]
        places = [(candidate.resolve(), os.path.lexists(candidate)) for candidate in candidates]
        inside = [(real, there) for real, there in places if any(real.is_relative_to(folder) for folder in folders)]
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL, too long a name
        raise outside from error
    if not inside:
        raise outside
    real = next((real for real, there in inside if there), inside[0][0])
    return _content(real, told, wanted)


def _content(file: Path, told: str, wanted: Wanted) -> Media:
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:  # a pipe does not block, and a link that came meanwhile is not followed
        with open(file, "rb", opener=lambda name, flags: os.open(name, flags | careful)) as opened:
            about = os.fstat(opened.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise InvalidInput(f"{wanted.place}: {told} is not a file.", hint="Name a file.")
            if about.st_size > wanted.max_bytes:
                raise wanted.too_large()
            data = opened.read(wanted.max_bytes + 1)
    except OSError as error:
        raise InvalidInput(
            f"{wanted.place}: {told} cannot be read ({error.strerror}).", hint="Check the path."
        ) from error
    return wanted.media(data, mimetypes.guess_type(file.name)[0])


# -- URLs --------------------------------------------------------------------------------------------------------------


def _resolve(host: str, port: int) -> Iterable[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet. An IPv4 address inside an IPv6 address counts as itself."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            address = inner
    return address.is_global and not address.is_multicast


def read_url(
    url: str, wanted: Wanted, *, resolve: Resolve = _resolve, transport: "httpx.BaseTransport | None" = None,
    clock: Callable[[], float] = time.monotonic,
) -> Media:  # fmt: skip
    """The content behind an http URL. Each host, those of redirects too, must have public addresses only.

    The address that was checked is the one that is connected to, so a name cannot lead elsewhere in between. Proxies of the
    environment are not used.

    Args:
        url: of the content.
        wanted: what is accepted.
        resolve: the addresses of a host.
        transport: connects; unset, the network.
        clock: seconds.

    Raises:
        NotAllowed: a private address.
        InvalidInput: another scheme, an answer that is no success, too large, too slow or of another kind.
    """
    import httpx

    place, end = wanted.place, clock() + MAX_SECONDS
    try:
        with httpx.Client(transport=transport, timeout=_CONNECT_S, trust_env=False) as client:
            for _ in range(MAX_REDIRECTS + 1):
                pinned, headers, name = _pinned(url, place, resolve)
                extensions = {"sni_hostname": name}  # the certificate must be that of the name
                with client.stream("GET", pinned, headers=headers, extensions=extensions) as answer:
                    if answer.has_redirect_location:
                        url = str(httpx.URL(url).join(answer.headers["location"]))
                        continue
                    return _body(answer, wanted, lambda: clock() > end)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        reason = str(error) or type(error).__name__
        raise InvalidInput(f"{place}: {url[:200]} cannot be fetched: {reason}.", hint="Check the URL.") from error
    raise InvalidInput(f"{place}: {url[:200]} redirects more than {MAX_REDIRECTS} times.", hint="Use its final URL.")


def _pinned(url: str, place: str, resolve: Resolve) -> tuple[str, dict[str, str], str]:
    """The URL with an address for its host, the header that names the host, and the host."""
    wrong = InvalidInput(
        f"{place}: {url[:200]} is not a URL that is fetched.", hint="Use http:// or https://, without a password."
    )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise wrong from error
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or len(url) > _MAX_CHARS:
        raise wrong
    try:
        addresses = list(resolve(host, port))
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"{place}: there is no host {host[:200]}.", hint="Check the URL.") from error
    if not addresses or not all(is_public(address) for address in addresses):
        raise NotAllowed(f"{place}: {host[:200]} has a private address.", hint="Use a URL of the public internet.")
    address = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
    return parts._replace(netloc=f"{address}:{port}", fragment="").geturl(), {"host": parts.netloc}, host


def _body(answer: "httpx.Response", wanted: Wanted, late: Callable[[], bool]) -> Media:
    if not answer.is_success:
        raise InvalidInput(f"{wanted.place}: the server answers {answer.status_code}.", hint="Check the URL.")
    said = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not said.startswith(wanted.kinds):
        raise wanted.wrong_kind(said)
    data = bytearray()
    for chunk in answer.iter_bytes():
        data += chunk
        if len(data) > wanted.max_bytes:
            raise wanted.too_large()
        if late():
            took = f"{wanted.place}: the server took more than {MAX_SECONDS:g} s."
            raise InvalidInput(took, hint="Send the content itself.")
    return wanted.media(bytes(data), said)
