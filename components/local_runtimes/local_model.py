"""The Local Model node."""

from lfx_local_runtimes.nodes import (
    LocalModelBaseComponent,
    chat_inputs,
    history_input,
    loading_inputs,
    model_input,
    other_model_input,
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
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {
        "keywords": ["llm", "chat", "llama.cpp", "gguf", "transformers", "safetensors", "huggingface", "offline"]
    }

    inputs = [
        model_input(
            value="auto",
            info="The model that answers. An instruct model follows instructions; a base model continues texts. A model that is "
            "not on this machine is downloaded on first use. auto: the largest instruct model on this machine that fits into "
            "its memory; if there is none, the largest base model.",
        ),
        other_model_input(),
        *chat_inputs(),
        history_input(),
        *tool_inputs(),
        *loading_inputs(),
        *sampling_inputs(),
    ]
