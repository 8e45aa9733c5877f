"""Whatever the OpenAPI description allows, and much that it does not, a live server with real models answers as described."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.servers import our_process
from tests.encoder_models import save_encoder
from tests.gguf_encoders import RANK, save_bert_gguf

pytestmark = pytest.mark.integration

KEY = "let me in"
PREFIX = "/api/v1/runtime"
PATIENCE_S = 60.0
PLAIN_PATHS = ("/models/register", "/models/{model_name}")
"""Bodies that say what a name stands for keep theirs: the names of the models here are not to be registered anew."""
TEXT, EMBEDDER, RERANKER, TAGGER = "a text model", "an embedder", "a reranker", "a tagger"
MODELS = {"embed": EMBEDDER, "embeddings": EMBEDDER, "rerank": RERANKER, "classify": RERANKER, "ner": TAGGER}
"""By the last part of a path; others take text."""
COMPUTING = {
    "/generate", "/generate/stream", "/inference", "/embed", "/rerank", "/classify", "/ner", "/v1/chat/completions",
    "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank", "/v1/classify", "/v1/ner",
}  # fmt: skip
"""Paths that must have answered with a result."""
NOT_IN_A_SCHEMA = re.compile(
    "context holds|context length|in the model's vocabulary|is more than the [0-9]+ the model has|cannot fill a gap"
    "| does [a-z_, ]+, not "  # about the model
    "|none of the tools|function of the tools|two tools have the same name|a last message of the assistant"
    "|reads text only|no picture|an allowed folder|cannot be read|are not fetched"  # about files and URLs
    "|more than 64 bits|half of a character|does not name pages|prompts of [0-9]+ answers|the path|input: is empty"  # about values that belong together
    "|grammar has|grammar is|regular expression|schema cannot|JSON schema"  # about texts in languages of their own
    "|no engine|is not a task|neither a path nor a hub repository|allowed model folder|valid path|running already"  # about this machine and this moment
)
"""What a request is refused for though its JSON schema allows it, because no schema can say it."""


def accepted(context: Any, response: Any, case: Any) -> None:
    """A request that the description allows is refused only for what it cannot say, or because nothing has the name."""
    if response.status_code in (400, 422) and not NOT_IN_A_SCHEMA.search(str(response.json())):
        again = case.call(headers={"x-api-key": KEY}, timeout=PATIENCE_S)  # a refusal of the moment does not come again
        assert again.status_code not in (400, 422), f"{case.method} {case.path}: {response.text[:500]}"


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def url(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the standalone server, which has loaded a small model for every task."""
    folder = tmp_path_factory.mktemp("openapi")
    (folder / "text.gguf").hardlink_to(tiny_gguf)
    save_bert_gguf(save_encoder(folder / "embedder", "Bert", "Model"), folder / "embedder.gguf")
    classifier = save_encoder(folder / "reranker", "Bert", "ForSequenceClassification", num_labels=1)
    save_bert_gguf(classifier, folder / "reranker.gguf", pooling=RANK, labels=("relevant",))
    save_encoder(folder / "tagger", "Bert", "ForTokenClassification", id2label={0: "O", 1: "B-PER"})
    files = {
        TEXT: ("text.gguf", "llm"), EMBEDDER: ("embedder.gguf", "embedding"), RERANKER: ("reranker.gguf", "rerank"),
        TAGGER: ("tagger", "ner"),
    }  # fmt: skip
    environment = {
        "LOCAL_RUNTIMES_HOME": str(folder / "home"),
        "LOCAL_RUNTIMES_MODEL_DIRS": str(folder),
        "LOCAL_RUNTIMES_API_KEY": KEY,
    }
    with our_process(**environment) as server:
        with httpx.Client(base_url=server.url + PREFIX, headers={"x-api-key": KEY}, timeout=120) as client:
            for name, (file, task) in files.items():
                config = {"model_id": str(folder / file), "model_name": name, "model_type": task, "pinned": True}
                client.post("/models/register", json=config | {"context_length": 64}).raise_for_status()
                client.post("/models/load", params={"model_name": name}).raise_for_status()
        yield server.url
        assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def description(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/openapi.json").exclude(path_regex="^/v1/")  # mounted twice


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_as_described(description: Any, mode: GenerationMode) -> None:
    statuses: dict[str, set[int]] = {}
    for operation in (found.ok() for found in description.get_all_operations()):

        @settings(
            max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            name_models(case)
            response = case.call(headers={"x-api-key": KEY}, timeout=PATIENCE_S)
            case.validate_response(response, checks=[*CHECKS, *([accepted] if mode is GenerationMode.POSITIVE else [])])
            statuses.setdefault(case.path.removeprefix(PREFIX), set()).add(response.status_code)

        with contextlib.suppress(Unsatisfiable):  # nothing of it can be wrong
            check()
    assert len(statuses) >= 8
    assert set().union(*statuses.values()) & {400, 404, 422}
    unanswered = {path for path in COMPUTING if 200 not in statuses[path]}
    assert mode is GenerationMode.NEGATIVE or not unanswered, unanswered


def name_models(case: Any) -> None:
    """Ask a model that is there."""
    if isinstance(case.body, dict) and not case.path.endswith(PLAIN_PATHS):
        for name in ("model", "model_name"):
            if isinstance(case.body.get(name), str):
                case.body[name] = MODELS.get(case.path.rpartition("/")[2], TEXT)
        if "images" in case.body and case.path.endswith(("/embed", "/embeddings")):  # the model here reads texts only
            del case.body["images"]
            case.body["input" if case.path.endswith("s") else "texts"] = ["Hello"]
        if case.path.endswith("/inference"):  # its options are those of any task
            case.body.update(task=None, options={"prompt": "Hello"}, stream=False)
