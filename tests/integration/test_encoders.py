"""Encoders in Transformers against the libraries they stand on: the same weights, the same results."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfx_local_runtimes.errors import (
    ContextOverflow,
    EngineFailure,
    InvalidInput,
    LoadFailed,
    RequestCancelled,
    WrongTask,
)
from lfx_local_runtimes.runtimes import GenerationConfig
from lfx_local_runtimes.runtimes.engines.transformers.encoder import TransformersEncoder
from lfx_local_runtimes.runtimes.requests import RequestState
from lfx_local_runtimes.runtimes.tasks.text.classification import ClassificationAsk
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk
from lfx_local_runtimes.runtimes.tasks.text.ner import NerAsk
from lfx_local_runtimes.runtimes.tasks.text.rerank import RerankAsk
from lfx_local_runtimes.runtimes.tasks.text.zero_shot import ZeroShotAsk
from tests.encoder_models import ARCHITECTURES, TEXTS, answer, begin, cosines, load_encoder, save_encoder, unload

pytestmark = pytest.mark.integration

SENTENCES = ("the cat sat on the mat.", "alice met bob in paris.", "cats running and sitting on mats in paris, the cat")


@pytest.fixture(scope="module")
def embedder(minilm: Path) -> Iterator[TransformersEncoder]:
    runtime = load_encoder(minilm)
    yield runtime
    unload(runtime)


def loaded(folder: Path, head: str, architecture: str = "Bert", **config: Any) -> TransformersEncoder:
    return load_encoder(save_encoder(folder / "tiny", architecture, head, **config))


# -- embeddings ----------------------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_sentence_transformers(embedder: TransformersEncoder, reference: np.ndarray) -> None:
    found = answer(embedder, EmbeddingAsk(texts=TEXTS))
    assert cosines(found.vectors, reference).min() > 0.9999
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    assert found.metadata["dtype"] == "fp32"
    assert list(found.metadata["truncated"]) == [len(TEXTS) - 1]


def test_in_bf16_they_are_nearly_the_same(minilm: Path, reference: np.ndarray) -> None:
    runtime = load_encoder(minilm, quantization="bf16")
    try:
        found = answer(runtime, EmbeddingAsk(texts=TEXTS))
    finally:
        unload(runtime)
    assert cosines(found.vectors, reference).min() > 0.999
    assert found.metadata["dtype"] == "bf16"


def test_a_text_has_the_same_vector_in_any_company(embedder: TransformersEncoder) -> None:
    alone = answer(embedder, EmbeddingAsk(texts=TEXTS[:1]))
    runs = [begin(embedder, EmbeddingAsk(texts=(TEXTS[0], *TEXTS[index:]))) for index in range(5)]
    for run in runs:
        assert cosines(run.wait().vectors[:1], alone.vectors).min() > 0.99999


def test_what_a_caller_can_ask(embedder: TransformersEncoder) -> None:
    whole = answer(embedder, EmbeddingAsk(texts=TEXTS[:2])).vectors
    first = answer(embedder, EmbeddingAsk(texts=TEXTS[:2], dimensions=64)).vectors
    assert first.shape == (2, 64)
    assert cosines(first, whole[:, :64]).min() > 0.99999
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    prompted = answer(embedder, EmbeddingAsk(texts=(TEXTS[0],), prompt="query: ")).vectors
    spelled = answer(embedder, EmbeddingAsk(texts=(f"query: {TEXTS[0]}",))).vectors
    assert np.array_equal(prompted, spelled)
    ids = tuple(embedder._network.tokenize._tokenizer(TEXTS[0], add_special_tokens=False).input_ids)  # type: ignore[union-attr]
    assert cosines(answer(embedder, EmbeddingAsk(texts=(ids,))).vectors, whole[:1]).min() > 0.99999


def test_a_long_text_is_cut_refused_or_read_in_parts(embedder: TransformersEncoder) -> None:
    long = "one two three four five six seven eight nine ten " * 60
    cut = answer(embedder, EmbeddingAsk(texts=("short", long)))
    tokens = len(embedder._network.tokenize._tokenizer(long).input_ids)  # type: ignore[union-attr]
    assert cut.metadata["truncated"] == {1: tokens - 256}
    parts = answer(embedder, EmbeddingAsk(texts=("short", long + " and then the lighthouse"), overflow="chunk"))
    assert parts.metadata["truncated"] == {}
    assert not np.allclose(parts.vectors[1], cut.vectors[1])
    with pytest.raises(ContextOverflow, match="Input 1 has"):
        answer(embedder, EmbeddingAsk(texts=("short", long), overflow="error"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_embeds_like_its_own_forward_pass(architecture: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    runtime = loaded(tmp_path, "Model", architecture)
    try:
        found = answer(runtime, EmbeddingAsk(texts=SENTENCES)).vectors
    finally:
        unload(runtime)
    model, tokenizer = AutoModel.from_pretrained(tmp_path / "tiny"), AutoTokenizer.from_pretrained(tmp_path / "tiny")
    for text, vector in zip(SENTENCES, found, strict=True):
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state[0].mean(0).numpy()
        assert np.allclose(vector, states, atol=1e-4)


# -- the others ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["Bert", "Roberta"])
def test_documents_are_ranked_as_by_cross_encoder(architecture: str, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer

    runtime = loaded(tmp_path, "ForSequenceClassification", architecture, num_labels=1)
    documents = (*SENTENCES, "the mat sat on the cat " * 30)
    try:
        found = answer(runtime, RerankAsk(query="where is the cat", documents=documents))
        best = answer(runtime, RerankAsk(query="where is the cat", documents=documents, top_n=2))
    finally:
        unload(runtime)
    model = CrossEncoder(str(tmp_path / "tiny"), device="cpu")
    expected = model.predict([("where is the cat", document) for document in documents])
    assert [one.index for one in found.ranking] == list(np.argsort(-expected))
    assert np.allclose([one.score for one in found.ranking], sorted(expected, reverse=True), atol=1e-4)
    assert best.ranking == found.ranking[:2]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    assert found.metadata["truncated"] == {3: len(tokenizer("where is the cat", documents[3]).input_ids) - 64}


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_labels_are_those_of_the_pipeline(problem: str | None, tmp_path: Path) -> None:
    from transformers import pipeline

    labels = {0: "sad", 1: "happy", 2: "angry"}
    runtime = loaded(tmp_path, "ForSequenceClassification", id2label=labels, problem_type=problem)
    try:
        found = answer(runtime, ClassificationAsk(texts=SENTENCES))
        one = answer(runtime, ClassificationAsk(texts=SENTENCES, top_k=1))
    finally:
        unload(runtime)
    expected = pipeline("text-classification", model=str(tmp_path / "tiny"), device="cpu")(list(SENTENCES), top_k=None)
    for mine, theirs in zip(found.labels, expected, strict=True):
        assert [label.label for label in mine] == [row["label"] for row in theirs]
        assert np.allclose([label.score for label in mine], [row["score"] for row in theirs], atol=1e-4)
    assert one.labels == tuple(row[:1] for row in found.labels)


@pytest.mark.parametrize("multi_label", [False, True])
def test_own_labels_are_scored_as_by_the_zero_shot_pipeline(multi_label: bool, tmp_path: Path) -> None:
    from transformers import pipeline

    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    runtime = loaded(tmp_path, "ForSequenceClassification", id2label=names, label2id={v: k for k, v in names.items()})
    labels = ("cat", "paris", "mats")
    try:
        found = answer(runtime, ZeroShotAsk(texts=SENTENCES, labels=labels, multi_label=multi_label))
    finally:
        unload(runtime)
    theirs = pipeline("zero-shot-classification", model=str(tmp_path / "tiny"), device="cpu")
    for mine, expected in zip(
        found.labels, theirs(list(SENTENCES), list(labels), multi_label=multi_label), strict=True
    ):
        assert [label.label for label in mine] == expected["labels"]
        assert np.allclose([label.score for label in mine], expected["scores"], atol=1e-4)


def test_entities_are_the_spans_of_the_pipeline(tmp_path: Path) -> None:
    from transformers import pipeline

    names = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
    runtime = loaded(tmp_path, "ForTokenClassification", id2label=names)
    try:
        found = answer(runtime, NerAsk(texts=SENTENCES))
    finally:
        unload(runtime)
    theirs = pipeline("token-classification", model=str(tmp_path / "tiny"), device="cpu", aggregation_strategy="simple")
    assert any(found.entities)
    for text, mine, expected in zip(SENTENCES, found.entities, theirs(list(SENTENCES)), strict=True):
        assert [(one.label, one.start, one.end) for one in mine] == [
            (row["entity_group"], row["start"], row["end"]) for row in expected
        ]
        assert np.allclose([one.score for one in mine], [row["score"] for row in expected], atol=1e-4)
        assert all(one.text == text[one.start : one.end] for one in mine)


# -- what goes wrong -----------------------------------------------------------------------------------------------------


def test_bad_input_fails_alone(embedder: TransformersEncoder) -> None:
    good = begin(embedder, EmbeddingAsk(texts=TEXTS[:3]))
    with pytest.raises(InvalidInput, match="dimensions 9,999"):
        answer(embedder, EmbeddingAsk(texts=("a",), dimensions=9999))
    with pytest.raises(InvalidInput, match="Token id 999999"):
        answer(embedder, EmbeddingAsk(texts=((999999,),)))
    with pytest.raises(WrongTask, match="does embedding and zero_shot, not rerank"):
        answer(embedder, RerankAsk(query="a", documents=("b",)))
    with pytest.raises(WrongTask, match="not llm"):
        embedder.stream(GenerationConfig(prompt="a")).wait()
    assert good.wait().vectors.shape == (3, 384)
    assert answer(embedder, EmbeddingAsk(texts=("word " * 20_000,))).metadata["truncated"]


def test_a_model_without_its_tokenizer_is_not_loaded(tmp_path: Path) -> None:
    """The library would make one that reads every word as unknown."""
    folder = save_encoder(tmp_path / "tiny", "Bert", "Model")
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(LoadFailed, match="has no tokenizer"):
        load_encoder(folder)


def test_weights_that_make_no_numbers_are_said_to(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = save_encoder(tmp_path / "tiny", "Bert", "Model") / "model.safetensors"
    weights = load_file(file)
    weights["embeddings.word_embeddings.weight"][:] = torch.nan
    save_file(weights, file, {"format": "pt"})
    runtime = load_encoder(tmp_path / "tiny")
    try:
        with pytest.raises(EngineFailure, match="not numbers"):
            answer(runtime, EmbeddingAsk(texts=SENTENCES))
    finally:
        unload(runtime)


def test_a_cancelled_job_and_an_unloaded_model_end_their_callers(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, "Model")
    job = begin(runtime, EmbeddingAsk(texts=SENTENCES * 20_000))
    quick = answer(runtime, EmbeddingAsk(texts=SENTENCES))
    assert job.request.state is RequestState.RUNNING, "a query gets in between"
    job.cancel()
    with pytest.raises(RequestCancelled):
        job.wait()
    assert np.allclose(answer(runtime, EmbeddingAsk(texts=SENTENCES)).vectors, quick.vectors, atol=1e-5)
    job = begin(runtime, EmbeddingAsk(texts=SENTENCES * 20_000))
    answer(runtime, EmbeddingAsk(texts=SENTENCES))
    unload(runtime)
    with pytest.raises((EngineFailure, RequestCancelled)):
        job.wait()
