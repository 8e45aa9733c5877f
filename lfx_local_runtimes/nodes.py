"""The work behind the Langflow nodes. The files in `components/` are thin, because flows carry their source along."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, ClassVar

from langchain_core.messages import AIMessageChunk
from lfx.base.models.model import LCModelComponent
from lfx.custom.custom_component.component import Component
from lfx.field_typing import LanguageModel
from lfx.field_typing.range_spec import RangeSpec
from lfx.io import (
    BoolInput,
    DropdownInput,
    FloatInput,
    HandleInput,
    IntInput,
    MessageInput,
    MultilineInput,
    Output,
    SliderInput,
    StrInput,
)
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput, ModelNotFound
from lfx_local_runtimes.runtimes.config import GenerationConfig, GenerationResult, ModelConfig
from lfx_local_runtimes.runtimes.requests import Progress

AUTO = "auto"
PROVIDER_ID = "local-runtimes"
ENGINES = (AUTO, "llama_cpp", "transformers", "gemma_local", "gemma_streaming")
DEVICES = (AUTO, "cpu", "cuda", "mps")
QUANTIZATIONS = (AUTO, "fp32", "fp16", "bf16", "int8", "int4")

KEEP_ALIVES = (AUTO, "0", "300", "3600", "-1")
ANY_SEED = -1
LOADING_FIELDS = ("runtime_type", "device_type", "quantization", "context_length", "keep_alive")
SAMPLING_DEFAULTS: Mapping[str, Any] = {
    name: GenerationConfig.model_fields[name].default
    for name in ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
}

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

GEMMA_PRESETS: Mapping[str, Mapping[str, float | int]] = {
    "Recommended": {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "min_p": 0.0},
    "Focused": {"temperature": 0.3, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    "Repeatable": {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
}
"""Sampling by purpose; the first is what Gemma's model cards recommend."""


# -- inputs --------------------------------------------------------------------------------------------------------------


def model_input(*, value: str, display_name: str = "Model", info: str) -> DropdownInput:
    """The list of local models, which also takes any other name."""
    return DropdownInput(
        name="model_name", display_name=display_name, info=info, options=[], value=value,
        combobox=True, refresh_button=True, real_time_refresh=True, required=True,
    )  # fmt: skip


def chat_inputs() -> list[Any]:
    """What is said to the model."""
    return [
        MessageInput(name="input_value", display_name="Input", info="The text to answer."),
        MultilineInput(
            name="system_message", display_name="System Message",
            info="How the model should behave. Models without a system role get it at the head of the first message.",
        ),
        BoolInput(
            name="stream", display_name="Stream", value=True, advanced=True,
            info="Show the answer word by word in the Playground; works when the node is wired to a Chat Output.",
        ),
    ]  # fmt: skip


def loading_inputs(*, runtime_type: str = AUTO, engines: Iterable[str] = ENGINES) -> list[Any]:
    """How the model is loaded."""
    return [
        DropdownInput(
            name="runtime_type", display_name="Engine", options=list(engines), value=runtime_type, combobox=True, advanced=True,
            info="What runs the model. auto chooses by the model's files: llama.cpp for GGUF, Transformers for safetensors.",
        ),
        DropdownInput(
            name="device_type", display_name="Device", options=list(DEVICES), value=AUTO, advanced=True,
            info="Where the model runs. auto takes the best device that is there.",
        ),
        DropdownInput(
            name="quantization", display_name="Quantization", options=list(QUANTIZATIONS), value=AUTO, combobox=True, advanced=True,
            info="Precision of the weights in memory. A GGUF file on llama.cpp keeps its own.",
        ),
        IntInput(
            name="context_length", display_name="Context Length", value=0, advanced=True,
            info="Tokens of prompt and answer together. 0 is the model's own, at most 4,096.",
        ),
        DropdownInput(
            name="keep_alive", display_name="Keep Alive", options=list(KEEP_ALIVES), value=AUTO, combobox=True, advanced=True,
            info="Seconds the model stays in memory when idle; -1 keeps it for good. auto is the server's setting.",
        ),
    ]  # fmt: skip


def sampling_inputs(sampling: Mapping[str, Any] | None = None) -> list[Any]:
    """How the next token is chosen, beginning with `sampling` or the engine room's defaults."""
    values = {**SAMPLING_DEFAULTS, **(sampling or {})}
    return [
        IntInput(
            name="max_tokens", display_name="Max Tokens", value=values["max_tokens"], advanced=True,
            range_spec=RangeSpec(min=1, max=131072, step=1, step_type="int"), info="The longest answer, in tokens.",
        ),
        SliderInput(
            name="temperature", display_name="Temperature", value=values["temperature"], advanced=True,
            range_spec=RangeSpec(min=0, max=2, step=0.01), info="0 always takes the likeliest token; higher is more varied.",
        ),
        FloatInput(
            name="top_p", display_name="Top P", value=values["top_p"], advanced=True,
            info="Choose among the likeliest tokens that make up this share; 1 is all.",
        ),
        IntInput(
            name="top_k", display_name="Top K", value=values["top_k"], advanced=True,
            info="Choose among this many of the likeliest tokens; 0 is no limit.",
        ),
        FloatInput(
            name="min_p", display_name="Min P", value=values["min_p"], advanced=True,
            info="Leave out tokens less likely than this share of the likeliest; 0 leaves out none.",
        ),
        FloatInput(
            name="repetition_penalty", display_name="Repetition Penalty", value=values["repetition_penalty"], advanced=True,
            info="Above 1 makes repeating less likely; 1 is no penalty.",
        ),
        IntInput(
            name="seed", display_name="Seed", value=ANY_SEED, advanced=True,
            info="The same seed gives the same answer; -1 draws a new one each time.",
        ),
        StrInput(
            name="stop_sequences", display_name="Stop", is_list=True, advanced=True, list_add_label="Add stop text",
            info="The answer ends before any of these texts. Write \\n for a new line.",
        ),
        BoolInput(
            name="raw", display_name="Plain Continuation", value=False, advanced=True,
            info="Continue the input as it stands, without a chat template: for base models and completion prompts.",
        ),
    ]  # fmt: skip


def preset_input() -> DropdownInput:
    """Gemma's sampling presets."""
    return DropdownInput(
        name="preset", display_name="Preset", options=list(GEMMA_PRESETS), value="Recommended", real_time_refresh=True,
        info="Fills in temperature, top-k, top-p and min-p; change them afterwards as you like.",
    )  # fmt: skip


def given(value: Any) -> Any:
    """An input's value; None when it was left empty, or at auto."""
    return None if value is None or value in ("", AUTO) else value


def loading_options(node: Component) -> dict[str, Any]:
    """A node's load options; those left open are absent."""
    values = {name: given(getattr(node, name)) for name in LOADING_FIELDS}
    if values["context_length"] == 0:
        values["context_length"] = None
    return {name: value for name, value in values.items() if value is not None}


def sampling_options(node: Component) -> dict[str, Any]:
    """A node's sampling options; those left open are absent."""
    values = {name: given(getattr(node, name)) for name in (*SAMPLING_DEFAULTS, "seed")}
    if values["seed"] == ANY_SEED:
        values["seed"] = None
    return {name: value for name, value in values.items() if value is not None}


def stop_texts(values: Any) -> list[str]:
    r"""The texts of a stop input, with \n and \t read as a new line and a tab."""
    items = values if isinstance(values, list) else [values]
    return [str(item).replace("\\n", "\n").replace("\\t", "\t") for item in items if given(item) is not None]


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


# -- Local Model and Gemma -----------------------------------------------------------------------------------------------


class LocalModelBaseComponent(LCModelComponent):
    """A local model as text and as a LangChain model. Subclasses name it and choose the inputs."""

    icon = "Cpu"
    model_provider_id = PROVIDER_ID
    outputs: ClassVar[list[Output]] = [
        Output(display_name="Model Response", name="text_output", method="text_response", types=["Message"]),
        Output(display_name="Language Model", name="model_output", method="build_model", types=["LanguageModel"]),
    ]

    def build_model(self) -> LanguageModel:
        """The chat model with this node's options. Loads nothing."""
        from lfx_local_runtimes.chat import ChatLocalRuntime

        if given(self.model_name) is None:
            raise ModelNotFound("No model is chosen.", hint="Choose one in the node's Model field.")
        try:
            return ChatLocalRuntime(
                model=self.model_name,
                stop=stop_texts(self.stop_sequences) or None,
                raw=bool(self.raw),
                streaming=bool(self.stream),
                observer=Reporter(self),
                **loading_options(self),
                **sampling_options(self),
            )
        except ValidationError as error:
            raise InvalidInput(first_problem(error), model_name=self.model_name) from error

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
    """Tells a node's log what its model is doing: each tenth of a download or load, and what an answer took."""

    def __init__(self, node: Component) -> None:
        self._node = node
        self._said: object = None

    def __call__(self, event: Progress | GenerationResult) -> None:
        """Log an event, unless it says no more than the last."""
        if isinstance(event, GenerationResult):
            self._node.log(answer_report(event), name="answer")
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


def first_problem(error: ValidationError) -> str:
    """The first thing a validation found wrong, with the field's name."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'input'}: {first['msg']}."


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
REGISTER_FIELDS = ("model_id", *LOADING_FIELDS, "pinned")


def after_input() -> HandleInput:
    """A handle that gives a node its place in the order of the flow."""
    return HandleInput(
        name="after", display_name="After", input_types=["Message", "Data", "JSON", "DataFrame", "Table"], required=False,
        info="Optional: run once the node wired here has finished. What it sends is not used.",
    )  # fmt: skip


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
        return ModelConfig(model_name=node.model_name, pinned=bool(node.pinned), **values)
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
