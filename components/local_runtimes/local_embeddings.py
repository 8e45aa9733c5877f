"""The Local Embeddings node."""

from lfx.io import BoolInput, IntInput, StrInput

from lfx_local_runtimes.node_inputs import (
    ENCODER_ENGINES,
    choice_input,
    loading_inputs,
    model_input,
    overflow_input,
    text_input,
)
from lfx_local_runtimes.task_nodes import LocalEmbeddingsBaseComponent


class LocalEmbeddingsComponent(LocalEmbeddingsBaseComponent):
    """Vectors from a model that runs inside Langflow."""

    display_name = "Local Embeddings"
    description = "Turn texts into vectors with a model that runs inside Langflow."
    icon = "Binary"
    name = "LocalEmbeddings"

    inputs = [
        model_input(
            value="",
            info="An embedding model on this machine, or any Hugging Face id, which is fetched when it is first used.",
        ),
        text_input("The text of the Vector output. Embedding Model needs none.", required=False),
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
            info="Keep the first ones only, for models trained for it (Matryoshka). 0 is all.",
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
        choice_input("normalize", "Normalize", "Vectors of length 1."),
        overflow_input("truncate", "chunk", "error"),
        *loading_inputs(engines=ENCODER_ENGINES),
    ]
