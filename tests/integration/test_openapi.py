"""Whatever the OpenAPI description allows, and much that it does not, is answered: never with a 500."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from lfx_local_runtimes.runtimes.requests import Finished
from lfx_local_runtimes.runtimes.tasks.generation import TextDelta
from lfx_local_runtimes.server import create_app
from tests.routes_app import MODEL, Stage, a_result, make_manager, register_puppet, write_model

pytestmark = pytest.mark.integration

KEY = "let me in"
CHANGES_NAMES = "/models/register"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """The standalone server's application; its one model says little."""
    folder: Path = tmp_path_factory.mktemp("openapi") / "models" / "tiny"
    write_model(folder)
    stage = Stage()
    stage.events = [
        TextDelta("hi", 1),
        Finished(a_result(text="hi", tokens_generated=1, prompt_tokens=1)),
    ]
    manager = make_manager(stage, folder.parent)
    register_puppet(manager, folder)
    yield create_app(manager, KEY)
    manager.close()


@pytest.fixture(scope="module")
def description(app: FastAPI) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app).exclude(path_regex="^/v1/")  # mounted twice


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_server_error(description: Any, mode: GenerationMode) -> None:
    statuses, passed = set(), 0
    for operation in (found.ok() for found in description.get_all_operations()):

        @settings(
            max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            statuses.add(ask(case))

        with contextlib.suppress(Unsatisfiable):  # nothing of it can be wrong
            check()
            passed += 1
    assert passed >= 8
    assert mode is GenerationMode.NEGATIVE or 200 in statuses
    assert statuses & {400, 404, 422}


def ask(case: Any) -> int:
    """The status of the answer, if it is one that the description has."""
    body = case.body
    if isinstance(body, dict) and not case.path.endswith(CHANGES_NAMES):
        for name in ("model", "model_name"):
            if isinstance(body.get(name), str):
                body[name] = MODEL
    response = case.call(headers={"x-api-key": KEY})
    case.validate_response(response, checks=[not_a_server_error])
    return int(response.status_code)
