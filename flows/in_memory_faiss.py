"""A vector store for example flows; the flow carries this source, so it stands alone."""

from typing import Any, ClassVar

from langchain_community.vectorstores import FAISS
from lfx.base.vectorstores.model import check_cached_vector_store
from lfx.helpers.data import docs_to_data
from lfx.schema.data import Data
from lfx_bundles.faiss.faiss import FaissVectorStoreComponent


class InMemoryFaissComponent(FaissVectorStoreComponent):
    """Langflow's FAISS without its files: every run indexes what is wired.

    The original searches the index that its first run has written, whatever is wired later, and refuses to read it
    back unless pickles are allowed.
    """

    display_name = "FAISS in Memory"
    description = "Search what is wired, with FAISS. Nothing is written to disk."
    name = "InMemoryFAISS"

    inputs: ClassVar[list[Any]] = [
        field
        for field in FaissVectorStoreComponent.inputs
        if field.name not in {"index_name", "persist_directory", "allow_dangerous_deserialization"}
    ]

    @check_cached_vector_store  # type: ignore[untyped-decorator]
    def build_vector_store(self) -> FAISS:
        """The index of what is wired."""
        return FAISS.from_documents([data.to_lc_document() for data in self._prepare_ingest_data()], self.embedding)

    def search_documents(self) -> list[Data]:
        """What is nearest to the query, nearest first."""
        documents = self.build_vector_store().similarity_search(self.search_query, k=self.number_of_results)
        found: list[Data] = docs_to_data(documents)
        return found
