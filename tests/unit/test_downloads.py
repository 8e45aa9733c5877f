"""Downloads as jobs: shared, paused, resumed, cancelled, waited for by loads, and what the settings allow."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import (
    DownloadFailed,
    DownloadNotFound,
    DownloadTooLarge,
    InvalidInput,
    NotDownloaded,
    Offline,
    RuntimeFault,
    SettingsFault,
)
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager, ScriptedRuntime, register_engine
from lfx_local_runtimes.runtimes.downloads import Downloads
from lfx_local_runtimes.runtimes.planning.servable import Fit
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.status import DownloadStatus
from lfx_local_runtimes.settings import PREFIX, Settings, load_settings
from tests.builders import write_split_gguf
from tests.fake_hub import FakeHub
from tests.hub_models import LLAMA, REPO, gguf, hub_manager, put_tensors

GGUF = "tiny-Q8_0.gguf"
CONTENT = gguf()
PATIENCE_S = 30.0

Pair = tuple[FakeHub, RuntimeManager]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with hub_manager(tmp_path, {REPO: {GGUF: CONTENT}}) as running:
        yield running


@pytest.fixture
def hub(pair: Pair) -> FakeHub:
    return pair[0]


@pytest.fixture
def manager(pair: Pair) -> RuntimeManager:
    return pair[1]


def parts_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*.incomplete"))


def half(hub: FakeHub, manager: RuntimeManager, name: str = REPO) -> DownloadStatus:
    """A download that has got half of its file and waits for the rest."""
    hub.hold = threading.Event()
    status = manager.download_model(name)
    assert hub.half_sent.wait(PATIENCE_S)
    wait_for(lambda: manager.downloads.status(status.id).done_bytes > 0)
    return manager.downloads.status(status.id)


def wait_for(condition: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if condition():
            return
        waited.wait(0.005)
    raise AssertionError("it did not happen")


def until(manager: RuntimeManager, download_id: str, *states: str) -> DownloadStatus:
    wait_for(lambda: manager.downloads.status(download_id).state in states)
    return manager.downloads.status(download_id)


def fetch(manager: RuntimeManager, name: str = REPO, *, first_use: bool = False) -> Path:
    config = manager.catalog.resolve(name).config
    return manager.downloads.fetch(config, lambda progress: None, lambda: False, first_use=first_use)


def cancel_while_it_runs(hub: FakeHub, manager: RuntimeManager, download_id: str) -> DownloadStatus:
    """Cancel a download whose file is held, then let go of the file."""
    with ThreadPoolExecutor(1) as pool:
        cancelled = pool.submit(manager.downloads.cancel, download_id)
        wait_for(lambda: download_id not in {row.id for row in manager.downloads.list()})
        assert hub.hold is not None
        hub.hold.set()
        return cancelled.result()


def register_scripted(manager: RuntimeManager, name: str = "mine") -> str:
    register_engine("scripted", lambda config, plan: ScriptedRuntime(config, plan, script=lambda asked: ("Hel", "lo")))
    manager.register_model(ModelConfig(model_id=REPO, model_name=name, runtime_type="scripted"))  # type: ignore[arg-type]
    return name


# -- one job -------------------------------------------------------------------------------------------------------------


def test_a_download_from_its_start_to_its_end(hub: FakeHub, manager: RuntimeManager) -> None:
    status = half(hub, manager)
    assert (status.model_name, status.state, status.total_bytes) == (REPO, "downloading", len(CONTENT))
    assert 0 < status.done_bytes <= len(CONTENT) // 2
    assert hub.hold is not None
    hub.hold.set()
    ended = until(manager, status.id, "done")
    assert (ended.done_bytes, ended.total_bytes, ended.error) == (len(CONTENT), len(CONTENT), None)
    assert ended.path is not None
    assert Path(ended.path).read_bytes() == CONTENT
    assert manager.downloads.list() == (ended,)
    assert manager.download_model(REPO).state == "done", "it is here already"


def test_who_asks_for_the_same_files_shares_one_download(hub: FakeHub, manager: RuntimeManager) -> None:
    first = half(hub, manager)
    manager.register_model(ModelConfig(model_id=REPO, model_name="mine", context_length=128))
    assert manager.download_model(REPO).id == manager.download_model("mine").id == first.id
    other = manager.download_model(REPO, "v2")
    assert other.id != first.id
    assert (other.revision, first.revision) == ("v2", None)
    assert len(manager.downloads.list()) == 2


def test_a_pause_keeps_what_came_and_resume_goes_on_from_there(
    hub: FakeHub, manager: RuntimeManager, tmp_path: Path
) -> None:
    job = half(hub, manager)
    paused = manager.downloads.pause(job.id)
    assert (paused.state, manager.downloads.pause(job.id).state) == ("paused", "paused")
    assert hub.hold is not None
    hub.hold.set()
    hub.hold = None
    (part,) = tmp_path.rglob("*.incomplete")
    resumed = manager.downloads.resume(job.id)
    assert resumed.id == job.id
    assert until(manager, job.id, "done").done_bytes == len(CONTENT)
    starts = [int(str(where)[6:-1]) for where in hub.downloads(GGUF) if str(where).endswith("-")]
    assert starts[0] == 0
    assert 0 < starts[1] <= len(CONTENT) // 2
    assert not part.exists()
    for change in (manager.downloads.pause, manager.downloads.resume):
        with pytest.raises(InvalidInput, match="is done"):
            change(job.id)


def test_who_asks_for_a_paused_download_resumes_it(hub: FakeHub, manager: RuntimeManager) -> None:
    job = half(hub, manager)
    manager.downloads.pause(job.id)
    assert hub.hold is not None
    hub.hold.set()
    hub.hold = None
    assert manager.download_model(REPO).id == job.id
    until(manager, job.id, "done")


def test_a_cancel_deletes_what_came_and_forgets_the_download(
    hub: FakeHub, manager: RuntimeManager, tmp_path: Path
) -> None:
    job = half(hub, manager)
    assert list(tmp_path.rglob("*.incomplete"))
    assert cancel_while_it_runs(hub, manager, job.id).state == "cancelled"
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert manager.downloads.list() == ()
    with pytest.raises(DownloadNotFound):
        manager.downloads.cancel(job.id)


def test_a_cancel_in_the_moment_in_which_a_download_stops_deletes_what_came(
    hub: FakeHub, manager: RuntimeManager, tmp_path: Path
) -> None:
    job = half(hub, manager)
    manager.downloads.pause(job.id)
    assert hub.hold is not None
    hub.hold.set()

    class Ending(threading.Thread):
        """It has looked already whether it has to delete what came, and is still alive."""

        joined = False

        def is_alive(self) -> bool:
            return not self.joined

        def join(self, timeout: float | None = None) -> None:
            self.joined = True

    running = manager.downloads._jobs[job.id]
    assert running.thread is not None
    running.thread.join()
    running.thread = Ending()
    assert parts_in(tmp_path)
    manager.downloads.cancel(job.id)
    assert not parts_in(tmp_path)


def test_a_cancel_also_deletes_what_came_before_a_pause_and_nothing_that_was_there(
    hub: FakeHub, manager: RuntimeManager, tmp_path: Path
) -> None:
    fetch(manager)
    here = set(tmp_path.rglob("*.gguf"))
    parts = {path.name: path.read_bytes() for path in write_split_gguf(tmp_path, "big-Q4_0", 2)}
    hub.repos[REPO] |= parts
    name, (first, _) = f"{REPO}:Q4_0", parts
    job = half(hub, manager, name)
    of_the_first, hub.hold, hub.half_sent = hub.hold, threading.Event(), threading.Event()
    assert of_the_first is not None
    of_the_first.set()
    assert hub.half_sent.wait(PATIENCE_S), "of the second"
    assert list(tmp_path.rglob(f"snapshots/*/{first}"))
    manager.downloads.pause(job.id)
    hub.hold.set()
    hub.hold, hub.half_sent = threading.Event(), threading.Event()
    manager.downloads.resume(job.id)
    assert hub.half_sent.wait(PATIENCE_S)
    assert cancel_while_it_runs(hub, manager, job.id).state == "cancelled"
    hub.hold = None
    assert set((tmp_path / "cache").rglob("*.gguf")) == here
    assert fetch(manager).read_bytes() == CONTENT


def test_a_complete_model_stays_when_its_download_is_forgotten(hub: FakeHub, manager: RuntimeManager) -> None:
    job = manager.download_model(REPO)
    path = until(manager, job.id, "done").path
    assert manager.downloads.cancel(job.id).state == "done"
    assert path is not None
    assert Path(path).read_bytes() == CONTENT
    assert manager.downloads.list() == ()


def test_a_failed_download_says_why_and_can_be_asked_for_again(hub: FakeHub, manager: RuntimeManager) -> None:
    hub.flips = [20]
    job = manager.download_model(REPO)
    failed = until(manager, job.id, "failed")
    assert "checksum" in str(failed.error)
    again = manager.downloads.resume(job.id)
    assert (again.id, until(manager, job.id, "done").error) == (job.id, None)


class Line:
    """A catalog whose one download takes the steps that the test gives it: seconds, and bytes received by then."""

    settings = Settings()
    total, done, received, free_bytes = 1000, 100, 0, 5000

    def __init__(self) -> None:
        self.now = 0.0
        self.steps: queue.SimpleQueue[tuple[float, int] | None] = queue.SimpleQueue()
        self.taken = threading.Semaphore(0)

    def locate(self, config: ModelConfig) -> None:
        return None

    def download_key(self, config: ModelConfig) -> str:
        return config.model_id

    def fetch(self, config: ModelConfig, report: Callable[[Progress], None], cancelled: object, check: Any) -> Path:
        check(self)
        report(Progress("download", self.done, self.total))
        while (step := self.steps.get()) is not None:
            self.now, self.received = step
            self.done = 100 + self.received
            report(Progress("download", self.done, self.total))
            self.taken.release()
        return Path("there")

    def step(self, seconds: float, received: int) -> None:
        self.steps.put((seconds, received))
        self.taken.acquire()


def test_a_download_that_fails_at_once_has_begun_all_the_same() -> None:
    """What fails after the look is told by the status, however soon it fails."""

    class Cut(Line):
        def fetch(self, config: ModelConfig, report: object, cancelled: object, check: Any) -> Path:
            check(self)
            raise DownloadFailed("The line is dead.")

    downloads = Downloads(Cut(), lambda config, transfer: Fit("e", "cpu", 1, 2))  # type: ignore[arg-type]
    status = downloads.start(ModelConfig(model_id=REPO, model_name="m"))
    assert (status.state, status.error) == ("failed", "m: The line is dead.")
    downloads.close()


def test_speed_and_the_seconds_left() -> None:
    line = Line()
    downloads = Downloads(line, lambda config, transfer: Fit("e", "cpu", 1, 2), clock=lambda: line.now)  # type: ignore[arg-type]
    job = downloads.start(ModelConfig(model_id=REPO, model_name="m")).id
    assert (downloads.status(job).bytes_per_second, downloads.status(job).seconds_left) == (None, None)
    line.step(2.0, 200)
    status = downloads.status(job)
    assert (status.done_bytes, status.bytes_per_second, status.seconds_left) == (300, 100.0, 7.0)
    line.now = 4.0
    assert downloads.status(job).bytes_per_second == 50.0, "nothing came meanwhile"
    for second in range(5, 20):
        line.step(float(second), 200 + 10 * second)
    assert downloads.status(job).bytes_per_second == 10.0, "what came long ago does not count"
    line.steps.put(None)
    wait_for(lambda: downloads.status(job).state == "done")
    assert downloads.status(job).bytes_per_second is None
    downloads.close()


def test_a_close_keeps_what_came_and_another_process_goes_on(
    hub: FakeHub, manager: RuntimeManager, tmp_path: Path
) -> None:
    half(hub, manager)
    manager.close()
    assert hub.hold is not None
    hub.hold.set()
    hub.hold = None
    with pytest.raises(DownloadFailed, match="closed"):
        manager.download_model("acme/other")
    assert [row.state for row in manager.downloads.list()] == ["paused"]
    (part,) = tmp_path.rglob("*.incomplete")
    came = part.stat().st_size
    assert came > 0
    later = RuntimeManager(manager.settings, catalog=manager.catalog)
    assert fetch(later).read_bytes() == CONTENT
    assert hub.downloads(GGUF)[-1] == f"bytes={came}-"
    later.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("download ")]


# -- loads ---------------------------------------------------------------------------------------------------------------


async def test_a_load_waits_for_the_download_that_runs(hub: FakeHub, manager: RuntimeManager) -> None:
    name = register_scripted(manager)
    job = half(hub, manager)
    load = asyncio.create_task(manager.load_model(name))
    await asyncio.to_thread(wait_for, lambda: manager.model_status(name).progress is not None)
    progress = manager.model_status(name).progress
    assert progress is not None
    assert (progress["phase"], progress["total"]) == ("download", len(CONTENT))
    assert [row.id for row in manager.downloads.list()] == [job.id]
    assert hub.hold is not None
    hub.hold.set()
    assert await load


async def test_a_first_use_downloads_and_its_download_is_listed(hub: FakeHub, manager: RuntimeManager) -> None:
    name = register_scripted(manager)
    assert await manager.load_model(name)
    (job,) = manager.downloads.list()
    assert (job.state, job.model_name) == ("done", name)


async def test_a_load_that_waits_fails_when_the_download_is_paused(hub: FakeHub, manager: RuntimeManager) -> None:
    name = register_scripted(manager)
    job = half(hub, manager)
    load = asyncio.create_task(manager.load_model(name))
    await asyncio.to_thread(wait_for, lambda: manager.downloads._jobs[job.id].waiting == 1)
    manager.downloads.pause(job.id)
    with pytest.raises(NotDownloaded, match="is paused") as caught:
        await load
    assert f"downloads/{job.id}/resume" in caught.value.hint
    with pytest.raises(NotDownloaded, match="is paused"):
        await manager.load_model(name)


@pytest.mark.parametrize("asked", [False, True])
async def test_a_download_that_nobody_waits_for_ends_unless_it_was_asked_for(
    hub: FakeHub, manager: RuntimeManager, asked: bool, tmp_path: Path
) -> None:
    name = register_scripted(manager)
    hub.hold = threading.Event()
    load = asyncio.create_task(manager.load_model(name))
    await asyncio.to_thread(hub.half_sent.wait, PATIENCE_S)
    if asked:
        manager.download_model(REPO)
    await manager.unload_model(name, force=True)
    with pytest.raises(RuntimeFault, match="cancelled"):
        await load
    (job,) = manager.downloads.list()
    assert job.state == ("downloading" if asked else "cancelled")
    assert parts_in(tmp_path), "what came is kept"


# -- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"downloads": "off"}, {"offline": True}, {"offline": True, "downloads": "on"}])
def test_off_asks_the_hub_for_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    with hub_manager(tmp_path, {REPO: {GGUF: CONTENT}}, **settings) as (hub, manager):
        assert manager.settings.downloads == "off"
        with pytest.raises(Offline, match="LOCAL_RUNTIMES_DOWNLOADS is off"):
            manager.download_model(REPO)
        with pytest.raises(Offline):
            fetch(manager, first_use=True)
        assert not hub.log


async def test_ask_downloads_only_when_asked(tmp_path: Path) -> None:
    with hub_manager(tmp_path, {REPO: {GGUF: CONTENT}}, downloads="ask") as (hub, manager):
        name = register_scripted(manager)
        with pytest.raises(NotDownloaded, match=r"It is 0\.00 GB to download, and a first use does not") as caught:
            await manager.load_model(name)
        assert "POST downloads" in caught.value.hint
        assert "lfx-local-runtimes pull mine" in caught.value.hint
        assert not [where for where in hub.downloads(GGUF) if str(where).endswith("-")]
        assert manager.downloads.list() == ()
        manager.download_model(name)
        assert await manager.load_model(name), "it waits for the download that was asked for"


def test_ask_says_first_that_a_model_cannot_be_served(tmp_path: Path) -> None:
    with hub_manager(tmp_path, {REPO: {}}, downloads="ask") as (hub, manager):
        put_tensors(hub, LLAMA | {"model_type": "martian"})
        with pytest.raises(InvalidInput, match="martian"):
            fetch(manager, first_use=True)


def test_the_limit_is_for_first_uses_and_requests(tmp_path: Path) -> None:
    limit = (len(CONTENT) - 1) / 2**30
    with hub_manager(tmp_path, {REPO: {GGUF: CONTENT}}, max_download_gb=limit) as (hub, manager):
        for ask in (lambda: manager.download_model(REPO, limited=True), lambda: fetch(manager, first_use=True)):
            with pytest.raises(DownloadTooLarge, match=r"MAX_DOWNLOAD_GB") as caught:
                ask()
            assert "lfx-local-runtimes pull acme/tiny-it" in caught.value.hint
        assert not hub.downloads(GGUF), "not even its header"
        assert until(manager, manager.download_model(REPO).id, "done")


@pytest.mark.parametrize(
    ("environment", "downloads"),
    [
        ({}, "on"),
        ({"DOWNLOADS": "ask"}, "ask"),
        ({"OFFLINE": "true"}, "off"),
        ({"OFFLINE": "true", "DOWNLOADS": "ask"}, "off"),
    ],
)
def test_offline_is_the_older_name_of_off(
    environment: dict[str, str], downloads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"{PREFIX}{name}", value)
    assert load_settings().downloads == downloads


def test_a_value_of_downloads_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}DOWNLOADS", "perhaps")
    with pytest.raises(SettingsFault, match=r"LOCAL_RUNTIMES_DOWNLOADS: .*'on', 'ask' or 'off'"):
        load_settings()
