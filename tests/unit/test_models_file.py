"""The models file: a machine's models in YAML."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lfx_local_runtimes.errors import ModelConflict, SettingsFault
from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig
from lfx_local_runtimes.runtimes.config import Defaults, Prompts
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.runtimes.sources.models_file import ModelsFile
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk
from lfx_local_runtimes.settings import Settings, load_settings
from tests.routes_app import KEY, make_app
from tests.scripted_manager import Theatre, theatre

FULL = """
models:
  - name: assistant
    model: google/gemma-3-1b-it
    task: llm
    device: cpu
    dtype: bf16
    prompts: {system: You are brief.}
    defaults: {temperature: 0.2, max_tokens: 256, stop: [END]}
    limits: {context_length: 8192, parallel: 4, max_queued: 9, threads: 2, keep_alive: 60}
    pin: true
    revision: main
  - {name: vectors, model: all-minilm-l6-v2, task: embedding, dtype: auto}
"""


def write(path: Path, text: str) -> Path:
    """Write with a time of its own, so that the change is seen."""
    now = path.stat().st_mtime if path.exists() else 0
    path.write_text(text)
    os.utime(path, (now + 1, now + 1))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "models.yaml"


def test_every_field(file: Path) -> None:
    models = ModelsFile(write(file, FULL)).all()
    assert models["assistant"] == ModelConfig(
        model_name="assistant", model_id="google/gemma-3-1b-it", model_type="llm", device_type="cpu",
        quantization="bf16", prompts=Prompts(system="You are brief."), pinned=True, revision="main",
        defaults=Defaults(temperature=0.2, max_tokens=256, stop=("END",)),
        context_length=8192, parallel=4, max_queued=9, threads=2, keep_alive=60,
    )  # fmt: skip
    assert models["vectors"].quantization is None
    assert hash(models["assistant"])


def test_it_is_read_again_when_it_changes(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = ModelsFile(file)
    assert models.all() == {}, "no file, no models"
    write(file, "models: [{name: a, model: o/a}]")
    assert list(models.all()) == ["a"]
    write(file, "models: [{name: b, model: o/b}, {name: c, model: o/c}]")
    assert list(models.all()) == ["b", "c"]
    write(file, "models: [{")
    assert list(models.all()) == ["b", "c"]
    assert list(models.all()) == ["b", "c"]
    assert caplog.text.count("stay as they were") == 1
    write(file, "")
    assert models.all() == {}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("models: [", "not valid YAML"),
        ("[" * 5000, "not valid"),
        ("- a", "not valid at the top"),
        ("model: []", "not valid at model: Extra"),
        ("models: [a]", "not valid at models.0"),
        ("models: [{name: a}]", "models[0].model: Field required"),
        ("models: [{name: a, model: b, devise: cpu}]", "models[0].devise: Extra"),
        ("models: [{name: a, model: b, device: tpu}]", "models[0].device: "),
        ("models: [{name: a, model: b, limits: {speed: 3}}]", "models[0]: limits must be some of context_length"),
        ("models: [{name: a, model: b, defaults: {temperature: -1}}]", "models[0].defaults.temperature: "),
        ("models: [{name: a, model: b}, {name: a, model: c}]", "two models called a"),
        ("models: !!python/object/apply:os.getcwd []", "not valid YAML"),
        (" " * (2**20 + 1), "longer than 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_not_valid_is_told_at_the_start(file: Path, content: str, complaint: str) -> None:
    write(file, content)
    with pytest.raises(SettingsFault) as caught:
        ModelsFile(file)
    assert str(file) in caught.value.message
    assert complaint in caught.value.message


def test_the_file_goes_before_registrations_and_is_changed_by_hand_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    catalog = Catalog(Settings(home=home))
    catalog.add(ModelConfig(model_id="o/registered", model_name="a"))
    file = write(home / "models.yaml", "models: [{name: a, model: o/a}]")
    assert (catalog.resolve("a").source, catalog.resolve("A").config.model_id) == ("models file", "o/a")
    assert [row.source for row in catalog.list() if row.config.model_name == "a"] == ["models file"]
    assert catalog.add(ModelConfig(model_id="o/a", model_name="a")) is False
    for change in (lambda: catalog.add(ModelConfig(model_id="o/b", model_name="a")), lambda: catalog.remove("a")):
        with pytest.raises(ModelConflict, match=str(file)):
            change()


def test_the_setting_names_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "mine.yaml", "models: [{name: a, model: o/a}]")
    monkeypatch.setenv("LOCAL_RUNTIMES_MODELS_FILE", str(file))
    assert Catalog(load_settings()).resolve("a").config.model_id == "o/a"
    file.unlink()
    with pytest.raises(SettingsFault, match="MODELS_FILE names"):
        load_settings()


# -- prompts and defaults ------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    (tmp_path / "home").mkdir()
    write(
        tmp_path / "home" / "models.yaml",
        f"models: [{{name: sage, model: {tmp_path / 'models' / 'owl'}, runtime_type: scripted, "
        "prompts: {system: Be wise.}, defaults: {temperature: 0.1, max_tokens: 7, dimensions: 3}}]",
    )
    with theatre(tmp_path, monkeypatch) as stage:
        yield stage


async def test_requests_get_what_they_leave_unset(stage: Theatre) -> None:
    async def asked(config: GenerationConfig) -> GenerationConfig:
        await stage.manager.generate("sage", config)
        return stage.requests[-1]

    plain = await asked(GenerationConfig("hello"))
    assert [(turn.role, turn.content) for turn in plain.turns] == [("system", "Be wise."), ("user", "hello")]
    assert (plain.temperature, plain.max_tokens, plain.top_p) == (0.1, 7, 0.95)
    own = await asked(GenerationConfig("hello", temperature=0.7, max_tokens=512))
    assert (own.temperature, own.max_tokens) == (0.7, 512), "what is asked counts, also if it is the usual value"
    messages = [{"role": "system", "content": "Be silly."}, {"role": "user", "content": "hello"}]
    assert (await asked(GenerationConfig.model_validate({"messages": messages}))).turns[0].content == "Be silly."
    assert (await asked(GenerationConfig("hello", raw=True))).prompt == "hello"


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/generate", {"model_name": "sage", "prompt": "hi"}, (0.1, 7)),
        ("/generate", {"model_name": "sage", "prompt": "hi", "temperature": 0.7}, (0.7, 7)),
        ("/inference", {"model": "sage", "options": {"prompt": "hi"}}, (0.1, 7)),
        ("/v1/chat/completions", {"model": "sage", "messages": [{"role": "user", "content": "hi"}]}, (0.1, 7)),
        ("/v1/completions", {"model": "sage", "prompt": "hi", "temperature": 1}, (1.0, 7)),
    ],
)
def test_requests_over_rest_get_them_too(
    stage: Theatre, path: str, body: dict[str, Any], expected: tuple[float, int]
) -> None:
    with TestClient(make_app(stage.manager), base_url="http://test" + PREFIX, headers=KEY) as client:
        assert client.post(path, json=body).status_code == 200
    config = stage.requests[-1]
    assert (config.temperature, config.max_tokens) == expected


def test_embeddings_get_the_prompt_of_their_role() -> None:
    prompts, defaults = Prompts(query="query: ", document="passage: "), Defaults(dimensions=3, max_tokens=5)

    def completed(**fields: Any) -> tuple[str | None, int | None]:
        ask = EmbeddingAsk(texts=("a",), **fields).completed(defaults, prompts)
        return ask.prompt, ask.dimensions

    assert completed(role="query") == ("query: ", 3)
    assert completed(role="document", dimensions=4) == ("passage: ", 4)
    assert completed() == (None, 3)
    assert completed(role="query", prompt="") == ("", 3)
