"""The program that uses models never imports their engines: a process of its own does, for each model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lfx_local_runtimes.runtimes.sources.packages import BGE_SMALL, RERANKER

pytestmark = pytest.mark.integration

LIMIT_S = 280
ENGINES = {"torch", "transformers", "llama_cpp", "onnxruntime", "tokenizers", "safetensors", "llguidance"}

PROGRAM = """
import asyncio, json, os, sys

from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk
from lfx_local_runtimes.server import create_app
from fastapi.testclient import TestClient

chat, embedding, rerank = sys.argv[1:]
manager = RuntimeManager()
manager.register_model(ModelConfig(model_id=chat, model_name="chat"))


async def use():
    said = await manager.generate("chat", GenerationConfig(prompt="one", max_tokens=2))
    vectors = (await manager.run(embedding, EmbeddingAsk(texts=("one",)))).vectors
    return said.tokens_generated, vectors.shape[0]


counts = asyncio.run(use())
with TestClient(create_app(manager), base_url="http://127.0.0.1") as client:
    ranked = client.post("/v1/rerank", json={"model": rerank, "query": "one", "documents": ["one", "two"]}).json()
    status = client.get("/api/v1/runtime/status").json()
pids = {model["pid"] for model in status["models"] if model["state"] == "ready"}
print(json.dumps({
    "counts": counts, "ranked": len(ranked["results"]), "processes": len(pids - {os.getpid()}),
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


def test_a_chat_an_embedding_and_a_rerank_import_no_engine(tiny_gguf: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tiny_gguf), BGE_SMALL.name, RERANKER.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["counts"], said["ranked"], said["processes"]) == ([2, 1], 2, 3)
    assert "lfx_local_runtimes" in said["modules"]
    assert ENGINES.isdisjoint(said["modules"])
