"""The Image Classifier node."""

from lfx.io import IntInput

from lfx_local_runtimes.nodes import (
    SEEING_ENGINES,
    ImageClassifierBaseComponent,
    choice_input,
    loading_inputs,
    model_input,
    other_model_input,
    picture_inputs,
)


class ImageClassifierComponent(ImageClassifierBaseComponent):
    """Labels that a model was trained to give to pictures."""

    display_name = "Image Classifier"
    description = "Label pictures with a model on this machine that was trained for it."
    icon = "Image"
    name = "ImageClassifier"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["image", "label", "vit", "vision", "transformers", "huggingface", "offline"]}

    inputs = [
        model_input(
            value="",
            info="An image classifier. One that is not on this machine is downloaded on first use.",
        ),
        other_model_input(),
        *picture_inputs(),
        IntInput(
            name="top_k",
            display_name="Top K",
            value=5,
            advanced=True,
            info="Return only this many of the most likely labels.",
        ),
        choice_input("multi_label", "Multi-Label", "Score each label on its own, so that several can be true."),
        *loading_inputs(engines=SEEING_ENGINES),
    ]
