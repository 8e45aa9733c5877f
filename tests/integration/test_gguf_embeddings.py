"""Embeddings and rerank from GGUF files on llama.cpp against the libraries that the weights come from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfx_local_runtimes.errors import ContextOverflow, EngineFailure, InvalidInput, LoadFailed
from lfx_local_runtimes.langchain.embeddings import LocalRuntimeEmbeddings
from lfx_local_runtimes.runtimes import DeviceType, ModelConfig, get_runtime_manager
from lfx_local_runtimes.runtimes.engines.llama_cpp.encoder import LlamaCppEncoder, _ends_twice
from lfx_local_runtimes.runtimes.planning import inspect_model
from lfx_local_runtimes.runtimes.tasks.text.classification import ClassificationAsk
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk
from lfx_local_runtimes.runtimes.tasks.text.rerank import RerankAsk
from tests.builders import Typed, write_gguf
from tests.encoder_models import answer, begin, cosines, save_encoder, started, unload
from tests.gguf_encoders import CLS, RANK, save_bert_gguf, save_unigrams

pytestmark = pytest.mark.integration

TEXTS = (
    "The cat sat on the mat.", "Alice met Bob in Paris.", "Une phrase en français, with some English in it",
    "日本語のテキスト", "Привет, мир! Как дела?", "مرحبا بالعالم", "a", "ÀÉÎÕÜ àéîõü ñ ç", "naïve café, résumé & coöperation",
    "What?! No... (really) -- yes; \"quoted\" 'single' [brackets] {braces}", "e-mail: someone@example.org", "🙂🚀 emoji",
    "x = y**2 + 3*z // 4 % 5", "https://example.org/path?query=1&other=two#place", "snake_case camelCase kebab-case",
    "tabs\tand\nlines\r\nand   spaces", "UPPER lower MiXeD", "1,234.56 € and $7.89 at 10:30", "don't can't won't it's",
    "[SEP] in a text", "a" * 99, "antidisestablishmentarianism supercalifragilisticexpialidocious",
    "The runtime keeps an account of memory. " * 8, "The cat ran and ran. " * 60, "one two three four five " * 98,
)  # fmt: skip
"""The last ones have about 70, 360 and 490 tokens."""


@pytest.fixture(scope="module")
def reference(minilm: Path) -> np.ndarray:
    """What sentence-transformers makes of the texts, at the 512 tokens that the GGUF file names."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm), device="cpu")
    model.max_seq_length = 512
    return np.asarray(model.encode(list(TEXTS)))


def load(path: Path, **options: Any) -> LlamaCppEncoder:
    return started(LlamaCppEncoder, path, **{"device_type": "cpu", **options})


@pytest.fixture(scope="module")
def embedder(minilm_gguf: Path) -> Iterator[LlamaCppEncoder]:
    runtime = load(minilm_gguf)
    yield runtime
    unload(runtime)


def tiny(folder: Path, head: str, **config: Any) -> Path:
    """A seeded BERT whose two kinds of text are one: llama.cpp knows no other."""
    from safetensors.numpy import load_file, save_file

    file = save_encoder(folder, "Bert", head, **config) / "model.safetensors"
    weights = load_file(file)
    for name in weights:
        if "token_type" in name:
            weights[name] = np.repeat(weights[name][:1], 2, axis=0)
    save_file(weights, file, {"format": "pt"})
    return folder


# -- embeddings ----------------------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_sentence_transformers(embedder: LlamaCppEncoder, reference: np.ndarray) -> None:
    found = answer(embedder, EmbeddingAsk(texts=TEXTS))
    assert found.vectors.dtype == np.float32
    assert cosines(found.vectors, reference).min() > 0.9999
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    assert not found.metadata["truncated"]
    assert {found.metadata[key] for key in ("engine", "dtype")} == {"llama_cpp", "F32"}


def test_half_the_size_is_nearly_the_same(minilm: Path, reference: np.ndarray, tmp_path: Path) -> None:
    runtime = load(save_bert_gguf(minilm, tmp_path / "half.gguf", half=True))
    try:
        found = answer(runtime, EmbeddingAsk(texts=TEXTS))
    finally:
        unload(runtime)
    assert cosines(found.vectors, reference).min() > 0.999
    assert found.metadata["dtype"] == "F16"


def test_a_text_has_the_same_vector_in_any_company(embedder: LlamaCppEncoder) -> None:
    together = answer(embedder, EmbeddingAsk(texts=TEXTS)).vectors
    runs = [begin(embedder, EmbeddingAsk(texts=(text,))) for text in TEXTS]
    alone = np.concatenate([run.wait().vectors for run in runs])
    assert np.abs(alone - together).max() < 1e-4


def test_token_ids_are_taken_and_checked(embedder: LlamaCppEncoder) -> None:
    ids = tuple(embedder._network._model.tokenize(TEXTS[0], add_special=False))  # type: ignore[union-attr]
    whole = answer(embedder, EmbeddingAsk(texts=TEXTS[:1])).vectors
    assert np.allclose(answer(embedder, EmbeddingAsk(texts=(ids,))).vectors, whole, atol=1e-5)
    with pytest.raises(InvalidInput, match="Token id 30522 is not in the model's vocabulary of 30,522"):
        answer(embedder, EmbeddingAsk(texts=((30522,),)))


def test_a_long_text_is_cut_refused_or_read_in_parts(embedder: LlamaCppEncoder) -> None:
    long = "one two three four five six seven eight nine ten " * 60
    cut = answer(embedder, EmbeddingAsk(texts=("short", long)))
    assert cut.metadata["truncated"] == {1: 602 - 512}
    first, rest = (" ".join(words) for words in (long.split()[:510], long.split()[510:]))
    parts = answer(embedder, EmbeddingAsk(texts=("short", long), overflow="chunk", normalize=False))
    assert parts.metadata["truncated"] == {}
    both = answer(embedder, EmbeddingAsk(texts=(first, rest), normalize=False)).vectors
    assert np.allclose(parts.vectors[1], np.average(both, axis=0, weights=(512, 92)), atol=1e-4)
    with pytest.raises(ContextOverflow, match=r"Input 1 has 602 tokens, the model reads 512\."):
        answer(embedder, EmbeddingAsk(texts=("short", long), overflow="error"))


def test_a_text_longer_than_a_batch_is_read_at_once(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path / "long"
    save_encoder(folder, "Bert", "Model")
    model = AutoModel.from_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.embeddings.position_embeddings.weight.data = torch.randn(4096, 32) / 2
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder)
    text = "the cat sat on the mat . " * 500
    runtime = load(save_bert_gguf(folder, tmp_path / "long.gguf", pooling=CLS))
    try:
        found = answer(runtime, EmbeddingAsk(texts=(text, "the cat"), normalize=False)).vectors
    finally:
        unload(runtime)
    model = AutoModel.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=4096)
    for one, vector in zip((text, "the cat"), found, strict=True):
        with torch.inference_mode():
            states = model(**tokenizer(one, return_tensors="pt", return_token_type_ids=False)).last_hidden_state
        assert cosines(vector[None], states[:, 0].numpy())[0] > 0.9999


def test_a_decoder_embeds_by_its_last_token_when_asked_to(tiny_llama: Path, tiny_gguf: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ("one", "another one, longer", "a third")
    runtime = load(tiny_gguf, model_type="embedding")
    try:
        found = [answer(runtime, EmbeddingAsk(texts=texts, normalize=False)).vectors for _ in range(2)]
    finally:
        unload(runtime)
    assert np.allclose(*found, atol=1e-5), "nothing stays of a call"
    model, tokenizer = AutoModel.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    for text, vector in zip(texts, found[0], strict=True):
        with torch.inference_mode():
            state = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).last_hidden_state
        assert cosines(vector[None], state[:, -1].numpy())[0] > 0.9999


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_pooling_is_as_configured(tmp_path: Path, pooling: str) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = tiny(tmp_path / "tiny", "Model")
    text = "the cat sat on the mat."
    told = None if pooling == "cls" else CLS  # the configuration has its way over a file with another
    runtime = load(save_bert_gguf(folder, tmp_path / "model.gguf", pooling=told), pooling=pooling)
    try:
        found = answer(runtime, EmbeddingAsk(texts=(text,))).vectors
    finally:
        unload(runtime)
    with torch.inference_mode():
        model, tokens = (
            AutoModel.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt"),
        )
        states = model(**tokens).last_hidden_state[0].numpy()
    expected = {"mean": states.mean(axis=0), "cls": states[0], "lasttoken": states[-1]}
    near = {name: cosines(found, vector[None])[0] > 0.9999 for name, vector in expected.items()}
    assert near == {name: name == pooling for name in expected}


@pytest.mark.parametrize("pooling", ["max", "mean_sqrt_len", "weightedmean"])
def test_pooling_that_llama_cpp_does_not_have_is_refused(minilm_gguf: Path, pooling: str) -> None:
    with pytest.raises(InvalidInput, match=f"by {pooling}: llama.cpp pools by mean, cls, lasttoken"):
        load(minilm_gguf, pooling=pooling)


async def test_a_registered_file_embeds_through_the_manager(minilm_gguf: Path, reference: np.ndarray) -> None:
    manager = get_runtime_manager()
    manager.register_model(ModelConfig(model_id=str(minilm_gguf), model_name="minilm", device_type=DeviceType.CPU))
    found = await manager.run("minilm", EmbeddingAsk(texts=TEXTS[:3]))
    documents = await LocalRuntimeEmbeddings(model="minilm").aembed_documents(list(TEXTS[:3]))
    assert found.metadata["engine"] == "llama_cpp"
    assert cosines(found.vectors, reference[:3]).min() > 0.9999
    assert cosines(np.array(documents), reference[:3]).min() > 0.9999


# -- rerank --------------------------------------------------------------------------------------------------------------


def test_documents_are_ranked_as_by_cross_encoder(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    folder = tiny(tmp_path / "tiny", "ForSequenceClassification", num_labels=1)
    documents = ("the cat sat on the mat.", "alice met bob in paris.", "cats running", "the mat sat on the cat " * 30)
    runtime = load(save_bert_gguf(folder, tmp_path / "rank.gguf", pooling=RANK), context_length=64)
    query = "where is the cat"
    try:
        found = answer(runtime, RerankAsk(query=query, documents=documents))
        turned = answer(runtime, RerankAsk(query=documents[3], documents=(query,)))
        assert "apart" in found.metadata["warnings"][0]
    finally:
        unload(runtime)
    model = CrossEncoder(str(folder), device="cpu")
    expected = model.predict([(query, document) for document in documents])
    assert [one.index for one in found.ranking] == list(np.argsort(-expected))
    assert np.allclose([one.score for one in found.ranking], sorted(expected, reverse=True), atol=1e-3)
    assert np.allclose(turned.ranking[0].score, model.predict([(documents[3], query)]), atol=1e-3)


@pytest.mark.parametrize(
    ("between", "add_sep"), [("</s> </s>", None), ("</s> </s>", True), ("</s>", False)], ids=["silent", "two", "one"]
)
def test_unigram_pairs_are_those_of_cross_encoder(tmp_path: Path, between: str, add_sep: bool | None) -> None:
    from sentence_transformers import CrossEncoder

    folder = save_encoder(tmp_path / "tiny", "XLMRoberta", "ForSequenceClassification", num_labels=1, type_vocab_size=1)
    save_unigrams(folder, between)
    runtime = load(save_bert_gguf(folder, tmp_path / "rank.gguf", pooling=RANK, add_sep=add_sep), context_length=64)
    query, documents = "where is the cat", ("the cat sat on the mat.", "cats running", "the mat sat on the cat " * 30)
    try:
        found = answer(runtime, RerankAsk(query=query, documents=documents))
    finally:
        unload(runtime)
    expected = CrossEncoder(str(folder), device="cpu").predict([(query, document) for document in documents])
    assert [one.index for one in found.ranking] == list(np.argsort(-expected))
    assert np.allclose([one.score for one in found.ranking], sorted(expected, reverse=True), atol=5e-3)


@pytest.mark.parametrize(
    ("architecture", "vocabulary", "told", "adds_sep", "twice"),
    [
        ("bert", "bert", {}, True, False),
        ("bert", "t5", {}, False, True),
        ("bert", "gpt2", {}, False, True),
        ("bert", "gpt2", {"tokenizer.ggml.add_sep_token": True}, True, True),
        ("bert", "gpt2", {"tokenizer.ggml.add_sep_token": False}, False, False),
        ("jina-bert-v2", "gpt2", {}, True, True),
        ("modern-bert", "gpt2", {}, False, False),
        ("t5encoder", "t5", {}, False, False),
        ("llama", "llama", {}, False, False),
    ],
)
def test_pairs_end_twice_in_roberta_and_its_kin(
    tmp_path: Path, architecture: str, vocabulary: str, told: dict[str, bool], adds_sep: bool, twice: bool
) -> None:
    metadata: dict[str, Typed] = {key: ("bool", value) for key, value in told.items()}
    metadata |= {"general.architecture": ("str", architecture), "tokenizer.ggml.model": ("str", vocabulary)}
    info = inspect_model(write_gguf(tmp_path / "model.gguf", metadata=metadata))
    assert _ends_twice(info, adds_sep) is twice


def test_a_classifier_tells_its_labels(tmp_path: Path) -> None:
    from transformers import pipeline

    labels = ("sad", "happy", "angry")
    folder = tiny(tmp_path / "tiny", "ForSequenceClassification", id2label=dict(enumerate(labels)))
    runtime = load(save_bert_gguf(folder, tmp_path / "labels.gguf", pooling=RANK, labels=labels), context_length=64)
    texts = ("the cat sat on the mat.", "alice met bob in paris.")
    try:
        found = answer(runtime, ClassificationAsk(texts=texts))
    finally:
        unload(runtime)
    expected = pipeline("text-classification", model=str(folder), device="cpu")(list(texts), top_k=None)
    for mine, theirs in zip(found.labels, expected, strict=True):
        assert [label.label for label in mine] == [row["label"] for row in theirs]
        assert np.allclose([label.score for label in mine], [row["score"] for row in theirs], atol=1e-3)


def test_a_task_that_a_file_cannot_do_is_refused(minilm_gguf: Path) -> None:
    with pytest.raises(LoadFailed, match="has nothing that does rerank"):
        load(minilm_gguf, model_type="rerank")


# -- what goes wrong -----------------------------------------------------------------------------------------------------


def test_a_failed_call_ends_its_own_request_only(minilm_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = load(minilm_gguf)
    model = runtime._network._model  # type: ignore[union-attr]
    poison = model.tokenize("poison", add_special=False)[0]
    decode = model.lib.llama_decode

    class Library:
        """llama.cpp, which cannot compute one word."""

        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def llama_decode(self, context: Any, batch: Any) -> int:
            held = [batch.token[index] for index in range(batch.n_tokens)]
            return -3 if poison in held else decode(context, batch)

    library = model.lib
    monkeypatch.setattr(model, "lib", Library())
    try:
        before = answer(runtime, EmbeddingAsk(texts=TEXTS[:2]))
        runs = [begin(runtime, EmbeddingAsk(texts=texts)) for texts in (TEXTS[:2], ("poison",), TEXTS[1:3])]
        with pytest.raises(EngineFailure, match="code -3"):
            runs[1].wait()
        assert np.allclose(runs[0].wait().vectors, before.vectors, atol=1e-4)
        assert runs[2].wait().vectors.shape == (2, 384)
    finally:
        unload(runtime)


def test_unloading_gives_the_memory_back(minilm_gguf: Path) -> None:
    import psutil

    from lfx_local_runtimes.runtimes.engines.host import release_memory

    process = psutil.Process()
    unload(load(minilm_gguf))
    release_memory()
    before = process.memory_info().rss
    runtime = load(minilm_gguf)
    answer(runtime, EmbeddingAsk(texts=TEXTS))
    held, told = process.memory_info().rss - before, sum(runtime.get_memory_usage()["devices"].values())
    unload(runtime)
    assert told / 2 < held < told * 1.5
    assert process.memory_info().rss - before < told / 4
