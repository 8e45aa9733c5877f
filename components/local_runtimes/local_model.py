"""The Local Model node."""

from lfx_local_runtimes.nodes import (
    LocalModelBaseComponent,
    chat_inputs,
    history_input,
    loading_inputs,
    model_input,
    sampling_inputs,
    tool_inputs,
)


class LocalModelComponent(LocalModelBaseComponent):
    """Text from a model that runs on this machine."""

    display_name = "Local Model"
    description = (
        "Generate text with a model that runs on this machine: GGUF on llama.cpp, safetensors on Transformers."
    )
    icon = "Cpu"
    name = "LocalModel"

    inputs = [
        model_input(
            value="auto",
            info="A model on this machine, or any Hugging Face id, which is downloaded on first use. auto: the largest "
            "instruct model on this machine that fits into its memory; if there is none, the largest base model.",
        ),
        *chat_inputs(),
        history_input(),
        *tool_inputs(),
        *loading_inputs(),
        *sampling_inputs(),
    ]
