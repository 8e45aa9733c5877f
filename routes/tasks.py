"""What models do besides writing text, over REST: embed, rerank, classify, find entities."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from lfx_local_runtimes.routes.access import Manager
from lfx_local_runtimes.routes.asks import Limited, LimitedPairs, by_labels
from lfx_local_runtimes.routes.delivery import disconnected, whole
from lfx_local_runtimes.routes.faults import FaultRoute
from lfx_local_runtimes.routes.schemas import Addressed
from lfx_local_runtimes.runtimes.requests import TaskRun
from lfx_local_runtimes.runtimes.tasks.classification import ClassificationAsk, ClassificationResult
from lfx_local_runtimes.runtimes.tasks.embedding import EmbeddingAsk, EmbeddingResult
from lfx_local_runtimes.runtimes.tasks.ner import NerAsk, NerResult
from lfx_local_runtimes.runtimes.tasks.rerank import RerankAsk, RerankResult
from lfx_local_runtimes.runtimes.tasks.zero_shot import ZeroShotAsk, ZeroShotResult

router = APIRouter(route_class=FaultRoute)


class EmbedBody(Addressed, Limited, EmbeddingAsk):
    """Texts, or token ids, to embed."""


class RerankBody(Addressed, Limited, RerankAsk):
    """A query and the documents to put in order."""


class ClassifyBody(Addressed, Limited, ClassificationAsk):
    """Texts to label with the model's own labels."""


class ZeroShotBody(Addressed, LimitedPairs, ZeroShotAsk):
    """Texts, and labels to choose from."""


class NerBody(Addressed, Limited, NerAsk):
    """Texts to search for entities."""


class Embedded(BaseModel):
    """Vectors in the order of the texts."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    vectors: list[list[float]]
    metadata: dict[str, Any] = Field(description="engine, device, dtype, tokens; truncated: tokens cut, by input.")


@router.post("/embed", response_model=Embedded)
async def embed(body: EmbedBody, request: Request, manager: Manager) -> Response:
    """A vector for each text. The model is loaded if it must be; a client that leaves ends the computation."""
    run = manager.start(body.model_name, body, request_id=body.request_id)
    (result,) = await whole([run], disconnected(request.receive))
    return Response(await run_in_threadpool(_embedded, result), media_type="application/json")


def _embedded(result: EmbeddingResult) -> bytes:
    """The answer's JSON: many numbers, so written off the event loop."""
    vectors = result.vectors.tolist()
    return to_json({"model_name": result.model_name, "vectors": vectors, "metadata": dict(result.metadata)})


@router.post("/rerank")
async def rerank(body: RerankBody, request: Request, manager: Manager) -> RerankResult:
    """The documents' places and scores, best first."""
    run = manager.start(body.model_name, body, request_id=body.request_id)
    (result,) = await whole([run], disconnected(request.receive))
    return result


@router.post("/classify")
async def classify(
    body: Annotated[ClassifyBody | ZeroShotBody, by_labels(ClassifyBody, ZeroShotBody), Body()],
    request: Request,
    manager: Manager,
) -> ClassificationResult | ZeroShotResult:
    """Each text's labels, likeliest first: those given (zero-shot, by an NLI or an embedding model), or else the model's own."""
    run: TaskRun[Any] = manager.start(body.model_name, body, request_id=body.request_id)
    result: ClassificationResult | ZeroShotResult
    (result,) = await whole([run], disconnected(request.receive))
    return result


@router.post("/ner")
async def ner(body: NerBody, request: Request, manager: Manager) -> NerResult:
    """Each text's entities: label, text, characters from start to end, score."""
    run = manager.start(body.model_name, body, request_id=body.request_id)
    (result,) = await whole([run], disconnected(request.receive))
    return result
