"""The Entity Tagger node."""

from lfx_local_runtimes.nodes import (
    ENCODER_ENGINES,
    EntityTaggerBaseComponent,
    loading_inputs,
    model_input,
    other_model_input,
    overflow_input,
    score_input,
    text_input,
)


class EntityTaggerComponent(EntityTaggerBaseComponent):
    """Names of people, places and the like in a text."""

    display_name = "Entity Tagger"
    description = "Find people, places, organisations and the like in a text, with a model that runs on this machine."
    icon = "Highlighter"
    name = "EntityTagger"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["ner", "entities", "names", "transformers", "onnx", "huggingface", "offline"]}

    inputs = [
        model_input(
            value="",
            info="A model for named entities (NER).",
        ),
        other_model_input(),
        text_input("The text to search."),
        score_input(),
        overflow_input("truncate", "error"),
        *loading_inputs(engines=ENCODER_ENGINES),
    ]
