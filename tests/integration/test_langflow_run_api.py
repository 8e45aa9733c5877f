"""The example flows through a running Langflow: uploaded, listed, run and streamed over `/api/v1/run`."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lfx_local_runtimes.flows.build import FOLDER
from lfx_local_runtimes.nodes.provider import INSTRUCT_ONLY, LISTED, PROVIDER
from lfx_local_runtimes.runtimes.sources.packages import SMOLLM
from tests.langflow_server import LangflowServer

pytestmark = pytest.mark.integration

GEMMA = "gemma-3-270m"


@pytest.fixture(scope="module")
def client(langflow_server: LangflowServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=langflow_server.base_url, headers=langflow_server.headers, timeout=180) as client:
        yield client


@pytest.fixture(scope="module")
def flows(client: httpx.Client) -> dict[str, str]:
    """Every example flow, uploaded: name → id."""
    ids = {}
    for path in FOLDER.glob("*.json"):
        flow = json.loads(path.read_text(encoding="utf-8"))
        made = client.post(
            "/api/v1/flows/", json={key: flow[key] for key in ("name", "description", "endpoint_name", "data")}
        )
        ids[path.stem] = made.raise_for_status().json()["id"]
    return ids


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["outputs"][0]["outputs"][0]["results"]["message"]["text"])


def test_local_chat_runs(client: httpx.Client, flows: dict[str, str]) -> None:
    answer = client.post(
        f"/api/v1/run/{flows['local_chat']}",
        json={"input_value": "What is the capital of France?", "input_type": "chat", "output_type": "chat"},
    )
    assert "Paris" in text_of(answer.raise_for_status().json())


def test_local_chat_streams(client: httpx.Client, flows: dict[str, str]) -> None:
    body = {
        "input_value": "Write a Python function that adds two numbers.",
        "input_type": "chat",
        "output_type": "chat",
    }
    events = []
    with client.stream("POST", f"/api/v1/run/{flows['local_chat']}?stream=true", json=body) as answer:
        answer.raise_for_status()
        events = [json.loads(line) for line in answer.iter_lines() if line.strip()]
    tokens = [event["data"]["chunk"] for event in events if event["event"] == "token"]
    assert len(tokens) > 10
    end = next(event for event in events if event["event"] == "end")
    assert text_of(end["data"]["result"]) == "".join(tokens)


@pytest.mark.skipif(not SMOLLM.installed, reason="the demo's SmolLM2 is not installed")
def test_code_pipeline_streams_its_events(client: httpx.Client, flows: dict[str, str]) -> None:
    body = {"input_value": "add two numbers", "input_type": "chat", "output_type": "chat"}
    with client.stream("POST", f"/api/v1/run/{flows['code_pipeline']}?stream=true", json=body) as answer:
        answer.raise_for_status()
        events = [json.loads(line) for line in answer.iter_lines() if line.strip()]
    assert [event for event in events if event["event"] == "error"] == []
    end = next(event for event in events if event["event"] == "end")
    program = text_of(end["data"]["result"])
    assert "(a, b):\n    return a + b" in program
    by_name = {
        model["model_name"]: model for model in client.get("/api/v1/runtime/models").raise_for_status().json()["models"]
    }
    assert (by_name[GEMMA]["state"], by_name[SMOLLM.name]["state"]) == ("ready", "ready")


def test_tools_agent_calculates_with_its_tool(client: httpx.Client, flows: dict[str, str]) -> None:
    body = {"input_value": "How much is 12 times 12?", "input_type": "chat", "output_type": "chat"}
    answer = client.post(f"/api/v1/run/{flows['tools_agent']}", json=body)
    assert text_of(answer.raise_for_status().json()) == "The result is 144."


def test_local_chat_remembers_the_turn_before(client: httpx.Client, flows: dict[str, str]) -> None:
    def say(text: str, session: str) -> str:
        body = {"input_value": text, "input_type": "chat", "output_type": "chat", "session_id": session}
        return text_of(client.post(f"/api/v1/run/{flows['local_chat']}", json=body).raise_for_status().json())

    say("Hello, my name is Ada.", "first")
    assert "Ada" in say("What is my name?", "first")
    assert "Ada" not in say("What is my name?", "second"), "each session has its own history"


def test_model_status_runs(client: httpx.Client, flows: dict[str, str]) -> None:
    answer = client.post(f"/api/v1/run/{flows['model_status']}", json={"output_type": "chat"})
    assert GEMMA in text_of(answer.raise_for_status().json())


def test_the_provider_lists_the_gemma_when_it_is_switched_on(client: httpx.Client) -> None:
    def listed() -> list[str]:
        providers = {row["provider"]: row for row in client.get("/api/v1/models").raise_for_status().json()}
        return [model["model_name"] for model in providers[PROVIDER]["models"]]

    assert listed() == []
    variable = {"name": LISTED, "value": "All models", "type": "Generic", "default_fields": []}
    made = client.post("/api/v1/variables/", json=variable).raise_for_status().json()
    assert GEMMA in listed()
    client.patch(f"/api/v1/variables/{made['id']}", json={"id": made["id"], "value": INSTRUCT_ONLY}).raise_for_status()
    assert GEMMA not in listed()
    client.delete(f"/api/v1/variables/{made['id']}").raise_for_status()


def test_the_palette_has_every_node(client: httpx.Client) -> None:
    palette = client.get("/api/v1/all").raise_for_status().json()["local_runtimes"]
    assert {node["display_name"] for node in palette.values()} == {
        "Depth", "Document Reader", "Entity Tagger", "Gemma", "Image Classifier", "Image Describer", "Local Embeddings",
        "Local Model", "Local Rerank", "Model Manager", "Object Detector", "Runtime Status", "Segmenter", "Text Classifier",
        "Zero-Shot Classifier", "Zero-Shot Image Classifier",
    }  # fmt: skip


def test_langflows_own_language_model_node_uses_the_provider(client: httpx.Client) -> None:
    palette = client.get("/api/v1/all").raise_for_status().json()
    flow = json.loads((FOLDER / "local_chat.json").read_text(encoding="utf-8"))["data"]
    node = next(node for node in flow["nodes"] if node["id"] == "LocalModel-chat")
    node["data"] |= {"type": "LanguageModelComponent", "node": palette["models_and_agents"]["LanguageModelComponent"]}
    template = node["data"]["node"]["template"]
    template["model"]["value"] = [{"name": GEMMA, "provider": PROVIDER, "metadata": {}}]
    template["max_tokens"]["value"] = 16
    for edge in flow["edges"]:
        if edge["source"] == node["id"]:
            edge["data"]["sourceHandle"]["dataType"] = "LanguageModelComponent"
            edge["sourceHandle"] = edge["sourceHandle"].replace(
                "ext:local_runtimes:LocalModelComponent@official", "LanguageModelComponent"
            )
    made = client.post("/api/v1/flows/", json={"name": "Provider", "data": flow}).raise_for_status().json()
    answer = client.post(f"/api/v1/run/{made['id']}", json={"input_value": "What is the capital of France?"})
    assert "Paris" in text_of(answer.raise_for_status().json())
