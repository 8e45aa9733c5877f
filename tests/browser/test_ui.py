"""A person's way through Langflow's UI in Chromium: find the nodes, build a chat, talk to the Gemma, press Stop.

Screenshots go to `artefacts/`; look at them after a change.
"""

import os
import re
import signal
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.canvas import (
    BROWSER,
    FLOWS,
    PATIENCE_MS,
    answered,
    ask,
    connect,
    drag,
    example,
    open_flow,
    playwright,
    saved,
    shot,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = BROWSER

GEMMA = "gemma-3-270m"
MINILM = "all-minilm-l6-v2"
COUNTING = {"model_name": GEMMA, "raw": True, "max_tokens": 4000, "system_message": "", "n_messages": 0}
"""Settings with which the Gemma counts on and on."""


def runtime(api: httpx.Client) -> tuple[int, int]:
    """Leases on the Gemma, and requests cancelled so far."""
    model = api.get(f"/api/v1/runtime/models/{GEMMA}").raise_for_status().json()
    stats = api.get("/api/v1/runtime/stats").raise_for_status().json()
    return model["leases"], stats["counters"].get("requests_cancelled", 0)


def test_the_bundle_is_in_the_palette(page: "Page", api: httpx.Client) -> None:
    open_flow(page, api, "Palette")
    page.get_by_test_id("disclosure-local runtimes").click()
    for node in (
        "Entity Tagger", "Gemma", "Local Embeddings", "Local Model", "Local Rerank", "Model Manager", "Runtime Status",
        "Text Classifier", "Zero-Shot Classifier",
    ):  # fmt: skip
        playwright.expect(page.get_by_test_id(f"local_runtimes{node}")).to_be_visible()
    shot(page, "palette")


def test_a_chat_is_built_by_hand_and_answers(page: "Page", api: httpx.Client) -> None:
    open_flow(page, api, "By hand")
    page.get_by_test_id("disclosure-local runtimes").click()
    drag(page, "local_runtimesLocal Model", 600, 150)
    page.get_by_test_id("disclosure-local runtimes").click()
    page.get_by_test_id("disclosure-input & output").click()
    drag(page, "input_outputChat Input", 330, 400)
    drag(page, "input_outputChat Output", 1000, 480)
    connect(page, "handle-chatinput-noshownode-chat message-source", "handle-localmodelcomponent-shownode-input-left")
    connect(
        page, "handle-localmodelcomponent-shownode-model response-right", "handle-chatoutput-noshownode-inputs-target"
    )

    page.get_by_test_id("dropdown_str_model_name").click()
    playwright.expect(page.get_by_test_id("auto-0-option")).to_be_visible()
    option = page.locator(f"[data-testid^='{GEMMA}-'][data-testid$='-option']")
    option.wait_for()
    shot(page, "models")
    with answered(page, "POST", "/custom_component/update"):
        option.click()
    playwright.expect(page.get_by_test_id("value-dropdown-dropdown_str_model_name")).to_have_text(GEMMA)
    page.get_by_test_id("parameters-button").click()
    page.get_by_test_id("inspector-add-temperature").click()
    page.get_by_test_id("inspection-panel-close").click()
    with saved(page):
        page.get_by_role("slider").press("Home")  # temperature 0: else one answer in ten is not Paris
    shot(page, "canvas")

    answer = ask(page, "What is the capital of France?")
    playwright.expect(answer).to_contain_text("Paris")
    playwright.expect(page.get_by_test_id("button-send").last).to_be_visible()
    playwright.expect(answer).not_to_contain_text("ParisParis")
    shot(page, "answer")


def test_a_text_becomes_a_vector(page: "Page", api: httpx.Client) -> None:
    open_flow(page, api, "Vector")
    page.get_by_test_id("disclosure-local runtimes").click()
    drag(page, "local_runtimesLocal Embeddings", 600, 150)
    page.get_by_test_id("dropdown_str_model_name").click()
    with answered(page, "POST", "/custom_component/update"):
        page.locator(f"[data-testid^='{MINILM}-'][data-testid$='-option']").click()
    page.locator("[data-testid^='dropdown-output-']").click()
    page.get_by_test_id(re.compile("dropdown-item-output-.*-vector$")).click()
    with saved(page):
        page.get_by_test_id("textarea_str_input_value").fill("A man is eating food.")
    page.get_by_test_id("button_run_local embeddings").click()
    playwright.expect(page.locator("body")).to_contain_text("Flow built successfully")
    page.get_by_test_id("output-inspection-vector-localembeddingscomponent").click()
    shown = page.get_by_role("dialog").filter(has_text="Component Output")
    playwright.expect(shown).to_contain_text('"embeddings": [')
    shot(page, "vector")
    api.post("/api/v1/runtime/models/unload", params={"model_name": MINILM}).raise_for_status()


def test_an_answer_streams_and_stop_ends_the_computation(page: "Page", api: httpx.Client) -> None:
    open_flow(page, api, "Counting", example("local_chat", **COUNTING))
    cancelled = runtime(api)[1]
    answer = ask(page, "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19")
    stop = page.get_by_test_id("button-stop")
    playwright.expect(answer).to_contain_text("22 23")
    playwright.expect(stop).to_be_visible()
    shot(page, "streaming")
    playwright.expect(answer).to_contain_text("31 32")
    assert runtime(api)[0] == 1

    stop.click()
    playwright.expect(page.get_by_test_id("button-send").last).to_be_visible()
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while runtime(api) != (0, cancelled + 1):
        assert time.monotonic() < deadline, runtime(api)
    shot(page, "stopped")


def test_a_model_that_dies_is_explained_and_answers_the_next_question(page: "Page", api: httpx.Client) -> None:
    open_flow(page, api, "Death", example("local_chat", **COUNTING))
    answer = ask(page, "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19")
    playwright.expect(answer).to_contain_text("22 23")
    model = api.get(f"/api/v1/runtime/models/{GEMMA}").raise_for_status().json()
    assert model["isolation"] == "process"
    os.kill(model["pid"], signal.SIGKILL)
    playwright.expect(page.locator("body")).to_contain_text("signal SIGKILL")
    shot(page, "died")
    open_flow(page, api, "After death", example("local_chat", model_name=GEMMA, max_tokens=8))
    playwright.expect(ask(page, "What is the capital of France?")).to_contain_text("Paris")
    again = api.get(f"/api/v1/runtime/models/{GEMMA}").raise_for_status().json()
    assert again["restarts"] == model["restarts"] + 1
    assert again["pid"] != model["pid"]
    shot(page, "after-death")


def test_an_unknown_model_is_explained(page: "Page", api: httpx.Client) -> None:
    open_flow(page, api, "Unknown", example("local_chat", model_name="no-such-model"))
    answer = ask(page, "Hello")
    playwright.expect(page.locator("body")).to_contain_text("no-such-model")
    playwright.expect(page.get_by_test_id("button-send").last).to_be_visible()
    assert answer is not None
    shot(page, "error")


@pytest.mark.parametrize("name", sorted(path.stem for path in FLOWS.glob("*.json")))
def test_an_example_keeps_its_wires_and_shows_its_whole_note(name: str, page: "Page", api: httpx.Client) -> None:
    """The canvas drops wires that it does not understand, and cuts a note that is longer than its box."""
    data = example(name)
    open_flow(page, api, f"Example {name}", data)
    playwright.expect(page.locator(".react-flow__node")).to_have_count(len(data["nodes"]))
    playwright.expect(page.locator(".react-flow__edge")).to_have_count(len(data["edges"]))
    note = page.locator(".react-flow__node-noteNode").first
    playwright.expect(note).to_contain_text("Headless")
    hidden = note.evaluate(
        "node => Math.max(0, ...[...node.querySelectorAll('*')].map(part => part.scrollHeight - part.clientHeight)"
        ".filter((_, at, all) => getComputedStyle([...node.querySelectorAll('*')][at]).overflowY !== 'visible'))"
    )
    shot(page, f"flow-{name}")
    assert hidden <= 2, f"{hidden} pixels of the note are cut off"


def test_a_chat_remembers_what_was_said(page: "Page", api: httpx.Client) -> None:
    open_flow(page, api, "Memory", example("local_chat", model_name=GEMMA))
    playwright.expect(ask(page, "Hello, my name is Ada.")).to_be_visible()
    playwright.expect(page.get_by_test_id("button-send").last).to_be_visible()
    page.get_by_test_id("input-chat-playground").last.fill("What is my name?")
    page.get_by_test_id("button-send").last.click()
    playwright.expect(page.locator("[data-testid^='chat-message-AI']")).to_have_count(2)
    playwright.expect(page.locator("[data-testid^='chat-message-AI']").last).to_contain_text("Ada")
    shot(page, "memory")


def test_a_handbook_answers_with_its_sources(page: "Page", api: httpx.Client) -> None:
    open_flow(page, api, "Handbook", example("local_rag"))
    answer = ask(page, "How often are the filters replaced?")
    playwright.expect(answer).to_contain_text("hundred and fifty hours")
    playwright.expect(answer.locator("p", has_text="[1] Engine checks")).to_have_text(re.compile(r"^\[1\] [^\[]*$"))
    shot(page, "sources")


def test_the_status_table_shows(page: "Page", api: httpx.Client) -> None:
    open_flow(page, api, "Status", example("model_status"))
    page.get_by_test_id("playground-btn-flow-io").click()
    page.get_by_test_id("button-send").last.click()
    answer = page.locator("[data-testid^='chat-message-AI']").last
    playwright.expect(answer).to_contain_text(GEMMA)
    shot(page, "status")
