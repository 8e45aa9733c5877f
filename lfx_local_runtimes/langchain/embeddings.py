"""LangChain's embeddings and document compressor over local models."""

from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from pydantic import Field, SecretStr

from lfx_local_runtimes.langchain.task_model import TaskModel
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk, EmbeddingOverflow, EmbeddingResult
from lfx_local_runtimes.runtimes.tasks.text.rerank import RerankAsk, RerankResult
from lfx_local_runtimes.runtimes.tasks.vision.embedding import ImageEmbeddingAsk


class LocalRuntimeEmbeddings(TaskModel, Embeddings):
    """A local embedding model, as LangChain sees it. An empty list returns an empty list and loads nothing.

    Raises, when a model is called:
        InvalidInput: an empty text, an option out of range, a picture that cannot be read, a text that is too long with `overflow="error"`.
        RuntimeFault: the model cannot be found, loaded or run, or does not embed, with the reason.
    """

    dimensions: int | None = Field(
        default=None, description="Keep only this many numbers from the start of each vector (Matryoshka models)."
    )
    query_prompt: str | None = Field(
        default=None,
        description="Put before a query: the name of one of the model's own prompts, or a text. "
        "Unset: the model's own prompt for queries.",
    )
    document_prompt: str | None = Field(default=None, description="Put before a document, likewise.")
    normalize: bool | None = Field(
        default=None, description="Scale vectors to length 1. Unset: as the model's files say."
    )
    overflow: EmbeddingOverflow = Field(
        default="truncate",
        description="If a text is too long: truncate it, raise an error, or chunk: the mean of its parts.",
    )
    api_key: SecretStr | None = Field(
        default=None, exclude=True, repr=False, description="Ignored: local models need no key."
    )

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each document."""
        return _vectors(self.ask(EmbeddingAsk, **self._options(texts, "document"))) if texts else []

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return _vectors(self.ask(EmbeddingAsk, **self._options([text], "query")))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each document; cancelling the call cancels the computation."""
        return _vectors(await self.ask_async(EmbeddingAsk, **self._options(texts, "document"))) if texts else []

    async def aembed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return _vectors(await self.ask_async(EmbeddingAsk, **self._options([text], "query")))[0]

    def embed_images(self, images: Sequence[Any]) -> list[list[float]]:
        """A vector for each picture, by a model such as CLIP, whose vectors of texts are in the same space.

        Args:
            images: files as bytes, data URLs, base64, PIL images, arrays, `{"path": …}` or `{"url": …}`.
        """
        return _vectors(self.ask(ImageEmbeddingAsk, **self._image_options(images))) if len(images) else []

    async def aembed_images(self, images: Sequence[Any]) -> list[list[float]]:
        """The same; cancelling the call cancels the computation."""
        return _vectors(await self.ask_async(ImageEmbeddingAsk, **self._image_options(images))) if len(images) else []

    def _image_options(self, images: Sequence[Any]) -> dict[str, Any]:
        return {"images": tuple(images), "dimensions": self.dimensions, "normalize": self.normalize}

    def _options(self, texts: Sequence[str], role: Literal["query", "document"]) -> dict[str, Any]:
        prompt = self.query_prompt if role == "query" else self.document_prompt
        return {
            "texts": texts, "prompt": prompt, "role": role, "dimensions": self.dimensions,
            "normalize": self.normalize, "overflow": self.overflow,
        }  # fmt: skip


def _vectors(result: EmbeddingResult) -> list[list[float]]:
    vectors: list[list[float]] = result.vectors.tolist()
    return vectors


class LocalRuntimeReranker(TaskModel, BaseDocumentCompressor):
    """A local cross-encoder that sorts retrieved documents, for LangChain's `ContextualCompressionRetriever`.

    The documents come back best first, as copies with `metadata["relevance_score"]`.

    Raises, when it is called:
        InvalidInput: an empty query or document, an option out of range.
        RuntimeFault: the model cannot be found, loaded or run, or does not rank, with the reason.
    """

    top_n: int | None = Field(default=None, description="Keep only this many of the best documents.")
    overflow: Literal["truncate", "error"] = "truncate"

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The documents that answer the query best, best first."""
        return _ordered(documents, self.ask(RerankAsk, **self._options(documents, query))) if documents else []

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Like `compress_documents`; cancelling the call cancels the computation."""
        return (
            _ordered(documents, await self.ask_async(RerankAsk, **self._options(documents, query))) if documents else []
        )

    def _options(self, documents: Sequence[Document], query: str) -> dict[str, Any]:
        texts = tuple(document.page_content for document in documents)
        return {"query": query, "documents": texts, "top_n": self.top_n, "overflow": self.overflow}


def _ordered(documents: Sequence[Document], result: RerankResult) -> list[Document]:
    return [
        (document := documents[ranked.index]).model_copy(
            update={"metadata": {**document.metadata, "relevance_score": ranked.score}}
        )
        for ranked in result.ranking
    ]
