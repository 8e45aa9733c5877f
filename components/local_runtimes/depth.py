"""The Depth node."""

from lfx_local_runtimes.nodes import (
    SEEING_ENGINES,
    DepthBaseComponent,
    loading_inputs,
    model_input,
    other_model_input,
    picture_inputs,
)


class DepthComponent(DepthBaseComponent):
    """How far away each pixel of a picture is."""

    display_name = "Depth"
    description = "Estimate the depth of pictures and show it as colours, with a model that runs on this machine."
    icon = "Layers"
    name = "Depth"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["image", "distance", "3d", "dpt", "vision", "transformers", "offline"]}

    inputs = [
        model_input(
            value="",
            info="A model for depth (DPT, Depth Anything). One that is not on this machine is downloaded on first use.",
        ),
        other_model_input(),
        *picture_inputs(),
        *loading_inputs(engines=SEEING_ENGINES),
    ]
