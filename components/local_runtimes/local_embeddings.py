"""The Local Embeddings node."""

from lfx.io import BoolInput, IntInput, StrInput

from lfx_local_runtimes.nodes import (
    ENCODER_ENGINES,
    LocalEmbeddingsBaseComponent,
    choice_input,
    loading_inputs,
    model_input,
    other_model_input,
    overflow_input,
    picture_inputs,
    text_input,
)


class LocalEmbeddingsComponent(LocalEmbeddingsBaseComponent):
    """Vectors from a model that runs on this machine."""

    display_name = "Local Embeddings"
    description = "Turn texts and pictures into vectors with a model that runs on this machine."
    icon = "Binary"
    name = "LocalEmbeddings"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["vector", "embeddings", "llama.cpp", "transformers", "onnx", "huggingface", "offline"]}

    inputs = [
        model_input(
            value="",
            info="An embedding model; for pictures one such as CLIP, SigLIP or DINOv2. One that is not on this machine is downloaded on first use.",
        ),
        other_model_input(),
        text_input("The text for the Vector output. The Embedding Model output needs no text.", required=False),
        *picture_inputs("images"),
        BoolInput(
            name="is_query",
            display_name="As Query",
            value=False,
            advanced=True,
            info="Embed the text as a query, with the Query Prompt; otherwise as a document.",
        ),
        IntInput(
            name="dimensions",
            display_name="Dimensions",
            value=0,
            advanced=True,
            info="Keep only this many numbers from the start of each vector, for models trained for it (Matryoshka). "
            "0: keep all.",
        ),
        StrInput(
            name="query_prompt",
            display_name="Query Prompt",
            advanced=True,
            info="Put before queries: the name of one of the model's own prompts, or a text. Empty: the model's default.",
        ),
        StrInput(
            name="document_prompt",
            display_name="Document Prompt",
            advanced=True,
            info="Put before documents: the name of one of the model's own prompts, or a text. Empty: the model's default.",
        ),
        choice_input("normalize", "Normalize", "Scale vectors to length 1."),
        overflow_input("truncate", "chunk", "error"),
        *loading_inputs(engines=ENCODER_ENGINES),
    ]
