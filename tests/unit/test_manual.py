"""The manual: the page that the nodes' documentation button opens."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.routes import build_router, manual

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def readme(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The metadata of the installed distribution, with the README as it is now."""
    installed = {"Description": README}
    monkeypatch.setattr(manual, "metadata", lambda name: installed)
    manual.page.cache_clear()
    yield installed
    manual.page.cache_clear()


@pytest.fixture
def client() -> TestClient:
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


def test_every_link_of_the_manual_leads_somewhere(client: TestClient) -> None:
    """Other files of the repository are not installed."""
    page = client.get("/api/v1/runtime/manual").text
    for target in re.findall(r'<a href="([^"]*)"', page):
        assert target.startswith("http") or f'id="{target.removeprefix("#")}"' in page, target
    assert "the shipped one" in page


def test_the_manual_runs_nothing(client: TestClient, readme: dict[str, str]) -> None:
    readme["Description"] = "# A\n\n<script>alert(1)</script>"
    assert "<script" not in client.get("/api/v1/runtime/manual").text
