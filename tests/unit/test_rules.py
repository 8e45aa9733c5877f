"""The rules file: format and architecture to engines."""

import json
from pathlib import Path

import pytest

from lfx_local_runtimes.errors import SettingsFault
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import inspect_model
from lfx_local_runtimes.runtimes.planning.rules import Rules
from lfx_local_runtimes.settings import get_settings
from tests.builders import write_gguf


def info(kind: ModelFormat, architecture: str | None = None) -> ModelInfo:
    return ModelInfo(Path("m"), kind, (), 1, architecture=architecture)


def rules_file(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_shipped_rules() -> None:
    rules = Rules.load()
    assert {kind: rules.engines_for(info(kind)) for kind in ModelFormat} == {
        ModelFormat.GGUF: ("llama_cpp", "transformers"),
        ModelFormat.SAFETENSORS: ("transformers", "onnx"),
        ModelFormat.PICKLE: ("transformers",),
        ModelFormat.ONNX: ("onnx",),
        ModelFormat.DIFFUSERS: (),
        ModelFormat.CTRANSLATE2: (),
        ModelFormat.PIPER: (),
        ModelFormat.UNKNOWN: (),
    }


def test_the_first_rule_that_fits_decides(tmp_path: Path) -> None:
    file = rules_file(tmp_path / "rules.json", {"rules": [
        {"format": "gguf", "architectures": ["Gemma*", "phi?"], "engines": ["transformers"]},
        {"format": "gguf", "engines": ["mine", "llama_cpp"]},
    ]})  # fmt: skip
    rules = Rules.load(file)
    assert rules.engines_for(info(ModelFormat.GGUF, "gemma3")) == ("transformers",)
    assert rules.engines_for(info(ModelFormat.GGUF, "PHI3")) == ("transformers",)
    assert rules.engines_for(info(ModelFormat.GGUF, "phi")) == ("mine", "llama_cpp")
    assert rules.engines_for(info(ModelFormat.GGUF)) == ("mine", "llama_cpp")
    assert rules.engines_for(info(ModelFormat.SAFETENSORS)) == ()  # the user's file stands alone


def other_form(path: Path, fallback: dict[str, object] | None) -> Rules:
    content = {"runtime_rules": {
        "gguf": {"engine": "llama.cpp", "command": "llama-server", "args": ["--port", "8080"]},
        "diffusers": {"engine": "pictures"},
    }, **({} if fallback is None else {"fallback": fallback})}  # fmt: skip
    return Rules.load(rules_file(path, content))


@pytest.mark.parametrize(
    ("fallback", "gguf", "safetensors"),
    [
        (None, ("llama_cpp",), ()),
        ({"enabled": False, "default_runtime": "transformers"}, ("llama_cpp",), ()),
        ({"enabled": True, "default_runtime": "transformers"}, ("llama_cpp", "transformers"), ("transformers",)),
        ({"default_runtime": "llama-cpp"}, ("llama_cpp",), ("llama_cpp",)),
        ({"enabled": True}, ("llama_cpp", "transformers"), ("transformers", "onnx")),
    ],
)
def test_the_form_of_other_runtimes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fallback: dict[str, object] | None,
    gguf: tuple[str, ...], safetensors: tuple[str, ...],
) -> None:  # fmt: skip
    rules = other_form(tmp_path / "rules.json", fallback)
    assert rules.engines_for(info(ModelFormat.GGUF)) == gguf
    assert rules.engines_for(info(ModelFormat.SAFETENSORS)) == safetensors
    assert rules.engines_for(info(ModelFormat.DIFFUSERS))[0] == "pictures"
    assert rules.engines_for(info(ModelFormat.PIPER)) == ()
    assert "the command line of gguf is not run" in caplog.text


def test_inspection_follows_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_gguf(tmp_path / "m.gguf")
    file = rules_file(tmp_path / "rules.json", {"rules": [{"format": "gguf", "engines": ["mine"]}]})
    assert inspect_model(model).engine == "llama_cpp"
    monkeypatch.setenv("LOCAL_RUNTIMES_RULES_FILE", str(file))
    get_settings.cache_clear()
    assert inspect_model(model).engine == "mine"
    assert inspect_model(model, rules=Rules.load()).engine == "llama_cpp"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not valid JSON: line 1, column 2"),
        ("[" * 100_000, "not valid JSON"),
        ([], "not valid at the top"),
        ({}, "not valid at rules: Field required"),
        (
            {"rules": [{"format": "gguf", "engines": []}, {"format": "zip", "engines": []}]},
            "not valid at rules[1].format",
        ),
        ({"rules": [{"format": "gguf", "engines": ["Bad Name"]}]}, "not valid at rules[0].engines[0]"),
        ({"rules": [{"format": "gguf", "engines": [], "else": 1}]}, "not valid at rules[0].else"),
        ({"rules": [{"format": "gguf", "engines": [], "architectures": []}]}, "not valid at rules[0].architectures"),
        ({"rules": [{"format": "gguf", "engines": ["auto"]}]}, "names the engine auto for gguf"),
        ({"runtime_rules": {"zip": {"engine": "x"}}}, "not valid at runtime_rules.zip"),
        ({"runtime_rules": {"gguf": {}}}, "not valid at runtime_rules.gguf.engine: Field required"),
        ({"runtime_rules": {"gguf": {"engine": "auto"}}}, "names the engine auto for gguf"),
        (" " * (2**20 + 1), "longer than 1,048,576 bytes"),
    ],
)
def test_invalid_files_name_the_file_and_the_place(tmp_path: Path, content: object, complaint: str) -> None:
    file = rules_file(tmp_path / "rules.json", content)
    with pytest.raises(SettingsFault) as caught:
        Rules.load(file)
    assert str(file) in caught.value.message
    assert complaint in caught.value.message
    assert "LOCAL_RUNTIMES_RULES_FILE" in caught.value.hint


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsFault, match="cannot be read"):
        Rules.load(tmp_path / "nothing.json")
