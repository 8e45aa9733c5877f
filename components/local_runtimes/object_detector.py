"""The Object Detector node."""

from lfx.field_typing.range_spec import RangeSpec
from lfx.io import SliderInput

from lfx_local_runtimes.nodes import (
    SEEING_ENGINES,
    ObjectDetectorBaseComponent,
    loading_inputs,
    model_input,
    other_model_input,
    picture_inputs,
)


class ObjectDetectorComponent(ObjectDetectorBaseComponent):
    """Boxes around the things in a picture."""

    display_name = "Object Detector"
    description = "Find things in pictures and draw boxes around them, with a model that runs on this machine."
    icon = "ScanSearch"
    name = "ObjectDetector"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["image", "objects", "boxes", "detr", "yolos", "vision", "transformers", "offline"]}

    inputs = [
        model_input(
            value="",
            info="A model for object detection (DETR, RT-DETR, YOLOS). One that is not on this machine is downloaded on first use.",
        ),
        other_model_input(),
        *picture_inputs(),
        SliderInput(
            name="threshold",
            display_name="Threshold",
            value=0.5,
            range_spec=RangeSpec(min=0, max=1, step=0.01),
            min_label="All",
            max_label="Surest",
            min_label_icon="Minus",
            max_label_icon="Plus",
            info="Leave out objects with a lower score.",
        ),
        *loading_inputs(engines=SEEING_ENGINES),
    ]
