"""Local models as LangChain objects: a chat model, embeddings and a document compressor. They load on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfx_local_runtimes.langchain.chat import ChatLocalRuntime
    from lfx_local_runtimes.langchain.embeddings import LocalRuntimeEmbeddings, LocalRuntimeReranker

__all__ = ["ChatLocalRuntime", "LocalRuntimeEmbeddings", "LocalRuntimeReranker"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "chat" if name == "ChatLocalRuntime" else "embeddings"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
