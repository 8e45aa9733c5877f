"""The work behind the Langflow nodes, and the names that their source imports.

A saved flow contains the source of its nodes and runs it for as long as the flow exists. So the names of this module are
frozen: one may be added; none may be removed, or changed so that older source fails. The modules of this folder may
change. `test_saved_flows.py` lists the names, and runs flows that earlier versions saved.

Flows of version 0.1.0 also import from `lfx_local_runtimes.node_inputs` and `lfx_local_runtimes.task_nodes`. Those two
files give them their names.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfx_local_runtimes.nodes.describing import ImageDescriberBaseComponent
    from lfx_local_runtimes.nodes.documents import DocumentReaderBaseComponent, document_files_input
    from lfx_local_runtimes.nodes.embedding import LocalEmbeddingsBaseComponent
    from lfx_local_runtimes.nodes.inputs import (
        ENCODER_ENGINES,
        ENGINES,
        GEMMA_PRESETS,
        after_input,
        chat_inputs,
        choice_input,
        history_input,
        loading_inputs,
        model_input,
        other_model_input,
        overflow_input,
        parallel_input,
        preset_input,
        sampling_inputs,
        score_input,
        text_input,
        tool_inputs,
    )
    from lfx_local_runtimes.nodes.models import (
        ACTIONS,
        list_models_in,
        manage_model,
        memory_rows,
        model_choices,
        model_rows,
        show_fields_of,
    )
    from lfx_local_runtimes.nodes.reading import (
        EntityTaggerBaseComponent,
        LocalRerankBaseComponent,
        TextClassifierBaseComponent,
        ZeroShotBaseComponent,
        label_outputs,
    )
    from lfx_local_runtimes.nodes.seeing import (
        SEEING_ENGINES,
        DepthBaseComponent,
        ImageClassifierBaseComponent,
        ObjectDetectorBaseComponent,
        SegmenterBaseComponent,
        ZeroShotImageBaseComponent,
        picture_inputs,
    )
    from lfx_local_runtimes.nodes.text import GemmaBaseComponent, LocalModelBaseComponent

_WHERE = {
    "ACTIONS": "models",
    "DepthBaseComponent": "seeing",
    "DocumentReaderBaseComponent": "documents",
    "ENCODER_ENGINES": "inputs",
    "ENGINES": "inputs",
    "EntityTaggerBaseComponent": "reading",
    "GEMMA_PRESETS": "inputs",
    "GemmaBaseComponent": "text",
    "ImageClassifierBaseComponent": "seeing",
    "ImageDescriberBaseComponent": "describing",
    "LocalEmbeddingsBaseComponent": "embedding",
    "LocalModelBaseComponent": "text",
    "LocalRerankBaseComponent": "reading",
    "ObjectDetectorBaseComponent": "seeing",
    "SEEING_ENGINES": "seeing",
    "SegmenterBaseComponent": "seeing",
    "TextClassifierBaseComponent": "reading",
    "ZeroShotBaseComponent": "reading",
    "ZeroShotImageBaseComponent": "seeing",
    "after_input": "inputs",
    "chat_inputs": "inputs",
    "choice_input": "inputs",
    "document_files_input": "documents",
    "history_input": "inputs",
    "label_outputs": "reading",
    "list_models_in": "models",
    "loading_inputs": "inputs",
    "manage_model": "models",
    "memory_rows": "models",
    "model_choices": "models",
    "model_input": "inputs",
    "model_rows": "models",
    "other_model_input": "inputs",
    "overflow_input": "inputs",
    "parallel_input": "inputs",
    "picture_inputs": "seeing",
    "preset_input": "inputs",
    "sampling_inputs": "inputs",
    "score_input": "inputs",
    "show_fields_of": "models",
    "text_input": "inputs",
    "tool_inputs": "inputs",
}

__all__ = [
    "ACTIONS",
    "ENCODER_ENGINES",
    "ENGINES",
    "GEMMA_PRESETS",
    "SEEING_ENGINES",
    "DepthBaseComponent",
    "DocumentReaderBaseComponent",
    "EntityTaggerBaseComponent",
    "GemmaBaseComponent",
    "ImageClassifierBaseComponent",
    "ImageDescriberBaseComponent",
    "LocalEmbeddingsBaseComponent",
    "LocalModelBaseComponent",
    "LocalRerankBaseComponent",
    "ObjectDetectorBaseComponent",
    "SegmenterBaseComponent",
    "TextClassifierBaseComponent",
    "ZeroShotBaseComponent",
    "ZeroShotImageBaseComponent",
    "after_input",
    "chat_inputs",
    "choice_input",
    "document_files_input",
    "history_input",
    "label_outputs",
    "list_models_in",
    "loading_inputs",
    "manage_model",
    "memory_rows",
    "model_choices",
    "model_input",
    "model_rows",
    "other_model_input",
    "overflow_input",
    "parallel_input",
    "picture_inputs",
    "preset_input",
    "sampling_inputs",
    "score_input",
    "show_fields_of",
    "text_input",
    "tool_inputs",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
