"""For the tests of the routes. Where another engine plays, a file has a `stage` of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from tests.routes_app import KEY, Stage, make_app, make_manager, register_puppet, write_model


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The allowed root, with one model in it."""
    folder = tmp_path / "models"
    write_model(folder / "tiny")
    return folder


@pytest.fixture
def manager(stage: Stage, models: Path) -> Iterator[RuntimeManager]:
    """Its one model, `MODEL`, does as the stage says."""
    manager = make_manager(stage, models)
    register_puppet(manager, models / "tiny")
    yield manager
    manager.close()


@pytest.fixture
def client(manager: RuntimeManager) -> Iterator[TestClient]:
    with TestClient(make_app(manager), base_url="http://test" + PREFIX, headers=KEY) as client:
        yield client
