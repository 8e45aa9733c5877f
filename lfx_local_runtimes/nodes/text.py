"""The work behind Local Model and Gemma. The files in `components/` are thin: a flow contains their source."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.messages import AIMessageChunk
from lfx.base.models.model import LCModelComponent
from lfx.field_typing import LanguageModel
from lfx.io import Output
from lfx.schema.data import Data
from lfx.schema.message import Message
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput, ModelNotFound
from lfx_local_runtimes.langchain.messages import first_problem
from lfx_local_runtimes.nodes.choosing import default_text_model
from lfx_local_runtimes.nodes.history import earlier_messages, with_history
from lfx_local_runtimes.nodes.inputs import (
    AUTO,
    GEMMA_PRESETS,
    describe_schema,
    loading_options,
    sampling_options,
    schema_of,
    stop_texts,
    value_of,
)
from lfx_local_runtimes.nodes.models import PROVIDER_ID, list_models_in, model_choices, named_model
from lfx_local_runtimes.nodes.reports import Reporter

if TYPE_CHECKING:
    from lfx_local_runtimes.nodes.tools import NodeModel


class LocalModelBaseComponent(LCModelComponent):
    """A local model as text and as a LangChain model. Subclasses give it a name and choose the inputs."""

    icon = "Cpu"
    model_provider_id = PROVIDER_ID
    outputs: ClassVar[list[Output]] = [
        Output(display_name="Model Response", name="text_output", method="text_response", types=["Message"]),
        Output(display_name="Language Model", name="model_output", method="build_model", types=["LanguageModel"]),
        Output(display_name="Structured", name="structured_output", method="structured_response", types=["Data"]),
    ]

    _reporter: Reporter

    def build_model(self) -> LanguageModel:
        """The chat model with this node's options. Loads no model."""
        return self._model()

    def _model(self) -> "NodeModel":
        from lfx_local_runtimes.nodes.tools import NodeModel

        name = named_model(self) or default_text_model()
        self._reporter = Reporter(self, name)
        try:
            return NodeModel(
                model=name,
                stop=stop_texts(self.stop_sequences) or None,
                raw=bool(self.raw),
                streaming=bool(self.stream),
                observer=self._reporter,
                tool_choice=value_of(self.tool_choice) or AUTO,
                **loading_options(self),
                **sampling_options(self),
            )
        except ValidationError as error:
            raise InvalidInput(first_problem(error), model_name=name) from error

    async def text_response(self) -> Message:
        """The model's answer, after running the tools it calls."""
        from lfx.base.tools.component_tool import disambiguate_tool_names

        from lfx_local_runtimes.nodes.tools import with_tools

        model = await asyncio.to_thread(self._model)
        tools = disambiguate_tool_names(value_of(self.tools) or [])
        if not tools and model.tool_choice not in (AUTO, "none"):
            raise InvalidInput(
                f"Tool Choice is {model.tool_choice}, but there is no tool.", model_name=model.model,
                hint="Connect one to the node's Tools, or set Tool Choice to auto.",
            )  # fmt: skip
        runnable = with_tools(model, tools, self.log) if tools else model
        # A node of an earlier version has no such input.
        if history := await earlier_messages(self, value_of(getattr(self, "n_messages", None)) or 0):
            runnable = with_history(runnable, history)
        with self._reporter:
            self.status = await self.get_chat_result(
                runnable=runnable, stream=self.stream, input_value=self.input_value, system_message=self.system_message
            )
        return self.status

    async def structured_response(self) -> Data:
        """The model's answer as JSON with the fields of the output schema; JSON that is cut off is an error."""
        if (schema := schema_of(self.output_schema)) is None:
            if self._vertex is not None and not self._vertex.outgoing_edges:
                return Data()  # the node is connected to nothing, so Langflow asks for every output
            raise InvalidInput(
                "The Structured output has no schema.", hint="Add its fields to the node's Output Schema."
            )
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        model = await asyncio.to_thread(self._model)
        with self._reporter:
            message = await self.get_chat_result(
                runnable=model.bind(response_format=form), stream=False, input_value=self.input_value,
                system_message="\n\n".join(filter(None, [value_of(self.system_message), describe_schema(schema)])),
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
        """List the models, whatever field has changed.

        For a new node Langflow asks about each of several fields at once, and keeps only the last answer.
        """
        return list_models_in(build_config, *await self.choices())

    async def choices(self) -> tuple[list[str], list[dict[str, Any]]]:
        """The models to offer. The first one is `auto`, with the model that it takes now."""
        names, details = await model_choices()
        try:
            fact = f"now {await asyncio.to_thread(default_text_model)}"
        except ModelNotFound as fault:
            fact = f"none: {fault.hint}"
        return [AUTO, *names], [{"icon": "Sparkles", fact: ""}, *details]

    async def _handle_stream(self, runnable: Any, inputs: Any) -> Any:
        """Like Langflow's, but the stream is closed at the end, also after Stop. That ends the computation."""
        held = _HeldStream(runnable, self._reporter.clear)
        async with aclosing(held):
            return await super()._handle_stream(held, inputs)


class _HeldStream:
    """Passes a runnable's stream on, and can close it. Langflow iterates streams and does not close them.

    Calls `begun` before each piece of the answer.
    """

    def __init__(self, runnable: Any, begun: Callable[[], None]) -> None:
        self._runnable = runnable
        self._begun = begun
        self._stream: AsyncGenerator[Any, None] | None = None

    def astream(self, inputs: Any) -> AsyncGenerator[Any, None]:
        self._stream = self._after_empty_piece(inputs)
        return self._stream

    async def _after_empty_piece(self, inputs: Any) -> AsyncGenerator[Any, None]:
        yield AIMessageChunk(content="")  # Langflow's UI shows the first piece twice: let it be an empty one
        async with aclosing(self._runnable.astream(inputs)) as pieces:
            async for piece in pieces:
                self._begun()
                yield piece

    async def ainvoke(self, inputs: Any) -> Any:
        return await self._runnable.ainvoke(inputs)

    async def aclose(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()


class GemmaBaseComponent(LocalModelBaseComponent):
    """Local Model with Gemma's sizes and sampling presets."""

    async def choices(self) -> tuple[list[str], list[dict[str, Any]]]:
        """The Gemmas on this machine, then those that can be downloaded from the hub."""
        names, details = await model_choices(gated=True)
        offered = {name: detail for name, detail in zip(names, details, strict=True) if "gemma" in name.lower()}
        return list(offered), list(offered.values())

    async def update_build_config(
        self, build_config: dict[str, Any], field_value: Any, field_name: str | None = None
    ) -> dict[str, Any]:
        """Like Local Model. Choosing a preset fills in its values."""
        if field_name == "preset":
            for name, value in GEMMA_PRESETS.get(field_value, {}).items():
                build_config[name]["value"] = value
        result: dict[str, Any] = await super().update_build_config(build_config, field_value, field_name)
        return result
