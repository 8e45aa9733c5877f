"""Nothing is downloaded that cannot be served: what is refused before the first byte of the weights, and what passes."""

import json
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes import optional
from lfx_local_runtimes.errors import (
    DoesNotFit,
    InvalidInput,
    InvalidModelFile,
    MissingExtra,
    PickleRefused,
    RemoteCodeRefused,
    RuntimeFault,
    WrongTask,
)
from lfx_local_runtimes.runtimes.engines.transformers import known
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.status import DownloadStatus
from tests.builders import write_split_gguf
from tests.fake_hub import FakeHub
from tests.hub_models import LLAMA, REPO, gguf, hub_manager, put_tensors

GGUF = "tiny-Q8_0.gguf"


@pytest.fixture
def hub_and_manager(tmp_path: Path) -> Iterator[tuple[FakeHub, RuntimeManager]]:
    with hub_manager(tmp_path, {REPO: {}}, memory_budget_gb=8, enable_large_models=True) as pair:
        yield pair


@pytest.fixture
def hub(hub_and_manager: tuple[FakeHub, RuntimeManager]) -> FakeHub:
    return hub_and_manager[0]


@pytest.fixture
def manager(hub_and_manager: tuple[FakeHub, RuntimeManager]) -> RuntimeManager:
    return hub_and_manager[1]


def fetched(hub: FakeHub, cache: Path) -> bool:
    """Whether any file was asked for from its beginning to its end, or left anything in the cache."""
    whole = [where for path, where, _ in hub.log if "/resolve/" in path and str(where).endswith("-")]
    return bool(whole) or any(path.is_file() and path.suffix != ".lock" for path in cache.rglob("*"))


def refused(manager: RuntimeManager, hub: FakeHub, kind: type[RuntimeFault], says: str) -> RuntimeFault:
    with pytest.raises(kind, match=says) as caught:
        manager.download_model(REPO)
    assert not fetched(hub, Path(manager.catalog._cache))
    (job,) = manager.downloads.list()
    assert (job.state, job.error) == ("failed", str(caught.value))
    return caught.value


def done(manager: RuntimeManager, name: str = REPO) -> DownloadStatus:
    """The download at its end."""
    started = manager.download_model(name)
    manager.downloads.fetch(manager.catalog.resolve(name).config, lambda progress: None, lambda: False)
    return manager.downloads.status(started.id)


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"model_type": "martian"}, InvalidInput, "martian, which the installed Transformers does not know"),
        (
            {"model_type": "martian", "auto_map": {"AutoModel": "modeling.M"}},
            RemoteCodeRefused, "only the code that comes with it",
        ),
        (
            {"model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"]},
            WrongTask, "nothing here serves ViTMAEForPreTraining",
        ),
        ({"quantization_config": {"group_size": 64, "bits": 4}}, InvalidInput, "by an unnamed method, which Transformers does"),
        ({"quantization_config": {"quant_method": "mystery"}}, InvalidInput, "by mystery, which Transformers does not read"),
        ({"max_position_embeddings": "many", "num_hidden_layers": 2.5, "model_type": 7, "hidden_size": None}, None, ""),
    ],
)  # fmt: skip
def test_what_config_json_gives_away(
    hub: FakeHub, manager: RuntimeManager, changes: dict[str, Any], kind: type[RuntimeFault] | None, says: str
) -> None:
    put_tensors(hub, LLAMA | changes)
    if kind is None:  # strange, but no reason to refuse
        assert manager.download_model(REPO).engine == "transformers"
    else:
        assert refused(manager, hub, kind, says).hint


def test_a_quantization_whose_library_is_missing(
    hub: FakeHub, manager: RuntimeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "find_spec", lambda name: None if name == "gptqmodel" else find_spec(name))
    put_tensors(hub, LLAMA | {"quantization_config": {"quant_method": "awq", "bits": 4}})
    refused(manager, hub, InvalidInput, "by awq, which needs gptqmodel, and that is not installed")


def test_an_engine_that_is_not_installed(
    hub: FakeHub, manager: RuntimeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ("llama_cpp", "transformers")
    monkeypatch.setattr(optional, "find_spec", lambda name: None if name in missing else find_spec(name))
    hub.repos[REPO] = {GGUF: gguf()}
    fault = refused(manager, hub, MissingExtra, "llama_cpp is not installed")
    assert "pip install" in fault.hint


def test_too_large_for_the_memory_is_told_with_numbers(hub: FakeHub, manager: RuntimeManager) -> None:
    put_tensors(hub, LLAMA, billions=20)
    refused(
        manager, hub, DoesNotFit, r"tiny-it needs (37|74)\.\d GiB on cpu, and all models together may take 8\.0 GiB"
    )


@pytest.mark.parametrize(
    ("files", "kind", "says"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, PickleRefused, "only pickle"),
        (
            {"model_index.json": b'{"unet": ["diffusers", "U"]}', "unet/config.json": b"{}", "unet/m.safetensors": b"x"},
            WrongTask, "nothing here serves diffusers pipelines",
        ),
        ({GGUF: b"GGUF" + struct.pack("<I", 9) + bytes(3_000_000)}, InvalidModelFile, "version 9 is not supported"),
        ({GGUF: gguf(), "README.md": b"hi"}, None, ""),
        ({GGUF: gguf({"llama.block_count": ("u32", 100_000)})}, InvalidModelFile, "block_count|layers"),
        ({"config.json": b"{", "model.safetensors": b"x" * 100}, InvalidModelFile, "not valid JSON|safetensors"),
    ],
)  # fmt: skip
def test_what_files_and_headers_give_away(
    hub: FakeHub, manager: RuntimeManager, files: dict[str, bytes], kind: type[RuntimeFault] | None, says: str
) -> None:
    hub.repos[REPO] = files
    if kind is None:
        assert done(manager).state == "done"
    else:
        refused(manager, hub, kind, says)


def test_a_header_of_megabytes_is_read_and_no_more(hub: FakeHub, manager: RuntimeManager) -> None:
    content = gguf({"general.tags": ("[str]", ["a tag of some length"] * 100_000)}, weights=4_000_000)
    hub.repos[REPO] = {GGUF: content}
    status = done(manager)
    assert (status.state, status.done_bytes, status.total_bytes) == ("done", len(content), len(content))
    assert (status.engine, status.device) == ("llama_cpp", "cpu")
    assert status.memory_bytes is not None
    assert status.memory_bytes > len(content) - 3_000_000, "the tags are not loaded"
    assert status.memory_budget_bytes == 8 * 2**30
    assert status.disk_free_bytes
    assert hub.downloads(GGUF) == [
        f"bytes=0-{2**20 - 1}",
        f"bytes={2**20}-{2**21 - 1}",
        f"bytes={2**21}-{2**22 - 1}",
        "bytes=0-",
    ]


def test_a_hub_without_ranges_is_looked_at_too(hub: FakeHub, manager: RuntimeManager) -> None:
    hub.ranges = False
    hub.repos[REPO] = {GGUF: gguf({"general.tags": ("[str]", ["a tag of some length"] * 100_000)})}
    assert done(manager).engine == "llama_cpp"


def test_split_files_are_looked_at_together(hub: FakeHub, manager: RuntimeManager, tmp_path: Path) -> None:
    hub.repos[REPO] = {path.name: path.read_bytes() for path in write_split_gguf(tmp_path)}
    assert done(manager).state == "done"


def test_an_onnx_model_goes_by_its_configuration_and_size(hub: FakeHub, manager: RuntimeManager) -> None:
    config = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
    hub.repos[REPO] = {"config.json": json.dumps(config).encode(), "onnx/model.onnx": bytes(5000)}
    status = manager.download_model(REPO)
    assert status.engine == "onnx"
    hub.repos["acme/writer"] = {"config.json": json.dumps(LLAMA).encode(), "onnx/model.onnx": bytes(5000)}
    with pytest.raises(WrongTask, match="ONNX files of models that write text"):
        manager.download_model("acme/writer")


def test_nothing_of_a_look_stays(hub: FakeHub, manager: RuntimeManager, tmp_path: Path) -> None:
    put_tensors(hub, LLAMA, billions=20)
    with pytest.raises(DoesNotFit):
        manager.download_model(REPO)
    assert not list((tmp_path / "cache").rglob("preview-*"))
