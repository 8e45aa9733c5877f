"""The work behind the nodes whose models read text: ranking, labels, entities."""

from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from lfx.custom.custom_component.component import Component
from lfx.io import Output
from lfx.schema.data import Data
from lfx.schema.dataframe import DataFrame
from lfx.schema.message import Message
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.langchain.messages import first_problem
from lfx_local_runtimes.langchain.task_model import TaskModel
from lfx_local_runtimes.nodes.inputs import CHOICES, labels_of, loading_options, value_of
from lfx_local_runtimes.nodes.models import chosen_model, list_models_in, model_choices
from lfx_local_runtimes.nodes.reports import Reporter, status_of
from lfx_local_runtimes.runtimes.tasks.base import Ask
from lfx_local_runtimes.runtimes.tasks.text.classification import ClassificationAsk, Label
from lfx_local_runtimes.runtimes.tasks.text.ner import Entity, NerAsk
from lfx_local_runtimes.runtimes.tasks.text.rerank import RerankAsk
from lfx_local_runtimes.runtimes.tasks.text.zero_shot import ZeroShotAsk

ModelT = TypeVar("ModelT", bound=TaskModel)


class TaskBaseComponent(Component):
    """A node with a model for one task. It asks the model once per run, for any number of connected outputs."""

    model_type: ClassVar[str]
    """The list offers models of this task,"""
    also_by: ClassVar[tuple[str, ...]] = ()
    """and after them models of these tasks, which can also do it."""
    _result: Any = None

    def _pre_run_setup(self) -> None:
        self._result = None

    async def update_build_config(
        self, build_config: dict[str, Any], field_value: Any, field_name: str | None = None
    ) -> dict[str, Any]:
        """List the models, whatever field has changed.

        For a new node Langflow asks about each of several fields at once, and keeps only the last answer.
        """
        return list_models_in(build_config, *await model_choices(*self.also_by, model_type=self.model_type))

    def task_model(self, kind: type[ModelT], **options: Any) -> ModelT:
        """The model with this node's options. Loads nothing."""
        name = chosen_model(self)
        try:
            return kind(model=name, observer=Reporter(self, name), **loading_options(self), **options)
        except ValidationError as error:
            raise InvalidInput(first_problem(error), model_name=name) from error

    async def ask_model(self, kind: type[Ask[Any]], **options: Any) -> Any:
        """The model's result of this run."""
        if self._result is None:
            model = self.task_model(TaskModel)
            with Reporter(self, model.model) as model.observer:
                self._result = await model.ask_async(kind, overflow=self.overflow, **options)
        return self._result


# -- Local Rerank --------------------------------------------------------------------------------------------------------


class LocalRerankBaseComponent(TaskBaseComponent):
    """The rows of a table, sorted by how well they answer a query."""

    model_type = "rerank"
    outputs: ClassVar[list[Output]] = [Output(display_name="Ranked", name="ranked", method="ranked")]

    async def ranked(self) -> DataFrame:
        """The rows, best first, each with its `rank` (from 1) and `relevance_score`."""
        rows = rows_of(self.documents)
        if not rows:
            self.status = "no documents"
            return DataFrame([])
        texts = tuple(_text(row, self.text_key, number) for number, row in enumerate(rows, 1))
        result = await self.ask_model(RerankAsk, query=self.input_value, documents=texts, top_n=self.top_n or None)
        self.status = status_of(f"{len(result.ranking)} of {len(rows)}", result)
        return DataFrame(
            [
                {**rows[one.index], "rank": rank, "relevance_score": one.score}
                for rank, one in enumerate(result.ranking, 1)
            ]
        )


def rows_of(value: Any) -> list[dict[str, Any]]:
    """The rows of the tables and data that are connected to an input."""
    rows: list[dict[str, Any]] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, DataFrame):
            rows += item.to_dict(orient="records")
        elif isinstance(item, Data):
            rows.append(dict(item.data))
        elif value_of(item) is not None:
            raise InvalidInput(f"{type(item).__name__} is neither a table nor data.", hint="Connect one of those.")
    return rows


def _text(row: dict[str, Any], column: str, number: int) -> str:
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput(
            f"Row {number} has no text in {column!r}.",
            hint=f"Set the node's Text Column to one of {', '.join(map(str, row))}, or remove such rows.",
        )
    return text


# -- Text Classifier and Zero-Shot Classifier ----------------------------------------------------------------------------


class LabelsBaseComponent(TaskBaseComponent):
    """The labels of a text. Subclasses ask for them."""

    outputs: ClassVar[list[Output]] = [
        Output(display_name="Scores", name="scores", method="scores"),
        Output(display_name="Label", name="label", method="label"),
    ]

    async def found(self) -> tuple[Label, ...]:
        """The text's labels, best score first."""
        raise NotImplementedError

    def _labels(self, result: Any) -> tuple[Label, ...]:
        labels: tuple[Label, ...] = result.labels[0]
        self.status = status_of(f"{labels[0].label} {labels[0].score:.2f}", result)
        return labels

    async def scores(self) -> DataFrame:
        """One row per label, best score first."""
        return DataFrame([{"label": one.label, "score": one.score} for one in await self.found()])

    async def label(self) -> Message:
        """The label with the best score."""
        return Message(text=(await self.found())[0].label)


class TextClassifierBaseComponent(LabelsBaseComponent):
    """Which of the model's own labels a text has."""

    model_type = "classification"

    async def found(self) -> tuple[Label, ...]:
        """The text's labels, best score first."""
        options = {"texts": (self.input_value,), "top_k": self.top_k or None, "multi_label": CHOICES[self.multi_label]}
        return self._labels(await self.ask_model(ClassificationAsk, **options))


ELSE = "else"
"""The output for texts whose best score is too low."""


def label_outputs(labels: Iterable[str]) -> list[Output]:
    """The outputs of a Zero-Shot Classifier: scores, the best label, one output per label, and one for the rest."""
    fixed = [output.model_copy(update={"group_outputs": True}) for output in LabelsBaseComponent.outputs]
    ways = [*((label, _route(index)) for index, label in enumerate(labels)), ("Else", ELSE)]
    routes = [
        Output(display_name=label, name=name, method="route", group_outputs=True, tool_mode=False)
        for label, name in ways
    ]
    return [*fixed, *routes]


def _route(index: int) -> str:
    return f"label_{index + 1}"


class ZeroShotBaseComponent(LabelsBaseComponent):
    """Which of the user's labels a text has, with an output for each."""

    model_type = "zero_shot"
    also_by: ClassVar[tuple[str, ...]] = ("embedding",)

    def update_outputs(self, frontend_node: dict[str, Any], field_name: str, field_value: Any) -> dict[str, Any]:
        """Make an output for each label, after a change of any field: Langflow passes the outputs of a new node."""
        labels = field_value if field_name == "labels" else frontend_node["template"]["labels"]["value"]
        frontend_node["outputs"] = label_outputs(labels_of(labels))
        return frontend_node

    async def found(self) -> tuple[Label, ...]:
        """The text's labels, best score first."""
        options = {
            "texts": (self.input_value,), "labels": tuple(labels_of(self.labels)),
            "hypothesis": value_of(self.hypothesis), "multi_label": bool(self.multi_label),
        }  # fmt: skip
        return self._labels(await self.ask_model(ZeroShotAsk, **options))

    async def route(self) -> Message:
        """The text, at the output of its best label or at Else. Nodes behind the other outputs do not run."""
        best = (await self.found())[0]
        ways = {label: _route(index) for index, label in enumerate(labels_of(self.labels))}
        taken = ways[best.label] if best.score >= float(self.threshold or 0) else ELSE
        if self._vertex is not None:
            others = [name for name in (*ways.values(), ELSE) if name != taken]
            for name in others:
                self.stop(name)
            self._vertex.graph.exclude_branches_conditionally(self._id, others)  # also in later passes of this run
        return await self.passed_on() if self._current_output in ("", taken) else Message(text="")

    async def passed_on(self) -> Message:
        """What goes to the output of the best label."""
        return Message(text=self.input_value)


# -- Entity Tagger -------------------------------------------------------------------------------------------------------


class EntityTaggerBaseComponent(TaskBaseComponent):
    """The named entities of a text."""

    model_type = "ner"
    outputs: ClassVar[list[Output]] = [
        Output(display_name="Entities", name="entities", method="entities"),
        Output(display_name="Marked Text", name="marked", method="marked"),
    ]

    async def _found(self) -> tuple[Entity, ...]:
        result = await self.ask_model(NerAsk, texts=(self.input_value,), min_score=self.min_score)
        found: tuple[Entity, ...] = result.entities[0]
        self.status = status_of(f"entities: {len(found)}", result)
        return found

    async def entities(self) -> DataFrame:
        """One row per entity: its text, label, score, and its place, in characters."""
        columns = ("text", "label", "score", "start", "end")
        return DataFrame([{column: getattr(one, column) for column in columns} for one in await self._found()])

    async def marked(self) -> Message:
        """The text with its entities in bold and their labels behind them."""
        return Message(text=mark(self.input_value, await self._found()))


def mark(text: str, entities: Iterable[Entity]) -> str:
    """A text as Markdown, with its entities in bold and their labels behind them."""
    parts, last = [], 0
    for one in entities:
        parts += [text[last : one.start], f"**{text[one.start : one.end]}** ({one.label})"]
        last = one.end
    return "".join([*parts, text[last:]])
