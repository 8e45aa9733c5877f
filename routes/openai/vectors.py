"""The answer of embeddings, written with the types of the `openai` package."""

from base64 import b64encode

from openai.types import CreateEmbeddingResponse, Embedding
from openai.types.create_embedding_response import Usage
from pydantic_core import to_json

from lfx_local_runtimes.routes.openai.task_bodies import notes_of, usage_of
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingResult


def embeddings_json(model: str, result: EmbeddingResult, *, base64: bool) -> bytes:
    """The body. With `base64` a vector is little-endian float32, for which the `openai` package has no type."""
    usage = Usage.model_validate(usage_of(result))
    body = CreateEmbeddingResponse(data=[], model=model, object="list", usage=usage).model_dump()
    form = Embedding(embedding=[], index=0, object="embedding").model_dump()
    vectors = [b64encode(row.astype("<f4").tobytes()).decode() for row in result.vectors] if base64 else None
    rows = enumerate(vectors or result.vectors.tolist())
    body["data"] = [{**form, "index": index, "embedding": vector} for index, vector in rows]
    return to_json({**body, **notes_of(result)})
