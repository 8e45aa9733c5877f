"""The Local Rerank node."""

from lfx.io import HandleInput, IntInput, MessageTextInput, StrInput

from lfx_local_runtimes.nodes import (
    ENCODER_ENGINES,
    LocalRerankBaseComponent,
    loading_inputs,
    model_input,
    other_model_input,
    overflow_input,
)


class LocalRerankComponent(LocalRerankBaseComponent):
    """Search results sorted by how well they answer a query."""

    display_name = "Local Rerank"
    description = "Sort search results by how well they answer a query, with a model that runs on this machine."
    icon = "ArrowDownWideNarrow"
    name = "LocalRerank"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["reranker", "cross-encoder", "transformers", "onnx", "huggingface", "offline"]}

    inputs = [
        model_input(
            value="",
            info="A reranker (cross-encoder). One that is not on this machine is downloaded on first use.",
        ),
        other_model_input(),
        MessageTextInput(
            name="input_value", display_name="Query", info="What is searched for.", required=True, tool_mode=True
        ),
        HandleInput(
            name="documents",
            display_name="Documents",
            input_types=["Data", "JSON", "DataFrame", "Table"],
            is_list=True,
            required=True,
            info="The search results: a table or data, with a text in each row.",
        ),
        StrInput(
            name="text_key",
            display_name="Text Column",
            value="text",
            advanced=True,
            info="The column that holds the text.",
        ),
        IntInput(
            name="top_n",
            display_name="Top N",
            value=0,
            info="Keep only this many of the best results. 0: keep all.",
        ),
        overflow_input("truncate", "error"),
        *loading_inputs(engines=ENCODER_ENGINES),
    ]
