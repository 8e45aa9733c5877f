"""The Image Describer node."""

from lfx.io import FileInput, IntInput, MessageInput, MultilineInput

from lfx_local_runtimes.nodes import (
    ENGINES,
    ImageDescriberBaseComponent,
    loading_inputs,
    model_input,
    other_model_input,
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
        MessageInput(
            name="input_value",
            display_name="Image",
            info="A message with a picture, such as one that was dropped into the chat. The first picture is described.",
        ),
        FileInput(
            name="image_file",
            display_name="Image File",
            file_types=["png", "jpg", "jpeg", "webp", "gif", "bmp", "tiff"],
            info="A picture to describe if the message has none.",
        ),
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
        *loading_inputs(engines=ENGINES),
    ]
