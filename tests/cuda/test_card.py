"""Models on a CUDA card, through the manager: in a confined process, with the card's memory in the account."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.config import RuntimeType
from lfx_local_runtimes.runtimes.devices import MACHINE
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.planning import Rules, plan_loads
from lfx_local_runtimes.runtimes.processes.confinement import available
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk
from lfx_local_runtimes.settings import Settings
from tests.cards import need_build_for_cuda
from tests.encoder_models import TEXTS, cosines

pytestmark = [pytest.mark.cuda, pytest.mark.integration]

PATIENCE_S = 60.0
TEXT_MODELS = {"llama_cpp": "gemma_gguf", "transformers": "gemma_safetensors"}
EMBEDDERS = {"llama_cpp": "minilm_gguf", "transformers": "minilm"}
QUESTION = GenerationConfig(
    prompt="Question: What is the capital of France?\nAnswer:", raw=True, temperature=0, max_tokens=8
)
Open = Callable[..., RuntimeManager]


@pytest.fixture
def open_manager(tmp_path: Path) -> Iterator[Open]:
    """Make a manager with settings."""
    made: list[RuntimeManager] = []

    def make(**settings: Any) -> RuntimeManager:
        made.append(RuntimeManager(Settings(home=tmp_path / "home", offline=True, spare_processes=0, **settings)))
        return made[-1]

    yield make
    for manager in made:
        manager.close()


def register(manager: RuntimeManager, path: Path, engine: str, **options: Any) -> None:
    """Add a model called `model` for an engine."""
    config = {"model_id": str(path), "model_name": "model", "runtime_type": engine, **options}
    manager.register_model(ModelConfig.model_validate(config))


@pytest.fixture(params=[*TEXT_MODELS])
def engine(request: pytest.FixtureRequest) -> str:
    need_build_for_cuda(request.param)
    return str(request.param)


@pytest.fixture
def gemma(engine: str, request: pytest.FixtureRequest) -> Path:
    """The packaged model, in the format of the engine."""
    return Path(request.getfixturevalue(TEXT_MODELS[engine]))


@pytest.fixture
def card() -> str:
    """The key of the card that models go to."""
    return MACHINE.accelerators()[0].key


async def test_a_model_answers_from_a_confined_process(open_manager: Open, gemma: Path, engine: str, card: str) -> None:
    manager = open_manager()
    register(manager, gemma, engine, device_type="cuda", context_length=512)
    result = await manager.generate("model", QUESTION)
    assert "Paris" in result.text
    assert (result.metadata["engine"], result.metadata["device"]) == (engine, card)

    status = manager.model_status("model")
    assert (status.device, status.isolation) == (card, "process")
    assert status.pid != os.getpid()
    assert status.confined == available().level
    assert (status.confined == "full") == (status.confined_why is None)


async def test_a_model_goes_to_the_card_by_itself(open_manager: Open, gemma: Path, engine: str, card: str) -> None:
    manager = open_manager()
    register(manager, gemma, engine, context_length=512)
    assert (await manager.generate("model", QUESTION)).metadata["device"] == card


def test_the_account_holds_the_cards_memory(open_manager: Open, gemma: Path, engine: str, card: str) -> None:
    manager = open_manager()
    register(manager, gemma, engine, device_type="cuda", context_length=512)

    def account() -> Any:
        return manager.stats()["memory"][card]

    weights = sum(file.stat().st_size for file in ([gemma] if gemma.is_file() else gemma.glob("*.safetensors")))
    before = account()["driver_free_bytes"]
    manager.start("model", QUESTION).wait()
    held = account()["models"]["model"]
    assert held > 0.9 * weights
    assert before - account()["driver_free_bytes"] > 0.9 * weights
    assert account()["accounted_bytes"] == held

    asyncio.run(manager.unload_model("model"))
    assert (account()["models"], account()["accounted_bytes"]) == ({}, 0)
    deadline = time.monotonic() + PATIENCE_S
    while account()["driver_free_bytes"] < before - 2**26:  # other programs use the card too
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def test_a_card_with_too_little_memory_leaves_a_model_to_the_cpu(
    open_manager: Open, gemma: Path, engine: str, card: str
) -> None:
    manager = open_manager(max_gpu_mem_gb=0.05)
    register(manager, gemma, engine, context_length=512)
    result = await manager.generate("model", QUESTION)
    assert "Paris" in result.text
    assert result.metadata["device"] == "cpu"
    (warning,) = result.metadata["warnings"]
    assert card in warning
    assert warning.endswith(f"Running on {engine}, cpu instead.")
    assert manager.stats()["memory"][card]["models"] == {}


def budget_that_divides(path: Path, engine: str, **options: Any) -> float:
    """GiB of a card on which some of the model's layers fit, and not all."""
    config = ModelConfig(model_id=str(path), model_name="model", runtime_type=RuntimeType(engine), context_length=512)
    info = read_model(path, thorough=True)
    for step in range(1, 40):
        settings = Settings(max_gpu_mem_gb=step / 20, **options)
        found = plan_loads(config, info, settings=settings, rules=Rules.load())
        if any(len(plan.layers) > 1 for plan in found):
            return step / 20
    raise AssertionError("no budget divides the model")


async def test_layers_that_do_not_fit_on_the_card_go_to_the_cpu(open_manager: Open, gemma: Path, engine: str) -> None:
    manager = open_manager(max_gpu_mem_gb=budget_that_divides(gemma, engine))
    register(manager, gemma, engine, context_length=512)
    result = await manager.generate("model", QUESTION)
    assert "Paris" in result.text
    layers = result.metadata["acceleration"]["layers"]
    assert len(layers) == 2
    assert sum(layers.values()) == 18
    assert any("of 18 layers are on cuda:" in warning for warning in result.metadata["warnings"])
    memory = manager.stats()["memory"]
    assert all(memory[device]["models"]["model"] > 0 for device in layers)


async def test_a_model_is_split_over_two_cards(open_manager: Open, gemma: Path, engine: str) -> None:
    if len(MACHINE.accelerators()) < 2:
        pytest.skip("one card only")
    manager = open_manager(max_gpu_mem_gb=budget_that_divides(gemma, engine, force_device="cuda"), force_device="cuda")
    register(manager, gemma, engine, context_length=512)
    result = await manager.generate("model", QUESTION)
    assert "Paris" in result.text
    assert [*result.metadata["acceleration"]["layers"]] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("engine", [*EMBEDDERS])
async def test_embeddings_are_those_of_the_cpu(open_manager: Open, engine: str, request: pytest.FixtureRequest) -> None:
    need_build_for_cuda(engine)
    path = Path(request.getfixturevalue(EMBEDDERS[engine]))
    ask, found = EmbeddingAsk(texts=TEXTS), {}
    for device in ("cpu", "cuda"):
        manager = open_manager()
        exact = {} if engine == "llama_cpp" else {"quantization": "fp32"}
        register(manager, path, engine, device_type=device, model_type="embedding", **exact)
        found[device] = await manager.run("model", ask)
        await manager.unload_model("model")
        manager.catalog.remove("model")
    assert found["cuda"].metadata["device"].startswith("cuda:")
    assert cosines(found["cuda"].vectors, found["cpu"].vectors).min() > 0.9999
    assert np.isfinite(found["cuda"].vectors).all()
