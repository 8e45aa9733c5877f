"""A picture from the Playground to the Object Detector and back, and a document that is uploaded to Document Reader.

Screenshots go to `artefacts/`; look at them after a change.
"""

import json
import re
from typing import TYPE_CHECKING

import httpx
from lfx.components.input_output.chat import ChatInput
from lfx.components.input_output.chat_output import ChatOutput

from lfx_local_runtimes.components.local_runtimes.object_detector import ObjectDetectorComponent
from lfx_local_runtimes.flows.canvas import Flow
from tests.canvas import BROWSER, ask, fresh, open_flow, playwright, saved, shot
from tests.documents import WORDS, save_pdf, text_page
from tests.langflow_server import LangflowServer
from tests.pictures import drawn, file_of
from tests.vision_models import detr

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = BROWSER

NODE = ".react-flow__node"


def test_a_picture_in_the_playground_comes_back_with_its_boxes(
    page: "Page", api: httpx.Client, langflow_server: LangflowServer
) -> None:
    model = detr(langflow_server.home / "models" / "tiny-detr").name
    flow = Flow("Boxes", "", "boxes")
    given, shown = flow.add(ChatInput, "given", 0), flow.add(ChatOutput, "shown", 2)
    detector = flow.add(ObjectDetectorComponent, "boxes", 1, threshold=0.1)
    flow.node(detector)["node"]["template"]["model_name"] |= {"value": model, "options": [model]}
    flow.connect(given, "message", detector, "input_value")
    flow.connect(detector, "picture", shown, "input_value")
    open_flow(page, api, "Boxes", json.loads(flow.as_json())["data"])
    answer = ask(page, "What is in it?", file_of(drawn((320, 240))))
    playwright.expect(answer).to_contain_text(": ")
    picture = answer.get_by_role("img", name="Picture 1")
    playwright.expect(picture).to_be_visible()
    size = picture.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert size == [320, 240]
    shot(page, "boxes")


def test_an_uploaded_document_is_read(page: "Page", api: httpx.Client) -> None:
    fresh(page, api, "Document Reader")
    page.locator(NODE).get_by_test_id("button_open_file_management").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_test_id("drag-files-component").click()
    chooser.value.set_files(
        {"name": "harbour.pdf", "mimeType": "application/pdf", "buffer": save_pdf([text_page(WORDS)])}
    )
    playwright.expect(page.get_by_test_id("checkbox-harbour")).to_be_checked()
    with saved(page):
        page.get_by_test_id("select-files-modal-button").click()
    page.get_by_test_id("button_run_document reader").click()
    playwright.expect(page.locator("body")).to_contain_text("Flow built successfully")
    page.get_by_test_id("output-inspection-document-documentreadercomponent").click()
    shown = page.get_by_role("dialog").filter(has_text="Component Output")
    playwright.expect(shown.get_by_role("textbox")).to_have_value(re.compile(WORDS[0]))
    shot(page, "document")
