"""What the halves of an isolated engine say to each other: all of it comes back the same, and lies are refused."""

import contextlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lfx_local_runtimes import errors
from lfx_local_runtimes.errors import EngineFailure, RuntimeFault, WrongTask
from lfx_local_runtimes.runtimes import ChatMessage, GenerationConfig, ModelConfig
from lfx_local_runtimes.runtimes.config import DeviceType, RuntimeType
from lfx_local_runtimes.runtimes.devices import Device
from lfx_local_runtimes.runtimes.engines.isolated import codec
from lfx_local_runtimes.runtimes.engines.isolated.runtime import IsolatedRuntime
from lfx_local_runtimes.runtimes.formats.info import AttentionLayer, ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.onnx import OnnxHeader, OnnxTensor
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.processes.frames import Frame, FrameReader, ProtocolError, encode
from lfx_local_runtimes.runtimes.requests import Event, Failed, Finished, Progress, Request
from lfx_local_runtimes.runtimes.tasks import registry, task_rows
from lfx_local_runtimes.runtimes.tasks.base import Ask, Delta, TaskResult, TaskRow
from lfx_local_runtimes.runtimes.tasks.documents.document import DocumentAsk, DocumentResult, Page, PageDelta
from lfx_local_runtimes.runtimes.tasks.documents.ocr import OcrAsk, OcrResult, RecognisedPicture
from lfx_local_runtimes.runtimes.tasks.documents.pages import Table, TextLine
from lfx_local_runtimes.runtimes.tasks.generation import (
    GenerationResult,
    Grammar,
    ImagePart,
    TextDelta,
    TextPart,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
)
from lfx_local_runtimes.runtimes.tasks.media import Media
from lfx_local_runtimes.runtimes.tasks.multimodal.caption import CaptionAsk
from lfx_local_runtimes.runtimes.tasks.multimodal.vqa import VqaAsk
from lfx_local_runtimes.runtimes.tasks.text.classification import ClassificationAsk, ClassificationResult, Label
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk, EmbeddingResult
from lfx_local_runtimes.runtimes.tasks.text.ner import Entity, NerAsk, NerResult
from lfx_local_runtimes.runtimes.tasks.text.rerank import Ranked, RerankAsk, RerankResult
from lfx_local_runtimes.runtimes.tasks.text.zero_shot import ZeroShotAsk, ZeroShotResult
from lfx_local_runtimes.runtimes.tasks.vision.classification import ImageClassificationAsk, ImageClassificationResult
from lfx_local_runtimes.runtimes.tasks.vision.depth import DepthAsk, DepthMap, DepthResult
from lfx_local_runtimes.runtimes.tasks.vision.detection import DetectedObject, ObjectDetectionAsk, ObjectDetectionResult
from lfx_local_runtimes.runtimes.tasks.vision.embedding import ImageEmbeddingAsk
from lfx_local_runtimes.runtimes.tasks.vision.segmentation import (
    Rle,
    Segment,
    Segmentation,
    SegmentationAsk,
    SegmentationResult,
)
from lfx_local_runtimes.runtimes.tasks.vision.zero_shot import ImageZeroShotAsk, ImageZeroShotResult
from lfx_local_runtimes.runtimes.trust.report import Clearance
from lfx_local_runtimes.settings import Settings
from tests.isolated_engines import Actor, runtime_of

UNHURRIED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
quick = settings(max_examples=20, **UNHURRIED)
thorough = settings(max_examples=100, **UNHURRIED)


def over_the_wire(frame: Frame) -> Frame:
    """As the other side reads it."""
    read = FrameReader(io.BytesIO(b"".join(bytes(piece) for piece in encode(frame)))).read()
    assert read is not None
    return read


def same(one: Any, other: Any) -> bool:
    """Equal, arrays and what is no number included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, RuntimeFault):
        return vars(one) == vars(other)
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return bool(one == other)


# -- a task that takes everything: bytes, arrays, more input after its start -----------------------------------------


@dataclass(frozen=True, slots=True)
class Heard(Delta):
    """A part of a dictation."""

    sound: Media


@dataclass(frozen=True)
class DictationResult(TaskResult):
    """All of it."""

    sounds: tuple[Media, ...]


class DictationAsk(Ask[DictationResult]):
    """A sound to write down."""

    task = "dictation"
    sound: Media


DICTATION = TaskRow(
    name="dictation", family="hearing", ask=DictationAsk, result=DictationResult, delta=Heard, chunk=Media
)


@pytest.fixture(scope="module", autouse=True)
def dictation() -> Iterator[None]:
    registry.register_task(DICTATION)
    yield
    del registry._registered["dictation"]


# -- values of every kind --------------------------------------------------------------------------------------------

TEXT = st.text(max_size=8)
SOME = st.text(min_size=1, max_size=8)
NUMBER = st.floats(allow_nan=False)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
METADATA = st.dictionaries(TEXT.filter(lambda name: name not in ("truncated", "warnings")), JSON, max_size=3)
MEDIA = st.builds(Media, TEXT, st.binary(max_size=50))
IMAGES = st.lists(st.builds(Media, TEXT, st.binary(min_size=1, max_size=50)), min_size=1, max_size=3).map(tuple)
TEXTS = st.lists(SOME, min_size=1, max_size=3).map(tuple)
CALL = st.builds(ToolCall, id=SOME, name=SOME, arguments=TEXT)
LOGPROB = st.builds(
    TokenLogprob, token=TEXT, logprob=NUMBER, bytes=st.binary(max_size=4).map(tuple),
    top=st.lists(st.builds(TokenLogprob, token=TEXT, logprob=NUMBER, bytes=st.just(()), top=st.just(())), max_size=2).map(tuple),
)  # fmt: skip
SAMPLING = {
    "max_tokens": st.integers(1, 1000), "temperature": st.floats(0, 5), "seed": st.none() | st.integers(0, 2**32 - 2),
    "logit_bias": st.dictionaries(st.integers(0, 10**6), st.floats(-100, 100), max_size=3),
    "stop": st.lists(SOME, max_size=2).map(tuple), "keep_alive": st.none() | st.floats(-1, 1e9),
    "reasoning_budget": st.none() | st.integers(0, 9),
}  # fmt: skip
TOOL = st.builds(
    Tool, name=st.from_regex(r"[a-zA-Z0-9_.-]{1,9}", fullmatch=True), description=TEXT,
    parameters=st.dictionaries(TEXT, JSON, max_size=2),
)  # fmt: skip
GRAMMAR = st.builds(Grammar, kind=st.just("regex"), text=TEXT) | st.builds(
    Grammar, kind=st.just("json_schema"), json_schema=st.booleans() | st.dictionaries(TEXT, JSON, max_size=2)
)
TURN = st.builds(
    ChatMessage, role=st.sampled_from(["system", "user", "assistant", "tool"]), content=TEXT,
    tool_calls=st.lists(CALL, max_size=2).map(tuple), tool_call_id=st.none() | TEXT, name=st.none() | TEXT,
)  # fmt: skip
PICTURE = st.builds(Media, TEXT, st.binary(min_size=1, max_size=50))
PART = st.builds(TextPart, type=st.just("text"), text=TEXT) | st.builds(ImagePart, type=st.just("image"), image=PICTURE)
SHOWN = st.builds(
    ChatMessage, role=st.sampled_from(["user", "tool"]), content=st.lists(PART, min_size=1, max_size=3).map(tuple)
)
FILE = st.builds(Media, TEXT, st.binary(min_size=1, max_size=50))
BOX = st.none() | st.tuples(NUMBER, NUMBER, NUMBER, NUMBER)
POINT = st.tuples(NUMBER, NUMBER)
LINES = st.lists(
    st.builds(TextLine, TEXT, BOX, st.none() | NUMBER, st.none() | st.tuples(POINT, POINT, POINT, POINT)), max_size=2
).map(tuple)
TABLES = st.lists(
    st.builds(Table, st.lists(st.lists(TEXT, max_size=2).map(tuple), max_size=2).map(tuple), BOX), max_size=2
)
PAGES = st.lists(
    st.builds(
        Page, st.integers(1), st.sampled_from(["text", "recognised"]), TEXT, TEXT, LINES, TABLES.map(tuple),
        st.none() | NUMBER, st.none() | NUMBER, st.sampled_from(["points", "pixels"]), st.booleans(), st.none() | MEDIA,
    ),
    max_size=2,
).map(tuple)  # fmt: skip
ASKS: dict[str, st.SearchStrategy[Any]] = {
    "llm": st.builds(GenerationConfig, prompt=TEXT, grammar=st.none() | GRAMMAR, **SAMPLING)
    | st.builds(
        GenerationConfig, raw=st.just(True),
        prompt_ids=st.lists(st.integers(0, 2**70), min_size=1, max_size=3).map(tuple), **SAMPLING,
    )
    | st.builds(
        GenerationConfig, messages=st.lists(TURN | SHOWN, min_size=1, max_size=3).map(tuple),
        tools=st.lists(TOOL, max_size=2, unique_by=lambda tool: tool.name).map(tuple), **SAMPLING,
    ),
    "embedding": st.builds(
        EmbeddingAsk,
        texts=st.lists(SOME | st.lists(st.integers(0), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple),
        overflow=st.sampled_from(["truncate", "error", "chunk"]), normalize=st.none() | st.booleans(),
    ),
    "ocr": st.builds(
        OcrAsk, images=st.lists(FILE, min_size=1, max_size=2).map(tuple), languages=st.just(("en",)), draw=st.booleans()
    ),
    "document": st.builds(
        DocumentAsk, file=FILE, name=st.just("a.pdf"), pages=st.none() | st.just("1-3, 7"), draw=st.booleans()
    ),
    "rerank": st.builds(RerankAsk, query=SOME, documents=TEXTS, top_n=st.none() | st.integers(1, 9)),
    "classification": st.builds(ClassificationAsk, texts=TEXTS, top_k=st.none() | st.integers(1, 9)),
    "zero_shot": st.builds(
        ZeroShotAsk, texts=TEXTS, labels=st.just(("one", "two")), hypothesis=st.none() | TEXT.map("{} ".__add__)
    ),
    "ner": st.builds(NerAsk, texts=TEXTS, min_score=st.floats(0, 1)),
    "caption": st.builds(CaptionAsk, image=PICTURE, prompt=st.none() | SOME, max_length=st.integers(1, 9)),
    "vqa": st.builds(VqaAsk, image=PICTURE, question=SOME),
    "image_classification": st.builds(
        ImageClassificationAsk, images=IMAGES, top_k=st.none() | st.integers(1, 9), multi_label=st.none() | st.booleans()
    ),
    "object_detection": st.builds(ObjectDetectionAsk, images=IMAGES, threshold=st.floats(0, 1), draw=st.booleans()),
    "zero_shot_image_classification": st.builds(ImageZeroShotAsk, images=IMAGES, labels=st.just(("one", "two"))),
    "depth_estimation": st.builds(DepthAsk, images=IMAGES, raw=st.booleans(), draw=st.booleans()),
    "image_embedding": st.builds(ImageEmbeddingAsk, images=IMAGES, texts=TEXTS, normalize=st.none() | st.booleans()),
    "image_segmentation": st.builds(SegmentationAsk, images=IMAGES, rle=st.booleans(), draw=st.booleans()),
    "dictation": st.builds(DictationAsk, sound=MEDIA),
}  # fmt: skip
ABOUT = {"model_name": TEXT, "metadata": METADATA}
LABELS = st.lists(st.lists(st.builds(Label, TEXT, NUMBER), max_size=2).map(tuple), max_size=3).map(tuple)
GENERATED = st.builds(
    GenerationResult, text=TEXT, tokens_generated=st.integers(0, 9), prompt_tokens=st.integers(0, 9),
    finish_reason=st.sampled_from(["stop", "length", "tool_calls", "cancelled"]), execution_time=NUMBER,
    time_to_first_token=st.none() | NUMBER, tool_calls=st.lists(CALL, max_size=2).map(tuple),
    logprobs=st.none() | st.lists(LOGPROB, max_size=2).map(tuple), reasoning=st.none() | TEXT, **ABOUT,
)  # fmt: skip
RESULTS: dict[str, st.SearchStrategy[Any]] = {
    "llm": GENERATED,
    "caption": GENERATED,
    "vqa": GENERATED,
    "embedding": st.builds(
        EmbeddingResult, vectors=arrays(np.float32, st.tuples(st.integers(0, 3), st.integers(0, 4))), **ABOUT
    ),
    "ocr": st.builds(
        OcrResult,
        images=st.lists(
            st.builds(RecognisedPicture, st.integers(0), st.integers(0), TEXT, LINES, st.booleans(), st.none() | MEDIA), max_size=2
        ).map(tuple),
        **ABOUT,
    ),
    "document": st.builds(
        DocumentResult, name=TEXT, kind=st.sampled_from(["pdf", "docx", "pptx", "picture"]), page_count=st.integers(0),
        pages=PAGES, **ABOUT,
    ),
    "rerank": st.builds(
        RerankResult, ranking=st.lists(st.builds(Ranked, st.integers(0, 9), NUMBER), max_size=3).map(tuple), **ABOUT
    ),
    "classification": st.builds(ClassificationResult, labels=LABELS, **ABOUT),
    "zero_shot": st.builds(ZeroShotResult, labels=LABELS, **ABOUT),
    "ner": st.builds(
        NerResult,
        entities=st.lists(
            st.lists(st.builds(Entity, TEXT, TEXT, st.integers(0), st.integers(0), NUMBER), max_size=2).map(tuple),
            max_size=2,
        ).map(tuple),
        **ABOUT,
    ),
    "image_classification": st.builds(ImageClassificationResult, labels=LABELS, **ABOUT),
    "object_detection": st.builds(
        ObjectDetectionResult,
        objects=st.lists(st.lists(st.builds(DetectedObject, TEXT, *[NUMBER] * 5), max_size=2).map(tuple), max_size=2).map(tuple),
        drawings=st.lists(MEDIA, max_size=2).map(tuple), **ABOUT,
    ),
    "zero_shot_image_classification": st.builds(ImageZeroShotResult, labels=LABELS, **ABOUT),
    "depth_estimation": st.builds(
        DepthResult,
        depths=st.lists(
            st.builds(
                DepthMap, st.integers(0, 9), st.integers(0, 9), *[NUMBER] * 4,
                values=st.none() | arrays(np.float32, st.tuples(st.integers(0, 3), st.integers(0, 4))),
                drawing=st.none() | MEDIA,
            ),
            max_size=2,
        ).map(tuple),
        **ABOUT,
    ),
    "image_embedding": st.builds(
        EmbeddingResult, vectors=arrays(np.float32, st.tuples(st.integers(0, 3), st.integers(0, 4))), **ABOUT
    ),
    "image_segmentation": st.builds(
        SegmentationResult,
        segmentations=st.lists(
            st.builds(
                Segmentation,
                st.lists(
                    st.builds(
                        Segment, TEXT, st.integers(0, 9), st.integers(0, 9), NUMBER,
                        st.none() | st.builds(Rle, st.just((2, 3)), st.just((0, 6))),
                    ),
                    max_size=2,
                ).map(tuple),
                MEDIA, st.none() | MEDIA,
            ),
            max_size=2,
        ).map(tuple),
        **ABOUT,
    ),
    "dictation": st.builds(DictationResult, sounds=st.lists(MEDIA, max_size=3).map(tuple), **ABOUT),
}  # fmt: skip
TEXT_DELTA = st.builds(
    TextDelta, TEXT, st.integers(0), TEXT,
    st.lists(st.builds(ToolCallDelta, st.integers(0, 9), st.none() | TEXT, st.none() | TEXT, TEXT), max_size=2).map(tuple),
    st.lists(LOGPROB, max_size=2).map(tuple),
)  # fmt: skip
FAULTS = st.builds(
    lambda kind, message, name, hint: kind(message, model_name=name, hint=hint),
    st.sampled_from(list(codec._faults().values())), TEXT, st.none() | TEXT, st.none() | TEXT,
)  # fmt: skip
PROGRESS = st.builds(Progress, TEXT, st.integers(0), st.integers(0))


def events(task: str) -> st.SearchStrategy[Event]:
    texts = dict.fromkeys(("llm", "caption", "vqa"), TEXT_DELTA)
    own = {**texts, "dictation": st.builds(Heard, MEDIA), "document": st.builds(PageDelta, PAGES, st.integers(0))}.get(
        task
    )
    others = RESULTS[task].map(Finished) | FAULTS.map(Failed) | PROGRESS
    return others if own is None else own | others


TASKS = sorted(ASKS)
each_task = pytest.mark.parametrize("task", TASKS)


def test_no_task_is_forgotten() -> None:
    assert set(task_rows()) <= {*ASKS}
    assert set(ASKS) == set(RESULTS)


# -- there and back --------------------------------------------------------------------------------------------------


@each_task
@quick
@given(data=st.data())
def test_an_ask_comes_back_the_same(task: str, data: st.DataObject) -> None:
    asked = data.draw(ASKS[task])
    frame = over_the_wire(codec.start_frame("7", "a request", asked))
    assert (frame.header["t"], frame.header["id"], frame.header["request_id"]) == ("start", "7", "a request")
    read = codec.read_ask(frame)
    assert type(read) is type(asked)
    assert same(read.model_dump(), asked.model_dump())


@each_task
@quick
@given(data=st.data())
def test_an_event_comes_back_the_same(task: str, data: st.DataObject) -> None:
    event = data.draw(events(task))
    read = codec.read_event(over_the_wire(codec.event_frame("7", event)), task)
    assert type(read) is type(event)
    if isinstance(event, Finished) and task == "llm":
        assert same(read.result.model_dump(), event.result.model_dump())  # type: ignore[union-attr]
    else:
        assert same(read, event)


def test_the_numbers_of_cut_texts_stay_numbers() -> None:
    event = Finished(RerankResult("m", {"truncated": {0: 5, 12: 1}}, ()))
    read = codec.read_event(over_the_wire(codec.event_frame("7", event)), "rerank")
    assert read == event


def test_vectors_and_bytes_travel_as_they_are() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    frame = codec.event_frame("7", Finished(EmbeddingResult("m", {}, vectors)))
    assert [bytes(one) for one in frame.attachments] == [vectors.tobytes()]
    sound = Media("audio/wav", b"\x00\xff" * 9)
    frame = codec.feed_frame("7", "dictation", sound)
    assert frame.attachments == (sound.data,)
    read = over_the_wire(frame)
    assert codec.read(read.header["chunk"], Media, read.attachments) == sound


def test_every_fault_keeps_its_type() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RuntimeFault)]
    for kind in kinds:
        assert type(codec.read_fault(codec.write_fault(kind("why")))) is kind
    assert type(codec.read_fault({"code": "not here", "message": "why"})) is EngineFailure


INFO = st.builds(
    ModelInfo, st.just(Path("/models/größe")), st.sampled_from(ModelFormat), st.just((Path("/models/größe/a.gguf"),)),
    st.integers(0), architecture=st.none() | TEXT, chat_template=st.none() | TEXT, instruct=st.booleans(),
    layers=st.lists(st.builds(AttentionLayer, *[st.integers(0, 99)] * 4), max_size=2).map(tuple),
    metadata=st.dictionaries(TEXT, JSON, max_size=3),
    onnx=st.lists(
        st.builds(
            OnnxHeader, st.just(Path("/models/größe/model.onnx")), TEXT, st.integers(0), st.integers(0),
            st.just((Path("/models/größe/model.onnx"),)),
            st.lists(st.builds(OnnxTensor, TEXT, st.lists(st.none() | st.integers(0), max_size=2).map(tuple)), max_size=2).map(tuple),
            st.just(()),
        ),
        max_size=1,
    ).map(tuple),
)  # fmt: skip
PLAN = st.builds(
    LoadPlan, INFO, SOME, st.builds(Device, st.sampled_from(DeviceType), st.integers(0, 8), TEXT), TEXT, st.integers(1),
    st.dictionaries(TEXT, st.integers(0), max_size=2), st.integers(1), st.integers(0),
    st.lists(TEXT, max_size=2).map(tuple), TEXT,
)  # fmt: skip
CONFIG = st.builds(
    lambda **fields: ModelConfig.model_validate(fields, context=()), model_id=st.just("/models/größe"), model_name=st.just("a model"), chat_template=st.none() | TEXT,
    runtime_type=st.sampled_from(["auto", "llama_cpp", "one_of_a_plugin"]),
    quantization=st.sampled_from([None, "int8", "Q4_K_M"]), keep_alive=st.none() | st.floats(-1, 1e9),
    threads=st.none() | st.integers(1, 9), deterministic=st.booleans(),
)  # fmt: skip

CLEARANCE = Clearance("a model", "ada", {"remote_code": "0" * 64}, needs_full=True)


@thorough
@given(plan=PLAN, config=CONFIG)
def test_a_load_comes_back_the_same(plan: LoadPlan, config: ModelConfig) -> None:
    settings = Settings(step_limit_s=7, hf_token="hidden", api_key="hidden too", offline=True)
    sent = codec.load_frame(
        "module:factory", config, plan, settings, policy={"read": []}, clearance=CLEARANCE,
        environment={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "hidden" not in str(sent)
    head = over_the_wire(sent).header
    assert same(codec.read(head["plan"], LoadPlan), plan)
    read = codec.read(head["config"], ModelConfig)
    assert (read, type(read.runtime_type)) == (config, RuntimeType)
    assert Settings.model_validate(head["settings"]) == settings.model_copy(update={"hf_token": None, "api_key": None})
    assert (head["factory"], head["policy"]) == ("module:factory", {"read": []})
    assert codec.read(head["clearance"], Clearance) == CLEARANCE
    assert head["environment"] == {"OMP_NUM_THREADS": "1"}


def test_what_a_loaded_model_says_is_cut_to_what_there_is() -> None:
    said = {"tasks": ["llm", "telepathy"], "memory": {"cpu": 2**80}, "sequences": 4, "warnings": ["x" * 20_000] * 99}
    loaded = codec.read_loaded({"t": "loaded", **said})
    assert loaded.tasks == {"llm"}
    assert (loaded.memory, loaded.sequences, len(loaded.warnings)) == ({"cpu": 2**80}, 4, 50)
    assert max(map(len, loaded.warnings)) == 10_000


# -- lies ------------------------------------------------------------------------------------------------------------

KINDS = st.sampled_from(["started", "delta", "finished", "failed", "progress", "pong", "loaded", "confined", "x"])
HEADER = st.dictionaries(
    st.sampled_from(["t", "id", "delta", "result", "fault", "progress", "step_s", "tasks", "memory"]), JSON, max_size=6
)
HOSTILE = st.builds(
    lambda header, kind, attachments: Frame({"t": kind, "id": "1", **header}, tuple(attachments)),
    HEADER, KINDS, st.lists(st.binary(max_size=20), max_size=2),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something is inside a value, as keys and indices."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


@st.composite
def changed(draw: st.DrawFn) -> tuple[str, Frame]:
    """A true event of a task with one part replaced, or without its attachments."""
    task = draw(st.sampled_from(TASKS))
    frame = over_the_wire(codec.event_frame("1", draw(events(task))))
    header = frame.header
    *path, last = draw(st.sampled_from([place for place in places(header) if place != ("t",)]))
    inner = reduce(lambda value, key: value[key], path, header)
    inner[last] = draw(JSON | st.integers(-(2**70), 2**70))
    attachments = draw(st.sampled_from([frame.attachments, (), (b"x",), frame.attachments * 2]))
    return task, replace(frame, attachments=attachments)


@thorough
@given(frame=HOSTILE, task=st.sampled_from(TASKS))
def test_a_made_up_event_is_refused(frame: Frame, task: str) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(codec.read_event(frame, task), Delta | Finished | Failed | Progress)


@thorough
@given(one=changed())
def test_a_changed_event_is_refused_or_another_true_one(one: tuple[str, Frame]) -> None:
    task, frame = one
    try:
        event = codec.read_event(frame, task)
    except ProtocolError:
        return
    codec.event_frame("1", event)


@thorough
@given(said=st.dictionaries(st.sampled_from(["tasks", "memory", "sequences", "warnings", "t"]), JSON) | HEADER)
def test_a_made_up_load_is_refused(said: dict[str, Any]) -> None:
    try:
        codec.read_loaded(said)
    except ProtocolError:
        return
    assert {"tasks", "memory", "sequences", "warnings"} <= set(said)


@thorough
@given(said=JSON | st.dictionaries(st.sampled_from(["code", "message", "model_name", "hint"]), JSON))
def test_a_made_up_fault_is_refused(said: Any) -> None:
    try:
        assert isinstance(codec.read_fault(said), RuntimeFault)
    except ProtocolError:
        assert not isinstance(said, dict) or not isinstance(said.get("message"), str)


@pytest.mark.parametrize(
    ("vectors", "attachments"),
    [
        ([[1, 2]], ()),
        ("a text", ()),
        ({"attachment": 0, "dtype": "float32", "shape": [2]}, ()),
        ({"attachment": 1, "dtype": "float32", "shape": [2]}, (bytes(8),)),
        ({"attachment": -1, "dtype": "float32", "shape": [2]}, (bytes(8),)),
        ({"attachment": 0, "dtype": "float32", "shape": [3]}, (bytes(8),)),
        ({"attachment": 0, "dtype": "float32", "shape": [-1]}, (bytes(8),)),
        ({"attachment": 0, "dtype": "float32", "shape": 2}, (bytes(8),)),
        ({"attachment": 0, "dtype": "float32", "shape": [0, 2**80]}, (b"",)),
        ({"attachment": 0, "dtype": "float32", "shape": [1] * 1000}, (bytes(4),)),
        ({"attachment": 0, "dtype": "object", "shape": [1]}, (bytes(8),)),
        ({"attachment": 0, "dtype": ["float32"], "shape": [2]}, (bytes(8),)),
    ],
)
def test_false_vectors_are_refused(vectors: Any, attachments: tuple[bytes, ...]) -> None:
    result = {"model_name": "m", "metadata": {}, "vectors": vectors}
    with pytest.raises(ProtocolError):
        codec.read_event(Frame({"t": "finished", "id": "1", "result": result}, attachments), "embedding")


def test_a_task_that_streams_nothing_has_no_deltas() -> None:
    with pytest.raises(ProtocolError, match="has no event 'delta'"):
        codec.read_event(Frame({"t": "delta", "id": "1", "delta": {}}), "rerank")


def test_an_ask_of_no_task_is_the_fault_of_its_caller() -> None:
    with pytest.raises(WrongTask):
        codec.read_ask(Frame({"t": "start", "task": "telepathy", "ask": {}}))
    with pytest.raises(ProtocolError):
        codec.read_ask(Frame({"t": "start", "task": "llm", "ask": {"prompt": 5}}))


@thorough
@given(frame=HOSTILE, task=st.sampled_from(TASKS))
def test_the_model_s_thread_takes_nothing_false(frame: Frame, task: str) -> None:
    """All that a process sends while it serves: it is an event of a request that it has, or the end of the process."""
    runtime = unloaded()
    runtime._sent["1"] = Request("m", made(task))
    with contextlib.suppress(ProtocolError):
        runtime._take(over_the_wire(frame))


@cache
def unloaded() -> IsolatedRuntime:
    runtime = runtime_of(Actor, Path("nowhere"))
    runtime._guard = Ignoring()  # type: ignore[assignment]
    return runtime


class Ignoring:
    """A guard that looks at nothing."""

    def pong(self, step_s: float) -> None:
        assert isinstance(step_s, float)


def made(task: str) -> Ask[Any]:
    """Some ask of a task."""
    plain: dict[str, dict[str, Any]] = {
        "llm": {"prompt": "x"}, "rerank": {"query": "x", "documents": ["x"]},
        "ocr": {"images": [b"x"]}, "document": {"file": b"x"},
        "zero_shot": {"texts": ["x"], "labels": ["x"]},
        "zero_shot_image_classification": {"images": [b"a picture"], "labels": ["x"]}, "dictation": {"sound": {"mime": "x", "data": ""}},
        "caption": {"image": "AAAA"}, "vqa": {"image": "AAAA", "question": "x"},
    }  # fmt: skip
    row = task_rows()[task]
    usual = {"images": [b"a picture"]} if row.family == "seeing" else {"texts": ["x"]}
    ask: Ask[Any] = row.ask.model_validate(plain.get(task, usual))
    return ask
