"""The Zero-Shot Classifier node."""

from lfx.field_typing.range_spec import RangeSpec
from lfx.io import BoolInput, SliderInput, StrInput

from lfx_local_runtimes.node_inputs import ENCODER_ENGINES, loading_inputs, model_input, overflow_input, text_input
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
            info="A model on this machine, or any Hugging Face id: one for natural language inference (NLI), or one for "
            "embeddings, which is quicker, and good where the labels name topics.",
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
            value="",
            advanced=True,
            info="The sentence that stands for a label, whose place is {}. Empty is the usual one: This example is {}. for "
            "an NLI model, the label itself for an embedding model.",
        ),
        BoolInput(
            name="multi_label",
            display_name="Multi-Label",
            value=False,
            advanced=True,
            info="Every label is scored for itself, so that several can be true.",
        ),
        SliderInput(
            name="threshold",
            display_name="Threshold",
            value=0.0,
            range_spec=RangeSpec(min=0, max=1, step=0.01),
            advanced=True,
            info="A text whose likeliest label scores less leaves by Else; 0 sends none there. Most scores are shares, which "
            "some label always leads: with Multi-Label the score is the text's own. For an embedding model 0.15 is a start.",
        ),
        overflow_input("truncate", "error"),
        *loading_inputs(engines=ENCODER_ENGINES),
    ]

    outputs = label_outputs(["question", "complaint"])
