"""A model from the hub, over REST, to its answer: downloaded as a job, or by its first use."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lfx_local_runtimes.routes import PREFIX
from tests.builders import write_gguf
from tests.hub_models import REPO, hub_manager
from tests.routes_app import KEY, make_app

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("asked", [True, False])
def test_a_model_from_the_hub_answers(tmp_path: Path, asked: bool) -> None:
    content = write_gguf(tmp_path / "tiny-F32.gguf").read_bytes()
    with hub_manager(tmp_path, {REPO: {"tiny-F32.gguf": content}}, downloads="ask" if asked else "on") as (_, manager):
        client = TestClient(make_app(manager), base_url="http://test" + PREFIX, headers=KEY)
        body: dict[str, Any] = {"model_name": REPO, "prompt": "the model says", "max_tokens": 4, "temperature": 0}
        if asked:
            assert client.post("/generate", json=body).json()["error"]["code"] == "not_downloaded"
            assert client.post("/downloads", json={"model_name": REPO}).status_code in (
                202,
                200,
            )  # it may be there by now
        answer = client.post("/generate", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["tokens_generated"] == 4
        (job,) = client.get("/downloads").json()["downloads"]
        assert (job["state"], job["done_bytes"], job["engine"]) == ("done", len(content), "llama_cpp")
        used = client.get(f"/models/{REPO}:F32").json()
        assert used["source"] == "hub cache"
