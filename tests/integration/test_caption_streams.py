"""Models that describe pictures, by the routes: an answer in one piece, and as server-sent events."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager
from lfx_local_runtimes.settings import Settings
from tests.routes_app import KEY, frames_of, make_app, parse_event
from tests.vision_language import png

pytestmark = pytest.mark.integration

ABOUT: dict[str, Any] = {"image": base64.b64encode(png(5)).decode(), "max_length": 8}
ASKED: dict[str, dict[str, Any]] = {"caption": ABOUT, "vqa": {**ABOUT, "question": "what is this?"}}


@pytest.fixture(scope="module", params=["caption", "vqa"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, RuntimeManager, TestClient]]:
    """A task, with a model for it: the captioner in a process that has to be confined in full, the other one inline."""
    task, home = request.param, tmp_path_factory.mktemp("home")
    folder: Path = request.getfixturevalue(f"tiny_blip_{task}")
    place: dict[str, Any] = {"isolation": "inline"} if task == "vqa" else {"confine": "require", "spare_processes": 0}
    manager = RuntimeManager(Settings(home=home, offline=True, model_dirs=(folder.parent,), **place))
    manager.register_model(ModelConfig(model_id=str(folder), model_name=task, quantization="fp32", threads=1))
    asyncio.run(manager.load_model(task))
    with TestClient(make_app(manager), base_url="http://test" + PREFIX, headers=KEY) as client:
        yield task, manager, client
    manager.close()


def test_a_model_answers_and_streams_by_both_routes(served: tuple[str, RuntimeManager, TestClient]) -> None:
    task, manager, client = served
    native, openai = {"model_name": task, **ASKED[task]}, {"model": task, **ASKED[task]}
    path = f"/multimodal/{task}"
    whole = client.post(path, json=native).raise_for_status().json()
    assert whole["tokens_generated"] == 8
    assert whole["text"]
    assert manager.model_status(task).model_type == task
    if task == "caption":
        assert manager.model_status(task).confined == "full"
    for place, body in ((path, native), (f"/v1{path}", openai)):
        answer = client.post(place, json={**body, "stream": True}).raise_for_status()
        assert answer.headers["content-type"].startswith("text/event-stream")
        *deltas, (last, result) = map(parse_event, frames_of(answer.text))
        assert deltas
        assert {name for name, _ in deltas} == {"delta"}
        assert "".join(delta["text"] for _, delta in deltas) == result["text"] == whole["text"]
        assert (last, result["tokens_generated"]) == ("done", 8)


def test_a_stream_ends_with_the_reason_if_the_picture_is_none(
    served: tuple[str, RuntimeManager, TestClient],
) -> None:
    task, _, client = served
    broken = {**ASKED[task], "image": base64.b64encode(png(5)[:100]).decode(), "stream": True}
    for place, name in ((f"/multimodal/{task}", "model_name"), (f"/v1/multimodal/{task}", "model")):
        assert "image cannot be decoded" in client.post(place, json={name: task, **broken}).text
