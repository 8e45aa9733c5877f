"""The manual: the page that the nodes' documentation button opens."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.routes import build_router, manual

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


class Installed:
    """The metadata of an installed distribution."""

    def get_payload(self) -> str:
        return README


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(manual, "metadata", lambda name: Installed())
    manual.page.cache_clear()

    def nobody() -> None:
        raise AssertionError("the manual asks for no key and no manager")

    app = FastAPI()
    app.include_router(build_router(nobody, nobody, nobody))  # type: ignore[arg-type]
    return TestClient(app)


def test_the_documentation_link_of_a_node_leads_to_its_section(client: TestClient) -> None:
    path, _, anchor = LocalModelComponent.documentation.partition("#")
    answer = client.get(path)
    assert answer.headers["content-type"].startswith("text/html")
    assert f'id="{anchor}"' in answer.text
    assert "<strong>Local Model</strong>" in answer.text
    assert "<img" not in answer.text
    assert 'id="the-provider"' in answer.text


def test_the_manual_runs_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Installed, "get_payload", lambda self: "# A\n\n<script>alert(1)</script>")
    manual.page.cache_clear()
    assert not re.search("<script", client.get("/api/v1/runtime/manual").text)
    manual.page.cache_clear()
