"""The Segmenter node."""

from lfx_local_runtimes.nodes import (
    SEEING_ENGINES,
    SegmenterBaseComponent,
    loading_inputs,
    model_input,
    other_model_input,
    picture_inputs,
)


class SegmenterComponent(SegmenterBaseComponent):
    """Which class each pixel of a picture belongs to."""

    display_name = "Segmenter"
    description = "Divide pictures into areas by class and colour them, with a model that runs on this machine."
    icon = "Shapes"
    name = "Segmenter"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["image", "mask", "area", "segformer", "vision", "transformers", "offline"]}

    inputs = [
        model_input(
            value="",
            info="A model for semantic segmentation (SegFormer). One that is not on this machine is downloaded on first use.",
        ),
        other_model_input(),
        *picture_inputs(),
        *loading_inputs(engines=SEEING_ENGINES),
    ]
