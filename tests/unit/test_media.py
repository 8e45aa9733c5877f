"""What callers may name a picture by, and what becomes of it."""

import base64
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput, NotAllowed, PathNotAllowed
from lfx_local_runtimes.runtimes.media import sources
from lfx_local_runtimes.runtimes.media.sources import Wanted, fetched, has_sources, is_public, read_file, read_url
from lfx_local_runtimes.runtimes.tasks.base import Ask, TaskResult
from lfx_local_runtimes.runtimes.tasks.media import MAX_IMAGE_BYTES, Image, Media, Source, as_image
from lfx_local_runtimes.settings import Settings
from tests.pictures import drawn, file_of

PNG = file_of(drawn())
JPEG = file_of(drawn(), "JPEG")


class LookAsk(Ask[TaskResult]):
    """A request with pictures."""

    task = "look"
    images: tuple[Image, ...]


def images(*values: Any) -> tuple[Media | Source, ...]:
    return LookAsk.model_validate({"images": values}).images


# -- the forms -----------------------------------------------------------------------------------------------------------


def test_a_picture_comes_in_many_forms() -> None:
    encoded = base64.b64encode(PNG).decode()
    lines = "\n".join(encoded[start : start + 76] for start in range(0, len(encoded), 76))
    forms = [
        f"data:image/png;base64,{encoded}", f"data:;base64,{encoded}", f"data:image/png;name=a.png;base64,{encoded}",
        encoded, lines, {"url": f"data:image/png;base64,{encoded}"}, {"mime": "image/png", "data": encoded}, PNG,
        bytearray(PNG), Media("image/png", PNG),
    ]  # fmt: skip
    assert set(images(*forms)) == {Media("image/png", PNG)}


def test_a_picture_of_pillow_or_numpy_is_written_as_png() -> None:
    pixels = np.asarray(drawn())
    for value in (drawn(), pixels, pixels[:, :, 0], drawn(mode="CMYK"), drawn(mode="RGBA")):
        found = as_image(value)
        assert isinstance(found, Media)
        assert found.mime == "image/png"
        assert found.data.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "value",
    [
        "", "  ", "data:image/png,abc", "data:image/png;base64", "data:image/png;base64,", "not base64!", "YQ=", {}, {"path": ""},
        {"path": 3}, {"path": "a", "url": "b"}, {"url": "file:///etc/passwd"}, {"url": "ftp://a/b"}, {"file": "x"}, 3, None, b"",
        [1, 2], {"mime": "image/png", "data": {"attachment": 0}}, np.zeros((3, 3)), np.zeros((3, 3, 2), np.uint8),
        "A" * (3 * MAX_IMAGE_BYTES),
    ],
)  # fmt: skip
def test_other_forms_are_refused_by_their_place(value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        images(PNG, value)
    assert [error["loc"] for error in caught.value.errors()] == [("images", 1)]


def test_too_large_a_picture_is_refused() -> None:
    with pytest.raises(ValidationError, match="larger than 20 MiB"):
        images(PNG + bytes(MAX_IMAGE_BYTES))


def test_a_path_or_a_url_stays_a_source_until_it_is_read() -> None:
    found = images({"path": "a.png"}, {"url": "https://example.org/a.png"}, "HTTPS://example.org/b.png")
    assert found == (
        Source(path="a.png"),
        Source(url="https://example.org/a.png"),
        Source(url="HTTPS://example.org/b.png"),
    )
    assert has_sources(LookAsk(images=found))
    assert not has_sources(LookAsk(images=(PNG,)))
    with pytest.raises(ValueError, match="either path or url"):
        Source()


def test_the_schema_allows_what_is_accepted() -> None:
    schema = LookAsk.model_json_schema()
    encoded = base64.b64encode(PNG).decode()
    for fine in (
        encoded,
        f"data:image/png;base64,{encoded}",
        {"path": "a.png"},
        {"url": "https://a.example/b"},
        "YQ==",
    ):
        jsonschema.validate({"images": [fine]}, schema)
        images(fine)
    for wrong in (
        "no base64!",
        "YQ=",
        "",
        {"path": ""},
        {"url": "file:///a"},
        {"path": "a", "url": "b"},
        3,
        "data:image/png,a",
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"images": [wrong]}, schema)


def test_bytes_are_not_shown() -> None:
    assert repr(Media("image/png", PNG)) == "Media(mime='image/png')"


def test_json_has_base64() -> None:
    ask = LookAsk(images=(PNG, Source(path="a.png"), Source(url="http://a/b")))
    assert LookAsk.model_validate_json(ask.model_dump_json()) == ask


# -- files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    return folder.resolve()


@pytest.fixture
def settings(tmp_path: Path, root: Path) -> Settings:
    return Settings(home=tmp_path, media_dirs=(root,))


def test_files_inside_the_folders_are_read(root: Path, settings: Settings) -> None:
    for path in ("deep/a.png", root / "deep" / "a.png", root / "deep" / ".." / "deep" / "a.png"):
        asked = LookAsk(images=(PNG, Source(path=str(path))))
        assert fetched(asked, settings) == LookAsk(images=(PNG, PNG))


def test_the_default_folder_is_in_the_data_folder(tmp_path: Path) -> None:
    assert Settings(home=tmp_path).media_roots == ((tmp_path / "media").resolve(),)


@pytest.mark.parametrize(
    "path", ["../secret.png", "deep/../../secret.png", "/etc/passwd", "out.png", "loop", "a\0b", "x" * 5000]
)
def test_files_outside_of_the_folders_are_not_read(path: str, root: Path, settings: Settings) -> None:
    (root / "out.png").symlink_to(root.parent / "secret.png")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises((PathNotAllowed, InvalidInput), match=r"images\.0"):
        fetched(LookAsk(images=(Source(path=path),)), settings)
    if path not in ("loop", "x" * 5000):
        with pytest.raises(PathNotAllowed, match="LOCAL_RUNTIMES_MEDIA_DIRS"):
            read_file(path, [root], Wanted("images.0"))


def test_only_files_with_pictures_are_read(root: Path) -> None:
    (root / "a.txt").write_text("no picture")
    with pytest.raises(InvalidInput, match="text/plain"):
        read_file("a.txt", [root], Wanted("images.0"))
    for name, why in (("deep", "cannot be read"), ("none.png", "cannot be read")):
        with pytest.raises(InvalidInput, match=why):
            read_file(name, [root], Wanted("images.0"))
    with pytest.raises(InvalidInput, match="larger than"):
        read_file("deep/a.png", [root], Wanted("images.0", max_bytes=10))
    assert read_file("a.txt", [root], Wanted("file", ("text/",))) == Media("text/plain", b"no picture")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_does_not_block(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    with pytest.raises(InvalidInput, match="not a file"):
        read_file("pipe.png", [root], Wanted("images.0"))


# -- URLs ----------------------------------------------------------------------------------------------------------------


Handler = Callable[[httpx.Request], httpx.Response]


def fetch(handler: Handler, url: str = "https://pictures.example/a.png", **options: Any) -> Media:
    hosts = {"pictures.example": ["93.184.216.34"], "two.example": ["93.184.216.34", "10.0.0.1"]}
    private = {"home.example": ["192.168.1.1"], "six.example": ["::ffff:127.0.0.1"]}
    known = {**hosts, **private, **options.pop("hosts", {})}
    wanted = Wanted("images.0", max_bytes=options.pop("max_bytes", 10**6))
    return read_url(
        url,
        wanted,
        resolve=lambda host, port: known.get(host, [host]),
        transport=httpx.MockTransport(handler),
        **options,
    )


def png(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=PNG, headers={"content-type": "image/png"})


def test_a_url_is_fetched_at_the_address_that_was_checked() -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return png(request)

    assert fetch(answer, "https://pictures.example/a.png?b=c#d") == Media("image/png", PNG)
    assert str(seen[0].url) == "https://93.184.216.34/a.png?b=c"
    assert seen[0].headers["host"] == "pictures.example"
    assert seen[0].extensions["sni_hostname"] == "pictures.example"


def test_urls_are_refused_unless_the_operator_allows_them(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = LookAsk(images=(Source(url="https://pictures.example/a.png"),))
    with pytest.raises(NotAllowed, match="LOCAL_RUNTIMES_MEDIA_URLS"):
        fetched(asked, settings)
    monkeypatch.setattr(sources, "read_url", lambda *args, **options: Media("image/png", PNG))
    assert fetched(asked, settings.model_copy(update={"media_urls": True})).images == (Media("image/png", PNG),)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "10.1.2.3", "169.254.169.254", "[::1]", "[fe80::1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "0.0.0.0",
        "224.0.0.1", "100.64.0.1", "home.example", "two.example", "six.example",
    ],
)  # fmt: skip
def test_private_addresses_are_refused(host: str) -> None:
    with pytest.raises(NotAllowed, match="private address"):
        fetch(lambda request: pytest.fail("it was fetched"), f"http://{host}/a.png")


def test_a_redirect_to_a_private_address_is_refused() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"location": "http://home.example/admin"})

    with pytest.raises(NotAllowed, match=r"home\.example has a private address"):
        fetch(answer)


def test_redirects_are_followed_a_few_times() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        number = int(request.url.params.get("n", 0))
        return png(request) if number == 3 else httpx.Response(302, headers={"location": f"/a?n={number + 1}"})

    assert fetch(answer).data == PNG
    with pytest.raises(InvalidInput, match="redirects more than 3 times"):
        fetch(lambda request: httpx.Response(301, headers={"location": "/a"}))


def test_only_pictures_of_a_limited_size_and_time_are_fetched() -> None:
    def drops() -> Iterator[bytes]:
        while True:
            yield b"\x89PNG"

    def typed(content: Any, kind: str = "image/png", status: int = 200) -> Handler:
        return lambda request: httpx.Response(status, content=content, headers={"content-type": kind})

    with pytest.raises(InvalidInput, match="text/html"):
        fetch(typed(b"<html>", "text/html; charset=utf-8"))
    with pytest.raises(InvalidInput, match="answers 404"):
        fetch(typed(PNG, status=404))
    for endless in (drops(), b"x" * 2000):
        with pytest.raises(InvalidInput, match="larger than"):
            fetch(typed(endless), max_bytes=1000)
    ticks = iter(range(0, 1000, 10))
    with pytest.raises(InvalidInput, match="took more than 20 s"):
        fetch(typed(drops()), clock=lambda: float(next(ticks)))


@pytest.mark.parametrize(
    "url", ["https:///a", "https://me:secret@pictures.example/a", "https://[::1/a", "gopher://a/b", "https://a:99999/"]
)
def test_odd_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="not a URL that is fetched"):
        fetch(lambda request: pytest.fail("it was fetched"), url)


def test_a_failed_connection_is_named() -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route")

    with pytest.raises(InvalidInput, match=r"images\.0.*no route"):
        fetch(fail)

    def unknown(host: str, port: int) -> list[str]:
        raise OSError("name or service not known")

    with pytest.raises(InvalidInput, match="no host"):
        read_url("https://none.example/a", Wanted("images.0"), resolve=unknown)


def test_public_addresses_are_public() -> None:
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1::1")
    assert not is_public("2002:7f00:1::1")
    assert not is_public("fe80::1%eth0")
