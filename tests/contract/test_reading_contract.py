"""What every runtime that reads does, whatever its engine: inline and in a process, with the same results bit for bit.

On a card the results are nearly the same: its library may choose another way to compute from one process to the next.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from lfx_local_runtimes.errors import ContextOverflow, EngineFailure, RequestCancelled, WrongTask
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, ModelRuntime
from lfx_local_runtimes.runtimes.engines.registry import engine_row
from lfx_local_runtimes.runtimes.planning import plan_for_engine
from lfx_local_runtimes.runtimes.requests import Request, RequestState, Run
from lfx_local_runtimes.runtimes.sources.packages import BGE_SMALL, RERANKER
from lfx_local_runtimes.runtimes.tasks.text.classification import ClassificationAsk
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk
from lfx_local_runtimes.runtimes.tasks.text.ner import NerAsk
from lfx_local_runtimes.runtimes.tasks.text.rerank import Ranked, RerankAsk, RerankResult
from lfx_local_runtimes.runtimes.tasks.text.zero_shot import ZeroShotAsk
from tests.cards import need_build_for_cuda
from tests.contract.conftest import in_process
from tests.encoder_models import save_encoder
from tests.gguf_encoders import RANK, save_bert_gguf

pytestmark = pytest.mark.integration

LOAD_S = 300.0
TEXTS = ("the cat sat on the mat.", "alice met bob in paris.", "a")
LONG = "the cat ran and ran. " * 200
"""More than any of the models reads."""
ENTITIES = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
RELATIONS = {0: "contradiction", 1: "neutral", 2: "entailment"}


@dataclass(frozen=True)
class Reader:
    """An engine with a model for a task, and everything that the model can be asked."""

    engine: str
    task: str
    asks: tuple[Any, ...]
    device: str = "cpu"


READERS = [
    Reader("transformers", "embedding", (EmbeddingAsk(texts=TEXTS), EmbeddingAsk(texts=TEXTS[:1], dimensions=8, normalize=True),
                                         ZeroShotAsk(texts=TEXTS, labels=("cat", "paris")))),
    Reader("transformers", "rerank", (RerankAsk(query="the cat", documents=TEXTS), RerankAsk(query="paris", documents=TEXTS, top_n=1))),
    Reader("transformers", "zero_shot", (ZeroShotAsk(texts=TEXTS, labels=("cat", "paris"), multi_label=True),
                                         ClassificationAsk(texts=TEXTS), ClassificationAsk(texts=TEXTS, top_k=1))),
    Reader("transformers", "ner", (NerAsk(texts=TEXTS), NerAsk(texts=TEXTS, min_score=0.99))),
    Reader("onnx", "embedding", (EmbeddingAsk(texts=TEXTS),)),
    Reader("onnx", "rerank", (RerankAsk(query="the cat", documents=TEXTS),)),
    Reader("llama_cpp", "embedding", (EmbeddingAsk(texts=TEXTS),)),
    Reader("llama_cpp", "rerank", (RerankAsk(query="the cat", documents=TEXTS),)),
]  # fmt: skip
READERS += [replace(one, device="cuda") for one in READERS if one.engine != "onnx"]


def model_of(reader: Reader, folder: Path, home: Path) -> Path:
    """A small model for the reader."""
    if reader.engine == "onnx":
        package = {"embedding": BGE_SMALL, "rerank": RERANKER}[reader.task]
        path = package.ready_path(home)
        assert path is not None, "the package is not installed: pip install 'lfx-local-runtimes[dev]'"
        return path
    heads: dict[str, tuple[str, dict[str, Any]]] = {
        "embedding": ("Model", {}),
        "rerank": ("ForSequenceClassification", {"num_labels": 1}),
        "zero_shot": ("ForSequenceClassification", {"id2label": RELATIONS}),
        "ner": ("ForTokenClassification", {"id2label": ENTITIES}),
    }
    head, options = heads[reader.task]
    source = save_encoder(folder / reader.task, "Bert", head, **options)
    if reader.engine == "llama_cpp":
        rank = {"pooling": RANK, "labels": ("relevant",)} if reader.task == "rerank" else {}
        return save_bert_gguf(source, folder / f"{reader.task}.gguf", **rank)
    return source


@dataclass
class Pair:
    """A model inline and in a process."""

    reader: Reader
    inline: ModelRuntime
    process: ModelRuntime

    @property
    def both(self) -> tuple[ModelRuntime, ModelRuntime]:
        return self.inline, self.process


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            one,
            marks=[pytest.mark.cuda] if one.device == "cuda" else [],
            id=f"{one.engine}-{one.task}{'-cuda' if one.device == 'cuda' else ''}",
        )
        for one in READERS
    ],
)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, packaged_models: Path
) -> Iterator[Pair]:
    reader: Reader = request.param
    if reader.device == "cuda":
        need_build_for_cuda(reader.engine)
    home = tmp_path_factory.mktemp("home")
    (home / "packages").symlink_to(packaged_models, target_is_directory=True)
    path = model_of(reader, tmp_path_factory.mktemp("models"), home)
    config = ModelConfig(
        model_id=str(path), model_name="a reader", model_type=reader.task, threads=1, device_type=reader.device
    )
    plan = plan_for_engine(config, reader.engine)
    made = Pair(reader, engine_row(reader.engine).make_runtime(config, plan), in_process(config, reader.engine))
    loads = [one.start() for one in made.both]
    for load in loads:
        load.result(LOAD_S)
    yield made
    for one in made.both:
        if (thread := one.stop()) is not None:
            thread.join(LOAD_S)
            assert not thread.is_alive()


def ask(runtime: ModelRuntime, what: Any) -> Any:
    request = Request(runtime.config.model_name, what)
    runtime.submit(request)
    return Run(request).wait()


def same(one: Any, other: Any) -> bool:
    """The same result, bit for bit; a request's id and its times aside."""
    if one.__class__ is not other.__class__:
        return False
    about = [
        {name: value for name, value in each.metadata.items() if name not in ("request_id", "timeline_ms")}
        for each in (one, other)
    ]
    fields = [name for name in one.__dataclass_fields__ if name != "metadata"]
    return about[0] == about[1] and all(_equal(getattr(one, name), getattr(other, name)) for name in fields)


def nearly_the_same(one: Any, other: Any) -> bool:
    """The same results, but for rounding."""
    fields = [name for name in one.__dataclass_fields__ if name != "metadata"]
    return one.__class__ is other.__class__ and all(_close(getattr(one, name), getattr(other, name)) for name in fields)


def _close(one: Any, other: Any) -> bool:
    """Two results, or parts of them, whose numbers differ by less than a thousandth."""
    if isinstance(one, np.ndarray | float):
        return bool(np.allclose(one, other, rtol=1e-3, atol=1e-3))
    if is_dataclass(one):
        return one.__class__ is other.__class__ and all(
            _close(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_close, one, other))
    return bool(one == other)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return bool(one == other)


def long(what: Any) -> Any:
    """The same request, with an input that is too long."""
    if isinstance(what, RerankAsk):
        return what.model_copy(update={"documents": (TEXTS[0], LONG)})
    return what.model_copy(update={"texts": (TEXTS[0], LONG)})


def test_a_process_gives_the_same_result_bit_for_bit(pair: Pair) -> None:
    assert pair.inline.tasks == pair.process.tasks
    assert (pair.inline.isolation, pair.process.isolation) == ("inline", "process")
    for what in pair.reader.asks:
        inline, process = (ask(one, what) for one in pair.both)
        assert same(inline, process) if pair.reader.device == "cpu" else nearly_the_same(inline, process)


def test_results_have_the_shape_of_what_was_asked(pair: Pair) -> None:
    for runtime in pair.both:
        for what in pair.reader.asks:
            result = ask(runtime, what)
            assert result.model_name == "a reader"
            assert result.metadata["engine"] == pair.reader.engine
            assert result.metadata["truncated"] == {}
            check_shape(what, result)


def check_shape(what: Any, result: Any) -> None:
    if isinstance(what, EmbeddingAsk):
        assert result.vectors.dtype == np.float32
        assert result.vectors.shape[0] == len(what.texts)
        assert what.dimensions in (None, result.vectors.shape[1])
    elif isinstance(what, RerankAsk):
        assert len(result.ranking) == (what.top_n or len(what.documents))
    elif isinstance(what, NerAsk):
        assert len(result.entities) == len(what.texts)
        for text, found in zip(what.texts, result.entities, strict=True):
            assert all(text[one.start : one.end] == one.text for one in found)
    else:
        assert len(result.labels) == len(what.texts)
        wanted = len(what.labels) if isinstance(what, ZeroShotAsk) else what.top_k or len(RELATIONS)
        assert {len(labels) for labels in result.labels} == {wanted}


def test_documents_are_in_the_order_of_their_scores_alone(pair: Pair) -> None:
    what = pair.reader.asks[0]
    if not isinstance(what, RerankAsk):
        pytest.skip(f"a model for {pair.reader.task} sorts nothing")
    scores = [
        ask(pair.inline, what.model_copy(update={"documents": (document,)})).ranking[0].score
        for document in what.documents
    ]
    found = ask(pair.process, what).ranking
    rounding = 0.2 if pair.reader.engine == "onnx" else 1e-4  # int8: a batch has one scale, which moved a score by 0.14
    assert sorted(one.index for one in found) == list(range(len(scores)))
    assert all(scores[one.index] > scores[next_one.index] - rounding for one, next_one in pairwise(found))
    assert all(abs(one.score - scores[one.index]) < rounding for one in found)


def test_what_was_cut_is_told_by_the_number_of_the_input(pair: Pair) -> None:
    cut = [ask(one, long(pair.reader.asks[0])).metadata["truncated"] for one in pair.both]
    assert cut[0] == cut[1]
    assert [*cut[1]] in ([1], [2, 3])  # an NLI model reads the second text with each of two labels
    assert all(isinstance(place, int) for place in cut[1])
    assert all(count > 0 for count in cut[1].values())


def test_a_text_that_is_too_long_is_refused_if_asked(pair: Pair) -> None:
    for runtime in pair.both:
        with pytest.raises(ContextOverflow, match=r"Input [12] has") as caught:
            ask(runtime, long(pair.reader.asks[0]).model_copy(update={"overflow": "error"}))
        assert caught.value.model_name == "a reader"
        ask(runtime, pair.reader.asks[0])


def test_another_task_is_refused(pair: Pair) -> None:
    for runtime in pair.both:
        with pytest.raises(WrongTask, match=f"does .*{pair.reader.task}.*, not llm"):
            ask(runtime, GenerationConfig(prompt="Hello"))


def test_a_cancel_ends_a_large_request(pair: Pair) -> None:
    many = {"documents" if pair.reader.task == "rerank" else "texts": TEXTS * 20_000}
    for runtime in pair.both:
        request = Request("a reader", pair.reader.asks[0].model_copy(update=many))
        runtime.submit(request)
        request.cancel()
        with pytest.raises(RequestCancelled):
            Run(request).wait()
        assert request.state is RequestState.CANCELLED
        ask(runtime, pair.reader.asks[0])


async def test_many_ask_at_once(pair: Pair) -> None:
    what = pair.reader.asks[0]
    results = await asyncio.gather(*(pair.process.run(what) for _ in range(10)))
    assert len({result.metadata["request_id"] for result in results}) == 10
    for result in results:
        check_shape(what, result)


async def test_unloaded_it_answers_no_more(pair: Pair) -> None:
    """The last test: the pair is not loaded after it."""
    pid = pair.process.pid
    for runtime in pair.both:
        assert sum(runtime.get_memory_usage()["devices"].values()) > 0
        await runtime.unload()
        assert runtime.get_memory_usage() == {"devices": {}, "total_mb": 0}
        with pytest.raises(EngineFailure, match="not loaded"):
            ask(runtime, pair.reader.asks[0])
    assert not psutil.pid_exists(pid)


def test_a_difference_would_be_seen() -> None:
    one = result_of(np.zeros((1, 2), np.float32))
    assert same(one, result_of(np.zeros((1, 2), np.float32)))
    assert not same(one, result_of(np.zeros((1, 2), np.float64)))
    assert not same(one, result_of(np.full((1, 2), 1e-45, np.float32)))
    assert not same(one, replace(one, metadata={"tokens": 4}))


def test_a_difference_on_a_card_would_be_seen() -> None:
    one = result_of(np.zeros((1, 2), np.float32))
    assert nearly_the_same(one, result_of(np.full((1, 2), 1e-4, np.float32)))
    assert not nearly_the_same(one, result_of(np.full((1, 2), 1e-2, np.float32)))
    ranked = RerankResult("a reader", {}, (Ranked(0, 0.5), Ranked(1, 0.4)))
    assert nearly_the_same(ranked, replace(ranked, ranking=(Ranked(0, 0.5001), Ranked(1, 0.4))))
    assert not nearly_the_same(ranked, replace(ranked, ranking=(Ranked(1, 0.5), Ranked(0, 0.4))))


def result_of(vectors: np.ndarray) -> Any:
    from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingResult

    return EmbeddingResult("a reader", {"tokens": 3}, vectors)
