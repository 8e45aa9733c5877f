"""A newcomer's walk through the nodes: their lists, their texts, waiting, and the provider's page.

Screenshots go to `artefacts/`; look at them after a change.
"""

import re
from typing import TYPE_CHECKING

import httpx

from tests.canvas import BROWSER, ask, example, fresh, open_flow, playwright, saved, shot

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = BROWSER

GEMMA = "gemma-3-270m"
MINILM = "all-minilm-l6-v2"
MODEL = "dropdown_str_model_name"


def option(page: "Page", name: str) -> "Locator":
    return page.locator(f"[data-testid^='{name}-'][data-testid$='-option']")


def test_a_fresh_zero_shot_classifier_lists_its_models(page: "Page", api: httpx.Client) -> None:
    """It asks about two fields at once, and keeps only the last answer."""
    fresh(page, api, "Zero-Shot Classifier")
    page.get_by_test_id(MODEL).click()
    playwright.expect(option(page, MINILM)).to_contain_text("embedding")
    shot(page, "list-zero-shot")


def test_a_node_without_models_says_so_and_takes_a_name(page: "Page", api: httpx.Client) -> None:
    fresh(page, api, "Entity Tagger")
    playwright.expect(page.get_by_test_id(f"value-dropdown-{MODEL}")).to_have_text("No model for this task is here")
    page.get_by_test_id("textarea_str_input_value").fill("Ada met Alan in London.")
    with saved(page):
        page.get_by_test_id("popover-anchor-input-other_model").fill("org/no-such-tagger")
    page.get_by_test_id("button_run_entity tagger").click()
    playwright.expect(page.locator("body")).to_contain_text("org/no-such-tagger")
    shot(page, "list-empty")


def test_the_default_says_what_it_takes_and_a_base_model_is_marked(page: "Page", api: httpx.Client) -> None:
    fresh(page, api, "Local Model")
    playwright.expect(page.get_by_test_id(f"value-dropdown-{MODEL}")).to_have_text("auto")
    page.get_by_test_id(MODEL).click()
    playwright.expect(option(page, "auto")).to_contain_text("now ")
    playwright.expect(option(page, GEMMA)).to_contain_text("base text")
    shot(page, "list-base")


def test_the_search_finds_nodes_by_keyword(page: "Page", api: httpx.Client) -> None:
    open_flow(page, api, "Search")
    found = {"llama.cpp": "Gemma", "huggingface": "Local Rerank", "onnx": "Text Classifier", "ner": "Entity Tagger"}
    for word, node in found.items():
        page.get_by_test_id("sidebar-search-input").fill(word)
        playwright.expect(page.get_by_test_id(f"local_runtimes{node}")).to_be_visible()
        shot(page, f"search-{word}")


def test_a_node_has_a_manual(page: "Page", api: httpx.Client) -> None:
    palette = api.get("/api/v1/all").raise_for_status().json()["local_runtimes"]
    (link,) = {node["documentation"] for node in palette.values()}
    page.goto(str(api.base_url.join(link)))
    playwright.expect(page.locator("#the-nodes")).to_be_in_viewport()
    shot(page, "manual")


def test_a_load_is_told_in_the_playground(page: "Page", api: httpx.Client) -> None:
    api.post("/api/v1/runtime/models/unload", params={"model_name": GEMMA}).raise_for_status()
    open_flow(page, api, "Waiting", example("local_chat", model_name=GEMMA, max_tokens=8))
    page.evaluate("""() => {
        window.waiting = new Set()
        new MutationObserver(() => {
            for (const line of document.body.innerText.split("\\n")) if (/^(Loading|Putting)/.test(line)) window.waiting.add(line)
        }).observe(document.body, {childList: true, subtree: true, characterData: true})
    }""")
    answer = ask(page, "What is the capital of France?")
    playwright.expect(answer).to_contain_text("Paris")
    seen = page.evaluate("[...window.waiting]")
    assert any(re.match(rf"Loading {GEMMA}: \d+ % of \d+ MB", line) for line in seen), seen
    playwright.expect(page.get_by_text(f"Loading {GEMMA}")).to_have_count(0)
    shot(page, "waited")


def test_the_status_table_is_as_wide_as_a_chat(page: "Page", api: httpx.Client) -> None:
    open_flow(page, api, "Table", example("model_status"))
    page.get_by_test_id("playground-btn-flow-io").click()
    page.get_by_test_id("button-send").last.click()
    table = page.locator("[data-testid='div-chat-message'] table")
    playwright.expect(table).to_contain_text(GEMMA)
    assert "nan" not in re.split(r"\s+", table.inner_text())
    shot(page, "status-table")
    page.wait_for_function("""() => {
        const message = document.querySelector("[data-testid='div-chat-message']:has(table)");
        return message && message.querySelector("table").scrollWidth <= message.clientWidth;
    }""")  # looked up anew each time: the Playground replaces the message while it ends


def test_the_provider_is_switched_on_and_off(page: "Page", api: httpx.Client) -> None:
    page.goto(str(api.base_url.join("/settings/model-providers")))
    page.get_by_test_id("provider-list-scroll").get_by_text("Local Runtimes").click()
    settings = page.locator("body")
    playwright.expect(settings).to_contain_text("Models to List")
    playwright.expect(settings).not_to_contain_text("Local Runtimes false")
    playwright.expect(settings).not_to_contain_text("Activate")
    playwright.expect(page.get_by_role("link", name="Local Runtimes credentials")).to_have_attribute(
        "href", "/api/v1/runtime/manual#the-provider"
    )
    page.get_by_text("Choose an option").click()
    page.get_by_test_id("All models-LOCAL_RUNTIMES_LISTED_MODELS-option").click()
    page.get_by_test_id("provider-save-button").click()
    playwright.expect(page.get_by_test_id(f"llm-toggle-{GEMMA}")).to_be_visible()
    playwright.expect(page.get_by_test_id(f"embeddings-toggle-{MINILM}")).to_be_visible()
    shot(page, "provider-on")

    page.get_by_test_id("provider-disconnect-button").click()
    page.get_by_test_id("disconnect-warning-confirm").click()
    playwright.expect(page.get_by_test_id(f"llm-toggle-{GEMMA}")).to_have_count(0)
    shot(page, "provider-off")
