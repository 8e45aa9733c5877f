"""A vector store for example flows. A flow contains this source, so it imports nothing of ours."""

from typing import Any, ClassVar

from langchain_community.vectorstores import FAISS
from lfx.base.vectorstores.model import check_cached_vector_store
from lfx.helpers.data import docs_to_data
from lfx.schema.data import Data
from lfx_bundles.faiss.faiss import FaissVectorStoreComponent


class InMemoryFaissComponent(FaissVectorStoreComponent):
    """Langflow's FAISS without its files: every run builds the index from the connected data.

    The original writes the index in its first run. Later runs search that index, even if other data is connected, and
    they refuse to read it unless pickles are allowed.
    """

    display_name = "FAISS in Memory"
    description = "Search the connected data with FAISS. Nothing is written to disk."
    name = "InMemoryFAISS"

    inputs: ClassVar[list[Any]] = [
        field
        for field in FaissVectorStoreComponent.inputs
        if field.name not in {"index_name", "persist_directory", "allow_dangerous_deserialization"}
    ]

    @check_cached_vector_store  # type: ignore[untyped-decorator]
    def build_vector_store(self) -> FAISS:
        """The index of the connected data."""
        return FAISS.from_documents([data.to_lc_document() for data in self._prepare_ingest_data()], self.embedding)

    def search_documents(self) -> list[Data]:
        """The data nearest to the query, nearest first."""
        documents = self.build_vector_store().similarity_search(self.search_query, k=self.number_of_results)
        found: list[Data] = docs_to_data(documents)
        return found
