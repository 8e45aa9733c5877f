"""The words of docs/other-names.md that are not tested beside what they name."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from lfx_local_runtimes.errors import NotAllowed, SettingsFault
from lfx_local_runtimes.runtimes import GemmaLocalRuntime, ModelConfig
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.planning import LoadPlan, Rules, plan_loads
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.settings import load_settings
from tests.builders import GgufSpec, encode_gguf, tiny_llama, write_gguf
from tests.fake_hub import FakeHub, serve


def a_gemma() -> bytes:
    """The header of a Gemma over the tensors of a tiny llama: enough for a plan."""
    spec = tiny_llama()
    metadata = {key.replace("llama.", "gemma2."): value for key, value in spec.metadata.items()}
    return encode_gguf(GgufSpec({**metadata, "general.architecture": ("str", "gemma2")}, spec.tensors))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve(FakeHub({"google/gemma-2b": {"gemma-2b-Q4_K_M.gguf": a_gemma()}})) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


async def test_a_runtime_without_a_manager_finds_its_files_as_the_manager_does(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[LoadPlan] = []

    def note(runtime: GemmaLocalRuntime, plan: LoadPlan, context: LoadContext) -> None:
        planned.append(plan)

    monkeypatch.setattr(GemmaLocalRuntime, "_load", note)
    monkeypatch.setattr(GemmaLocalRuntime, "_measure", lambda runtime: {})
    monkeypatch.setattr(GemmaLocalRuntime, "_work", lambda runtime, inbox: inbox.get())
    runtime = GemmaLocalRuntime(ModelConfig(model_id="google/gemma-2b"))
    assert runtime.config.model_name == "google/gemma-2b"
    assert await runtime.load() is True
    await runtime.unload()
    assert planned[0].info.path.name == "gemma-2b-Q4_K_M.gguf"
    assert planned[0].engine == "gemma_local"


@pytest.mark.parametrize(
    ("variables", "field", "value"),
    [
        ({"TRUST_REMOTE_CODE": "auto"}, "trust_remote_code", True),
        ({"TRUST_REMOTE_CODE": "Always"}, "trust_remote_code", True),
        ({"TRUST_REMOTE_CODE": "never"}, "trust_remote_code", False),
        ({"TRUST_REMOTE_CODE": "1"}, "trust_remote_code", True),
        ({"LOCAL_RUNTIMES_TRUST_REMOTE_CODE": "never", "TRUST_REMOTE_CODE": "always"}, "trust_remote_code", False),
        ({"ALLOW_UNSANDBOXED": "true"}, "allow_unconfined_code", True),
        ({"LOCAL_RUNTIMES_ALLOW_UNCONFINED_CODE": "0", "ALLOW_UNSANDBOXED": "1"}, "allow_unconfined_code", False),
        ({"ENABLE_LARGE_MODELS": "true"}, "size_limit", None),
        ({"LOCAL_RUNTIMES_LARGE_MODEL_GB": "2"}, "size_limit", 2**31),
        ({"UNIVERSAL_RUNTIME_HOST": "::1"}, "host", "::1"),
        ({"UNIVERSAL_RUNTIME_PORT": "9000"}, "port", 9000),
        ({"TRANSFORMERS_CACHE": "/a"}, "hub_cache", Path("/a")),
        ({"TRANSFORMERS_CACHE": "/a", "HF_HUB_CACHE": "/b"}, "hub_cache", Path("/b")),
    ],
)
def test_other_names_of_settings(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], field: str, value: object
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert getattr(load_settings(), field) == value


@pytest.mark.parametrize(("name", "value"), [("TRUST_REMOTE_CODE", "sometimes"), ("UNIVERSAL_RUNTIME_PORT", "0")])
def test_impossible_values_of_other_names(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsFault, match=name.removeprefix("UNIVERSAL_RUNTIME_")):
        load_settings()


def test_models_are_found_in_the_folder_of_transformers_cache(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFORMERS_CACHE", str(tmp_path / "old cache"))
    catalog = Catalog(load_settings())
    fetched = catalog.fetch(catalog.resolve("google/gemma-2b").config, lambda progress: None, lambda: False)
    assert fetched.is_relative_to(tmp_path / "old cache")
    assert "google/gemma-2b:Q4_K_M" in {row.config.model_name for row in Catalog(load_settings()).list()}


def test_a_large_model_is_neither_fetched_nor_loaded_without_permission(hub: FakeHub, tmp_path: Path) -> None:
    settings = load_settings(large_model_gb=1e-6)
    catalog = Catalog(settings)
    config = catalog.resolve("google/gemma-2b").config
    with pytest.raises(NotAllowed, match=r"google/gemma-2b has .*ENABLE_LARGE_MODELS=true") as refused:
        catalog.fetch(config, lambda progress: None, lambda: False)
    assert refused.value.model_name == "google/gemma-2b"
    assert hub.downloads("gemma-2b-Q4_K_M.gguf") == []
    info = read_model(write_gguf(tmp_path / "m.gguf"))
    with pytest.raises(NotAllowed, match="need the operator's permission"):
        plan_loads(config, info, settings=settings, rules=Rules.load())
    allowed = load_settings(large_model_gb=1e-6, enable_large_models=True)
    assert plan_loads(config, info, settings=allowed, rules=Rules.load())
    assert Catalog(allowed).fetch(config, lambda progress: None, lambda: False).is_file()
