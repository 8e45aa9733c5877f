"""The files that belong to Hugging Face weights: config.json and the chat template. Sizes and values are checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import InvalidModelFile
from lfx_local_runtimes.runtimes.formats.info import AttentionLayer
from lfx_local_runtimes.runtimes.formats.jsonfile import read_json, read_text

MAX_LAYERS = 1024
_MAX_NUMBER = 2**31
_MAX_TEMPLATE = 4 * 2**20
_TEXT_PARTS = ("text_config", "llm_config", "language_config")
_DECODERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_LEGACY_NAMES = {
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len", "seq_length"),
}


def read_config(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """config.json of a folder, and its problems.

    Raises:
        OSError: it exists but cannot be read.
    """
    try:
        return read_json(folder / "config.json"), ()
    except FileNotFoundError:
        return {}, ("there is no config.json beside the weights",)
    except InvalidModelFile as fault:
        return {}, (fault.message,)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about the language model; multimodal configurations nest it."""
    for name in _TEXT_PARTS:
        if isinstance(config.get(name), dict):
            return {**{key: value for key, value in config.items() if key not in _TEXT_PARTS}, **config[name]}
    return config


def number(config: Mapping[str, Any], name: str) -> int | None:
    """A positive whole number by its name, or by the names it had in older configurations."""
    for key in (name, *_LEGACY_NAMES.get(name, ())):
        value = config.get(key)
        if type(value) is int and 0 < value < _MAX_NUMBER:
            return value
    return None


def attention_layers(config: Mapping[str, Any]) -> tuple[AttentionLayer, ...]:
    """What each layer of a decoder keeps per token; empty for encoders and if the configuration does not say."""
    names = config.get("architectures")
    if isinstance(names, list) and names and not any(str(name).endswith(_DECODERS) for name in names):
        return ()
    count, heads, width = (number(config, key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    if count is None or heads is None or count > MAX_LAYERS:
        return ()
    length = number(config, "head_dim") or (width // heads if width else 0)
    kv_heads = number(config, "num_key_value_heads") or (1 if config.get("multi_query") is True else heads)
    return tuple(
        AttentionLayer(0, 0, 0) if window is None else AttentionLayer(kv_heads, length, length, window)
        for window in _windows(config, count)
    )


def _windows(config: Mapping[str, Any], count: int) -> list[int | None]:
    """The sliding window of each layer: 0 for full attention, None for a layer without a KV cache."""
    window = number(config, "sliding_window") or 0
    types = config.get("layer_types")
    if isinstance(types, list) and len(types) == count:
        full: dict[str, int | None] = {"full_attention": 0, "attention": 0}
        kept = full | {
            "sliding_attention": window,
            "chunked_attention": number(config, "attention_chunk_size") or window,
        }
        return [kept.get(str(kind)) for kind in types]
    if not window or config.get("use_sliding_window") is False:
        return [0] * count
    every = number(config, "sliding_window_pattern") or {"gemma2": 2, "gemma3_text": 6, "gemma3": 6}.get(
        str(config.get("model_type")), 0
    )
    if every:  # one full layer after every - 1 sliding ones
        return [0 if (index + 1) % every == 0 else window for index in range(count)]
    if config.get("use_sliding_window") is True:  # Qwen2: the first max_window_layers stay full
        start = number(config, "max_window_layers") or 0
        return [0 if index < start else window for index in range(count)]
    return [window] * count


def chat_template(folder: Path) -> str | None:
    """The model's own template: chat_template.jinja, chat_template.json, or that of tokenizer_config.json.

    Raises:
        InvalidModelFile: a file that should hold it is too long or not valid JSON.
        OSError: it cannot be read.
    """
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return read_text(jinja, _MAX_TEMPLATE).decode("utf-8", "replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = read_json(folder / name).get("chat_template")
            if isinstance(template, list):  # named templates
                named = {str(item.get("name")): item.get("template") for item in template if isinstance(item, dict)}
                template = named.get("default")
            if isinstance(template, str) and template:
                return template
    return None


def tokenizer_limit(folder: Path) -> int | None:
    """The most tokens of an input, as tokenizer_config.json says; None if it does not.

    Raises:
        InvalidModelFile, OSError: as `chat_template`.
    """
    path = folder / "tokenizer_config.json"
    return number(read_json(path), "model_max_length") if path.is_file() else None


def has_remote_code(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the model or its tokenizer names Python code of its own to run (`auto_map`).

    Raises:
        InvalidModelFile, OSError: as `chat_template`.
    """
    if config.get("auto_map"):
        return True
    tokenizer = folder / "tokenizer_config.json"
    return tokenizer.is_file() and bool(read_json(tokenizer).get("auto_map"))
