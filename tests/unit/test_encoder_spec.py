"""How an encoder's files say its output is read; files are strangers'."""

import json
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import InvalidModelFile, LoadFailed
from lfx_local_runtimes.runtimes.devices import CPU
from lfx_local_runtimes.runtimes.engines.encoder.spec import read_spec
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.tasks.text.reading import Spec

POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}


def read(folder: Path, config: dict[str, Any] | None = None, *, limit: int = 10**30, **files: Any) -> Spec:
    """Lay `files` (`a__b` is a/b.json) and read them."""
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    info = ModelInfo(folder, ModelFormat.SAFETENSORS, (), 0, metadata=config or {})
    return read_spec(LoadPlan(info, "transformers", CPU, "fp32", 4096, task="embedding"), limit)


def test_the_shortest_limit_counts(tmp_path: Path) -> None:
    assert read(tmp_path).max_length == 4096
    assert read(tmp_path, limit=512).max_length == 512
    assert read(tmp_path, {"max_position_embeddings": 514, "model_type": "roberta"}).max_length == 512
    own = read(tmp_path, {"max_position_embeddings": 512}, sentence_bert_config={"max_seq_length": 256})
    assert own.max_length == 256


def test_pooling_and_normalization_are_the_models(tmp_path: Path) -> None:
    modules = [POOLING, {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]
    spec = read(tmp_path, modules=modules, **{"1_Pooling__config": {"pooling_mode_cls_token": True}})
    assert (spec.pooling, spec.normalize) == ("cls", True)


def test_without_files_of_its_own_it_is_the_mean(tmp_path: Path) -> None:
    assert (read(tmp_path).pooling, read(tmp_path).normalize) == ("mean", False)


def test_prompts_are_the_models(tmp_path: Path) -> None:
    spec = read(tmp_path, config_sentence_transformers={"prompts": {"query": "q: "}, "default_prompt_name": "query"})
    assert (spec.prompts, spec.default_prompt) == ({"query": "q: "}, "query")


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({"id2label": {"0": "LABEL_0"}}, "sigmoid"),
        ({"id2label": {"0": "a", "1": "b"}}, "softmax"),
        ({"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"}, "sigmoid"),
        ({"id2label": {"0": "a"}, "problem_type": "regression"}, "identity"),
        ({"id2label": {"0": "a"}, "sentence_transformers": {"activation_fn": "torch.nn.Identity"}}, "identity"),
        (
            {"id2label": {"0": "a"}, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
            "identity",
        ),
    ],
)
def test_logits_become_scores_as_upstream_has_it(config: dict[str, Any], activation: str, tmp_path: Path) -> None:
    assert read(tmp_path, config).activation == activation


def test_labels_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    tags = {str(number): f"l{number}" for number in range(12)}
    assert read(tmp_path, {"id2label": dict(reversed(tags.items()))}).labels == tuple(tags.values())


@pytest.mark.parametrize(
    ("files", "fault", "said"),
    [
        ({"modules": "{"}, InvalidModelFile, "not a list of modules"),
        ({"modules": {"a": 1}}, InvalidModelFile, "not a list of modules"),
        ({"modules": [{**POOLING, "path": "../../etc"}]}, InvalidModelFile, "outside of the model's folder"),
        ({"modules": [{**POOLING, "path": "/etc"}]}, InvalidModelFile, "outside of the model's folder"),
        ({"modules": [{"path": "1", "type": "their.code.Magic"}]}, LoadFailed, "a module Magic"),
        ({"modules": [POOLING], "1_Pooling__config": {}}, LoadFailed, "nothing known"),
        ({"modules": [POOLING], "1_Pooling__config": {"include_prompt": False}}, LoadFailed, "prompts out of the mean"),
        (
            {
                "modules": [POOLING],
                "1_Pooling__config": {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            },
            LoadFailed,
            "cls and max",
        ),
        (
            {"modules": [{"path": "2", "type": "x.Dense"}], "2__config": {"activation_function": "x.GELU"}},
            LoadFailed,
            "GELU",
        ),
        ({"modules": [{"path": "2", "type": "x.Dense"}], "2__config": {}}, LoadFailed, "without model.safetensors"),
    ],
)
def test_what_is_not_served_is_said(files: dict[str, Any], fault: type[Exception], said: str, tmp_path: Path) -> None:
    with pytest.raises(fault, match=said):
        read(tmp_path, **files)


def test_shorter_vectors_are_for_models_that_say_so(tmp_path: Path) -> None:
    assert not read(tmp_path).shortens
    assert read(tmp_path, {"matryoshka_dimensions": [256, 128]}).shortens
    assert read(tmp_path, {"is_matryoshka": True}).shortens
