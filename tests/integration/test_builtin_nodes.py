"""Langflow's own nodes on our provider: Agent and Embedding Model in a flow, in Langflow and headless; a knowledge base."""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from lfx.components.embeddings.similarity import EmbeddingSimilarityComponent
from lfx.components.embeddings.text_embedder import TextEmbedderComponent
from lfx.components.files_and_knowledge.knowledge import MODE_RETRIEVE, KnowledgeComponent
from lfx.components.input_output.chat import ChatInput
from lfx.components.input_output.chat_output import ChatOutput
from lfx.components.input_output.text import TextInputComponent
from lfx.components.models_and_agents.agent import AgentComponent
from lfx.components.models_and_agents.embedding_model import EmbeddingModelComponent
from lfx.components.models_and_agents.prompt import PromptComponent
from lfx.components.processing.parser import ParserComponent

from lfx_local_runtimes.flows.build import FOLDER
from lfx_local_runtimes.flows.canvas import Flow
from lfx_local_runtimes.flows.retrieval import handbook
from lfx_local_runtimes.nodes.provider import PROVIDER
from lfx_local_runtimes.runtimes.sources.packages import BGE_SMALL, SMOLLM
from tests.integration.test_lfx_run import NEEDS_SMOLLM
from tests.langflow_server import LangflowServer
from tests.lfx_process import LFX

pytestmark = pytest.mark.integration

QUESTION = "What is the capital of France?"
PATIENCE_S = 120.0
KEY = "only for this test"


def chosen(name: str) -> list[dict[str, Any]]:
    """The value of a model field, as the canvas writes it."""
    return [{"name": name, "provider": PROVIDER, "metadata": {}}]


def own_nodes() -> Flow:
    """The Agent answers a message. Two embeddings say how near the message is to a question about France."""
    flow = Flow("Built-in nodes", "Langflow's own nodes on local models.", "built-in-nodes")
    message = flow.add(ChatInput, "ask", 0, 0)
    agent = flow.add(
        AgentComponent, "answer", 1, 0, model=chosen(SMOLLM.name), system_prompt="Answer in one short sentence.",
        add_current_date_tool=False, add_calculator_tool=False, n_messages=0, max_tokens=32,
    )  # fmt: skip
    model = flow.add(EmbeddingModelComponent, "vectors", 0, 1, model=chosen(BGE_SMALL.name))
    fixed = flow.add(TextInputComponent, "fixed", 0, 2, input_value="Which city is the capital of France?")
    ones, others = (flow.add(TextEmbedderComponent, label, 1, row) for row, label in enumerate(("one", "other"), 1))
    nearness = flow.add(EmbeddingSimilarityComponent, "compare", 2, 1)
    shown = flow.add(ParserComponent, "score", 3, 1, pattern="{similarity_score}")
    joined = flow.add(PromptComponent, "join", 4, 0, template="{answer}\n{score}")
    said = flow.add(ChatOutput, "say", 5, 0)
    for source, output, target, field in (
        (message, "message", agent, "input_value"),
        (model, "embeddings", ones, "embedding_model"),
        (model, "embeddings", others, "embedding_model"),
        (message, "message", ones, "message"),
        (fixed, "text", others, "message"),
        (ones, "embeddings", nearness, "embedding_vectors"),
        (others, "embeddings", nearness, "embedding_vectors"),
        (nearness, "similarity_data", shown, "input_data"),
        (agent, "response", joined, "answer"),
        (shown, "parsed_text", joined, "score"),
        (joined, "prompt", said, "input_value"),
    ):
        flow.connect(source, output, target, field)
    return flow


def parts(said: str) -> tuple[str, float]:
    """The Agent's answer and the cosine."""
    answer, _, score = said.rpartition("\n")
    (cosine,) = re.findall(r"0\.\d+", score)
    return answer, float(cosine)


# -- headless ------------------------------------------------------------------------------------------------------------


@contextmanager
def lfx_serve(flow: Path, home: Path) -> Iterator[httpx.Client]:
    """`lfx serve` of a flow, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [LFX, "serve", str(flow), "--upgrade-flow", "check", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "LANGFLOW_API_KEY": KEY,
        "LOCAL_RUNTIMES_HOME": str(home),
        "LOCAL_RUNTIMES_OFFLINE": "true",
        "LOCAL_RUNTIMES_SPARE_PROCESSES": "0",
        "DO_NOT_TRACK": "true",
    }
    log = home / "serve.log"
    with log.open("wb") as output, subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=os.environ | environment
    ) as process:  # fmt: skip
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": KEY}, timeout=PATIENCE_S
            ) as client:
                deadline = time.monotonic() + PATIENCE_S
                while True:
                    with suppress(httpx.TransportError):
                        client.get("/health").raise_for_status()
                        break
                    assert process.poll() is None, log.read_text(errors="replace")[-3000:]
                    assert time.monotonic() < deadline
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(0.05)
                yield client
        finally:
            process.terminate()


@NEEDS_SMOLLM
def test_lfx_serve_answers_over_http(tmp_path: Path) -> None:
    """A flow of Langflow's own nodes, and one of ours that is uploaded beside it."""
    home = Path(os.environ["LOCAL_RUNTIMES_HOME"])
    flow = tmp_path / "own.json"
    flow.write_text(own_nodes().as_json(), encoding="utf-8")
    with lfx_serve(flow, home) as client:

        def run(flow_id: str, text: str) -> str:
            answer = client.post(f"/flows/{flow_id}/run", json={"input_value": text})
            assert answer.is_success, answer.text
            return str(answer.json()["result"])

        (served,) = client.get("/flows").raise_for_status().json()
        answer, near = parts(run(served["id"], QUESTION))
        assert "Paris" in answer
        _, far = parts(run(served["id"], "How do I bake bread?"))
        assert far < near - 0.2
        ours = json.loads((FOLDER / "local_chat.json").read_text(encoding="utf-8"))
        uploaded = client.post("/flows/upload/", json={"name": "Local Chat", "data": ours["data"]})
        assert "Paris" in run(uploaded.raise_for_status().json()["id"], QUESTION)
        refused = client.post(f"/flows/{served['id']}/run", json={"input_value": "hi"}, headers={"x-api-key": "guess"})
        assert refused.status_code == 401


# -- in Langflow ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def langflow(langflow_server: LangflowServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=langflow_server.base_url, headers=langflow_server.headers, timeout=PATIENCE_S) as client:
        yield client


def run(langflow: httpx.Client, flow: Flow, text: str) -> str:
    made = langflow.post("/api/v1/flows/", json=json.loads(flow.as_json())).raise_for_status().json()
    body = {"input_value": text, "input_type": "chat", "output_type": "chat"}
    answer = langflow.post(f"/api/v1/run/{made['id']}", json=body)
    langflow.delete(f"/api/v1/flows/{made['id']}").raise_for_status()
    assert answer.is_success, answer.text
    return str(answer.json()["outputs"][0]["outputs"][0]["results"]["message"]["text"])


@NEEDS_SMOLLM
def test_langflows_agent_and_embedding_model_answer(langflow: httpx.Client) -> None:
    answer, near = parts(run(langflow, own_nodes(), QUESTION))
    assert "Paris" in answer
    assert near > 0.8


def test_a_knowledge_base_is_fed_and_searched_with_our_embeddings(langflow: httpx.Client) -> None:
    """As the page *Knowledge* does it: made, fed with a file, and read by Langflow's own node."""
    name = "Ferry_handbook"
    body = {"name": name, "embedding_provider": PROVIDER, "embedding_model": BGE_SMALL.name}
    langflow.post("/api/v1/knowledge_bases", json=body).raise_for_status()
    langflow.post(
        f"/api/v1/knowledge_bases/{name}/ingest", files={"files": ("handbook.txt", handbook().encode())},
        data={"chunk_size": 320, "chunk_overlap": 0, "separator": "\\n\\n"},
    ).raise_for_status()  # fmt: skip
    deadline = time.monotonic() + PATIENCE_S
    while (state := langflow.get(f"/api/v1/knowledge_bases/{name}").json())["status"] != "ready":
        assert state["status"] != "failed", state
        assert time.monotonic() < deadline, state
    assert state["chunks"] == len(handbook().split("\n\n"))

    flow = Flow("Handbook", "Asks a knowledge base.", "handbook")
    question = flow.add(ChatInput, "ask", 0)
    found = flow.add(KnowledgeComponent, "search", 1, knowledge_base=name, mode=MODE_RETRIEVE, top_k=2)
    shown = flow.add(ParserComponent, "show", 2, pattern="{content}")
    said = flow.add(ChatOutput, "say", 3)
    flow.connect(question, "message", found, "search_query")
    flow.connect(found, "retrieve_data", shown, "input_data")
    flow.connect(shown, "parsed_text", said, "input_value")
    assert run(langflow, flow, "May I charge my e-bike on board?").startswith("Bicycles:")
    langflow.delete(f"/api/v1/knowledge_bases/{name}").raise_for_status()
