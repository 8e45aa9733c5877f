"""The work behind Local Embeddings: vectors of texts and pictures."""

from typing import Any, ClassVar

from lfx.base.embeddings.model import LCEmbeddingsModel
from lfx.field_typing import Embeddings
from lfx.io import Output
from lfx.schema.data import Data
from lfx.schema.dataframe import DataFrame

from lfx_local_runtimes.langchain.embeddings import LocalRuntimeEmbeddings
from lfx_local_runtimes.nodes.inputs import CHOICES, value_of
from lfx_local_runtimes.nodes.models import PROVIDER_ID
from lfx_local_runtimes.nodes.reports import Reporter, status_of
from lfx_local_runtimes.nodes.seeing import SeeingBaseComponent
from lfx_local_runtimes.runtimes.tasks.base import TaskResult


class LocalEmbeddingsBaseComponent(SeeingBaseComponent, LCEmbeddingsModel):
    """A local model as LangChain embeddings, the vector of a text, and those of pictures."""

    model_type = "embedding"
    also_by = ("image_embedding", "zero_shot_image_classification")
    picture_field = "images"
    model_provider_id = PROVIDER_ID
    outputs: ClassVar[list[Output]] = [
        Output(
            display_name="Embedding Model",
            name="embeddings",
            method="build_embeddings",
            types=["Embeddings"],
            tool_mode=False,
        ),
        Output(display_name="Vector", name="vector", method="vector"),
        Output(display_name="Image Vectors", name="image_vectors", method="image_vectors", tool_mode=False),
    ]

    def build_embeddings(self) -> Embeddings:
        """The embeddings with this node's options. Loads nothing."""
        return self._embeddings()

    def _embeddings(self) -> LocalRuntimeEmbeddings:
        return self.task_model(
            LocalRuntimeEmbeddings,
            dimensions=self.dimensions or None,
            query_prompt=value_of(self.query_prompt),
            document_prompt=value_of(self.document_prompt),
            normalize=CHOICES[self.normalize],
            overflow=self.overflow,
        )

    @property
    def _is_alone(self) -> bool:
        """The node is connected to nothing, so Langflow asks for every output."""
        return self._vertex is not None and not self._vertex.outgoing_edges

    async def vector(self) -> Data:
        """The text and its vector."""
        if not self.input_value and self._is_alone:
            return Data()
        results: list[TaskResult] = []
        model = self._embeddings()
        with Reporter(self, model.model) as report:

            def observe(event: Any) -> None:
                report(event)
                results.extend([event] if isinstance(event, TaskResult) else [])

            model.observer = observe
            if self.is_query:
                found = await model.aembed_query(self.input_value)
            else:
                (found,) = await model.aembed_documents([self.input_value])
        self.status = status_of(f"{len(found)} dimensions", results[-1])
        return Data(data={"text": self.input_value, "embeddings": found, "model_name": model.model})

    async def image_vectors(self) -> DataFrame:
        """One row per picture, with its number (from 1) and its vector."""
        if self._is_alone and not self.has_pictures:
            return DataFrame([])
        model = self._embeddings()
        pictures = await self.pictures()
        with Reporter(self, model.model) as model.observer:
            vectors = await model.aembed_images(pictures)
        self.status = f"{len(vectors)} pictures, {len(vectors[0])} dimensions"
        return DataFrame(
            [
                {"image": number, "embeddings": vector, "model_name": model.model}
                for number, vector in enumerate(vectors, 1)
            ]
        )
