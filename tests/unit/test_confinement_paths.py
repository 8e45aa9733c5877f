"""Which files a policy opens: the libraries', a device's and a model's, and none of the user's beside them."""

import sys
from pathlib import Path

import pytest

from lfx_local_runtimes.runtimes.processes.confinement import Policy
from lfx_local_runtimes.runtimes.processes.paths import device_paths, library_paths, model_paths
from tests.confined import run_child

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux confines")


def test_the_libraries_paths_hold_nothing_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, library = tmp_path / "project", tmp_path / "library"
    for folder in (project / "below", library):
        folder.mkdir(parents=True)
    monkeypatch.chdir(project / "below")
    monkeypatch.setattr(
        sys, "path", ["", str(project / "below"), str(project), "/", "/tmp", str(Path.home()), str(library)]
    )
    found = library_paths()
    assert library in found
    assert Path(sys.base_prefix) in found
    assert not {project, project / "below", Path("/"), Path("/tmp"), Path("/proc"), Path("/dev"), Path("/etc")} & set(
        found
    )
    assert Path.home() not in found


def test_packages_that_are_links_are_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, site = tmp_path / "elsewhere" / "package", tmp_path / "site-packages"
    real.mkdir(parents=True)
    site.mkdir()
    (site / "package").symlink_to(real)
    (site / "everything").symlink_to("/")
    monkeypatch.setattr(sys, "path", [str(site)])
    found = library_paths()
    assert real in found
    assert Path("/") not in found


def test_a_prefix_that_is_the_users_folder_is_not_opened_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    found = library_paths()
    assert tmp_path / "lib" in found
    assert tmp_path not in found


def test_a_model_in_the_hubs_cache_is_read_with_its_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    elsewhere, disk = tmp_path / "elsewhere", tmp_path / "disk"
    for folder in (snapshot, blobs, elsewhere, disk):
        folder.mkdir(parents=True)
    for file in (blobs / "aa", blobs / "unused", elsewhere / "key", disk / "weights"):
        file.write_text("x")
    (snapshot / "model").symlink_to("../../blobs/aa")
    (snapshot / "stolen").symlink_to(elsewhere / "key")
    (snapshot / "moved").symlink_to(disk / "weights")
    (snapshot / "broken").symlink_to("nowhere")
    assert model_paths(snapshot) == tuple(sorted((snapshot, blobs / "aa")))
    assert set(model_paths(snapshot, [disk])) == {snapshot, blobs / "aa", disk / "weights"}
    assert model_paths(blobs / "aa") == (blobs / "aa",)
    source = """
enter()
for name in ("model", "stolen"):
    attempt(name, (Path(values["folder"]) / name).read_text)
"""
    report = run_child(source, Policy(read=model_paths(snapshot)), folder=str(snapshot))
    assert report["model"] == "done: 'x'"
    assert report["stolen"].startswith("PermissionError")


def test_devices_are_opened_only_when_named() -> None:
    assert device_paths(()) == ([], [Path("/dev/null")])
    read, files = device_paths(("cuda",))
    assert Path("/sys/devices") in read
    assert Path("/dev/null") in files
    assert not {Path("/dev"), Path("/proc"), Path("/dev/shm"), Path("/dev/mem")} & {*read, *files}
