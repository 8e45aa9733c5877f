"""The words of docs/other-names.md that are not tested beside what they name."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from lfx_local_runtimes.runtimes import GemmaLocalRuntime, ModelConfig
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.planning import LoadPlan
from tests.builders import GgufSpec, encode_gguf, tiny_llama
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
