"""Names to configurations to files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from lfx_local_runtimes.errors import InvalidInput, ModelNotFound, Offline, PathNotAllowed
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.sources import packages
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.settings import Settings
from tests.fake_hub import FakeHub, serve

GGUF = b"GGUF" + bytes(range(256))


def config(name: str, model_id: str, **options: Any) -> ModelConfig:
    return ModelConfig.model_validate({"model_id": model_id, "model_name": name, **options})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    repos = {
        "org/ggufs": {"m-Q4_K_M.gguf": GGUF, "m-Q8_0.gguf": GGUF + b"8"},
        "org/both": {"config.json": b"{}", "model.safetensors": b"s", "m-Q8_0.gguf": GGUF},
    }
    with serve(FakeHub(repos)) as running:
        yield running


@pytest.fixture
def catalog(root: Path, tmp_path: Path, hub: FakeHub) -> Catalog:
    return Catalog(Settings(home=tmp_path / "home", model_dirs=(root,)), cache=tmp_path / "cache", endpoint=hub.url)


def fetch(catalog: Catalog, name: str) -> Path:
    return catalog.fetch(catalog.resolve(name).config, lambda progress: None, lambda: False)


def test_the_order_of_names(catalog: Catalog, root: Path) -> None:
    (root / "org").mkdir()
    (root / "org" / "ggufs.gguf").write_bytes(GGUF)
    (root / "a.gguf").write_bytes(GGUF)
    assert catalog.resolve("org/ggufs").source == "folder"
    catalog.add(config("org/ggufs", "org/other"))
    assert catalog.resolve("org/ggufs").source == "registered"
    assert catalog.resolve("org/ggufs").config.model_id == "org/other"
    assert catalog.resolve("A").config.model_name == "a"
    by_path = catalog.resolve(str(root / "a.gguf"))
    assert (by_path.source, catalog.locate(by_path.config)) == ("request", root / "a.gguf")
    assert catalog.locate(catalog.resolve("a.gguf").config) == root / "a.gguf"
    assert catalog.resolve("org/new:Q4_K_M").config.model_id == "org/new:Q4_K_M"


def test_names_that_stand_for_nothing(catalog: Catalog) -> None:
    catalog.add(config("my-gemma", "org/gemma"))
    with pytest.raises(ModelNotFound, match="Did you mean my-gemma"):
        catalog.resolve("my-gema")
    for name in ("", "zzzzzz", "a b", "org/a/b", "org/name:", "org/--x", "x" * 5000, "\0", "org/na..me"):
        with pytest.raises((ModelNotFound, PathNotAllowed)):
            catalog.resolve(name)


def test_the_list(catalog: Catalog, root: Path) -> None:
    (root / "a.gguf").write_bytes(GGUF)
    (root / "b.gguf").write_bytes(GGUF)
    catalog.add(config("a", "org/x"))
    rows = {row.config.model_name: row.source for row in catalog.list()}
    assert {name: rows[name] for name in ("a", "b")} == {"a": "registered", "b": "folder"}
    assert catalog.remove("a")
    assert {row.config.model_name: row.source for row in catalog.list()}["a"] == "folder"


@pytest.mark.parametrize(
    "text",
    [
        "../out.gguf", "sub/../../out.gguf", "sub/..", "{out}", "/etc/passwd", "link.gguf", "linked/out.gguf", "{root}/link.gguf",
        "loop.gguf", "x" * 300, "/".join(["x" * 100] * 20), "a\0b.gguf", "a\nb.gguf", "~/x.gguf", "~root/x.gguf", "{root}/../out.gguf",
        "{root}-sibling/x.gguf",
    ],
)  # fmt: skip
def test_paths_that_are_refused(catalog: Catalog, root: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "out.gguf").write_bytes(GGUF)
    (tmp_path / "models-sibling").mkdir()
    (tmp_path / "models-sibling" / "x.gguf").write_bytes(GGUF)
    (root / "sub").mkdir()
    (root / "link.gguf").symlink_to(tmp_path / "out.gguf")
    (root / "linked").symlink_to(tmp_path, target_is_directory=True)
    (root / "loop.gguf").symlink_to(root / "loop.gguf")
    with pytest.raises(PathNotAllowed):
        catalog.check_path(text.format(root=root, out=tmp_path / "out.gguf"))


def test_paths_that_are_allowed(catalog: Catalog, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "sub").mkdir()
    model = root / "sub" / "a.gguf"
    model.write_bytes(GGUF)
    (root / "alias.gguf").symlink_to(model)
    for text in ("sub/a.gguf", "./sub/a.gguf", str(model), "alias.gguf"):
        assert catalog.check_path(text) == model
    monkeypatch.chdir(root / "sub")
    assert catalog.check_path("./a.gguf") == model
    with pytest.raises(ModelNotFound):
        catalog.check_path("none.gguf")


def test_the_working_directory_is_no_model_folder(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name in a request never reaches a file that merely lies where the process was started."""
    (tmp_path / "cwd" / "org" / "name").mkdir(parents=True)
    (tmp_path / "cwd" / "x.gguf").write_bytes(GGUF)
    monkeypatch.chdir(tmp_path / "cwd")
    assert catalog.locate(catalog.resolve("org/name").config) is None
    for name in ("x.gguf", "./x.gguf"):
        with pytest.raises((ModelNotFound, PathNotAllowed)):
            catalog.resolve(name)


def test_what_may_be_registered_from_outside(catalog: Catalog, root: Path, tmp_path: Path) -> None:
    (root / "a.gguf").write_bytes(GGUF)
    for model_id in ("a", "./a.gguf", "org/name", "org/name:Q8_0", str(root / "a.gguf")):
        catalog.check_source(config("m", model_id))
    (tmp_path / "out.gguf").write_bytes(GGUF)
    for model_id in (str(tmp_path / "out.gguf"), "../out.gguf", "a/../../out.gguf"):
        with pytest.raises(PathNotAllowed):
            catalog.check_source(config("m", model_id))
    with pytest.raises(InvalidInput):
        catalog.check_source(config("m", "what is this"))


def test_a_registered_path_may_lie_anywhere(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.gguf").write_bytes(GGUF)
    monkeypatch.chdir(tmp_path)
    for model_id in (str(tmp_path / "out.gguf"), "./out.gguf", "out.gguf"):
        assert catalog.locate(config("m", model_id)) == tmp_path / "out.gguf"
    gone = config("m", "./gone.gguf")
    assert catalog.locate(gone) is None
    with pytest.raises(ModelNotFound, match=r"gone\.gguf"):
        catalog.fetch(gone, lambda progress: None, lambda: False)


def test_a_model_id_may_be_a_discovered_name(catalog: Catalog, root: Path) -> None:
    (root / "a.gguf").write_bytes(GGUF)
    assert catalog.locate(config("mine", "a")) == root / "a.gguf"


def test_fetch_once_then_locate(catalog: Catalog, hub: FakeHub) -> None:
    wanted = catalog.resolve("org/ggufs").config
    assert catalog.locate(wanted) is None
    seen: list[Progress] = []
    path = catalog.fetch(wanted, seen.append, lambda: False)
    assert path.name == "m-Q4_K_M.gguf"
    assert seen[-1] == Progress("download", len(GGUF), len(GGUF))
    requests = len(hub.log)
    assert catalog.fetch(wanted, seen.append, lambda: False) == catalog.locate(wanted) == path
    assert len(hub.log) == requests, "what is here needs no network"
    assert catalog.resolve("org/ggufs:q4_k_m").source == "hub cache"
    assert catalog.locate(catalog.resolve("org/ggufs:Q8_0").config) is None
    assert fetch(catalog, "org/ggufs:Q8_0").name == "m-Q8_0.gguf"
    assert catalog.locate(config("m", "org/ggufs", quantization="Q8_0")) == path.with_name("m-Q8_0.gguf")
    assert catalog.locate(config("m", "org/ggufs", revision="other")) is None


def test_the_engine_decides_between_forms(catalog: Catalog) -> None:
    folder = fetch(catalog, "org/both")
    assert folder.is_dir()
    llama = config("m", "org/both", runtime_type="llama_cpp")
    assert catalog.locate(llama) is None
    assert catalog.fetch(llama, lambda progress: None, lambda: False) == folder / "m-Q8_0.gguf"
    assert catalog.locate(config("m", "org/both", quantization="int8")) == folder


@pytest.mark.parametrize("by", ["setting", "hub"])
def test_offline_and_missing_is_one_clear_error(
    catalog: Catalog, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    online = fetch(catalog, "org/ggufs")
    requests = len(hub.log)
    if by == "hub":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    settings = catalog.settings.model_copy(update={"downloads": "off" if by == "setting" else "on"})
    offline = Catalog(settings, cache=tmp_path / "cache", endpoint=hub.url)
    assert fetch(offline, "org/ggufs") == online
    with pytest.raises(Offline, match="org/both is not on this machine") as caught:
        fetch(offline, "org/both")
    assert ("HF_HUB_OFFLINE is set" if by == "hub" else "LOCAL_RUNTIMES_DOWNLOADS is off") in caught.value.message
    assert len(hub.log) == requests


def test_no_model_named_by_a_package_needs_the_network(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    class Toy:
        name, format, size_bytes, model_type, pooling = "toy", None, None, "llm", None

        def ready_path(self, home: Path) -> Path | None:
            return None

        def provide(self, home: Path, report: Callable[[Progress], None], cancelled: Callable[[], bool]) -> Path:
            calls.append(home)
            return home / "toy.gguf"

    from lfx_local_runtimes.runtimes.sources import catalog as catalog_module
    from lfx_local_runtimes.runtimes.sources import discovery

    for module in (catalog_module, discovery, packages):
        monkeypatch.setattr(module, "carriers", lambda name="toy": (Toy(),) if name == "toy" else ())
    assert catalog.resolve("toy").source == "package"
    assert catalog.locate(catalog.resolve("toy").config) is None
    assert fetch(catalog, "toy") == catalog.settings.home / "toy.gguf"
    assert calls == [catalog.settings.home]


@pytest.mark.skipif(not packages.GEMMA.installed, reason="the demo's Gemma is not installed")
def test_the_packaged_gemma(packaged_models: Path) -> None:
    settings = Settings()
    assert (settings.home / "packages").samefile(packaged_models)
    catalog = Catalog(settings)
    row = next(row for row in catalog.list() if row.config.model_name == "gemma-3-270m")
    assert row.source == "package"
    path = fetch(catalog, "gemma-3-270m")
    assert path.stat().st_size == packages.GEMMA.size_bytes
    assert path.read_bytes()[:4] == b"GGUF"
    assert catalog.locate(row.config) == path


@pytest.mark.parametrize("known", packages.KNOWN, ids=lambda known: known.name)
def test_a_model_of_a_package_that_is_missing_names_its_extra(
    known: packages.AssembledModel | packages.ModelInPackage, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(known), "installed", property(lambda self: False))
    with pytest.raises(ModelNotFound) as caught:
        catalog.resolve(known.name)
    assert f"pip install 'lfx-local-runtimes[{known.extra}]'" in str(caught.value.hint)


@pytest.mark.skipif(not packages.SMOLLM.installed, reason="the demo's SmolLM2 is not installed")
def test_the_packaged_smollm_is_an_instruct_model() -> None:
    catalog = Catalog(Settings())
    path = fetch(catalog, packages.SMOLLM.name)
    assert path.stat().st_size == packages.SMOLLM.size_bytes
    assert read_model(path).instruct
