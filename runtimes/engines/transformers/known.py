"""What the installed Transformers can read, found in its files: importing it takes seconds."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from lfx_local_runtimes.errors import InvalidInput, RemoteCodeRefused
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.formats.info import ModelInfo

_QUANTIZERS = {
    "aqlm": "aqlm", "auto-round": "auto_round", "awq": "gptqmodel", "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors", "fp_quant": "fp_quant", "gptq": "gptqmodel", "hqq": "hqq",
    "quanto": "optimum", "quark": "quark", "torchao": "torchao", "vptq": "vptq",
}  # fmt: skip
"""Stored quantizations and the library that Transformers reads each with. It reads others by itself, or not at all."""


def check_readable(config: ModelConfig, info: ModelInfo) -> None:
    """Refuse a model in Hugging Face's form that the installed Transformers cannot read.

    Raises:
        RemoteCodeRefused: only code that comes with the model knows its architecture, and it may not run.
        InvalidInput: nobody here knows its architecture, or how its weights are quantized.
    """
    kind = info.architecture
    if kind is not None and not config.trust_remote_code and not _names("models/auto", kind):
        if info.remote_code:
            raise RemoteCodeRefused(
                f"{info.name} is a {kind}, which only the code that comes with it can load.",
                model_name=config.model_name,
            )
        raise InvalidInput(
            f"{info.name} is a {kind}, which the installed Transformers does not know.", model_name=config.model_name,
            hint="Update transformers, or use a GGUF copy of the model.",
        )  # fmt: skip
    _check_quantization(config, info)


def _check_quantization(config: ModelConfig, info: ModelInfo) -> None:
    stored = info.metadata.get("quantization_config")
    if not isinstance(stored, dict) or not stored:
        return
    method = stored.get("quant_method")
    if method is None and (stored.get("load_in_8bit") or stored.get("load_in_4bit")):
        method = "bitsandbytes"
    needed = _QUANTIZERS.get(str(method))
    if needed is not None and find_spec(needed) is None:
        problem = f"is quantized by {method}, which needs {needed}, and that is not installed"
    elif needed is None and (method is None or not _names("quantizers", str(method))):
        problem = f"is quantized by {method or 'an unnamed method'}, which Transformers does not read"
    else:
        return
    raise InvalidInput(
        f"{info.name} {problem}.", model_name=config.model_name,
        hint="Use a GGUF copy of the model, or one that is not quantized.",
    )  # fmt: skip


def _names(folder: str, word: str) -> bool:
    """Whether a table of the installed Transformers has this key. True if Transformers is not there: then that is told."""
    tables = _tables(folder)
    return not tables or f'"{word}"' in tables


@lru_cache(maxsize=2)
def _tables(folder: str) -> str:
    """The text of the modules in a folder that say what there is."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        return ""
    files = sorted(Path(spec.origin).parent.joinpath(*folder.split("/")).glob("*auto*.py"))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
