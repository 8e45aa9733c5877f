"""The Gemma node."""

from lfx_local_runtimes.nodes import (
    GEMMA_PRESETS,
    GemmaBaseComponent,
    chat_inputs,
    history_input,
    loading_inputs,
    model_input,
    other_model_input,
    preset_input,
    sampling_inputs,
    tool_inputs,
)


class GemmaComponent(GemmaBaseComponent):
    """Text from a Gemma that runs on this machine."""

    display_name = "Gemma"
    description = "Generate text with a Gemma that runs on this machine, with its turn format, presets and sizes."
    icon = "Gem"
    name = "Gemma"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["llm", "google", "llama.cpp", "gguf", "transformers", "huggingface", "offline"]}

    inputs = [
        model_input(
            value="gemma-3-270m",
            display_name="Size",
            info="A Gemma. One that is not on this machine is downloaded on first use. "
            "Models up to 2B run well on a CPU; larger models need an accelerator or int4.",
        ),
        other_model_input(),
        preset_input(),
        *chat_inputs(),
        history_input(),
        *tool_inputs(),
        *loading_inputs(),
        *sampling_inputs(GEMMA_PRESETS["Recommended"]),
    ]
