"""LangChain's standard tests of images, on a seeded vision-language model in a process of its own."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests

from lfx_local_runtimes.langchain.chat import ChatLocalRuntime
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager
from lfx_local_runtimes.settings import Settings
from tests.vision_language import png

pytestmark = pytest.mark.integration

MODEL = "tiny-seer"


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory, tiny_idefics3: Path) -> Iterator[RuntimeManager]:
    settings = Settings(home=tmp_path_factory.mktemp("home"), model_dirs=(tiny_idefics3.parent,), offline=True)
    manager = RuntimeManager(settings)
    manager.register_model(
        ModelConfig(model_id=str(tiny_idefics3), model_name=MODEL, quantization="fp32", threads=1, context_length=1024)
    )
    asyncio.run(manager.load_model(MODEL))
    yield manager
    manager.close()


@pytest.fixture(autouse=True)
def shared_manager(manager: RuntimeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite fetches its picture from the internet: it gets one of ours."""
    monkeypatch.setattr("lfx_local_runtimes.runtimes.manager._shared", manager)
    monkeypatch.setattr(httpx, "get", lambda *args, **options: httpx.Response(200, content=png(3)))


class Suite(ChatModelIntegrationTests):
    """LangChain's. Its other tests run on a real model elsewhere."""

    __test__ = False
    supports_image_inputs = True
    supports_image_tool_message = True

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatLocalRuntime


@pytest.mark.parametrize("name", ["test_image_inputs", "test_image_tool_message"])
def test_langchains_tests_of_images_pass(name: str) -> None:
    getattr(Suite(), name)(ChatLocalRuntime(model=MODEL, max_tokens=8, temperature=0))


def test_the_model_declares_that_it_reads_pictures() -> None:
    profile = ChatLocalRuntime(model=MODEL).profile
    assert profile is not None
    assert profile["image_inputs"] is True


def test_the_picture_counts(manager: RuntimeManager) -> None:
    """It crosses the border of the model's confined process, and changes what the model computes."""
    assert manager.model_status(MODEL).vision
    model = ChatLocalRuntime(model=MODEL, max_tokens=8, temperature=0, logprobs=True)

    def ask(seed: int) -> Any:
        data = base64.b64encode(png(seed)).decode()
        block = {"type": "image", "base64": data, "mime_type": "image/png"}
        return model.invoke([HumanMessage([{"type": "text", "text": "What is this?"}, block])]).response_metadata

    one, other = ask(1), ask(2)
    assert one["logprobs"] != other["logprobs"]
    assert ask(1)["logprobs"] == one["logprobs"]
