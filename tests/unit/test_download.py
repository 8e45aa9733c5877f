"""Downloads against a hub on loopback: resume, checksums, cancel, permissions, and the hub's own layout."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from lfx_local_runtimes.errors import DownloadFailed, ModelNotFound, PickleRefused
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.sources import download
from lfx_local_runtimes.runtimes.sources.download import download_model
from lfx_local_runtimes.runtimes.sources.hub import HubRef, Wish
from tests.fake_hub import COMMIT, FakeHub, serve

REPO = "acme/tiny"
_REF, _ANY = HubRef(REPO), Wish()
GGUF = random.Random(1).randbytes(3_000_000)
WEIGHTS = random.Random(2).randbytes(400_000)
CHAT = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b'{"t": 1}',
    "chat_template.jinja": b"{{ messages }}",
    "empty.json": b"",
    "README.md": b"no",
    "modeling.py": b"print('no')",
    "onnx/model.onnx": b"no",
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve(
        FakeHub({REPO: {"tiny-Q4_K_M.gguf": GGUF, "tiny-Q8_0.gguf": b"x" * 1000, "README.md": b"hi"}})
    ) as running:
        yield running


@pytest.fixture
def fetch(hub: FakeHub, tmp_path: Path) -> Callable[..., Path]:
    def run(ref: HubRef = _REF, wish: Wish = _ANY, **options: Any) -> Path:
        settings: dict[str, Any] = {
            "cache": tmp_path / "cache", "token": None, "endpoint": hub.url, "report": lambda progress: None,
            "cancelled": lambda: False, "backoff": (0.0, 0.0, 0.0),
        }  # fmt: skip
        return download_model(ref, options.pop("revision", None), wish, **{**settings, **options})

    return run


def test_the_layout_is_the_hubs(hub: FakeHub, fetch: Callable[..., Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = fetch()
    assert path.read_bytes() == GGUF
    assert path.is_symlink()
    assert path.name == "tiny-Q4_K_M.gguf"
    assert huggingface_hub.try_to_load_from_cache(REPO, path.name, cache_dir=cache) == str(path)
    assert huggingface_hub.snapshot_download(REPO, cache_dir=cache, local_files_only=True) == str(path.parent)
    (repo,) = huggingface_hub.scan_cache_dir(cache).repos
    assert (repo.repo_id, repo.size_on_disk, {*repo.refs}) == (REPO, len(GGUF), {"main"})
    assert not list(cache.rglob("*.incomplete"))


def test_safetensors_come_with_their_side_files_and_nothing_else(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    hub.repos[REPO] = CHAT
    folder = fetch()
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert names == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "empty.json",
    }  # fmt: skip
    assert all((folder / name).read_bytes() == CHAT[name] for name in names)
    assert (fetch(wish=Wish(python=True)) / "modeling.py").exists()
    assert hub.downloads("model.safetensors") == ["bytes=0-"]


def test_a_file_that_is_deleted_while_the_model_is_looked_at_is_fetched(
    hub: FakeHub, fetch: Callable[..., Path]
) -> None:
    hub.repos[REPO] = CHAT
    folder = fetch()
    (folder / "model.safetensors").unlink()
    seen: list[Progress] = []
    fetch(check=lambda transfer: (folder / "config.json").unlink(), report=seen.append)
    assert (folder / "config.json").read_bytes() == CHAT["config.json"]
    assert seen[-1].done == seen[-1].total


def test_a_cut_connection_resumes_where_it_broke(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    hub.cuts = [1_200_000, 0, 777_777]
    assert fetch().read_bytes() == GGUF
    starts = [int(str(where)[6:-1]) for where in hub.downloads("tiny-Q4_K_M.gguf")]
    assert starts == sorted(starts)
    assert len(starts) == 4
    assert starts[-1] > 0


def test_the_next_call_resumes_what_this_one_left(hub: FakeHub, fetch: Callable[..., Path], tmp_path: Path) -> None:
    hub.cuts = [1_000_000, 0]
    with pytest.raises(DownloadFailed, match="broke"):
        fetch(backoff=(0.0,))
    (part,) = tmp_path.rglob("*.incomplete")
    came = part.stat().st_size
    assert 0 < came <= 1_000_000
    seen: list[Progress] = []
    assert fetch(report=seen.append).read_bytes() == GGUF
    assert hub.downloads("tiny-Q4_K_M.gguf")[-1] == f"bytes={came}-"
    assert seen[-1] == Progress("download", len(GGUF), len(GGUF))
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_a_server_without_ranges_starts_over(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    hub.ranges, hub.cuts = False, [2_000_000]
    assert fetch().read_bytes() == GGUF


def test_endless_breaks_end(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    hub.cuts = [10] * 100
    with pytest.raises(DownloadFailed, match="broke"):
        fetch()
    assert len(hub.downloads("tiny-Q4_K_M.gguf")) == 4


@pytest.mark.parametrize("name", ["tiny-Q4_K_M.gguf", "config.json"])
def test_a_flipped_byte_is_refused_and_thrown_away(
    hub: FakeHub, fetch: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    if name == "config.json":  # the first file asked for; a small one, checked by git's digest
        hub.repos[REPO] = {name: CHAT[name], "model.safetensors": WEIGHTS}
    hub.flips = [20]
    with pytest.raises(DownloadFailed, match="checksum"):
        fetch()
    assert not list(tmp_path.rglob("*.incomplete"))
    assert not list(tmp_path.rglob("snapshots/*/*"))
    fetch()


def test_a_part_that_was_damaged_on_disk_is_refused(hub: FakeHub, fetch: Callable[..., Path], tmp_path: Path) -> None:
    hub.cuts = [1_000_000]
    with pytest.raises(DownloadFailed):
        fetch(backoff=())
    (part,) = tmp_path.rglob("*.incomplete")
    part.write_bytes(b"\0" + part.read_bytes()[1:])
    with pytest.raises(DownloadFailed, match="checksum"):
        fetch()
    assert fetch().read_bytes() == GGUF


def test_cancel_keeps_the_part(hub: FakeHub, fetch: Callable[..., Path], tmp_path: Path) -> None:
    hub.hold = threading.Event()
    cancelled = threading.Event()

    def let_go() -> None:
        hub.half_sent.wait(30)
        cancelled.set()
        hub.hold.set()  # type: ignore[union-attr]

    helper = threading.Thread(target=let_go)
    helper.start()
    with pytest.raises(DownloadFailed, match="cancelled"):
        fetch(cancelled=cancelled.is_set)
    helper.join()
    (part,) = tmp_path.rglob("*.incomplete")
    came = part.stat().st_size
    assert came < len(GGUF)
    hub.hold = None
    assert fetch().read_bytes() == GGUF
    assert hub.downloads("tiny-Q4_K_M.gguf")[-1] == f"bytes={came}-"


def test_two_callers_download_once(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    hub.hold = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch)
        assert hub.half_sent.wait(30)
        asked = threading.Event()
        second = pool.submit(fetch, report=lambda progress: asked.set())
        assert asked.wait(30)  # it knows what it wants, and finds the lock taken
        hub.hold.set()
        assert first.result(30) == second.result(30)
    assert hub.downloads("tiny-Q4_K_M.gguf") == ["bytes=0-"]


def test_a_cancel_ends_the_wait_for_the_other_caller(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    hub.hold = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch)
        assert hub.half_sent.wait(30)
        cancelled = threading.Event()
        second = pool.submit(fetch, report=lambda progress: cancelled.set(), cancelled=cancelled.is_set)
        with pytest.raises(DownloadFailed, match="Cancelled while"):
            second.result(30)
        hub.hold.set()
        assert first.result(30).read_bytes() == GGUF


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    with serve(FakeHub(hub.repos)) as storage:
        hub.redirect = storage.url
        assert fetch(token="hf_secret").read_bytes() == GGUF
        assert {authorization for _, _, authorization in hub.log} == {"Bearer hf_secret"}
        assert {authorization for _, _, authorization in storage.log} == {None}


@pytest.mark.parametrize(
    ("status", "token", "says"), [(401, None, "HF_TOKEN"), (403, "hf_x", "conditions"), (404, None, "no model")]
)
def test_refusals_say_what_to_do(
    hub: FakeHub, fetch: Callable[..., Path], status: int, token: str | None, says: str
) -> None:
    for where in ("api_statuses", "statuses"):
        setattr(hub, where, [status])
        with pytest.raises((DownloadFailed, ModelNotFound)) as caught:
            fetch(token=token)
        assert says in str(caught.value)


def test_busy_servers_are_tried_again(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    hub.api_statuses, hub.statuses = [503], [500, 429]
    assert fetch().read_bytes() == GGUF


def test_a_hub_that_is_not_there(fetch: Callable[..., Path]) -> None:
    with pytest.raises(DownloadFailed, match="does not answer"):
        fetch(endpoint="http://127.0.0.1:9", backoff=())


def test_a_wait_for_another_try_can_be_cancelled(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    hub.statuses = [503]
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += bool(hub.downloads("tiny-Q4_K_M.gguf"))
        return asked > 1

    with pytest.raises(DownloadFailed, match="cancelled"):
        fetch(cancelled=cancelled, backoff=(3600.0,))


@pytest.mark.parametrize(
    "name", ["../evil.gguf", "/etc/evil.gguf", "a/../../evil.gguf", "a\\..\\evil.gguf", "C:evil.gguf", "a//b.gguf"]
)
def test_hostile_file_names_are_refused(hub: FakeHub, fetch: Callable[..., Path], tmp_path: Path, name: str) -> None:
    hub.repos[REPO] = {name: GGUF}
    with pytest.raises(DownloadFailed, match="cannot be stored"):
        fetch()
    assert not list(tmp_path.rglob("*evil*"))


def test_hostile_revisions_are_refused(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    with pytest.raises(ModelNotFound, match="revision"):
        fetch(revision="../../../x")
    assert not hub.log


def test_no_room_is_told_with_numbers_before_anything_is_fetched(
    hub: FakeHub, fetch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_SPARE_BYTES", 1 << 62)
    with pytest.raises(DownloadFailed, match=r"needs 0\.00 GB more .* GB are free"):
        fetch()
    assert not hub.downloads("tiny-Q4_K_M.gguf")


def test_without_links_the_files_themselves_are_there(
    hub: FakeHub, fetch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = fetch()
    assert path.read_bytes() == GGUF
    assert not path.is_symlink()
    assert fetch() == path
    assert hub.downloads("tiny-Q4_K_M.gguf") == ["bytes=0-"]
    assert huggingface_hub.try_to_load_from_cache(REPO, path.name, cache_dir=tmp_path / "cache") == str(path)


def test_which_gguf(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    assert fetch(HubRef(REPO, "q8_0"), Wish("q8_0", gguf=True)).name == "tiny-Q8_0.gguf"
    with pytest.raises(ModelNotFound, match="It has: Q4_K_M, Q8_0"):
        fetch(wish=Wish("Q2_K", gguf=True))


def test_a_cpu_gets_the_gguf_file_of_a_large_model_and_nothing_else(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    hub.repos[REPO] = {**CHAT, "tiny-Q4_K_M.gguf": GGUF}
    hub.sizes = {"model.safetensors": 14 * 10**9}
    path = fetch(wish=Wish(light=True))
    assert [file.name for file in path.parent.iterdir()] == [path.name] == ["tiny-Q4_K_M.gguf"]
    assert not hub.downloads("model.safetensors")
    hub.sizes = {}
    assert (fetch(wish=Wish(light=True)) / "model.safetensors").exists()


def test_split_files_come_whole(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    parts = {f"big-Q8_0-0000{n}-of-00003.gguf": GGUF[n * 100 : n * 100 + 100] for n in (1, 2, 3)}
    hub.repos[REPO] = parts
    first = fetch()
    assert first.name == "big-Q8_0-00001-of-00003.gguf"
    assert {path.name: path.read_bytes() for path in first.parent.iterdir()} == parts


def test_pickle_is_refused_before_it_is_fetched(hub: FakeHub, fetch: Callable[..., Path]) -> None:
    hub.repos[REPO] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(PickleRefused):
        fetch()
    assert not hub.downloads("pytorch_model.bin")
    assert (fetch(wish=Wish(pickle=True)) / "pytorch_model.bin").exists()


def test_a_revision_keeps_its_name(hub: FakeHub, fetch: Callable[..., Path], tmp_path: Path) -> None:
    path = fetch(revision="refs/pr/1")
    assert path.parent.name == COMMIT
    assert huggingface_hub.try_to_load_from_cache(
        REPO, path.name, cache_dir=tmp_path / "cache", revision="refs/pr/1"
    ) == str(path)
