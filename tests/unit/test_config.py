"""Configuration: unknown fields and values out of range are refused, with the field named."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from lfx_local_runtimes.errors import SettingsFault
from lfx_local_runtimes.runtimes import ScriptedRuntime, register_engine
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.engines import registry
from lfx_local_runtimes.runtimes.sources.registrations import Registrations
from lfx_local_runtimes.runtimes.tasks.generation import ChatMessage, GenerationConfig
from lfx_local_runtimes.settings import load_settings


def test_the_documented_configuration_works() -> None:
    config = ModelConfig(
        model_id="google/gemma-2b", model_name="Gemma-2B", model_type="llm",
        runtime_type=RuntimeType.TRANSFORMERS, device_type=DeviceType.AUTO, quantization="int8",
    )  # fmt: skip
    assert config == ModelConfig.model_validate_json(config.model_dump_json())
    assert isinstance(config.runtime_type, RuntimeType)
    assert hash(config) == hash(config.model_copy())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_name", ""), ("model_name", "a\x00b"), ("model_name", "n" * 201), ("model_id", ""), ("quantization", "int3"),
        ("context_length", 0), ("keep_alive", -2), ("threads", 0), ("runtime_type", "no such!"), ("device_type", "tpu"),
        ("surprise", 1), ("revision", "a b"), ("model_type", "LLM!"),
    ],
)  # fmt: skip
def test_model_config_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate({"model_id": "a/b", "model_name": "m", field: value})
    assert caught.value.errors()[0]["loc"][0] == field


def test_runtime_types_are_used_as_an_enum_and_stay_open() -> None:
    first, *engines = RuntimeType
    assert first == RuntimeType.AUTO
    assert {RuntimeType.LLAMA_CPP, RuntimeType.TRANSFORMERS, RuntimeType.GEMMA_LOCAL} < set(engines)
    assert RuntimeType("LLAMA_CPP") == RuntimeType.LLAMA_CPP
    assert (RuntimeType.LLAMA_CPP.value, type(RuntimeType.LLAMA_CPP.value)) == ("llama_cpp", str)
    with pytest.raises(ValueError, match=r"no engine steam. Use one of: auto, .*llama_cpp"):
        RuntimeType("steam")
    with pytest.raises(ValidationError, match="no engine steam"):
        ModelConfig(model_id="a/b", model_name="m", runtime_type="steam")
    register_engine("steam", ScriptedRuntime)
    try:
        assert RuntimeType("steam") in list(RuntimeType)
        assert isinstance(ModelConfig(model_id="a/b", model_name="m", runtime_type="steam").runtime_type, RuntimeType)
    finally:
        registry._registered.pop("steam")


def test_a_registration_whose_engine_was_removed_stays(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    file.write_text('{"models": {"m": {"model_id": "a/b", "model_name": "m", "runtime_type": "gone"}}}')
    assert Registrations(file).all()["m"].runtime_type == "gone"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0), ("top_p", 1.1), ("top_k", -1),
        ("min_p", 2), ("repetition_penalty", 0), ("repetition_penalty", 1e-120), ("seed", -1), ("stop", [""]), ("stop", ["a"] * 65), ("surprise", 1),
    ],
)  # fmt: skip
def test_generation_config_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        GenerationConfig.model_validate({"prompt": "x", field: value})
    assert caught.value.errors()[0]["loc"][0] == field


def test_zero_is_a_value() -> None:
    config = GenerationConfig(prompt="", temperature=0.0, top_k=0, min_p=0.0, seed=0)
    assert (config.prompt, config.temperature, config.top_k, config.min_p, config.seed) == ("", 0.0, 0, 0.0, 0)


def test_one_input_and_only_one() -> None:
    with pytest.raises(ValidationError, match="exactly one of prompt, prompt_ids and messages"):
        GenerationConfig()
    with pytest.raises(ValidationError, match="exactly one of prompt, prompt_ids and messages"):
        GenerationConfig.model_validate({"prompt": "x", "messages": [{"role": "user", "content": "y"}]})
    with pytest.raises(ValidationError, match="raw needs a prompt"):
        GenerationConfig.model_validate({"raw": True, "messages": [{"role": "user", "content": "y"}]})


def test_the_prompt_may_come_without_its_name() -> None:
    assert GenerationConfig("hi", max_tokens=3) == GenerationConfig(prompt="hi", max_tokens=3)
    assert GenerationConfig("").prompt == ""
    with pytest.raises(ValidationError, match="exactly one of"):
        GenerationConfig("hi", messages=(ChatMessage(role="user", content="ho"),))


def test_a_stop_string_alone_is_a_list_of_one() -> None:
    assert GenerationConfig.model_validate({"prompt": "x", "stop": "END"}).stop == ("END",)


def test_quantization_is_spelled_one_way() -> None:
    spellings = {"q4_k_m": "Q4_K_M", "Q8_0": "Q8_0", "BF16": "bf16", "INT8": "int8"}
    for text, spelled in spellings.items():
        assert ModelConfig(model_id="a/b", model_name="m", quantization=text).quantization == spelled


def test_bare_names_are_read_and_the_prefixed_one_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_DEVICE", "CPU")
    monkeypatch.setenv("TRUST_REMOTE_CODE", "true")
    monkeypatch.setenv("HF_TOKEN", "bare")
    monkeypatch.setenv("LOCAL_RUNTIMES_HF_TOKEN", "prefixed")
    settings = load_settings()
    assert settings.force_device == "cpu"
    assert settings.trust_remote_code
    assert settings.hf_token is not None
    assert settings.hf_token.get_secret_value() == "prefixed"
    assert "prefixed" not in repr(settings)


def test_model_dirs_are_separated_as_path_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    import os

    monkeypatch.setenv("LOCAL_RUNTIMES_MODEL_DIRS", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    assert load_settings().model_roots == (tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"MEMORY_BUDGET_GB": "0"}, "MEMORY_BUDGET_GB"),
        ({"MAX_LOADED_MODELS": "0"}, "MAX_LOADED_MODELS"),
        ({"KEEP_ALIVE_S": "-5"}, "KEEP_ALIVE_S"),
        ({"FORCE_DEVICE": "tpu"}, "FORCE_DEVICE"),
        ({"FORCE_DEVICE": "cpu", "MAX_GPU_MEM_GB": "4"}, "no meaning with FORCE_DEVICE=cpu"),
        ({"MODEL_DIRS": "/no/such/folder"}, "is not a folder"),
        ({"RULES_FILE": "/no/such/file"}, "is not a file"),
    ],
)
def test_impossible_settings_say_why(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], reason: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"LOCAL_RUNTIMES_{name}", value)
    with pytest.raises(SettingsFault, match=reason):
        load_settings()
