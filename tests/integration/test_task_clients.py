"""Embeddings of the real MiniLM, asked by the `openai` client and LangChain's, unchanged: from the standalone server, and
in process."""

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from langchain_core.embeddings import Embeddings
from langchain_openai import OpenAIEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from openai import AsyncOpenAI, OpenAI
from pydantic import SecretStr

from lfx_local_runtimes.errors import QueueFull
from lfx_local_runtimes.langchain.embeddings import LocalRuntimeEmbeddings
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk, EmbeddingResult
from lfx_local_runtimes.server import Server, make_server
from lfx_local_runtimes.settings import Settings

pytestmark = pytest.mark.integration

MODEL = "minilm"
KEY = "only for this test"
TEXTS = ["A man is eating food.", "Somebody has lunch.", "The stock market fell again today."]
WIDTH = 384
CLOSE = 1e-5
PATIENCE_S = 60.0
CALLERS, ROOM = 50, 45
"""How many ask at once, and how many of them the model takes."""


@pytest.fixture(scope="module")
def manager(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeManager]:
    """It has loaded the model, in fp32: what is asked for twice comes out the same."""
    home = tmp_path_factory.mktemp("home")
    manager = RuntimeManager(Settings(home=home, model_dirs=(minilm.parent,), offline=True))
    config = {"model_id": str(minilm), "model_name": MODEL, "quantization": "fp32", "max_queued": ROOM}
    manager.register_model(ModelConfig.model_validate(config))
    asyncio.run(manager.load_model(MODEL))
    yield manager
    manager.close()


@pytest.fixture(scope="module")
def url(manager: RuntimeManager) -> Iterator[str]:
    """The server's, on a free port of this machine."""
    server: Server = make_server(manager, "127.0.0.1", 0, KEY)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"x-api-key": KEY}, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def vectors(manager: RuntimeManager) -> np.ndarray[Any, Any]:
    """The texts', from the manager itself."""
    return manager.start(MODEL, EmbeddingAsk(texts=tuple(TEXTS))).wait().vectors


# -- the openai client ---------------------------------------------------------------------------------------------------


def test_embeddings(client: OpenAI, vectors: np.ndarray[Any, Any]) -> None:
    """The client asks for base64 by itself."""
    answer = client.embeddings.create(model=MODEL, input=TEXTS)

    assert [row.index for row in answer.data] == [0, 1, 2]
    assert np.allclose([row.embedding for row in answer.data], vectors, atol=CLOSE)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    lunch, food, market = (np.array(answer.data[index].embedding) for index in (1, 0, 2))
    assert lunch @ food > lunch @ market + 0.3


async def test_embeddings_async(url: str, vectors: np.ndarray[Any, Any]) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        answers = await asyncio.gather(*(client.embeddings.create(model=MODEL, input=text) for text in TEXTS))

    assert np.allclose([answer.data[0].embedding for answer in answers], vectors, atol=CLOSE)


def test_floats_and_base64_are_the_same(client: OpenAI, http: httpx.Client) -> None:
    floats = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    rows = http.post("/v1/embeddings", json={"model": MODEL, "input": TEXTS, "encoding_format": "base64"}).json()

    decoded = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows["data"]]
    assert np.allclose(decoded, [row.embedding for row in floats.data], atol=CLOSE)


def test_dimensions(client: OpenAI, vectors: np.ndarray[Any, Any]) -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS, dimensions=64)

    found = np.array([row.embedding for row in answer.data])
    shorter = vectors[:, :64]
    assert np.allclose(found, shorter / np.linalg.norm(shorter, axis=1, keepdims=True), atol=CLOSE)
    with pytest.raises(openai.BadRequestError, match="dimensions 385 is more than the 384"):
        client.embeddings.create(model=MODEL, input=TEXTS, dimensions=WIDTH + 1)


def test_token_ids_are_the_models_own(client: OpenAI, minilm: Path, vectors: np.ndarray[Any, Any]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm, local_files_only=True)
    ids = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    answer = client.embeddings.create(model=MODEL, input=ids)
    one = client.embeddings.create(model=MODEL, input=ids[0])

    assert np.allclose([row.embedding for row in answer.data], vectors, atol=CLOSE)
    assert np.allclose(one.data[0].embedding, vectors[0], atol=CLOSE)
    with pytest.raises(openai.BadRequestError, match="not in the model's vocabulary"):
        client.embeddings.create(model=MODEL, input=[100_000])


def test_our_own_options(client: OpenAI) -> None:
    long = "word " * 1000
    answer = client.embeddings.create(model=MODEL, input=[TEXTS[0], long], extra_body={"overflow": "truncate"})
    assert answer.model_extra
    assert list(answer.model_extra["truncated"]) == ["1"]

    whole = client.embeddings.create(model=MODEL, input=long, extra_body={"overflow": "chunk"})
    assert not whole.model_extra
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input=long)
    assert refused.value.code == "context_length_exceeded"


def test_a_batch_as_large_as_may_be(client: OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input=["a", "b"] * 1024)

    assert len(answer.data) == 2048
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input=["a"] * 2049)
    assert refused.value.param == "input"


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/classify", "/v1/ner"])
def test_what_the_model_does_not_do(http: httpx.Client, path: str) -> None:
    asked = {"query": "a", "documents": ["b"]} if path == "/v1/rerank" else {"texts": ["a"]}
    response = http.post(path, json={"model": MODEL, **asked})

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "wrong_task"


# -- LangChain and the native route --------------------------------------------------------------------------------------


async def test_langchain(url: str, vectors: np.ndarray[Any, Any]) -> None:
    """As for every server but OpenAI's own, it must be told to send text: its token ids are those of OpenAI's models."""
    async with httpx.AsyncClient() as later:
        with httpx.Client() as now:  # its own ones are never closed
            embeddings = OpenAIEmbeddings(
                model=MODEL, base_url=f"{url}/v1", api_key=SecretStr(KEY), check_embedding_ctx_length=False, chunk_size=2,
                http_client=now, http_async_client=later,
            )  # fmt: skip

            assert np.allclose(await asyncio.to_thread(embeddings.embed_documents, TEXTS), vectors, atol=CLOSE)
            assert np.allclose(await asyncio.to_thread(embeddings.embed_query, TEXTS[0]), vectors[0], atol=CLOSE)
            assert np.allclose(await embeddings.aembed_documents(TEXTS), vectors, atol=CLOSE)
            assert np.allclose(await embeddings.aembed_query(TEXTS[0]), vectors[0], atol=CLOSE)


def test_native(http: httpx.Client, vectors: np.ndarray[Any, Any]) -> None:
    response = http.post("/api/v1/runtime/embed", json={"model_name": MODEL, "texts": [*TEXTS, "word " * 1000]})

    answer = response.json()
    assert np.allclose(answer["vectors"][:3], vectors, atol=CLOSE)
    assert answer["model_name"] == MODEL
    assert {"engine", "device", "dtype", "tokens", "truncated"} <= set(answer["metadata"])
    assert list(answer["metadata"]["truncated"]) == ["3"]


async def test_a_client_that_leaves_ends_the_computation(manager: RuntimeManager, url: str) -> None:
    def cancelled() -> int:
        return int(manager.stats()["counters"].get("requests_cancelled", 0))

    async def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    before = cancelled()
    async with httpx.AsyncClient(base_url=url, headers={"x-api-key": KEY}, timeout=PATIENCE_S) as http:
        body = {"model": MODEL, "input": ["word " * 250] * 2048}
        asking = asyncio.create_task(http.post("/v1/embeddings", json=body))
        await until(lambda: manager.model_status(MODEL).leases == 1)
        asking.cancel()
        await until(lambda: cancelled() == before + 1)
        await asyncio.gather(asking, return_exceptions=True)


async def test_fifty_callers_at_once_are_answered_or_told_that_the_queue_is_full(manager: RuntimeManager) -> None:
    texts = [tuple(f"{caller} and {number} of the texts " * 4 for number in range(4)) for caller in range(CALLERS)]
    lone = await manager.run(MODEL, EmbeddingAsk(texts=sum(texts, ())))
    answers = await asyncio.gather(
        *(manager.run(MODEL, EmbeddingAsk(texts=some)) for some in texts), return_exceptions=True
    )
    for caller, answer in enumerate(answers[:ROOM]):
        assert isinstance(answer, EmbeddingResult)
        assert np.allclose(answer.vectors, lone.vectors[caller * 4 : caller * 4 + 4], atol=CLOSE)
    assert all(isinstance(answer, QueueFull) for answer in answers[ROOM:])


# -- in process, as LangChain asks ---------------------------------------------------------------------------------------


class TestLangChain(EmbeddingsIntegrationTests):
    """LangChain's own suite, on the model that is loaded."""

    @pytest.fixture(autouse=True)
    def shared_manager(self, manager: RuntimeManager, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lfx_local_runtimes.runtimes.manager._shared", manager)

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return LocalRuntimeEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": MODEL}
