"""Registrations that are replaced and removed, and files that are deleted or left alone."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

from lfx_local_runtimes.errors import ModelBusy, ModelConflict, ModelNotFound, NotAllowed, PathNotAllowed, RuntimeFault
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.config import LoadOptions, ModelKey
from lfx_local_runtimes.runtimes.sources import packages, removal
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.runtimes.sources.packages import ModelInPackage
from lfx_local_runtimes.settings import Settings
from tests.builders import write_gguf, write_split_gguf
from tests.routes_app import write_model
from tests.scripted_manager import Theatre, theatre

COMMIT, OLD_COMMIT = "0123456789" * 4, "9876543210" * 4


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    with theatre(tmp_path, monkeypatch) as stage:
        yield stage


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def manager(home: Path, cache: Path) -> Iterator[RuntimeManager]:
    settings = Settings(home=home, offline=True)
    manager = RuntimeManager(settings, catalog=Catalog(settings, cache=cache))
    yield manager
    manager.close()


def remove(manager: RuntimeManager, name: str) -> int:
    """Delete a model's files. Returns the bytes freed."""
    return asyncio.run(manager.remove_model(name, files=True)).freed_bytes


def names(manager: RuntimeManager) -> set[str]:
    return {row.model_name for row in manager.list_models() if row.source != "package"}


# -- registrations -------------------------------------------------------------------------------------------------------


async def test_a_registration_is_replaced(stage: Theatre) -> None:
    manager = stage.manager
    longer = stage.config("parrot", context_length=64)
    with pytest.raises(ModelConflict, match=r"PUT models/parrot.*rm parrot"):
        manager.register_model(longer)
    assert await manager.replace_model(longer) is True
    assert await manager.replace_model(longer) is False
    assert manager.model_status("parrot").context_length == 64
    assert await manager.replace_model(stage.config("owl").model_copy(update={"model_name": "new"})) is True
    with pytest.raises(PathNotAllowed):
        await manager.replace_model(ModelConfig(model_id="/etc", model_name="parrot"), restrict_paths=True)
    assert manager.catalog.registered()["parrot"] == longer


async def test_a_loaded_model_leaves_before_it_is_replaced_or_removed(stage: Theatre) -> None:
    manager = stage.manager
    await manager.load_model("parrot")
    await manager.load_model(ModelKey("parrot", LoadOptions(context_length=32)))
    await manager.replace_model(stage.config("parrot", context_length=64))
    assert manager.loaded_models() == []
    await manager.load_model("parrot")
    assert manager.model_status("parrot").context_length == 64
    removed = await manager.remove_model("Parrot")
    assert (removed.model_name, removed.unregistered, removed.freed_bytes) == ("parrot", True, 0)
    assert manager.loaded_models() == []
    assert manager.model_status("parrot").source == "folder", "its files stay, and are found there"
    with pytest.raises(ModelNotFound, match=r"not registered.*rm --files parrot"):
        await manager.remove_model("parrot")


async def test_a_model_in_use_is_changed_by_force_only(stage: Theatre) -> None:
    manager = stage.manager
    stage.endless()
    stream = manager.stream("parrot", GenerationConfig(prompt="Hi"))
    iterator = aiter(stream)
    await anext(iterator)
    changed = stage.config("parrot", context_length=64)
    with pytest.raises(ModelBusy, match="force"):
        await manager.replace_model(changed)
    with pytest.raises(ModelBusy, match="force"):
        await manager.remove_model("parrot")
    assert manager.catalog.registered()["parrot"] == stage.config("parrot"), "nothing was changed"
    assert (await manager.remove_model("parrot", force=True)).unregistered
    assert [piece async for piece in iterator] == []
    assert stream.result is not None
    assert stream.result.finish_reason == "cancelled"


def test_a_copy_in_memory_keeps_the_registration(stage: Theatre) -> None:
    asyncio.run(stage.manager.load_model(ModelKey("parrot", LoadOptions(context_length=32))))
    with pytest.raises(ModelBusy, match="context 32"):
        stage.manager.unregister_model("parrot")


# -- files in the data folder --------------------------------------------------------------------------------------------


def test_files_of_the_data_folder_are_deleted(manager: RuntimeManager, home: Path) -> None:
    models = home / "models"
    write_model(models / "folder")
    write_gguf(models / "one.gguf")
    parts = write_split_gguf(models, "split")
    manager.register_model(ModelConfig(model_id=str(models / "folder"), model_name="mine"))
    assert {"mine", "folder", "one", "split"} <= names(manager)
    sizes = {name: path.stat().st_size for name, path in {"one": models / "one.gguf"}.items()}
    assert remove(manager, "one") == sizes["one"]
    whole = sum(part.stat().st_size for part in parts)
    assert remove(manager, "split") == whole
    with pytest.raises(ModelConflict, match="mine"):
        remove(manager, "folder")
    assert remove(manager, "mine") > 0
    assert list(models.iterdir()) == []
    assert names(manager) == set()
    with pytest.raises(ModelNotFound):
        remove(manager, "mine")


def test_a_split_model_takes_no_other_file_along(manager: RuntimeManager, home: Path) -> None:
    models = home / "models"
    models.mkdir(parents=True)
    write_gguf(models / "m.gguf")
    first, *_ = write_split_gguf(models, "m")
    (models / "m-00001-of-00009.gguf").write_bytes(b"GGUF")
    manager.register_model(ModelConfig(model_id=str(first), model_name="split"))
    remove(manager, "split")
    assert {file.name for file in models.iterdir()} == {"m.gguf", "m-00001-of-00009.gguf"}


async def test_a_model_that_is_loaded_again_while_its_files_go_is_unregistered(
    stage: Theatre, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = stage.manager

    def run(self: removal.Removal) -> int:
        asyncio.run(manager.load_model("parrot"))
        return 1

    monkeypatch.setattr(removal.Removal, "run", run)
    monkeypatch.setattr(Catalog, "removal", lambda self, config: removal.Removal(self.locate(config)))
    assert (await manager.remove_model("parrot", files=True)).unregistered
    assert "parrot" not in manager.catalog.registered()
    await manager.unload_model("parrot")


def test_a_folder_with_a_second_model_is_kept(manager: RuntimeManager, home: Path) -> None:
    write_model(home / "models" / "both")
    write_gguf(home / "models" / "both" / "other.gguf")
    with pytest.raises(ModelConflict, match="both/other"):
        remove(manager, "both")
    assert remove(manager, "both/other") > 0
    assert remove(manager, "both") > 0


async def test_a_model_in_memory_leaves_before_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    with theatre(home, monkeypatch) as stage:  # its model folder is `models` in the folder given
        settings = Settings(home=home, offline=True)
        manager = RuntimeManager(settings, catalog=Catalog(settings, cache=tmp_path / "cache"))
        manager.register_model(stage.config("parrot"))
        await manager.load_model("parrot")
        assert (await manager.remove_model("parrot", files=True)).freed_bytes > 0
        assert manager.loaded_models() == []
        assert "parrot" not in names(manager)
        manager.close()


def test_files_elsewhere_stay(manager: RuntimeManager, home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write_model(outside / "model")
    manager.register_model(ModelConfig(model_id=str(outside / "model"), model_name="outside"))
    with pytest.raises(NotAllowed, match=r"neither in the data folder nor in the hub's cache.*by hand"):
        remove(manager, "outside")

    models = home / "models"
    models.mkdir(parents=True)
    (models / "linked").symlink_to(outside)
    (models / "file.gguf").symlink_to(write_gguf(outside / "file.gguf"))
    for number, place in enumerate(("linked/model", "linked", "file.gguf")):
        manager.register_model(ModelConfig(model_id=str(models / place), model_name=f"link {number}"))
        with pytest.raises(RuntimeFault):
            remove(manager, f"link {number}")
    for path in (home, models):
        with pytest.raises(NotAllowed):
            removal.plan_removal(path, manager.settings, tmp_path / "cache")
    assert (outside / "model" / "model.safetensors").is_file()
    assert (outside / "file.gguf").is_file()
    asyncio.run(manager.remove_model("outside"))
    assert "outside" not in names(manager)


def test_what_is_no_model_stays(manager: RuntimeManager, home: Path) -> None:
    notes = home / "models" / "notes"
    notes.mkdir(parents=True)
    (notes / "diary.txt").write_text("dear diary")
    manager.register_model(ModelConfig(model_id=str(notes), model_name="notes"))
    for name in ("notes", str(notes), "./notes"):
        with pytest.raises(NotAllowed, match="holds no model"):
            remove(manager, name)
    assert (notes / "diary.txt").is_file()
    (home / "models" / "broken.gguf").write_bytes(b"GGUF")
    assert remove(manager, "broken") == 4, "a broken model is one"


def test_a_links_target_inside_the_model_stays(manager: RuntimeManager, home: Path, tmp_path: Path) -> None:
    write_model(home / "models" / "m")
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "file").write_text("kept")
    (home / "models" / "m" / "link").symlink_to(tmp_path / "keep")
    assert remove(manager, "m") > 0
    assert (tmp_path / "keep" / "file").read_text() == "kept"


def test_a_packages_model_stays(
    manager: RuntimeManager, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "site" / "some_package" / "model")
    (tmp_path / "site" / "some_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(packages, "KNOWN", (ModelInPackage("packaged", "some_package", "model", 16, "demo", "llm"),))
    with pytest.raises(NotAllowed, match="pip uninstall some-package"):
        remove(manager, "packaged")
    with pytest.raises(ModelNotFound, match="not registered"):
        asyncio.run(manager.remove_model("packaged"))


def test_a_deletion_that_fails_says_so(manager: RuntimeManager, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(home / "models" / "m")
    manager.register_model(ModelConfig(model_id=str(home / "models" / "m"), model_name="mine"))

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(removal.shutil, "rmtree", refuse)
    with pytest.raises(RuntimeFault, match=r"could not be deleted: Permission denied"):
        remove(manager, "mine")
    assert "mine" in names(manager), "it can be tried again"


# -- files in the hub's cache --------------------------------------------------------------------------------------------


def cached(cache: Path, repo: str, files: dict[str, bytes], commit: str = COMMIT) -> Path:
    """A repository as downloads leave it: links to blobs named by their content."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    for name, content in files.items():
        blob = folder / "blobs" / content.hex()[:64]
        pointer = folder / "snapshots" / commit / name
        for path in (blob, pointer, folder / "refs" / "main"):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    (folder / "refs" / "main").write_text(commit)
    return folder


def test_a_model_leaves_the_hubs_cache(manager: RuntimeManager, cache: Path) -> None:
    config = b'{"architectures": ["LlamaForCausalLM"], "vocab_size": 8}'
    folder = cached(cache, "org/name", {"config.json": config, "model.safetensors": b"weights"})
    kept = cached(cache, "org/other", {"config.json": config, "model.safetensors": b"others"})
    (folder / "blobs" / "x.incomplete").write_bytes(b"half")
    assert remove(manager, "org/name") == len(config) + len("weights") + len("half") + len(COMMIT)
    assert not folder.exists()
    assert (kept / "snapshots" / COMMIT / "model.safetensors").read_bytes() == b"others"


def test_one_of_several_ggufs_leaves(manager: RuntimeManager, cache: Path) -> None:
    small, large = b"GGUF" + b"4" * 30, b"GGUF" + b"8" * 30
    folder = cached(cache, "org/ggufs", {"m-Q4_K_M.gguf": small, "m-Q8_0.gguf": large, "config.json": b"{}"})
    assert remove(manager, "org/ggufs:Q8_0") == len(large)
    assert names(manager) == {"org/ggufs:Q4_K_M"}
    assert remove(manager, "org/ggufs:Q4_K_M") > len(small)
    assert not folder.exists(), "without weights the rest is of no use"


def test_blobs_that_another_snapshot_needs_stay(manager: RuntimeManager, cache: Path) -> None:
    config = b'{"architectures": ["LlamaForCausalLM"], "vocab_size": 8}'
    cached(cache, "org/name", {"config.json": config, "model.safetensors": b"old"}, OLD_COMMIT)
    folder = cached(cache, "org/name", {"config.json": config, "model.safetensors": b"new"})
    assert remove(manager, "org/name") == len(b"new") + len(COMMIT)
    old = folder / "snapshots" / OLD_COMMIT
    assert (old / "config.json").read_bytes() == config
    assert (old / "model.safetensors").read_bytes() == b"old"


def test_a_pointer_that_leads_out_of_the_cache_is_only_unlinked(
    manager: RuntimeManager, cache: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim.gguf"
    write_gguf(victim)
    folder = cached(cache, "org/name", {"m-Q4_0.gguf": b"GGUF" + bytes(32)})
    pointer = folder / "snapshots" / COMMIT / "m-Q8_0.gguf"
    pointer.symlink_to(victim)
    manager.register_model(ModelConfig(model_id="org/name:Q8_0", model_name="evil"))
    remove(manager, "evil")
    assert victim.is_file()
    assert not pointer.is_symlink()


def lock_of(cache: Path, repo: str, content: bytes) -> filelock.BaseFileLock:
    lock = cache / ".locks" / f"models--{repo.replace('/', '--')}" / f"{content.hex()[:64]}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(lock)


def test_a_repository_that_is_being_downloaded_stays(manager: RuntimeManager, cache: Path) -> None:
    config = b'{"architectures": ["LlamaForCausalLM"], "vocab_size": 8}'
    folder = cached(cache, "org/name", {"config.json": config, "model.safetensors": b"weights"})
    for content in (b"weights", b"a file of which nothing is here yet"):
        with (
            lock_of(cache, "org/name", content),
            pytest.raises(ModelBusy, match=r"org/name are being downloaded.*cancel"),
        ):
            remove(manager, "org/name")
    assert (folder / "snapshots" / COMMIT / "model.safetensors").read_bytes() == b"weights"
    assert remove(manager, "org/name") > 0
    assert not folder.exists()


def test_what_a_download_adds_while_a_model_is_deleted_stays(
    manager: RuntimeManager, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = b'{"architectures": ["LlamaForCausalLM"], "vocab_size": 8}'
    folder = cached(cache, "org/name", {"config.json": config, "model.safetensors": b"weights"})
    part, describe = folder / "blobs" / "new.incomplete", removal.describe
    monkeypatch.setattr(removal, "describe", lambda names: part.write_bytes(b"half") and describe(names))
    remove(manager, "org/name")
    assert [file for file in folder.rglob("*") if file.is_file()] == [part]
