"""The Text Classifier node."""

from lfx.io import IntInput

from lfx_local_runtimes.nodes import (
    ENCODER_ENGINES,
    TextClassifierBaseComponent,
    choice_input,
    loading_inputs,
    model_input,
    other_model_input,
    overflow_input,
    text_input,
)


class TextClassifierComponent(TextClassifierBaseComponent):
    """Labels that a model was trained to give."""

    display_name = "Text Classifier"
    description = "Label a text (sentiment, topic, toxicity …) with a model on this machine that was trained for it."
    icon = "Tag"
    name = "TextClassifier"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["sentiment", "label", "transformers", "onnx", "huggingface", "offline"]}

    inputs = [
        model_input(
            value="",
            info="A classifier. One that is not on this machine is downloaded on first use.",
        ),
        other_model_input(),
        text_input("The text to label."),
        IntInput(
            name="top_k",
            display_name="Top K",
            value=0,
            advanced=True,
            info="Return only this many of the most likely labels. 0: return all.",
        ),
        choice_input("multi_label", "Multi-Label", "Score each label on its own, so that several can be true."),
        overflow_input("truncate", "error"),
        *loading_inputs(engines=ENCODER_ENGINES),
    ]
