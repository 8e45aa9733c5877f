"""The inputs of the Langflow nodes, and their values as options of the engine room."""

from collections.abc import Iterable, Mapping
from typing import Any

from lfx.custom.custom_component.component import Component
from lfx.field_typing.range_spec import RangeSpec
from lfx.io import (
    BoolInput,
    DropdownInput,
    FloatInput,
    HandleInput,
    IntInput,
    MessageInput,
    MultilineInput,
    SliderInput,
    StrInput,
    TableInput,
)
from lfx.schema.table import EditMode

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig

AUTO = "auto"
ENGINES = (AUTO, "llama_cpp", "transformers")
ENCODER_ENGINES = (AUTO, "transformers", "onnx", "llama_cpp")
DEVICES = (AUTO, "cpu", "cuda", "mps")
QUANTIZATIONS = (AUTO, "fp32", "fp16", "bf16", "int8", "int4")
KEEP_ALIVES = {AUTO: None, "Unload at once": "0", "5 minutes": "300", "1 hour": "3600", "Never": "-1"}
"""When an idle model leaves, in words, and as seconds."""
ANY_SEED = -1
LOADING_FIELDS = ("runtime_type", "device_type", "quantization", "context_length", "keep_alive")
SAMPLING_DEFAULTS: Mapping[str, Any] = {
    name: GenerationConfig.model_fields[name].default
    for name in ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
}

GEMMA_PRESETS: Mapping[str, Mapping[str, float | int]] = {
    "Recommended": {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "min_p": 0.0},
    "Focused": {"temperature": 0.3, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    "Repeatable": {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
}
"""Sampling by purpose; the first is what Gemma's model cards recommend."""

TOOL_ROUNDS = 4
TOOL_CHOICES = (AUTO, "required", "none")
CHOICES: Mapping[str, bool | None] = {AUTO: None, "yes": True, "no": False}
JSON_TYPES: Mapping[str, Mapping[str, Any]] = {
    "str": {"type": "string"},
    # Without limits, a small model could write digits forever.
    "int": {"type": "integer", "minimum": -(2**53), "maximum": 2**53},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "dict": {"type": "object"},
}
"""The types a row of an output schema may have, as JSON schemas."""


def model_input(*, value: str, display_name: str = "Model", info: str) -> DropdownInput:
    """The list of models.

    It takes no free text: if somebody types a name there and presses Enter, Langflow chooses the entry that is highlighted.
    """
    return DropdownInput(
        name="model_name", display_name=display_name, info=info, options=[], value=value,
        refresh_button=True, real_time_refresh=True,
    )  # fmt: skip


def other_model_input(
    info: str = "A model that is not in the list: a Hugging Face id (org/name, for one GGUF of several org/name:Q4_K_M), or a "
    "path inside a model folder. If this is filled in, the list is not used.",
) -> StrInput:
    """A model by name. It wins over the list."""
    return StrInput(name="other_model", display_name="Other Model", info=info)


def chat_inputs() -> list[Any]:
    """The texts for the model."""
    return [
        MessageInput(name="input_value", display_name="Input", info="The text to answer."),
        MultilineInput(
            name="system_message", display_name="System Message",
            info="How the model should behave. If a model has no system role, this text is put before the first message.",
        ),
        BoolInput(
            name="stream", display_name="Stream", value=True, advanced=True,
            info="Show the answer word by word in the Playground. Works if the node is connected to a Chat Output.",
        ),
    ]  # fmt: skip


def history_input() -> IntInput:
    """How much of the chat the model reads before the input."""
    return IntInput(
        name="n_messages", display_name="Chat History", value=0,
        info="How many earlier messages of this chat the model reads before the input. 0: none, each answer stands alone.",
    )  # fmt: skip


def tool_inputs() -> list[Any]:
    """What the model may call, and the form its answer must have."""
    return [
        HandleInput(
            name="tools", display_name="Tools", input_types=["Tool"], is_list=True,
            info=f"Tools that the model may call before it answers, in at most {TOOL_ROUNDS} rounds. For Model Response "
            "only: an Agent connected to Language Model has its own tools.",
        ),
        DropdownInput(
            name="tool_choice", display_name="Tool Choice", options=list(TOOL_CHOICES), value=AUTO, combobox=True, advanced=True,
            info="auto: the model decides. required: it calls a tool first. A tool's name: it calls that tool, then answers. "
            "Forced calls work even with models that were not trained for tools. This also applies to an Agent connected to "
            "Language Model.",
        ),
        TableInput(
            name="output_schema", display_name="Output Schema", value=[], advanced=True, required=False,
            info="The fields of the Structured output. The model can only write JSON with these fields.",
            table_schema=[
                {"name": "name", "display_name": "Name", "type": "str", "default": "field", "edit_mode": EditMode.INLINE,
                 "description": "The field's name."},
                {"name": "description", "display_name": "Description", "type": "str", "default": "",
                 "edit_mode": EditMode.POPOVER, "description": "What it is for; the model reads this."},
                {"name": "type", "display_name": "Type", "type": "str", "default": "str", "edit_mode": EditMode.INLINE,
                 "options": list(JSON_TYPES), "description": "The type of its value."},
                {"name": "multiple", "display_name": "As List", "type": "boolean", "default": False,
                 "edit_mode": EditMode.INLINE, "description": "A list of values of that type."},
            ],
        ),
    ]  # fmt: skip


def text_input(info: str, *, required: bool = True) -> MultilineInput:
    """The text that a task reads. An Agent that uses the node as a tool fills it in."""
    return MultilineInput(name="input_value", display_name="Text", info=info, required=required, tool_mode=True)


def overflow_input(*choices: str) -> DropdownInput:
    """What happens to texts that are too long for the model."""
    what = {
        "truncate": "truncate: the end is not read, and the node's status says so.",
        "error": "error: the node fails.",
        "chunk": "chunk: the text is read in parts, and the vector is the mean of the parts.",
    }
    return DropdownInput(
        name="overflow", display_name="Long Texts", options=list(choices), value=choices[0], advanced=True,
        info=" ".join(["What to do if a text is longer than the model can read.", *(what[choice] for choice in choices)]),
    )  # fmt: skip


def score_input() -> SliderInput:
    """The score below which results are left out."""
    return SliderInput(
        name="min_score", display_name="Min Score", value=0.0, advanced=True,
        range_spec=RangeSpec(min=0, max=1, step=0.01), min_label="All", max_label="Surest", min_label_icon="Minus",
        max_label_icon="Plus", info="Leave out results with a lower score.",
    )  # fmt: skip


def choice_input(name: str, display_name: str, info: str) -> DropdownInput:
    """Yes, no, or what the model's own files say."""
    return DropdownInput(
        name=name, display_name=display_name, options=list(CHOICES), value=AUTO, advanced=True,
        info=f"{info} auto: as the model's files say.",
    )  # fmt: skip


def loading_inputs(*, engines: Iterable[str] = ENGINES) -> list[Any]:
    """How the model is loaded."""
    return [
        DropdownInput(
            name="runtime_type", display_name="Engine", options=list(engines), value=AUTO, combobox=True, advanced=True,
            info="What runs the model. auto chooses by the model's files: llama.cpp for GGUF, Transformers for safetensors, ONNX "
            "Runtime for ONNX.",
        ),
        DropdownInput(
            name="device_type", display_name="Device", options=list(DEVICES), value=AUTO, advanced=True,
            info="Where the model runs. auto takes the best device of this machine.",
        ),
        DropdownInput(
            name="quantization", display_name="Quantization", options=list(QUANTIZATIONS), value=AUTO, combobox=True, advanced=True,
            info="Precision of the weights in memory. A GGUF file on llama.cpp keeps its own precision.",
        ),
        IntInput(
            name="context_length", display_name="Context Length", value=0, advanced=True,
            info="How many tokens the prompt and the answer may have together. More needs more memory. 0: as many as the model "
            "was trained for and memory allows.",
        ),
        DropdownInput(
            name="keep_alive", display_name="Unload When Idle", options=list(KEEP_ALIVES), value=AUTO, combobox=True,
            advanced=True,
            info="How long the model stays in memory after its last request. You can also type a number of seconds. Never: it "
            "stays until somebody unloads it. auto: the server's setting.",
        ),
    ]  # fmt: skip


def parallel_input() -> IntInput:
    """How many requests a model computes at once. Set when it is registered: another number loads another copy."""
    return IntInput(
        name="parallel", display_name="Parallel", value=0, advanced=True,
        info="Requests computed at once, up to 64. 0: as many as memory allows, up to 8.",
    )  # fmt: skip


def sampling_inputs(sampling: Mapping[str, Any] | None = None) -> list[Any]:
    """How the next token is chosen. The default values are `sampling`, otherwise the engine room's."""
    values = {**SAMPLING_DEFAULTS, **(sampling or {})}
    return [
        IntInput(
            name="max_tokens", display_name="Max Tokens", value=values["max_tokens"], advanced=True,
            range_spec=RangeSpec(min=1, max=131072, step=1, step_type="int"), info="The longest answer, in tokens.",
        ),
        SliderInput(
            name="temperature", display_name="Temperature", value=values["temperature"], advanced=True,
            range_spec=RangeSpec(min=0, max=2, step=0.01), info="0 always takes the most likely token; higher is more varied.",
        ),
        FloatInput(
            name="top_p", display_name="Top P", value=values["top_p"], advanced=True,
            info="Choose among the most likely tokens whose probabilities add up to this; 1: all tokens.",
        ),
        IntInput(
            name="top_k", display_name="Top K", value=values["top_k"], advanced=True,
            info="Choose among this many of the most likely tokens; 0: no limit.",
        ),
        FloatInput(
            name="min_p", display_name="Min P", value=values["min_p"], advanced=True,
            info="Leave out tokens that are less likely than this share of the most likely token; 0 leaves out none.",
        ),
        FloatInput(
            name="repetition_penalty", display_name="Repetition Penalty", value=values["repetition_penalty"], advanced=True,
            info="Above 1 makes repetition less likely; 1: no penalty.",
        ),
        IntInput(
            name="seed", display_name="Seed", value=ANY_SEED, advanced=True,
            info="The same seed gives the same answer; -1 takes a new one each time.",
        ),
        StrInput(
            name="stop_sequences", display_name="Stop", is_list=True, advanced=True, list_add_label="Add stop text",
            info="The answer ends before any of these texts. Write \\n for a new line.",
        ),
        BoolInput(
            name="raw", display_name="Plain Continuation", value=False, advanced=True,
            info="Continue the input as it is, without a chat template: for base models and completion prompts.",
        ),
    ]  # fmt: skip


def after_input() -> HandleInput:
    """An input that only sets the order in which nodes run."""
    return HandleInput(
        name="after", display_name="After", input_types=["Message", "Data", "JSON", "DataFrame", "Table"], required=False,
        info="Optional: run after the node connected here has finished. Its data is not used.",
    )  # fmt: skip


def preset_input() -> DropdownInput:
    """Gemma's sampling presets."""
    return DropdownInput(
        name="preset", display_name="Preset", options=list(GEMMA_PRESETS), value="Recommended", real_time_refresh=True,
        info="Fills in temperature, top-k, top-p and min-p; change them afterwards as you like.",
    )  # fmt: skip


# -- values --------------------------------------------------------------------------------------------------------------


def value_of(value: Any) -> Any:
    """An input's value; None if it was left empty or at auto."""
    return None if value is None or value in ("", AUTO) else value


def loading_options(node: Component) -> dict[str, Any]:
    """A node's load options, without those left empty or at auto."""
    values = {name: value_of(getattr(node, name)) for name in LOADING_FIELDS}
    if values["context_length"] == 0:
        values["context_length"] = None
    values["keep_alive"] = KEEP_ALIVES.get(values["keep_alive"], values["keep_alive"])  # older flows have seconds
    return {name: value for name, value in values.items() if value is not None}


def sampling_options(node: Component) -> dict[str, Any]:
    """A node's sampling options, without those left empty."""
    values = {name: value_of(getattr(node, name)) for name in (*SAMPLING_DEFAULTS, "seed")}
    if values["seed"] == ANY_SEED:
        values["seed"] = None
    return {name: value for name, value in values.items() if value is not None}


def stop_texts(values: Any) -> list[str]:
    r"""The texts of a stop input, with \n and \t read as a new line and a tab."""
    items = values if isinstance(values, list) else [values]
    return [str(item).replace("\\n", "\n").replace("\\t", "\t") for item in items if value_of(item) is not None]


def labels_of(values: Any) -> list[str]:
    """The labels of a list input, without those left empty."""
    items = values if isinstance(values, list) else [values]
    return [text for item in items if (text := str(item or "").strip())]


def schema_of(rows: Any) -> dict[str, Any] | None:
    """The JSON schema that an output schema's rows describe; None if there are no rows. Every field is required.

    Raises:
        InvalidInput: a row has no name, a name that is used already, or an unknown type.
    """
    properties: dict[str, Any] = {}
    for number, row in enumerate(rows or (), 1):
        name, kind = str(row.get("name") or "").strip(), str(row.get("type") or "str")
        if not name or name in properties:
            raise InvalidInput(
                f"Output Schema, row {number}: {f'{name} is used already' if name else 'it has no name'}."
            )
        if kind not in JSON_TYPES:
            raise InvalidInput(
                f"Output Schema, row {number}: {kind} is not a type.", hint=f"Use one of {', '.join(JSON_TYPES)}."
            )
        value = JSON_TYPES[kind]
        described = {"description": text} if (text := str(row.get("description") or "").strip()) else {}
        is_list = str(row.get("multiple")).lower() == "true"  # the table's checkbox, or its text in older flows
        properties[name] = {"type": "array", "items": value, **described} if is_list else {**value, **described}
    if not properties:
        return None
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def describe_schema(schema: Mapping[str, Any]) -> str:
    """An output schema described in words, for the model."""
    fields = []
    for name, value in schema["properties"].items():
        kind = f"list of {value['items']['type']}" if value["type"] == "array" else value["type"]
        fields.append(f"- {name} ({kind})" + (f": {value['description']}" if "description" in value else ""))
    return "\n".join(["Answer with a JSON object that has these fields:", *fields])
