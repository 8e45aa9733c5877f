"""The Zero-Shot Classifier node."""

from lfx.io import BoolInput, StrInput

from lfx_local_runtimes.node_inputs import loading_inputs, model_input, overflow_input, text_input
from lfx_local_runtimes.task_nodes import ZeroShotBaseComponent, label_outputs


class ZeroShotClassifierComponent(ZeroShotBaseComponent):
    """Labels of one's own, and a way out for each."""

    display_name = "Zero-Shot Classifier"
    description = "Label a text with labels of your own and route it by them, with a model that runs inside Langflow."
    icon = "Split"
    name = "ZeroShotClassifier"

    inputs = [
        model_input(
            value="",
            info="A model for natural language inference (NLI) on this machine, or any Hugging Face id.",
        ),
        text_input("The text to label."),
        StrInput(
            name="labels",
            display_name="Labels",
            value=["question", "complaint"],
            is_list=True,
            list_add_label="Add label",
            real_time_refresh=True,
            info="What the text may be. Every label is an output, which sends the text on when it is the likeliest one.",
        ),
        StrInput(
            name="hypothesis",
            display_name="Hypothesis",
            value="This example is {}.",
            advanced=True,
            info="The sentence whose truth is judged for every label, which stands for {}.",
        ),
        BoolInput(
            name="multi_label",
            display_name="Multi-Label",
            value=False,
            advanced=True,
            info="Every label is scored for itself, so that several can be true.",
        ),
        overflow_input("truncate", "error"),
        *loading_inputs(engines=("auto", "transformers")),
    ]

    outputs = label_outputs(["question", "complaint"])
