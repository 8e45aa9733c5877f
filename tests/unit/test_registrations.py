"""The registrations file: nothing lost, whatever happens."""

import json
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lfx_local_runtimes.errors import ModelConflict, RuntimeFault
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.sources.registrations import Registrations


def config(name: str = "a", model_id: str = "org/name", **options: object) -> ModelConfig:
    return ModelConfig.model_validate({"model_id": model_id, "model_name": name, **options})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "models.json"


def test_add_remove_and_restart(path: Path) -> None:
    full = config(
        "Ä/1",
        runtime_type=RuntimeType.TRANSFORMERS,
        device_type=DeviceType.CPU,
        quantization="int8",
        keep_alive=0,
        pinned=True,
    )
    first = Registrations(path)
    assert first.all() == {}
    assert first.add(full)
    assert not first.add(full)
    with pytest.raises(ModelConflict, match="Ä/1"):
        first.add(full.model_copy(update={"pinned": False}))
    second = Registrations(path)
    assert second.all() == {"Ä/1": full}
    assert isinstance(second.all()["Ä/1"].runtime_type, RuntimeType)
    assert second.remove("Ä/1")
    assert not second.remove("Ä/1")
    assert first.all() == {}, "it sees what another one changed"
    assert first.add(config("Ä/1"))


def test_what_all_returns_is_the_callers(path: Path) -> None:
    registrations = Registrations(path)
    registrations.add(config())
    registrations.all().clear()
    assert list(registrations.all()) == ["a"]


def test_threads_and_processes_lose_nothing(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from lfx_local_runtimes.runtimes.config import ModelConfig\n"
        "from lfx_local_runtimes.runtimes.sources.registrations import Registrations\n"
        "r = Registrations(Path(sys.argv[1]))\n"
        "for n in range(50): r.add(ModelConfig(model_id='o/n', model_name=f'{sys.argv[2]}-{n}', model_type='llm'))\n"
    )
    shared = Registrations(path)
    threads = [
        threading.Thread(target=lambda who=who: [shared.add(config(f"{who}-{n}")) for n in range(50)])  # type: ignore[misc]
        for who in ("t1", "t2")
    ]
    processes = [subprocess.Popen([sys.executable, "-c", script, str(path), who]) for who in ("p1", "p2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0]
    expected = {f"{who}-{n}" for who in ("t1", "t2", "p1", "p2") for n in range(50)}
    assert set(shared.all()) == expected
    assert sorted(file.name for file in path.parent.iterdir()) == ["models.json", "models.json.lock"]


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[]", b'{"models": []}', b"[" * 100_000])
@pytest.mark.parametrize("first", ["all", "add"])
def test_a_corrupt_file_is_moved_aside(
    path: Path, caplog: pytest.LogCaptureFixture, content: bytes, first: str
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    registrations = Registrations(path)
    if first == "all":
        assert registrations.all() == {}
    assert registrations.add(config())
    (aside,) = path.parent.glob("models.json.corrupt-*")
    assert aside.read_bytes() == content
    assert "corrupt" in caplog.text
    assert list(Registrations(path).all()) == ["a"]


def test_entries_that_no_longer_validate_stay_and_are_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registrations = Registrations(path)
    registrations.add(config("good"))
    content = json.loads(path.read_text())
    foreign = {
        "future": {"model_id": "o/n", "model_name": "future", "warp": 9},
        "odd": 3,
        "other": {"model_id": "o/n", "model_name": "x"},
    }
    path.write_text(json.dumps({"models": content["models"] | foreign}))
    assert list(registrations.all()) == ["good"]
    assert set(registrations.problems) == {"future", "odd", "other"}
    assert "warp" in registrations.problems["future"]
    assert "future" in caplog.text
    registrations.add(config("more"))
    assert json.loads(path.read_text())["models"].items() >= foreign.items()
    with pytest.raises(ModelConflict):
        registrations.add(config("future"))
    assert registrations.remove("odd")
    assert set(registrations.problems) == {"future", "other"}


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow past a few bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_changes_nothing(path: Path) -> None:
    registrations = Registrations(path)
    registrations.add(config("kept"))
    before = path.read_bytes()
    with full_disk(), pytest.raises(RuntimeFault, match=r"models\.json") as caught:
        registrations.add(config("lost", "o/" + "n" * 200))
    assert caught.value.hint
    with full_disk(), pytest.raises(RuntimeFault):
        registrations.add(config("lost", "o/" + "n" * 200))
    assert path.read_bytes() == before
    assert registrations.all() == Registrations(path).all() == {"kept": config("kept")}
    assert [file.name for file in path.parent.iterdir() if file.suffix == ".tmp"] == []
    assert registrations.add(config("lost"))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    registrations = Registrations(tmp_path / "file" / "models.json")
    with pytest.raises(RuntimeFault, match="Could not"):
        registrations.add(config())


def test_reading_again_costs_no_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registrations = Registrations(path)
    registrations.add(config())

    def refuse(*args: object) -> bytes:
        raise AssertionError("read")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert list(registrations.all()) == ["a"]
