"""Image embeddings: a vector for each picture. With a model such as CLIP, texts have vectors in the same space."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from lfx_local_runtimes.runtimes.tasks.base import TaskResult, TaskRow
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES
from lfx_local_runtimes.runtimes.tasks.text.embedding import Embedding, EmbeddingAsk, EmbeddingResult
from lfx_local_runtimes.runtimes.tasks.text.reading import MAX_TEXTS, Piece, Spec, Text
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Seeing, SeeingAsk

_EMBEDDING = Embedding()


class ImageEmbeddingAsk(SeeingAsk[EmbeddingResult]):
    """Pictures to embed, and texts in the same space. The vectors are those of the pictures, then those of the texts."""

    task: ClassVar[str] = "image_embedding"
    texts: tuple[Text, ...] = Field(
        default=(), max_length=MAX_TEXTS, description="Texts to embed after the pictures, for a model such as CLIP."
    )
    dimensions: int | None = Field(
        default=None, ge=1, description="Keep only this many numbers from the start of each vector (Matryoshka models)."
    )
    normalize: bool | None = Field(
        default=None, description="Scale vectors to length 1. Unset: for models of pictures and texts only."
    )


class ImageEmbedding(Seeing[ImageEmbeddingAsk, EmbeddingResult]):
    """The model's own vectors."""

    def pieces(self, ask: ImageEmbeddingAsk, spec: Spec) -> Sequence[Any]:
        return [*super().pieces(ask, spec), *map(Piece, ask.texts)]

    def result(self, ask: ImageEmbeddingAsk, values: Sequence[Any], spec: Spec, about: TaskResult) -> EmbeddingResult:
        options = EmbeddingAsk.model_construct(dimensions=ask.dimensions, normalize=ask.normalize)
        return _EMBEDDING.result(options, values, spec, about)


ROW = TaskRow(
    name="image_embedding", family="seeing", ask=ImageEmbeddingAsk, result=EmbeddingResult, work=ImageEmbedding(),
    path="embed", needed="images", body_bytes=MEDIA_BODY_BYTES,
    summary="A vector for each of `images`, then one for each of `texts`, by a model for pictures such as CLIP or DINOv2.",
)  # fmt: skip
