"""What a model does: told by its configuration, its model card, its files, or the words of a registration."""

import json
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import InvalidInput, WrongTask
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.engines.registry import engine_row
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.formats.tasks import pipeline_tag, task_of
from lfx_local_runtimes.runtimes.planning import Rules, plan_loads
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.runtimes.status import ModelStatus
from lfx_local_runtimes.settings import Settings
from tests.builders import write_gguf
from tests.routes_app import write_model

LLAMA = {"architectures": ["LlamaForCausalLM"]}
BERT_CLASSIFIER = {"architectures": ["BertForSequenceClassification"]}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "models").mkdir()
    return Settings(home=tmp_path / "home", model_dirs=(tmp_path / "models",), offline=True)


def listed(settings: Settings) -> dict[str, ModelStatus]:
    manager = RuntimeManager(settings, catalog=Catalog(settings, cache=settings.home / "cache"))
    rows = {row.model_name: row for row in manager.list_models() if row.source != "package"}
    manager.close()
    return rows


def write(folder: Path, config: Any, card: str | None = None) -> Path:
    write_model(folder)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder


# -- configuration and model card ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "tag", "task"),
    [
        (LLAMA, None, "llm"),
        (LLAMA, "text-generation", "llm"),
        (LLAMA, "translation", "llm"),
        (LLAMA, "feature-extraction", "embedding"),
        (LLAMA, "text-to-speech", "unsupported"),
        ({"architectures": ["Qwen3Model"], "vocab_size": 9}, "sentence-similarity", "embedding"),
        ({"architectures": ["Qwen3Model"], "vocab_size": 9}, None, "unsupported"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, None, "embedding"),
        ({"model_type": "bert"}, None, "embedding"),
        ({"architectures": ["ModernBertForMaskedLM"], "model_type": "modernbert"}, "fill-mask", "embedding"),
        (BERT_CLASSIFIER | {"id2label": {"0": "LABEL_0"}}, "text-classification", "rerank"),
        (BERT_CLASSIFIER | {"id2label": {"0": "good", "1": "bad"}}, None, "classification"),
        (BERT_CLASSIFIER | {"id2label": {"0": "ENTAILMENT", "1": "x"}}, "zero-shot-classification", "zero_shot"),
        ({"architectures": ["BertForTokenClassification"]}, None, "ner"),
        ({"architectures": ["Wav2Vec2ForSequenceClassification"], "model_type": "wav2vec2"}, None, "unsupported"),
        ({"architectures": ["LayoutLMv3ForTokenClassification"], "model_type": "layoutlmv3"}, None, "unsupported"),
        ({"architectures": ["WhisperForConditionalGeneration"], "vocab_size": 9}, None, "unsupported"),
        ({"architectures": ["T5ForConditionalGeneration"], "vocab_size": 9}, "translation", "unsupported"),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}, "image-text-to-text", "llm"),
        ({"architectures": ["BlipForConditionalGeneration"], "text_config": {}}, "image-to-text", "unsupported"),
        ({"architectures": ["ViTModel"], "model_type": "vit"}, None, "image_embedding"),
        ({"architectures": ["ViTMAEModel"], "model_type": "vit_mae"}, None, "unsupported"),
        ({"architectures": ["DetrForObjectDetection"], "model_type": "detr"}, None, "object_detection"),
        ({"architectures": ["YolosForObjectDetection"], "model_type": "yolos"}, "object-detection", "object_detection"),
        ({"architectures": ["Owlv2ForObjectDetection"], "model_type": "owlv2"}, None, "unsupported"),
        ({"architectures": ["CLIPModel"], "model_type": "clip"}, None, "zero_shot_image_classification"),
        ({"architectures": ["SiglipModel"], "model_type": "siglip"}, None, "zero_shot_image_classification"),
        ({"architectures": ["Dinov2Model"], "model_type": "dinov2"}, "image-feature-extraction", "image_embedding"),
        ({"architectures": ["DPTForDepthEstimation"], "model_type": "dpt"}, "depth-estimation", "depth_estimation"),
        ({"architectures": ["ZoeDepthForDepthEstimation"], "model_type": "zoedepth"}, None, "unsupported"),
        ({"architectures": ["SegformerForSemanticSegmentation"]}, None, "image_segmentation"),
        ({"architectures": ["Mask2FormerForUniversalSegmentation"]}, "image-segmentation", "unsupported"),
        ({"architectures": ["ViTForImageClassification"], "model_type": "vit"}, None, "image_classification"),
        ({"architectures": ["ConvNextForImageClassification"]}, "image-classification", "image_classification"),
        ({"architectures": ["ChatGLMModel"], "auto_map": {"AutoModelForCausalLM": "m.X"}}, None, "llm"),
        ({"architectures": ["ChatGLMModel"], "auto_map": ["AutoModelForCausalLM"]}, None, "unsupported"),
        ({"vocab_size": 9}, None, "llm"),
        ({"text_config": {"vocab_size": 9}}, None, "llm"),
        ({}, "text-generation", "llm"),
        ({}, None, "unsupported"),
        ({"architectures": "broken"}, None, "unsupported"),
    ],
)
def test_the_task_is_read_from_configuration_and_card(config: dict[str, Any], tag: str | None, task: str) -> None:
    found, reason = task_of(config, tag=tag)
    assert found == task
    assert bool(reason) is (task == "unsupported")


def test_a_sentence_transformer_is_an_embedding_model() -> None:
    assert task_of({"architectures": ["Qwen3ForCausalLM"]}, sentence_transformer=True) == ("embedding", "")


@pytest.mark.parametrize(
    ("card", "tag"),
    [
        ("---\nlicense: mit\npipeline_tag: text-to-speech\n---\n# Model", "text-to-speech"),
        ("---\r\npipeline_tag: 'fill-mask'\r\n---\r\n", "fill-mask"),
        ('---\npipeline_tag: "fill-mask"\n---\n', "fill-mask"),
        ("---\nlicense: mit\n---\npipeline_tag: fill-mask\n", None),
        ("# A model\npipeline_tag: fill-mask\n", None),
        ("---\npipeline_tag:\n---\n", None),
        ("---\n" + "x" * 100_000 + "\npipeline_tag: fill-mask\n---\n", None),
        ("", None),
        (None, None),
    ],
)
def test_the_head_of_the_model_card(card: str | None, tag: str | None, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode())
    assert pipeline_tag(tmp_path) == tag


# -- files ---------------------------------------------------------------------------------------------------------------


def test_models_that_nothing_serves_say_so_and_are_never_planned(settings: Settings, tmp_path: Path) -> None:
    models = tmp_path / "models"
    write(models / "whisper", {"architectures": ["WhisperForConditionalGeneration"], "vocab_size": 9})
    write(models / "speaker", LLAMA, "---\npipeline_tag: text-to-speech\n---\n")
    for part in ("unet", "vae"):
        write_model(models / "diffusion" / part)
        (models / "diffusion" / part / "model.safetensors").rename(
            models / "diffusion" / part / "diffusion_pytorch_model.safetensors"
        )
    (models / "diffusion" / "model_index.json").write_text('{"unet": ["diffusers", "x"], "vae": ["diffusers", "y"]}')
    (models / "ct2").mkdir()
    (models / "ct2" / "config.json").write_text("{}")
    (models / "ct2" / "model.bin").write_bytes(b"\x06\0\0\0\x0c\0WhisperSpec\0" + bytes(32))
    no_words: dict[str, Any] = {
        key: None for key in read_model(write_gguf(tmp_path / "whole.gguf")).metadata if key.startswith("tokenizer.")
    }
    dropped = no_words | {f"tokenizer.ggml.{name}": None for name in ("tokens", "scores", "token_type", "merges")}
    write_gguf(models / "image.gguf", metadata=dropped)
    write_gguf(models / "projector.gguf", metadata={"general.type": ("str", "mmproj")})

    rows = listed(settings)
    reasons = {
        "whisper": "nothing here serves WhisperForConditionalGeneration",
        "speaker": "its model card says text-to-speech, and nothing here serves that",
        "diffusion": "nothing here serves diffusers pipelines",
        "ct2": "nothing here serves CTranslate2 models",
        "image": "it has no tokenizer, so it is no language model (llama)",
        "projector": "it is a mmproj of the architecture llama, and nothing here serves that",
    }
    assert {name: row.error for name, row in rows.items()} == reasons
    assert {row.model_type for row in rows.values()} == {"unsupported"}
    assert {row.engine for row in rows.values()} == {None}
    for name, reason in reasons.items():
        path = models / (f"{name}.gguf" if name in ("image", "projector") else name)
        config = ModelConfig(model_id=str(path), model_name=name)
        with pytest.raises(WrongTask, match=r"cannot be served: ") as refused:
            plan_loads(config, read_model(path, thorough=True), settings=settings, rules=Rules.load())
        assert reason in refused.value.message


def test_a_registration_may_know_better(settings: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path / "models" / "plain", {})
    manager = RuntimeManager(settings, catalog=Catalog(settings, cache=tmp_path / "cache"))
    manager.register_model(ModelConfig(model_id=str(folder), model_name="mine", model_type="text-generation"))
    status = manager.model_status("mine")
    assert (status.model_type, status.error) == ("llm", None)
    assert manager.model_status("plain").error == "config.json names no architecture"
    manager.close()


# -- words ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "task"),
    [
        ("llm", "llm"), ("coder", "llm"), ("text", "llm"), ("chat", "llm"), ("Text-Generation", "llm"),
        ("embeddings", "embedding"), ("embedding", "embedding"), ("sentence-similarity", "embedding"),
        ("reranker", "rerank"), ("text-classification", "classification"), ("zero-shot-classification", "zero_shot"),
        ("token-classification", "ner"), ("auto", "auto"),
    ],
)  # fmt: skip
def test_other_words_for_a_task(word: str, task: str) -> None:
    assert ModelConfig(model_id="a/b", model_name="m", model_type=word).model_type == task


def test_an_unknown_task_is_refused_with_the_list(settings: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path / "models" / "m", LLAMA)
    config = ModelConfig(model_id=str(folder), model_name="mine", model_type="painter")
    manager = RuntimeManager(settings, catalog=Catalog(settings, cache=tmp_path / "cache"))
    refusal = (
        r"model_type painter is not a task.*auto or one of: llm, embedding, rerank, classification, zero_shot, ner"
    )
    with pytest.raises(InvalidInput, match=refusal):
        manager.register_model(config)
    with pytest.raises(InvalidInput, match=refusal):
        plan_loads(config, read_model(folder), settings=settings, rules=Rules.load())
    manager.catalog.add(config)  # as an earlier version would have
    assert "painter is not a task" in (manager.model_status("mine").error or "")
    manager.close()


# -- models that cannot be read ------------------------------------------------------------------------------------------


def test_broken_models_are_listed_with_the_reason(settings: Settings, tmp_path: Path) -> None:
    models = tmp_path / "models"
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    (models / "cut.gguf").write_bytes(whole[:100])
    write(models / "config", "{not json")
    write(models / "shards", LLAMA)
    (models / "shards" / "model.safetensors").rename(models / "shards" / "model-00001-of-00002.safetensors")
    (models / "split-00002-of-00002.gguf").write_bytes(whole)
    write(models / "fine", LLAMA)
    rows = listed(settings)
    assert set(rows) == {"cut", "config", "shards", "split", "fine"}
    assert rows["fine"].error is None
    assert [name for name, row in rows.items() if row.valid] == ["fine"]
    expected = {
        "cut": "cut.gguf",
        "config": "not valid JSON",
        "shards": "index",
        "split": "00001-of-00002.gguf is missing",
    }
    for name, said in expected.items():
        assert said in (rows[name].error or ""), name
    assert {name: rows[name].model_type for name in ("cut", "config", "split")} == dict.fromkeys(
        ("cut", "config", "split"), "unknown"
    )


def test_a_model_that_no_load_is_possible_for_says_why(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    write_gguf(models / "gguf.gguf")
    write(models / "code", LLAMA)
    write(models / "pickle", LLAMA)
    (models / "pickle" / "model.safetensors").unlink()
    (models / "pickle" / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    manager = RuntimeManager(settings, catalog=Catalog(settings, cache=tmp_path / "cache"))
    code = ModelConfig(model_id=str(models / "code"), model_name="asks", trust_remote_code=True)
    manager.register_model(code)
    rows = {row.model_name: row for row in manager.list_models()}
    assert (rows["gguf"].valid, rows["gguf"].error, rows["code"].valid) == (True, None, True)
    for name, said in {"pickle": "has pickle weights", "asks": "code that came with it"}.items():
        assert not rows[name].valid
        assert said in (rows[name].error or "")
        assert rows[name].model_type == "llm"
    monkeypatch.setattr(type(engine_row("llama_cpp")), "installed", False)
    monkeypatch.setattr("lfx_local_runtimes.optional.find_spec", lambda module: None)
    status = manager.model_status("gguf")
    assert not status.valid
    assert "Run: pip install 'lfx-local-runtimes[" in (status.error or "")
    manager.close()


def test_a_model_that_was_mended_in_place_is_read_again(settings: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path / "models" / "m", "{not json")
    manager = RuntimeManager(settings, catalog=Catalog(settings, cache=tmp_path / "cache"))
    assert manager.model_status("m").error
    write(folder, LLAMA)
    assert manager.model_status("m").error is None
    manager.close()


def test_a_registration_that_is_not_valid_is_listed_and_can_be_changed(settings: Settings, tmp_path: Path) -> None:
    settings.home.mkdir()
    entries = {"odd": {"model_id": "a/b", "model_name": "odd", "context_length": "long"}, "x": 7}
    (settings.home / "models.json").write_text(json.dumps({"models": entries}))
    manager = RuntimeManager(settings, catalog=Catalog(settings, cache=tmp_path / "cache"))
    rows = {row.model_name: row for row in manager.list_models()}
    assert "context_length" in (rows["odd"].error or "")
    assert (rows["odd"].model_type, rows["odd"].source, rows["x"].model_type) == ("unknown", "registered", "unknown")
    assert manager.model_status("odd") == rows["odd"]
    with pytest.raises(InvalidInput, match=r"registration of odd is not valid.*rm odd"):
        manager.catalog.resolve("odd")
    folder = write(tmp_path / "models" / "m", LLAMA)
    manager.catalog.add(ModelConfig(model_id=str(folder), model_name="odd"), replace=True)
    assert manager.model_status("odd").error is None
    manager.unregister_model("x")
    assert "x" not in {row.model_name for row in manager.list_models()}
    manager.close()
