"""The Model Manager node."""

from typing import Any

from lfx.custom.custom_component.component import Component
from lfx.io import BoolInput, DropdownInput, Output, StrInput
from lfx.schema.data import Data

from lfx_local_runtimes.nodes import (
    ACTIONS,
    ENGINES,
    after_input,
    list_models_in,
    loading_inputs,
    manage_model,
    model_choices,
    model_input,
    other_model_input,
    parallel_input,
    show_fields_of,
)


class ModelManagerComponent(Component):
    """Register, unregister, load, unload and pin local models from a flow."""

    display_name = "Model Manager"
    description = "Register, unregister, load, unload or pin a local model from a flow, and see its state."
    icon = "Server"
    name = "ModelManager"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {
        "keywords": ["load", "unload", "register", "llama.cpp", "transformers", "onnx", "huggingface", "offline"]
    }

    inputs = [
        DropdownInput(
            name="action",
            display_name="Action",
            options=list(ACTIONS),
            value="Load",
            real_time_refresh=True,
            info="Load and Unload wait until they are done. Unregister forgets a registered model; its files stay. Pin keeps "
            "a loaded model in memory. State changes nothing.",
        ),
        model_input(value="gemma-3-270m", info="The model to use."),
        other_model_input(
            "A model that is not in the list. For Register: its new name. If this is filled in, the list is not used."
        ),
        StrInput(
            name="model_id",
            display_name="Source",
            info="A Hugging Face id, or a file or folder inside one of the model folders.",
            dynamic=True,
            show=False,
        ),
        *[
            field.model_copy(update={"dynamic": True, "show": False})
            for field in (*loading_inputs(engines=(*ENGINES, "onnx")), parallel_input())
        ],
        BoolInput(
            name="pinned",
            display_name="Pinned",
            info="Keep it in memory once it is loaded.",
            advanced=True,
            dynamic=True,
            show=False,
        ),
        BoolInput(
            name="replace",
            display_name="Replace",
            info="If the name is registered already, put this registration in its place.",
            dynamic=True,
            show=False,
        ),
        BoolInput(
            name="force",
            display_name="Force",
            info="Do it even while the model is in use: its running requests are cancelled.",
            dynamic=True,
            show=False,
        ),
        after_input(),
    ]

    outputs = [Output(display_name="State", name="state", method="manage")]

    async def update_build_config(
        self, build_config: dict[str, Any], field_value: str, field_name: str | None = None
    ) -> dict[str, Any]:
        """List the models, whatever field has changed, and show the fields of the chosen action."""
        if field_name == "action":
            build_config = show_fields_of(field_value, build_config)
        return list_models_in(build_config, *await model_choices())

    async def manage(self) -> Data:
        """Do the action and return the model's state."""
        return Data(data=await manage_model(self))
