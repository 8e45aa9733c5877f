"""A person's hands and eyes in Langflow's UI, for the browser tests."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from playwright.sync_api import Locator, Page

playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

ARTEFACTS = Path(__file__).parents[1] / "artefacts"
FLOWS = Path(__file__).parents[1] / "flows"
PATIENCE_MS = 120_000

BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="the browser test needs Chromium; on Debian: apt-get install chromium"),
    pytest.mark.timeout(600),
]
"""The marks of every module of browser tests."""


def open_flow(page: "Page", api: httpx.Client, name: str, data: object = None) -> None:
    """Make a flow, empty by default, and open it."""
    made = api.post("/api/v1/flows/", json={"name": name, "data": data or {"nodes": [], "edges": []}})
    page.goto(f"{api.base_url}/flow/{made.raise_for_status().json()['id']}")
    page.get_by_test_id("canvas_controls_dropdown").wait_for()


def example(name: str, **values: object) -> Any:
    """The canvas of an example flow, with fields of its Local Model set. The canvas drops a model that is not in its list."""
    data = json.loads((FLOWS / f"{name}.json").read_text(encoding="utf-8"))["data"]
    for node in data["nodes"]:
        if node["id"].startswith("LocalModel-"):
            for field, value in values.items():
                node["data"]["node"]["template"][field]["value"] = value
                if field == "model_name":
                    node["data"]["node"]["template"][field]["options"] = [value]
    return data


def shot(page: "Page", name: str) -> None:
    with contextlib.suppress(playwright.TimeoutError):  # a picture for people: on a busy machine it may be missing
        page.screenshot(path=ARTEFACTS / f"{name}.png", timeout=10_000)


def drag(page: "Page", item: str, x: int, y: int) -> None:
    """Drop a node of the palette on the canvas.

    Langflow shows a flow before it knows what the user may do with it. Until then the flow is read-only: its palette is
    not draggable and a drop is lost.
    """
    nodes = page.locator(".react-flow__node")
    before = nodes.count()
    draggable = page.locator(f"[data-testid='{item}'][draggable=true]")
    draggable.drag_to(page.get_by_test_id("rf__wrapper"), target_position={"x": x, "y": y})
    playwright.expect(nodes).to_have_count(before + 1)


def fresh(page: "Page", api: httpx.Client, node: str) -> None:
    """A new flow with one node, and the list of the bundle's nodes open beside it."""
    open_flow(page, api, f"Fresh {node}")
    page.get_by_test_id("disclosure-local runtimes").click()
    page.get_by_test_id(f"local_runtimes{node}").hover()
    with answered(page, "POST", "/custom_component/update"):  # a new node asks for its lists
        page.get_by_test_id(f"add-component-button-{node.lower().replace(' ', '-')}").click()
    playwright.expect(page.locator(".react-flow__node")).to_have_count(1)


def connect(page: "Page", source: str, target: str) -> None:
    edges = page.locator(".react-flow__edge")
    before = edges.count()
    page.get_by_test_id(source).click()
    page.get_by_test_id(target).click()
    playwright.expect(edges).to_have_count(before + 1)


def answered(page: "Page", method: str, path: str) -> "AbstractContextManager[object]":
    """Wait until Langflow's server has answered what the UI sends upon the action inside."""
    return page.expect_request_finished(lambda request: request.method == method and path in request.url)


def saved(page: "Page") -> "AbstractContextManager[object]":
    """Wait until Langflow has saved the change inside.

    It drops a run that is started while it saves: it takes its own save for that of another user.
    """
    return answered(page, "PATCH", "/api/v1/flows/")


def ask(page: "Page", text: str, picture: bytes = b"") -> "Locator":
    """Open the Playground and send a message, with a PNG file if there is one; returns the answer in the making."""
    page.get_by_test_id("playground-btn-flow-io").click()
    page.get_by_test_id("input-chat-playground").last.fill(text)
    if picture:
        with answered(page, "POST", "/api/v1/files/upload/"):
            page.locator("input[type=file]").last.set_input_files(
                {"name": "picture.png", "mimeType": "image/png", "buffer": picture}
            )
    page.get_by_test_id("button-send").last.click()
    return page.locator("[data-testid^='chat-message-AI']").last
