"""The Zero-Shot Image Classifier node."""

from lfx.field_typing.range_spec import RangeSpec
from lfx.io import SliderInput, StrInput

from lfx_local_runtimes.nodes import (
    SEEING_ENGINES,
    ZeroShotImageBaseComponent,
    choice_input,
    label_outputs,
    loading_inputs,
    model_input,
    other_model_input,
    picture_inputs,
)


class ZeroShotImageClassifierComponent(ZeroShotImageBaseComponent):
    """Labels that the user chooses for pictures, with an output for each."""

    display_name = "Zero-Shot Image Classifier"
    description = "Label a picture with your own labels and route it by label, with a model that runs on this machine."
    icon = "Images"
    name = "ZeroShotImageClassifier"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["image", "clip", "siglip", "label", "router", "vision", "transformers", "offline"]}

    inputs = [
        model_input(
            value="",
            info="A model for pictures and texts (CLIP, SigLIP). One that is not on this machine is downloaded on first use.",
        ),
        other_model_input(),
        *picture_inputs(),
        StrInput(
            name="labels",
            display_name="Labels",
            value=["a photo", "a drawing"],
            is_list=True,
            list_add_label="Add label",
            real_time_refresh=True,
            info="The possible labels. Each label has an output, which sends the first picture on if that label scores best.",
        ),
        StrInput(
            name="hypothesis",
            display_name="Hypothesis",
            value="",
            advanced=True,
            info="The sentence that stands for a label; {} is replaced by the label. Empty: 'This is a photo of {}.'",
        ),
        choice_input("multi_label", "Multi-Label", "Score each label on its own, so that several can be true."),
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
            info="Send the picture to Else if its best score is below this. 0 turns Else off.",
        ),
        *loading_inputs(engines=SEEING_ENGINES),
    ]

    outputs = label_outputs(["a photo", "a drawing"])
