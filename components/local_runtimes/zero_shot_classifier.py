"""The Zero-Shot Classifier node."""

from lfx.field_typing.range_spec import RangeSpec
from lfx.io import BoolInput, SliderInput, StrInput

from lfx_local_runtimes.nodes import (
    ENCODER_ENGINES,
    ZeroShotBaseComponent,
    label_outputs,
    loading_inputs,
    model_input,
    other_model_input,
    overflow_input,
    text_input,
)


class ZeroShotClassifierComponent(ZeroShotBaseComponent):
    """Labels that the user chooses, with an output for each."""

    display_name = "Zero-Shot Classifier"
    description = "Label a text with your own labels and route it by label, with a model that runs on this machine."
    icon = "Split"
    name = "ZeroShotClassifier"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["nli", "label", "router", "transformers", "onnx", "huggingface", "offline"]}

    inputs = [
        model_input(
            value="",
            info="A model for natural language inference (NLI), or for embeddings. "
            "An embedding model is faster and works well if the labels are topics.",
        ),
        other_model_input(),
        text_input("The text to label."),
        StrInput(
            name="labels",
            display_name="Labels",
            value=["question", "complaint"],
            is_list=True,
            list_add_label="Add label",
            real_time_refresh=True,
            info="The possible labels. Each label has an output, which sends the text on if that label scores best.",
        ),
        StrInput(
            name="hypothesis",
            display_name="Hypothesis",
            value="",
            advanced=True,
            info="The sentence that stands for a label; {} is replaced by the label. Empty: 'This example is {}.' for an "
            "NLI model, the label itself for an embedding model.",
        ),
        BoolInput(
            name="multi_label",
            display_name="Multi-Label",
            value=False,
            advanced=True,
            info="Score each label on its own, so that several can be true.",
        ),
        SliderInput(
            name="threshold",
            display_name="Threshold",
            value=0.0,
            range_spec=RangeSpec(min=0, max=1, step=0.01),
            min_label="Else off",
            max_label="All to Else",
            min_label_icon="Minus",
            max_label_icon="Plus",
            advanced=True,
            info="Send the text to Else if its best score is below this. 0 turns Else off. For an NLI model, start with "
            "0.5; for an embedding model, with 0.15.",
        ),
        overflow_input("truncate", "error"),
        *loading_inputs(engines=ENCODER_ENGINES),
    ]

    outputs = label_outputs(["question", "complaint"])
