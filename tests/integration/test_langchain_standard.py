"""LangChain's standard suites on the packaged Gemma. What the model cannot do is declared, and LangChain skips it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from lfx_local_runtimes.langchain.chat import ChatLocalRuntime
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager
from lfx_local_runtimes.settings import Settings

pytestmark = pytest.mark.integration

GEMMA = "gemma-3-270m"
ALIAS = "the-same-gemma"


@pytest.fixture(scope="module")
def loaded_gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeManager]:
    """One manager for the module: the suite makes about forty requests. The alias is what per-call overrides name."""
    manager = RuntimeManager(Settings(home=tmp_path_factory.mktemp("home"), offline=True))
    gemma = manager.catalog.resolve(GEMMA).config
    # one thread: the number is fixed with `deterministic`, and two that wait for each other crawl on a busy machine
    manager.register_model(ModelConfig(model_id=gemma.model_id, model_name=ALIAS, deterministic=True, threads=1))
    for name in (GEMMA, ALIAS):
        asyncio.run(manager.load_model(name))
    yield manager
    manager.close()


@pytest.fixture(autouse=True)
def shared_manager(loaded_gemma: RuntimeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfx_local_runtimes.runtimes.manager._shared", loaded_gemma)


class _Capabilities:
    """What ChatLocalRuntime and the packaged Gemma can do."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatLocalRuntime

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": GEMMA}

    @property
    def has_tool_calling(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return False  # we do; but the suite asks for certain keys by prompt alone, which a base model does not follow

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return GEMMA if self.chat_model_params["model"] == ALIAS else ALIAS


class TestUnit(_Capabilities, ChatModelUnitTests):
    pass


class TestIntegration(_Capabilities, ChatModelIntegrationTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        # A base model does not stop by itself, and would fill a text with spaces for ever. One line of it is enough.
        return {"model": ALIAS, "max_tokens": 160, "temperature": 0, "frequency_penalty": 1.0, "stop": ["\n"]}

    @pytest.mark.xfail(reason="The choice is free, and a base model was never trained to call a tool.", strict=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(
        reason="A base model of 270M may translate the Japanese text that it should repeat.", strict=False
    )
    def test_unicode_tool_call_integration(self, model: BaseChatModel, **options: Any) -> None:
        super().test_unicode_tool_call_integration(model, **options)
