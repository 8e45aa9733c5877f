"""The flow with an embedding model and a text model: a message goes to the branch for its topic."""

from lfx.components.input_output.chat import ChatInput
from lfx.components.input_output.chat_output import ChatOutput

from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.components.local_runtimes.zero_shot_classifier import ZeroShotClassifierComponent
from lfx_local_runtimes.flows.canvas import Flow
from lfx_local_runtimes.flows.text import BASE_MODEL

MESSAGE = "My parcel arrived broken"

BRANCHES = {
    "delivery": {
        "My package never came.": "We are sorry that your package never came. We will send you a new one.",
        "My glass is missing.": "We are sorry that your glass is missing. We will send you a new one.",
        "I got the wrong shoes.": "We are sorry that you got the wrong shoes. We will send you a new one.",
    },
    "payment": {
        "I paid two times for my order.": "We are sorry that you paid two times. Please send us your invoice number.",
        "The price is wrong.": "We are sorry that the price is wrong. Please send us your invoice number.",
        "You took too much money.": "We are sorry that we took too much money. Please send us your invoice number.",
    },
    "technical problem": {
        "The app does not start.": "We are sorry that the app does not start. Please restart your device.",
        "My screen stays dark.": "We are sorry that your screen stays dark. Please restart your device.",
        "I hear no sound.": "We are sorry that you hear no sound. Please restart your device.",
    },
}
"""Examples of what each branch answers."""


def triage() -> Flow:
    """Sends a message to one of three prompts, by its topic."""
    flow = Flow(
        "Triage",
        "An embedding model finds the topic of a message; only the prompt for that topic runs.",
        "triage",
    )
    flow.note(
        "### Triage\n"
        "Write a message to a shop. The *Zero-Shot Classifier* compares it with the labels, using `all-minilm-l6-v2` (90 MB). "
        "The message goes to the output of the label that fits best, and **only that branch runs**. Each branch has its own "
        f"prompt for `{BASE_MODEL}`.\n\n"
        "If you change the *Labels*, the outputs change too. With *Multi-Label* and a *Threshold* of 0.15, most messages that "
        "fit no label go to **Else**.\n\n"
        f"`{BASE_MODEL}` is a base model, so each prompt is a few examples to continue.\n\n"
        f"Headless: `lfx run flows/triage.json \"{MESSAGE}\"`",
        -1,
    )  # fmt: skip
    message = flow.add(ChatInput, "message", 0, 1.1, input_value=MESSAGE)
    labels = list(BRANCHES)
    classifier = flow.add(
        ZeroShotClassifierComponent, "topic", 0.9, 0.8, title="Topic", model_name="all-minilm-l6-v2", labels=labels
    )
    flow.connect(message, "message", classifier, "input_value")
    for row, (topic, examples) in enumerate(BRANCHES.items()):
        name = topic.split()[0]
        prompt = "\n".join(f"Question: {question}\nAnswer: {reply}" for question, reply in examples.items())
        branch = flow.add(
            LocalModelComponent, name, 1.9, row * 1.1, title=topic.capitalize(), model_name=BASE_MODEL,
            system_message=prompt, max_tokens=40, temperature=0.0, stop_sequences=["\\n"], stream=False,
        )  # fmt: skip
        answer = flow.add(ChatOutput, name, 2.8, row * 1.1)
        flow.connect(classifier, f"label_{row + 1}", branch, "input_value")
        flow.connect(branch, "text_output", answer, "input_value")
    return flow
