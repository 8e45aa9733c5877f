"""One route for every task: the task's name, its fields as options, and the answer in two parts."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from lfx_local_runtimes.routes.access import MODEL_REF, Manager, ModelRef
from lfx_local_runtimes.routes.delivery import Delivery, EventStream, disconnected, wait_for_all
from lfx_local_runtimes.routes.faults import FaultRoute, Unsupported, validation_fault
from lfx_local_runtimes.routes.schemas import RequestId
from lfx_local_runtimes.routes.tasks.bodies import at_hand, by_path, chosen, read_ask
from lfx_local_runtimes.routes.tasks.streaming import TaskDelivery
from lfx_local_runtimes.runtimes.requests import GenerationStream
from lfx_local_runtimes.runtimes.tasks.base import TaskRow
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES
from lfx_local_runtimes.runtimes.tasks.registry import task_row

router = APIRouter(route_class=FaultRoute.with_body(MEDIA_BODY_BYTES))

_OTHER_NAMES = {
    "generate": "llm", "text_generation": "llm", "feature_extraction": "embedding", "sentence_similarity": "embedding",
    "text_ranking": "rerank", "text_classification": "classification", "zero_shot_classification": "zero_shot",
    "token_classification": "ner", "image_to_text": "caption", "visual_question_answering": "vqa",
    "image_feature_extraction": "image_embedding",
}  # fmt: skip
"""The route of text, and the names of tasks on the Hugging Face hub."""


class InferenceBody(BaseModel):
    """A request for any task."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: ModelRef = Field(description=MODEL_REF, examples=["gemma-3-270m"])
    task: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="llm, embedding, rerank, classification, zero_shot, ner, ocr, document or a plugin's; the path of the task's route, or its "
        "name on the Hugging Face hub. Unset: the model's own.",
        examples=["text-generation"],
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="The fields of the task's own route.", examples=[{"prompt": "Hello"}]
    )
    stream: bool = Field(
        default=False, description="For tasks that stream: server-sent events as from their own route."
    )
    request_id: RequestId = None


class InferenceAnswer(BaseModel):
    """An answer of any task."""

    result: dict[str, Any] = Field(description="As the task's own route answers, without its metadata.")
    meta: dict[str, Any] = Field(description="model, task, request_id, and the result's metadata.")


@router.post("/inference", response_model=InferenceAnswer)
async def inference(body: InferenceBody, request: Request, manager: Manager) -> Response:
    """Any task by its name. The model is loaded if necessary. If the client leaves, the computation ends."""
    task = body.task or (await run_in_threadpool(manager.model_status, body.model)).model_type
    row = _row_of(task, body.options)
    if body.stream and row.delta is None:
        raise Unsupported("stream", f"The task {row.name} answers in one piece.")
    try:
        ask = read_ask(row, body.options)
    except ValidationError as error:
        places = [{**one, "loc": ("options", *one["loc"])} for one in error.errors(include_url=False)]
        raise validation_fault(places) from error
    ask = await at_hand(ask, manager)
    run = manager.start(body.model, ask, request_id=body.request_id)
    gone = disconnected(request.receive)
    if body.stream:
        writes_text = row.ask is GenerationConfig
        feed = Delivery(GenerationStream(run), gone) if writes_text else TaskDelivery(run, gone)
        return await EventStream.begin(feed, manager.settings)
    (result,) = await wait_for_all([run], gone)
    fields = await run_in_threadpool(TypeAdapter(row.result).dump_python, result, mode="json")
    meta = {"model": fields.pop("model_name"), "task": row.name, "request_id": run.request.id, **fields.pop("metadata")}
    return JSONResponse({"result": fields, "meta": meta})


def _row_of(task: str, options: dict[str, Any]) -> TaskRow:
    """The task with this name.

    Raises:
        WrongTask: there is none; the hint lists those there are.
    """
    name = task.lower().replace("-", "_")
    rows = by_path().get(name)
    return chosen(rows, options) if rows else task_row(_OTHER_NAMES.get(name, name))
