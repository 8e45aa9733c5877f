"""Write a GGUF model as a safetensors folder for Transformers.

    lfx-local-runtimes convert SOURCE [TARGET] [--dtype bf16]

Transformers loads GGUF too, but every load takes most of a minute. Its own format loads in seconds.
"""

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lfx_local_runtimes.errors import EngineFailure, InvalidInput, LoadFailed, RuntimeFault
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.engines.transformers.load import TORCH_DTYPES, libraries, progress_events, read_gguf
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.sources.catalog import Catalog

DTYPES = ("bf16", "fp16", "fp32")

_SAMPLES = (
    "Hello world",
    "  two  spaces\n\n\tand a tab",
    "naïve 文字 🙂",
    "<start_of_turn>user\n<|im_start|>",
    "x = 3.14;",
)


def export_safetensors(source: Path, target: Path, dtype: str = "bf16") -> Path:
    """Write the model of a GGUF file into a new folder: weights, configuration and tokenizer.

    The folder appears only when it is complete and its tokenizer gives the same result as the original.

    Args:
        source: the GGUF file.
        target: the folder to make; its parents are made too.
        dtype: what the weights are unpacked to: bf16, fp16 or fp32.

    Returns:
        The folder.

    Raises:
        InvalidInput: the source is not a GGUF that can be loaded, the target exists, or the type does not fit.
        LoadFailed: Transformers does not know the architecture, or weights are missing.
        EngineFailure: the folder could not be written, or its tokenizer gives another result than the original.
        MissingExtra: Transformers is not installed.
    """
    info = _check(source, target, dtype)
    torch, _ = libraries()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise EngineFailure(f"{target} cannot be written: {error}") from error
    try:
        with progress_events(LoadContext(), info.size_bytes):
            _write(source, part, getattr(torch, TORCH_DTYPES[dtype]))
        part.chmod(0o755)  # mkdtemp makes a folder for its owner only
        part.replace(target)
    except RuntimeFault:
        raise
    except OSError as error:
        raise EngineFailure(f"{target} cannot be written: {error}") from error
    except Exception as error:  # Transformers may raise anything for an unknown architecture
        raise LoadFailed(f"Transformers could not convert {source.name}: {error or type(error).__name__}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _check(source: Path, target: Path, dtype: str) -> ModelInfo:
    if dtype not in DTYPES:
        raise InvalidInput(f"dtype {dtype} is not offered.", hint=f"Use one of {', '.join(DTYPES)}.")
    if target.exists():
        raise InvalidInput(f"{target} exists already.", hint="Remove it, or choose another target.")
    if not source.exists():
        raise InvalidInput(f"{source} does not exist.")
    info = read_model(source, thorough=True)
    if info.format is not ModelFormat.GGUF or info.problems:
        reason = "; ".join(info.problems) or f"it is {info.format.value}"
        raise InvalidInput(f"{source.name} is not a GGUF model that can be converted: {reason}.")
    if len(info.files) > 1:
        raise InvalidInput(
            f"{source.name} is split over {len(info.files)} files.", hint="Merge it with llama-gguf-split."
        )
    if dtype == "fp16" and re.match("gemma", info.architecture or ""):
        raise InvalidInput(f"{source.name} is a Gemma, which overflows in fp16.", hint="Use bf16 or fp32.")
    return info


def _write(source: Path, folder: Path, dtype: object) -> None:
    _, transformers = libraries()
    model, tokenizer, missing = read_gguf(source, dtype, "cpu")
    if missing:
        raise LoadFailed(f"{source.name} lacks {len(missing)} of the model's weights.")
    model.config.quantization_config = None  # otherwise it would be saved and read as packed GGUF blocks
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    written = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    for text in _SAMPLES:
        ids = tokenizer(text).input_ids
        if written(text).input_ids != ids or written.decode(ids) != tokenizer.decode(ids):
            raise EngineFailure(f"The written tokenizer of {source.name} gives another result for {text!r}.")


def convert(source: str, target: Path | None, dtype: str, catalog: Catalog, report: Callable[[Progress], None]) -> Path:
    """`export_safetensors` for a model by its name, or by the path of its file.

    Args:
        source: a GGUF file, or the name of a known model.
        target: the folder to make. Unset: `SOURCE-safetensors` in the first model folder.
        dtype: what the weights are unpacked to: bf16, fp16 or fp32.
        catalog: knows the models by name.
        report: hears of a download.

    Returns:
        The folder.

    Raises:
        RuntimeFault: as `export_safetensors`, or there is no such model.
    """
    path = Path(source)
    if path.exists():
        name = path.stem
    else:
        config = catalog.resolve(source).config
        name, path = config.model_name, catalog.fetch(config, report, lambda: False)
    return export_safetensors(path, target or catalog.settings.model_roots[0] / f"{Path(name).name}-safetensors", dtype)
