"""`LocalRuntimeEmbeddings` and `LocalRuntimeReranker` over scripted models: what is asked, what comes back."""

import asyncio
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_tests.unit_tests import EmbeddingsUnitTests
from lfx.base.models.provider_registry import unregister_provider
from lfx.base.models.unified_models import get_embeddings
from lfx.extension.loader import load_extension
from lfx.extension.manifest import ExtensionManifest

from lfx_local_runtimes.errors import InvalidInput, ModelNotFound, WrongTask
from lfx_local_runtimes.langchain import embeddings
from lfx_local_runtimes.langchain.embeddings import LocalRuntimeEmbeddings, LocalRuntimeReranker
from lfx_local_runtimes.nodes.provider import PROVIDER, live_models
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk
from lfx_local_runtimes.runtimes.tasks.text.rerank import RerankAsk
from tests.scripted_tasks import ENDLESS, School, school

PATIENCE_S = 20.0
MANIFEST = Path(__file__).parents[2] / "components" / "extension.json"


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[School]:
    with school(tmp_path, monkeypatch) as stage:
        yield stage


def embedder(**options: Any) -> LocalRuntimeEmbeddings:
    return LocalRuntimeEmbeddings(model="my embedding", **options)


def reranker(**options: Any) -> LocalRuntimeReranker:
    return LocalRuntimeReranker(model="my rerank", **options)


class TestStandard(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return LocalRuntimeEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "my embedding"}


def test_making_one_asks_nothing_of_the_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError

    monkeypatch.setattr("lfx_local_runtimes.langchain.task_model.get_runtime_manager", never)
    made = embedder(dimensions=2, runtime_type="transformers", observer=print)
    assert pickle.loads(pickle.dumps(embedder())) == embedder()
    assert "observer" not in made.model_dump()


async def test_texts_become_vectors(stage: School) -> None:
    vectors = [[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 1.0, 0.0]]
    assert embedder().embed_documents(["a", "bbc"]) == vectors
    assert await embedder().aembed_documents(["a", "bbc"]) == vectors
    assert embedder().embed_query("bbc") == vectors[1]
    assert await embedder().aembed_query("bbc") == vectors[1]
    assert all(isinstance(number, float) for number in vectors[0])


def test_options_left_open_are_the_tasks(stage: School) -> None:
    embedder().embed_query("a")
    assert stage.asks == [EmbeddingAsk(texts=("a",), role="query")]


def test_every_option_is_asked_for(stage: School) -> None:
    made = embedder(dimensions=3, normalize=False, overflow="chunk", keep_alive=0, document_prompt="doc: ")
    made.embed_documents(["a"])
    assert stage.asks == [
        EmbeddingAsk(
            texts=("a",), prompt="doc: ", role="document", dimensions=3, normalize=False, overflow="chunk", keep_alive=0
        )
    ]


async def test_queries_and_documents_have_prompts_of_their_own(stage: School) -> None:
    made = embedder(query_prompt="question", document_prompt="d: ")
    made.embed_query("a")
    await made.aembed_query("a")
    made.embed_documents(["b"])
    await made.aembed_documents(["b"])
    assert stage.texts == ["q: a", "q: a", "d: b", "d: b"]


async def test_no_texts_are_no_vectors(stage: School) -> None:
    assert embedder().embed_documents([]) == []
    assert await embedder().aembed_documents([]) == []
    assert stage.asks == []


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["a", None], "input 1 must be a text or token ids"),
        (["a", ""], "input 1 must be a text or token ids, and not empty"),
        ([["a"]], "input 0"),
        ("text", "texts"),
    ],
)
def test_what_is_no_text_is_named(texts: Any, named: str, stage: School) -> None:
    with pytest.raises(InvalidInput, match=named):
        embedder().embed_documents(texts)
    assert stage.asks == []


def test_the_observer_hears_of_the_load_and_of_the_result(stage: School) -> None:
    heard: list[Any] = []
    embedder(observer=heard.append).embed_query("a")
    assert any(isinstance(event, Progress) for event in heard)
    assert heard[-1].metadata["device"] == "cpu"


async def test_load_options_make_a_variant(stage: School) -> None:
    embedder(context_length=32).embed_query("a")
    await embedder(context_length=32).aembed_query("a")
    assert stage.manager.loaded_models() == ["my embedding (context 32)"]


@pytest.mark.parametrize(
    ("options", "text", "fault", "named"),
    [
        ({}, "", InvalidInput, "texts"),
        ({"dimensions": 5}, "a", InvalidInput, "dimensions 5"),
        ({"model": "my rerank"}, "a", WrongTask, "does rerank, not embedding"),
        ({"model": "nobody"}, "a", ModelNotFound, "nobody"),
    ],
)
async def test_what_cannot_be_done_says_why(
    stage: School, options: dict[str, Any], text: str, fault: type[Exception], named: str
) -> None:
    made = LocalRuntimeEmbeddings(**{"model": "my embedding", **options})
    with pytest.raises(fault, match=named):
        made.embed_query(text)
    with pytest.raises(fault, match=named):
        await made.aembed_query(text)


async def test_a_cancelled_call_ends_the_computation(stage: School) -> None:
    task = asyncio.create_task(embedder().aembed_query(ENDLESS))
    assert await asyncio.to_thread(stage.begun.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await embedder().aembed_query("a")  # the model is free again


# -- the reranker --------------------------------------------------------------------------------------------------------


FOUND = [Document("cats sleep", metadata={"page": 1}), Document("dogs bark loudly"), Document("dogs sleep", id="x")]


async def test_documents_come_back_best_first(stage: School) -> None:
    best = reranker().compress_documents(FOUND, "do dogs sleep")
    assert [document.page_content for document in best] == ["dogs sleep", "cats sleep", "dogs bark loudly"]
    assert best[1].metadata == {"page": 1, "relevance_score": 1.0}
    assert (best[0].id, FOUND[0].metadata) == ("x", {"page": 1})
    assert await reranker().acompress_documents(FOUND, "do dogs sleep") == best


def test_only_the_best_are_asked_for(stage: School) -> None:
    made = reranker(top_n=1, keep_alive=60)
    assert [document.id for document in made.compress_documents(FOUND, "dogs sleep")] == ["x"]
    texts = tuple(document.page_content for document in FOUND)
    assert stage.asks == [RerankAsk(query="dogs sleep", documents=texts, top_n=1, keep_alive=60)]


async def test_no_documents_are_none(stage: School) -> None:
    assert reranker().compress_documents([], "what") == []
    assert await reranker().acompress_documents([], "what") == []
    assert stage.asks == []


# -- the provider --------------------------------------------------------------------------------------------------------


def test_the_manifest_names_the_embeddings() -> None:
    (provider,) = ExtensionManifest.model_validate(json.loads(MANIFEST.read_text(encoding="utf-8"))).providers
    wired = provider.embedding
    assert (wired.module, wired.class_name, wired.attr) == (embeddings.__name__, *2 * ["LocalRuntimeEmbeddings"])
    assert wired.param_mapping_key == provider.name
    assert set(wired.param_mapping.values()) <= set(LocalRuntimeEmbeddings.model_fields)


def test_langflows_own_embeddings_node_uses_the_provider(stage: School) -> None:
    assert load_extension(MANIFEST.parent).ok
    try:
        made = get_embeddings([{"name": "my embedding", "provider": PROVIDER, "metadata": {}}], dimensions=2)
    finally:
        unregister_provider(PROVIDER)
    assert made.embed_query("ab") == [1.0, 1.0]


def test_the_provider_lists_embedding_models(stage: School) -> None:
    rows = {row["name"]: row for row in live_models(None, "embeddings")}
    assert {"my embedding", "all-minilm-l6-v2"} <= set(rows)
    assert all((row["model_type"], row["tool_calling"]) == ("embeddings", False) for row in rows.values())
    assert "my embedding" not in [row["name"] for row in live_models(None, "llm")]
