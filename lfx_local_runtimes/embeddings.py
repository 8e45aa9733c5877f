"""The older place of `lfx_local_runtimes.langchain.embeddings`; programs written for 0.1.0 import from here."""

from lfx_local_runtimes.langchain.embeddings import LocalRuntimeEmbeddings, LocalRuntimeReranker

__all__ = ["LocalRuntimeEmbeddings", "LocalRuntimeReranker"]
