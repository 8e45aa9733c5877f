"""The work behind the Langflow nodes. The files in `components/` are thin, because flows carry their source along."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.messages import AIMessageChunk
from lfx.base.models.model import LCModelComponent
from lfx.custom.custom_component.component import Component
from lfx.field_typing import LanguageModel
from lfx.io import Output
from lfx.schema.data import Data
from lfx.schema.message import Message
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput, ModelNotFound
from lfx_local_runtimes.messages import first_problem
from lfx_local_runtimes.node_inputs import (
    AUTO,
    GEMMA_PRESETS,
    LOADING_FIELDS,
    given,
    loading_options,
    sampling_options,
    schema_of,
    stop_texts,
    told_of,
)
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.tasks.base import TaskResult
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult

if TYPE_CHECKING:
    from lfx_local_runtimes.node_tools import NodeModel

PROVIDER_ID = "local-runtimes"

GEMMA_SIZES: Mapping[str, Mapping[str, str]] = {
    "gemma-3-270m": {"parameters": "270M", "in Q4": "0.3 GB"},
    "google/gemma-3-270m-it": {"parameters": "270M", "in bf16": "0.6 GB"},
    "google/gemma-3-1b-it": {"parameters": "1B", "in bf16": "2 GB"},
    "google/gemma-2-2b-it": {"parameters": "2B", "in bf16": "5 GB"},
    "google/gemma-3-4b-it": {"parameters": "4B", "in bf16": "9 GB"},
    "google/gemma-7b-it": {"parameters": "7B", "in bf16": "17 GB"},
    "google/gemma-2-9b-it": {"parameters": "9B", "in bf16": "18 GB"},
}
"""What the model list shows beside each size; the first is the packaged one, the others are fetched."""


# -- models to choose from -----------------------------------------------------------------------------------------------


async def model_choices(*, model_type: str = "llm") -> tuple[list[str], list[dict[str, Any]]]:
    """The names of the local models and, beside each, what a list shows of it."""
    from lfx_local_runtimes.runtimes import get_runtime_manager

    models = await asyncio.to_thread(lambda: get_runtime_manager().list_models())
    models = sorted((model for model in models if model.model_type == model_type), key=lambda model: model.model_name)
    details: list[dict[str, Any]] = [{"engine": model.engine} if model.engine else {} for model in models]
    return [model.model_name for model in models], details


def list_models_in(build_config: dict[str, Any], names: list[str], details: list[dict[str, Any]]) -> dict[str, Any]:
    """Offer models in a node's list. The one that is chosen stays in it: Langflow shows no other value."""
    field = build_config["model_name"]
    chosen = given(field.get("value"))
    if chosen is not None and chosen not in names:
        names, details = [*names, chosen], [*details, {}]
    field["options"], field["options_metadata"] = names, details
    return build_config


def chosen_model(node: Component) -> str:
    """The model a node names.

    Raises:
        ModelNotFound: it names none.
    """
    if (name := given(node.model_name)) is None:
        raise ModelNotFound("No model is chosen.", hint="Choose one in the node's Model field.")
    return str(name)


# -- Local Model and Gemma -----------------------------------------------------------------------------------------------


class LocalModelBaseComponent(LCModelComponent):
    """A local model as text and as a LangChain model. Subclasses name it and choose the inputs."""

    icon = "Cpu"
    model_provider_id = PROVIDER_ID
    outputs: ClassVar[list[Output]] = [
        Output(display_name="Model Response", name="text_output", method="text_response", types=["Message"]),
        Output(display_name="Language Model", name="model_output", method="build_model", types=["LanguageModel"]),
        Output(display_name="Structured", name="structured_output", method="structured_response", types=["Data"]),
    ]

    def build_model(self) -> LanguageModel:
        """The chat model with this node's options. Loads nothing."""
        return self._model()

    def _model(self) -> "NodeModel":
        from lfx_local_runtimes.node_tools import NodeModel

        try:
            return NodeModel(
                model=chosen_model(self),
                stop=stop_texts(self.stop_sequences) or None,
                raw=bool(self.raw),
                streaming=bool(self.stream),
                observer=Reporter(self),
                tool_choice=given(self.tool_choice) or AUTO,
                **loading_options(self),
                **sampling_options(self),
            )
        except ValidationError as error:
            raise InvalidInput(first_problem(error), model_name=self.model_name) from error

    async def text_response(self) -> Message:
        """The model's answer, after running the tools it calls."""
        from lfx.base.tools.component_tool import disambiguate_tool_names

        from lfx_local_runtimes.node_tools import with_tools

        model, tools = self._model(), disambiguate_tool_names(given(self.tools) or [])
        if not tools and model.tool_choice not in (AUTO, "none"):
            raise InvalidInput(
                f"Tool Choice is {model.tool_choice}, but there is no tool.", model_name=model.model,
                hint="Wire one to the node's Tools, or set Tool Choice to auto.",
            )  # fmt: skip
        runnable = with_tools(model, tools, self.log) if tools else model
        self.status = await self.get_chat_result(
            runnable=runnable, stream=self.stream, input_value=self.input_value, system_message=self.system_message
        )
        return self.status

    async def structured_response(self) -> Data:
        """The model's answer as JSON with the fields of the output schema; JSON that is cut off is an error."""
        if (schema := schema_of(self.output_schema)) is None:
            if self._vertex is not None and not self._vertex.outgoing_edges:
                return Data()  # nothing is wired to the node, so Langflow asks for every output
            raise InvalidInput(
                "The Structured output has no schema.", hint="Add its fields to the node's Output Schema."
            )
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        message = await self.get_chat_result(
            runnable=self._model().bind(response_format=form), stream=False, input_value=self.input_value,
            system_message="\n\n".join(filter(None, [given(self.system_message), told_of(schema)])),
        )  # fmt: skip
        try:
            return Data(data=json.loads(message.text))
        except ValueError as error:
            raise InvalidInput(
                "The answer ended before its JSON was complete.", model_name=self.model_name,
                hint="Raise the node's Max Tokens, or remove its Stop texts.",
            ) from error  # fmt: skip

    async def update_build_config(
        self, build_config: dict[str, Any], field_value: Any, field_name: str | None = None
    ) -> dict[str, Any]:
        """List the models afresh when their field is opened or refreshed."""
        return list_models_in(build_config, *await self.choices()) if field_name == "model_name" else build_config

    async def choices(self) -> tuple[list[str], list[dict[str, Any]]]:
        """The models to offer."""
        return await model_choices()

    async def _handle_stream(self, runnable: Any, inputs: Any) -> Any:
        """As in Langflow, but whichever way this ends (Stop included), the stream is closed and with it the computation."""
        held = _HeldStream(runnable)
        async with aclosing(held):
            return await super()._handle_stream(held, inputs)


class _HeldStream:
    """Passes a runnable's stream on and can close it: Langflow iterates streams without closing them."""

    def __init__(self, runnable: Any) -> None:
        self._runnable = runnable
        self._stream: AsyncGenerator[Any, None] | None = None

    def astream(self, inputs: Any) -> AsyncGenerator[Any, None]:
        self._stream = self._after_nothing(inputs)
        return self._stream

    async def _after_nothing(self, inputs: Any) -> AsyncGenerator[Any, None]:
        yield AIMessageChunk(content="")  # Langflow's UI shows the first piece twice, and nothing twice is nothing
        async with aclosing(self._runnable.astream(inputs)) as pieces:
            async for piece in pieces:
                yield piece

    async def ainvoke(self, inputs: Any) -> Any:
        return await self._runnable.ainvoke(inputs)

    async def aclose(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()


class Reporter:
    """Tells a node's log what its model is doing: each tenth of a download or load, and what a result took."""

    def __init__(self, node: Component) -> None:
        self._node = node
        self._said: object = None

    def __call__(self, event: Progress | GenerationResult | TaskResult) -> None:
        """Log an event, unless it says no more than the last."""
        if isinstance(event, GenerationResult):
            self._node.log(answer_report(event), name="answer")
            return
        if isinstance(event, TaskResult):
            self._node.log(task_report(event), name="result")
            return
        percent = 100 * event.done // event.total if event.total else None
        step = (event.phase, None if percent is None else percent // 10)
        if step != self._said:
            self._said = step
            self._node.log({"phase": event.phase, "percent": percent}, name="progress")


def answer_report(result: GenerationResult) -> dict[str, Any]:
    """What made an answer, for people: model, engine, device, tokens, seconds, tokens per second, warnings."""
    keys = ("engine", "device", "quantization", "template", "seed", "warnings")
    seconds = result.execution_time
    return {
        "model_name": result.model_name,
        **{key: result.metadata[key] for key in keys if result.metadata.get(key) not in (None, (), [])},
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "tokens": result.tokens_generated,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(result.tokens_generated / seconds, 1) if seconds > 0 else None,
    }


def task_report(result: TaskResult) -> dict[str, Any]:
    """What made a result, for people: model, engine, device, tokens, tokens cut by input, warnings."""
    keys = ("engine", "device", "dtype", "tokens", "truncated", "warnings")
    return {"model_name": result.model_name, **{key: value for key in keys if (value := result.metadata.get(key))}}


class GemmaBaseComponent(LocalModelBaseComponent):
    """Local Model with Gemma's sizes and sampling presets."""

    async def choices(self) -> tuple[list[str], list[dict[str, Any]]]:
        """The Gemmas on this machine, then the sizes to fetch from the hub."""
        names, details = await model_choices()
        offered = {name: detail for name, detail in zip(names, details, strict=True) if "gemma" in name.lower()}
        for name, size in GEMMA_SIZES.items():
            if name in offered or "/" in name:
                offered[name] = dict(size)
        return list(offered), list(offered.values())

    async def update_build_config(
        self, build_config: dict[str, Any], field_value: Any, field_name: str | None = None
    ) -> dict[str, Any]:
        """As Local Model; choosing a preset fills in its values."""
        if field_name == "preset":
            for name, value in GEMMA_PRESETS.get(field_value, {}).items():
                build_config[name]["value"] = value
        result: dict[str, Any] = await super().update_build_config(build_config, field_value, field_name)
        return result


# -- Model Manager and Runtime Status ------------------------------------------------------------------------------------

ACTIONS = ("Load", "Unload", "Register", "Pin", "Unpin", "State")
REGISTER_FIELDS = ("model_id", *LOADING_FIELDS, "parallel", "pinned")


async def manage_model(node: Component) -> dict[str, Any]:
    """Do what a Model Manager node says and return the model's state, with `changed`.

    Raises:
        RuntimeFault: it cannot be done, with the reason.
    """
    from lfx_local_runtimes.runtimes import get_runtime_manager

    name, action = given(node.model_name), node.action
    if name is None:
        raise ModelNotFound("No model is named.", hint="Fill in the node's Model field.")
    manager = await asyncio.to_thread(get_runtime_manager)
    changed = False
    if action == "Load":
        changed = await manager.load_model(name, Reporter(node))
    elif action == "Unload":
        changed = await manager.unload_model(name, force=bool(node.force))
    elif action == "Register":
        config = registration(node)
        name = config.model_name
        changed = await asyncio.to_thread(manager.register_model, config, restrict_paths=True)
    elif action in ("Pin", "Unpin"):
        before = await asyncio.to_thread(manager.model_status, name)
        await asyncio.to_thread(manager.pin, name, action == "Pin")
        changed = before.pinned is not (action == "Pin")
    elif action != "State":
        raise InvalidInput(f"{action} is not an action.", model_name=name, hint=f"Use one of {', '.join(ACTIONS)}.")
    status = await asyncio.to_thread(manager.model_status, name)
    return {"action": action.lower(), "changed": changed, **status.model_dump(mode="json")}


def registration(node: Component) -> ModelConfig:
    """The configuration that a Model Manager node describes.

    Raises:
        InvalidInput: a field is missing or out of range.
    """
    values = loading_options(node)
    if (source := given(node.model_id)) is not None:
        values["model_id"] = source
    if "model_id" not in values:
        raise InvalidInput(
            "No source is given to register.", model_name=node.model_name, hint="Fill in the node's Source field."
        )
    try:
        return ModelConfig(
            model_name=node.model_name, pinned=bool(node.pinned), parallel=given(node.parallel) or None, **values
        )
    except ValidationError as error:
        raise InvalidInput(first_problem(error), model_name=str(node.model_name)) from error


def show_fields_of(action: str, build_config: dict[str, Any]) -> dict[str, Any]:
    """Show a Model Manager node's fields that its action uses."""
    for field in REGISTER_FIELDS:
        build_config[field]["show"] = action == "Register"
    build_config["force"]["show"] = action == "Unload"
    return build_config


async def model_rows(*, loaded_only: bool) -> list[dict[str, Any]]:
    """One row per known model; sizes in MiB, times in seconds."""
    from lfx_local_runtimes.runtimes import get_runtime_manager

    models = await asyncio.to_thread(lambda: get_runtime_manager().list_models())
    columns = (
        "model_name", "state", "format", "engine", "device", "quantization", "context_length", "size_mb",
        "memory_estimate_mb", "memory_used_mb", "leases", "pinned", "idle_s", "source",
    )  # fmt: skip
    return [
        {column: getattr(model, column) for column in columns}
        for model in sorted(models, key=lambda model: model.model_name)
        if model.state in ("loading", "ready", "unloading") or not loaded_only
    ]


async def memory_rows() -> list[dict[str, Any]]:
    """One row per device; sizes in MiB."""
    from lfx_local_runtimes.runtimes import get_runtime_manager

    stats = await asyncio.to_thread(lambda: get_runtime_manager().stats())
    rows = []
    for device, entry in stats["memory"].items():
        sizes = {key.removesuffix("_bytes"): value for key, value in entry.items() if key.endswith("_bytes")}
        rows.append(
            {
                "device": device,
                **{f"{key}_mb": None if value is None else round(value / 2**20, 1) for key, value in sizes.items()},
                "models": ", ".join(entry["models"]),
            }
        )
    return rows
