"""Triage on real models: how well an embedding model tells topics, and the example flow, headless and in Langflow."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from lfx_local_runtimes.flows.build import FOLDER
from lfx_local_runtimes.runtimes.engines.transformers.encoder import TransformersEncoder
from lfx_local_runtimes.runtimes.tasks.text.zero_shot import ZeroShotAsk
from tests.encoder_models import answer, load_encoder, unload
from tests.langflow_server import LangflowServer
from tests.lfx_process import lfx_run

pytestmark = pytest.mark.integration

MESSAGES = {
    "delivery": (
        "My parcel arrived broken.", "The package still has not come after two weeks.",
        "Tracking says it was handed over, but nobody rang at my door.", "The courier left the box in the rain.",
        "Can you send it to my office instead of my home?", "I got somebody else's order in the mail.",
        "How long does shipping to Norway take?", "When will my order get here?",
        "Half of the items were missing from the box.", "The driver refused to carry it upstairs.",
    ),
    "payment": (
        "I was charged twice this month.", "How do I get a refund?", "The invoice shows the wrong amount.",
        "My credit card was declined at the checkout.", "Can I pay by bank transfer?",
        "You took money from my account although I had cancelled.", "Please send me a receipt for my tax return.",
        "The discount code did not lower the price.", "Why has my subscription become more expensive?",
        "I would like to change my billing address.",
    ),
    "technical problem": (
        "The app crashes whenever I open it.", "I cannot log in, it says my password is wrong.",
        "The screen stays black after the update.", "Your website shows an error 500.",
        "The device does not connect to my wifi.", "Syncing has been stuck at 40 percent since yesterday.",
        "The reset email never comes, so I am locked out.", "Bluetooth drops out every few minutes.",
        "The program freezes when I import a large file.", "No sound comes out of the left speaker.",
    ),
    "praise": (
        "Thank you so much, everything worked perfectly!", "You have the best customer service I ever met.",
        "I love the new design.", "My kids are delighted with the toy.", "Great job, keep it up!",
        "Anna from your team was incredibly helpful.", "I have recommended you to all my friends.",
        "Five stars, I will buy from you again.", "Just wanted to say how happy I am with it.",
        "What a wonderful surprise, it is even nicer than in the pictures.",
    ),
}  # fmt: skip
TEXTS = tuple(text for texts in MESSAGES.values() for text in texts)

BRANCHES = {
    "delivery": ("My parcel arrived broken", "your parcel arrived broken. We will send you a new one."),
    "payment": ("I was charged twice this month.", "Please send us your invoice number."),
    "technical": ("The screen stays black after the update.", "Please restart your device."),
}
"""By branch, a message that takes it, and how the answer ends."""


@pytest.fixture(scope="module")
def embedder(minilm: Path) -> Iterator[TransformersEncoder]:
    runtime = load_encoder(minilm)
    yield runtime
    unload(runtime)


# -- the method ----------------------------------------------------------------------------------------------------------


def test_an_embedding_model_tells_the_topic_of_most_messages(embedder: TransformersEncoder) -> None:
    found = answer(embedder, ZeroShotAsk(texts=TEXTS, labels=tuple(MESSAGES)))
    right = [row[0].label == topic for row, topic in zip(found.labels, np.repeat([*MESSAGES], 10), strict=True)]
    assert sum(right) >= 36, "37 when this was written"
    assert found.metadata["method"] == "similarity"


def test_likeness_is_that_of_sentence_transformers(embedder: TransformersEncoder, minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm), device="cpu")
    sentences = [f"A message about {topic}." for topic in MESSAGES]
    expected = model.similarity(model.encode(list(TEXTS)), model.encode(sentences)).numpy().clip(0)
    ask = ZeroShotAsk(texts=TEXTS, labels=tuple(MESSAGES), hypothesis="A message about {}.", multi_label=True)
    for row, cosines in zip(answer(embedder, ask).labels, expected, strict=True):
        scores = {one.label: one.score for one in row}
        assert np.allclose([scores[topic] for topic in MESSAGES], cosines, atol=1e-3)


def test_labels_are_read_once_however_many_texts_there_are(embedder: TransformersEncoder) -> None:
    def tokens(*texts: str) -> int:
        return int(answer(embedder, ZeroShotAsk(texts=texts, labels=tuple(MESSAGES))).metadata["tokens"])

    one, two = tokens(TEXTS[0]), tokens(TEXTS[0], TEXTS[1])
    assert tokens(TEXTS[0], TEXTS[1], TEXTS[1]) == two + (two - one)


# -- the flow ------------------------------------------------------------------------------------------------------------


def test_lfx_run_takes_one_branch() -> None:
    text, ending = BRANCHES["payment"]
    assert lfx_run("triage", text).endswith(ending)


def test_langflow_takes_one_branch(langflow_server: LangflowServer) -> None:
    flow = json.loads((FOLDER / "triage.json").read_text(encoding="utf-8"))
    with httpx.Client(base_url=langflow_server.base_url, headers=langflow_server.headers, timeout=180) as client:

        def requests() -> int:
            stats = client.get("/api/v1/runtime/stats").raise_for_status().json()
            return int(stats["counters"].get("requests_finished", 0))

        made = client.post("/api/v1/flows/", json={"name": "Triage by topic", "data": flow["data"]})
        before = requests()
        for count, (branch, (text, ending)) in enumerate(BRANCHES.items(), 1):
            body = {"input_value": text, "input_type": "chat", "output_type": "chat"}
            answer = client.post(f"/api/v1/run/{made.raise_for_status().json()['id']}", json=body)
            said = answer.raise_for_status().json()["outputs"][0]["outputs"]
            assert [one["component_id"] for one in said] == [f"ChatOutput-{branch}"]
            assert said[0]["results"]["message"]["text"].endswith(ending)
            assert requests() == before + 2 * count
