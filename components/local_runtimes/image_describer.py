"""The Image Describer node."""

from lfx.io import IntInput, MultilineInput

from lfx_local_runtimes.nodes import (
    SEEING_ENGINES,
    ImageDescriberBaseComponent,
    loading_inputs,
    model_input,
    other_model_input,
    picture_inputs,
)


class ImageDescriberComponent(ImageDescriberBaseComponent):
    """A picture in words."""

    display_name = "Image Describer"
    description = "Describe a picture, or answer a question about it, with a model on this machine."
    icon = "ScanEye"
    name = "ImageDescriber"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["caption", "image", "vision", "vqa", "question", "blip", "transformers", "offline"]}

    inputs = [
        model_input(
            value="",
            info="A model that writes captions or answers questions about pictures, or a chat model that reads pictures. One that "
            "is not on this machine is downloaded on first use.",
        ),
        other_model_input(),
        *picture_inputs(),
        MultilineInput(
            name="question",
            display_name="Question",
            value="",
            tool_mode=True,
            info="What to answer about the picture. Empty: describe it.",
        ),
        IntInput(
            name="max_tokens",
            display_name="Max Tokens",
            value=64,
            advanced=True,
            info="The longest text, in tokens.",
        ),
        *loading_inputs(engines=SEEING_ENGINES),
    ]
