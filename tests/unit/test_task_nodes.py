"""The nodes of every task but text, over scripted models: what they ask, show and route."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lfx.components.input_output.chat_output import ChatOutput
from lfx.custom.custom_component.component import Component
from lfx.graph.graph.base import Graph
from lfx.schema.data import Data
from lfx.schema.dataframe import DataFrame

from lfx_local_runtimes.components.local_runtimes.entity_tagger import EntityTaggerComponent
from lfx_local_runtimes.components.local_runtimes.local_embeddings import LocalEmbeddingsComponent
from lfx_local_runtimes.components.local_runtimes.local_rerank import LocalRerankComponent
from lfx_local_runtimes.components.local_runtimes.text_classifier import TextClassifierComponent
from lfx_local_runtimes.components.local_runtimes.zero_shot_classifier import ZeroShotClassifierComponent
from lfx_local_runtimes.errors import ContextOverflow, InvalidInput, ModelNotFound
from lfx_local_runtimes.nodes.inputs import labels_of
from lfx_local_runtimes.nodes.reading import mark, rows_of
from lfx_local_runtimes.nodes.reports import Reporter
from lfx_local_runtimes.runtimes.tasks.base import TaskResult
from lfx_local_runtimes.runtimes.tasks.text.classification import ClassificationAsk
from lfx_local_runtimes.runtimes.tasks.text.ner import Entity, NerAsk
from lfx_local_runtimes.runtimes.tasks.text.rerank import RerankAsk
from lfx_local_runtimes.runtimes.tasks.text.zero_shot import ZeroShotAsk
from tests.scripted_tasks import ENDLESS, School, school

PATIENCE_S = 20.0
TASK_OF = {
    LocalEmbeddingsComponent: "embedding",
    LocalRerankComponent: "rerank",
    TextClassifierComponent: "classification",
    ZeroShotClassifierComponent: "zero_shot",
    EntityTaggerComponent: "ner",
}
LONG = "good " * 12


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[School]:
    with school(tmp_path, monkeypatch) as stage:
        yield stage


def node(kind: type[Component], **options: Any) -> Any:
    return kind(**{"model_name": f"my {TASK_OF[kind]}", **options})


def records(table: DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_dict(orient="records")
    return rows


# -- all of them ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASK_OF)
async def test_models_of_the_task_are_offered(stage: School, kind: type[Component]) -> None:
    made = node(kind)
    fields = made.to_frontend_node()["data"]["node"]["template"]
    fields = await made.update_build_config(fields, "", "model_name")
    able = [TASK_OF[kind], "embedding"] if kind is ZeroShotClassifierComponent else [TASK_OF[kind]]
    assert [name for name in fields["model_name"]["options"] if name.startswith("my ")] == [f"my {one}" for one in able]


@pytest.mark.parametrize("kind", TASK_OF)
async def test_no_model_is_a_clear_error(stage: School, kind: type[Component]) -> None:
    made = kind(input_value="a", documents=[Data(data={"text": "a"})])
    with pytest.raises(ModelNotFound, match="Choose one"):
        await getattr(made, made.outputs[-1].method)()


async def test_load_options_reach_the_model(stage: School) -> None:
    await node(TextClassifierComponent, input_value="a", context_length=32, keep_alive="60").label()
    assert stage.manager.loaded_models() == ["my classification (context 32)"]
    assert stage.asks[-1].keep_alive == 60


async def test_a_value_that_is_no_number_names_its_field(stage: School) -> None:
    with pytest.raises(InvalidInput, match="keep_alive"):
        await node(TextClassifierComponent, input_value="a", keep_alive="long").label()


async def test_the_status_tells_what_was_not_read(stage: School) -> None:
    for kind, method in ((LocalEmbeddingsComponent, "vector"), (TextClassifierComponent, "label")):
        made = node(kind, input_value="good")
        await getattr(made, method)()
        assert "too long" not in made.status
        made = node(kind, input_value=LONG)
        await getattr(made, method)()
        assert made.status.endswith("too long: up to 4 tokens of a text were not read")


async def test_a_long_text_can_be_an_error(stage: School) -> None:
    with pytest.raises(ContextOverflow):
        await node(TextClassifierComponent, input_value=LONG, overflow="error").label()


async def test_stop_ends_the_computation(stage: School) -> None:
    task = asyncio.create_task(node(TextClassifierComponent, input_value=ENDLESS).label())
    assert await asyncio.to_thread(stage.begun.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await node(TextClassifierComponent, input_value="a").label()  # the model is free again


def test_the_log_tells_what_made_a_result() -> None:
    said: list[Any] = []

    class Node:
        def log(self, message: Any, name: str) -> None:
            said.append((name, message))

    Reporter(Node())(TaskResult("m", {"engine": "e", "tokens": 3, "truncated": {}, "warnings": [], "request_id": "x"}))
    assert said == [("result", {"model_name": "m", "engine": "e", "tokens": 3})]


# -- Local Embeddings ----------------------------------------------------------------------------------------------------


def test_a_fresh_node_leaves_everything_to_the_model() -> None:
    made = node(LocalEmbeddingsComponent).build_embeddings()
    assert (made.model, made.overflow) == ("my embedding", "truncate")
    assert made.model_dump(exclude={"model", "overflow"}, exclude_none=True) == {}


def test_every_option_reaches_the_embeddings() -> None:
    options = {"dimensions": 2, "query_prompt": "q", "document_prompt": "d", "overflow": "chunk"}
    made = node(LocalEmbeddingsComponent, normalize="no", device_type="cpu", **options).build_embeddings()
    assert made.model_dump(exclude={"model"}, exclude_none=True) == {
        **options,
        "normalize": False,
        "device_type": "cpu",
    }


def test_the_outputs_fit_other_nodes() -> None:
    shown = node(LocalEmbeddingsComponent).to_frontend_node()["data"]["node"]["outputs"]
    assert {output["name"]: output["types"] for output in shown} == {
        "embeddings": ["Embeddings"], "vector": ["JSON"], "image_vectors": ["Table"],
    }  # fmt: skip


@pytest.mark.parametrize(("is_query", "prompt"), [(True, "c"), (False, "d")])
async def test_a_text_becomes_a_vector(stage: School, is_query: bool, prompt: str) -> None:
    made = node(LocalEmbeddingsComponent, input_value="ab", is_query=is_query, query_prompt="c", document_prompt="d")
    data = (await made.vector()).data
    vector = [1.0, 1.0, float(prompt == "c"), float(prompt == "d")]
    assert data == {"text": "ab", "embeddings": vector, "model_name": "my embedding"}
    assert made.status == "4 dimensions"


async def test_a_node_that_nothing_is_wired_to_needs_no_text(stage: School) -> None:
    made = node(LocalEmbeddingsComponent, _id="LocalEmbeddings-a")
    assert [result async for result in Graph(made, made).async_start()]
    assert stage.asks == []


# -- Local Rerank --------------------------------------------------------------------------------------------------------

TABLE = DataFrame([{"text": "cats sleep", "page": 1}, {"text": "dogs bark loudly", "page": 2}])


async def test_rows_come_back_best_first(stage: School) -> None:
    made = node(LocalRerankComponent, input_value="do dogs sleep", documents=[TABLE, Data(data={"text": "dogs sleep"})])
    rows = records(await made.ranked())
    assert [(row["rank"], row["text"], row["relevance_score"]) for row in rows] == [
        (1, "dogs sleep", 2.0),
        (2, "cats sleep", 1.0),
        (3, "dogs bark loudly", 1.0),
    ]
    assert rows[1]["page"] == 1
    assert made.status == "3 of 3"


async def test_only_the_best_rows_of_a_column(stage: School) -> None:
    made = node(
        LocalRerankComponent, input_value="b", documents=DataFrame([{"body": "a"}, {"body": "b"}]), text_key="body", top_n=1
    )  # fmt: skip
    assert records(await made.ranked()) == [{"body": "b", "rank": 1, "relevance_score": 1.0}]
    assert stage.asks == [RerankAsk(query="b", documents=("a", "b"), top_n=1)]


async def test_nothing_to_rank_asks_nothing(stage: School) -> None:
    assert records(await node(LocalRerankComponent, input_value="b", documents=[DataFrame([])]).ranked()) == []
    assert stage.asks == []


async def test_a_row_without_text_is_named(stage: School) -> None:
    with pytest.raises(InvalidInput, match=r"Row 2 has no text in 'text'.*body") as caught:
        await node(LocalRerankComponent, input_value="b", documents=[TABLE.head(1), Data(data={"body": "b"})]).ranked()
    assert caught.value.hint


def test_what_is_no_table_is_refused() -> None:
    assert rows_of("") == rows_of(None) == []
    with pytest.raises(InvalidInput, match="int is neither"):
        rows_of([3])


# -- Text Classifier and Zero-Shot Classifier ----------------------------------------------------------------------------


async def test_a_text_gets_its_labels(stage: School) -> None:
    made = node(TextClassifierComponent, input_value="a bad day")
    rows = records(await made.scores())
    assert [row["label"] for row in rows] == ["bad", "good"]
    assert sum(row["score"] for row in rows) == pytest.approx(1)
    assert (await made.label()).text == "bad"
    assert made.status == "bad 0.73"
    assert stage.asks == [ClassificationAsk(texts=("a bad day",))]  # once for both outputs


async def test_another_run_asks_again(stage: School) -> None:
    made = node(TextClassifierComponent, _id="TextClassifier-a", input_value="a bad day")
    graph = Graph(made, made)
    assert [result async for result in graph.async_start()]
    assert len(stage.asks) == 1
    made.set(input_value="a good day")
    made._pre_run_setup()
    assert (await made.label()).text == "good"


async def test_a_classifiers_options_are_asked_for(stage: School) -> None:
    await node(TextClassifierComponent, input_value="a", top_k=1, multi_label="yes").label()
    assert stage.asks == [ClassificationAsk(texts=("a",), top_k=1, multi_label=True)]


async def test_labels_of_ones_own(stage: School) -> None:
    made = node(
        ZeroShotClassifierComponent, input_value="my cat", labels=["dog", " cat ", ""], hypothesis="It is a {}.",
        multi_label=True,
    )  # fmt: skip
    assert [row["label"] for row in records(await made.scores())] == ["cat", "dog"]
    assert (await made.label()).text == "cat"
    assert stage.asks == [
        ZeroShotAsk(texts=("my cat",), labels=("dog", "cat"), hypothesis="It is a {}.", multi_label=True)
    ]


@pytest.mark.parametrize(("labels", "named"), [([], "labels"), (["a", "a"], "twice")])
async def test_labels_that_cannot_be_are_an_error(stage: School, labels: list[str], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        await node(ZeroShotClassifierComponent, input_value="x", labels=labels).label()


@pytest.mark.parametrize(("values", "labels"), [(None, []), ("one", ["one"]), (["auto", " b", ""], ["auto", "b"])])
def test_labels_of_an_input(values: Any, labels: list[str]) -> None:
    assert labels_of(values) == labels


async def test_every_label_is_an_output() -> None:
    made = node(ZeroShotClassifierComponent)
    shown = made.to_frontend_node()["data"]["node"]
    assert [output["display_name"] for output in shown["outputs"]] == [
        "Scores",
        "Label",
        "question",
        "complaint",
        "Else",
    ]
    shown = await made.run_and_validate_update_outputs(shown, "labels", ["cat", "dog", "", "cow"])
    assert [(output["name"], output["display_name"], output["types"]) for output in shown["outputs"]] == [
        ("scores", "Scores", ["Table"]),
        ("label", "Label", ["Message"]),
        ("label_1", "cat", ["Message"]),
        ("label_2", "dog", ["Message"]),
        ("label_3", "cow", ["Message"]),
        ("else", "Else", ["Message"]),
    ]


@pytest.mark.parametrize("field", ["model_name", "multi_label"])
async def test_another_field_leaves_the_labels_their_outputs(field: str) -> None:
    """Langflow asks with the outputs of a new node, and would drop the wires of the others."""
    made = node(ZeroShotClassifierComponent)
    shown = made.to_frontend_node()["data"]["node"]
    shown["template"]["labels"]["value"] = ["cat", "dog", "cow"]
    shown = await made.run_and_validate_update_outputs(shown, field, "anything")
    assert [output["display_name"] for output in shown["outputs"]][2:] == ["cat", "dog", "cow", "Else"]


WAYS = ("label_1", "label_2", "else")


@pytest.mark.parametrize(
    ("text", "threshold", "taken"),
    [
        ("a question", 0, "label_1"),
        ("a complaint", 0, "label_2"),
        ("a poem", 0, "label_1"),
        ("a poem", 0.5, "label_1"),
        ("a poem", 0.51, "else"),
        ("a complaint", 0.7, "label_2"),
        ("a complaint", 0.8, "else"),
    ],
)
async def test_a_text_takes_the_way_of_its_label(stage: School, text: str, threshold: float, taken: str) -> None:
    router = node(ZeroShotClassifierComponent, input_value=text, threshold=threshold)
    graph = Graph()
    graph.add_component(router, "router")
    for name in WAYS:
        graph.add_component(ChatOutput(_id=name, should_store_message=False), name)
        graph.add_component_edge("router", (name, "input_value"), name)
    graph.session_id = "a session"
    graph.prepare()
    await graph.process(fallback_to_env_vars=False)
    ran = {name: graph.get_vertex(name).result for name in WAYS}
    assert [name for name, result in ran.items() if result is not None] == [taken]
    assert ran[taken].results["message"].text == text
    assert len(stage.asks) == 1


# -- Entity Tagger -------------------------------------------------------------------------------------------------------


async def test_names_are_found_and_marked(stage: School) -> None:
    made = node(EntityTaggerComponent, input_value="so Ada met Bob")
    rows = records(await made.entities())
    assert rows[0] == {"text": "Ada", "label": "PER", "score": 1.0, "start": 3, "end": 6}
    assert (await made.marked()).text == "so **Ada** (PER) met **Bob** (PER)"
    assert made.status == "entities: 2"
    assert stage.asks == [NerAsk(texts=("so Ada met Bob",))]


async def test_unsure_names_can_be_left_out(stage: School) -> None:
    made = node(EntityTaggerComponent, input_value="so Ada met Bob", min_score=0.9)
    assert [row["text"] for row in records(await made.entities())] == ["Ada"]


def test_marks_stand_where_the_names_do() -> None:
    assert mark("no names", []) == "no names"
    assert mark("ab", [Entity("X", "a", 0, 1, 1.0), Entity("Y", "b", 1, 2, 1.0)]) == "**a** (X)**b** (Y)"
