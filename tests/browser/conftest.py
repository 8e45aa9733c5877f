"""One page in Chromium, and Langflow's API beside it, for each module."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.canvas import ARTEFACTS, CHROMIUM, PATIENCE_MS, playwright
from tests.langflow_server import LangflowServer

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def page() -> Iterator["Page"]:
    ARTEFACTS.mkdir(exist_ok=True)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        playwright.expect.set_options(timeout=PATIENCE_MS)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def api(langflow_server: LangflowServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=langflow_server.base_url, headers=langflow_server.headers, timeout=60) as client:
        yield client
