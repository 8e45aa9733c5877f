"""`read_model`: what a model is, read from its headers and configuration, without loading it."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lfx_local_runtimes.errors import InvalidModelFile, ModelNotFound
from lfx_local_runtimes.runtimes.formats.detect import Detected, detect, gguf_files, onnx_files
from lfx_local_runtimes.runtimes.formats.ggml_types import FILE_TYPES, TENSOR_TYPES
from lfx_local_runtimes.runtimes.formats.gguf import GgufArray, GgufHeader, GgufTensor, read_gguf
from lfx_local_runtimes.runtimes.formats.gguf_check import MAX_LAYERS, check_gguf
from lfx_local_runtimes.runtimes.formats.gguf_names import best_gguf
from lfx_local_runtimes.runtimes.formats.gguf_split import split_files
from lfx_local_runtimes.runtimes.formats.hf_config import (
    attention_layers,
    chat_template,
    has_remote_code,
    number,
    read_config,
    text_config,
    tokenizer_limit,
)
from lfx_local_runtimes.runtimes.formats.info import AttentionLayer, ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.onnx import OnnxHeader, choose, read_onnx
from lfx_local_runtimes.runtimes.formats.pp_ocr import ARCHITECTURE, PpOcr, pp_ocr_of
from lfx_local_runtimes.runtimes.formats.safetensors import SafetensorsTensor, read_safetensors
from lfx_local_runtimes.runtimes.formats.tasks import UNKNOWN, UNSUPPORTED, has_vision, pipeline_tag, task_of

_Header = TypeVar("_Header")
_INSTRUCT = frozenset({"it", "instruct", "instruction", "chat", "assistant"})
_DTYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64", "I8": "int8", "U8": "uint8"}
_TORCH_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_LAYER = re.compile(r"blk\.(\d{1,5})\.")
_SLIDING_PATTERNS = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "gpt-oss": 2}
"""llama.cpp knows these by architecture: every n-th layer has full attention."""
_GGUF_ENCODERS = frozenset(
    {
        "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
        "gemma-embedding",
    }
)  # fmt: skip
"""Architectures that llama.cpp computes without a KV cache: they generate no text."""
_GGUF_OTHERS = frozenset({"clip", "t5", "t5encoder", "wavtokenizer-dec"})
"""Architectures that llama.cpp loads, but that neither write text by themselves nor give vectors."""
_GGUF_POOLINGS, _GGUF_RANK = (1, 2, 3), 4
"""llama.cpp's `llama_pooling_type`: mean, cls and last for vectors, rank for scores."""

_OTHER_FORMATS = {
    ModelFormat.DIFFUSERS: "diffusers pipelines",
    ModelFormat.CTRANSLATE2: "CTranslate2 models",
    ModelFormat.PIPER: "Piper voices",
}


def read_model(path: str | Path, *, thorough: bool = False) -> ModelInfo:
    """Format, architecture, sizes, chat template and problems of a model on disk.

    Problems of the files are reported in `problems`, so that a broken model can still be listed. Only a path that does
    not exist raises.

    Args:
        path: a file or a folder.
        thorough: also check what takes time (a GGUF vocabulary token by token). Needed before a GGUF file is loaded.

    Raises:
        ModelNotFound: the path does not exist.
    """
    place = Path(path).expanduser()
    try:
        place.lstat()
        return _inspect(place, detect(place), thorough=thorough)
    except (FileNotFoundError, NotADirectoryError) as error:
        if place.exists():  # a part of it is missing, such as a split file or the target of a link
            return _broken(place, f"{Path(error.filename or place).name} is missing")
        raise ModelNotFound(f"There is no model at {path}.", hint="Give the path of a model file or folder.") from error
    except InvalidModelFile as fault:
        return _broken(place, fault.message)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        return _broken(place, f"cannot be read ({getattr(error, 'strerror', None) or error})")


def _broken(path: Path, problem: str) -> ModelInfo:
    return ModelInfo(path, ModelFormat.UNKNOWN, (), 0, task=UNKNOWN, problems=(problem,))


def _inspect(path: Path, found: Detected, *, thorough: bool) -> ModelInfo:
    size = sum(file.stat().st_size for file in found.files)
    info = ModelInfo(path, found.format, found.files, size, name=_name(path), task=UNKNOWN, problems=found.problems)
    info = replace(info, instruct=is_instruct(info.name))
    if found.format is ModelFormat.GGUF and (not found.problems or len(found.files) == 1):
        return _gguf(info, thorough=thorough)
    if found.format in (ModelFormat.SAFETENSORS, ModelFormat.PICKLE):
        return _transformers(info, thorough=thorough)
    if found.format is ModelFormat.ONNX:
        return _onnx(info)
    if found.format in _OTHER_FORMATS and not found.problems:
        return replace(info, task=UNSUPPORTED, unsupported=f"nothing here serves {_OTHER_FORMATS[found.format]}")
    return info


def _name(path: Path) -> str:
    """The model's usual name: the file's stem, the folder, or the repository of a snapshot in the hub's cache."""
    if path.is_file():
        return path.stem
    path = path.resolve()
    if path.parent.name == "snapshots":
        return path.parent.parent.name.rpartition("--")[2]
    return path.name


def _attempt(read: Callable[[Path], _Header], file: Path, problems: list[str]) -> _Header | None:
    try:
        return read(file)
    except InvalidModelFile as fault:
        problems.append(fault.message)
        return None


def is_instruct(*names: object) -> bool:
    """Whether one of these names of a model says that it was tuned to follow instructions."""
    return any(not _INSTRUCT.isdisjoint(re.split(r"[^a-z0-9]+", str(name).lower())) for name in names if name)


# -- GGUF ----------------------------------------------------------------------------------------------------------------


def _gguf(info: ModelInfo, *, thorough: bool) -> ModelInfo:
    found = [*info.problems]
    read = partial(read_gguf, exact=thorough)
    header = _attempt(read, info.files[0], found)
    if header is None:
        return replace(info, problems=tuple(found))
    files, problems = split_files(header)
    later = [part for file in files[1:] if (part := _attempt(read, file, found)) is not None]
    headers = [header, *later]
    found += problems
    task, unsupported = _gguf_task(header)
    if thorough and not unsupported:
        found += check_gguf(header)
        found += [problem for part in later for problem in check_gguf(part, first=False)]
    if header.architecture is None and "general.architecture is missing" not in found:
        found.append("general.architecture is missing")
    tensors = [tensor for part in headers for tensor in part.tensors]
    tokens = header.array("tokenizer.ggml.tokens")
    heads = _per_layer(header, "attention.head_count", 1)
    encodes = header.architecture in _GGUF_ENCODERS
    return replace(
        info,
        files=files,
        size_bytes=sum(part.file_size for part in headers),
        architecture=header.architecture,
        name=header.text("general.name") or info.name,
        parameters=sum(tensor.elements for tensor in tensors),
        context_length=_positive(header.of_model("context_length")),
        quantization=_gguf_type(headers),
        chat_template=header.text("tokenizer.chat_template") or None,
        instruct=is_instruct(info.name, header.text("general.finetune"), header.text("general.name")),
        embedding_length=_positive(header.of_model("embedding_length")),
        vocabulary=tokens.length if tokens else _positive(header.of_model("vocab_size")),
        layers=() if encodes else _gguf_layers(header),
        task=task,
        unsupported=unsupported,
        problems=tuple(found),
        metadata={key: value for key, value in header.metadata.items() if not isinstance(value, GgufArray)},
        heads=max(heads, default=None),
        weight_bytes=sum(tensor.size for tensor in tensors),
        layer_bytes=_layer_bytes(tensors),
        output_bytes=_output_bytes(tensors),
    )


def _layer_bytes(tensors: Iterable[GgufTensor]) -> tuple[int, ...]:
    """Bytes of each layer: its tensors are called `blk.7.…`."""
    sizes: Counter[int] = Counter()
    for tensor in tensors:
        if (layer := _LAYER.match(tensor.name)) is not None:
            sizes[int(layer[1])] += tensor.size
    return tuple(sizes[number] for number in range(len(sizes))) if set(sizes) == set(range(len(sizes))) else ()


def _output_bytes(tensors: Iterable[GgufTensor]) -> int:
    sizes = {tensor.name: tensor.size for tensor in tensors}
    after = sum(size for name, size in sizes.items() if name.startswith("output"))
    return after if "output.weight" in sizes else after + sizes.get("token_embd.weight", 0)


def _gguf_task(header: GgufHeader) -> tuple[str, str]:
    """The task, by the file's pooling, and why it is not served. A decoder without pooling generates text."""
    kind, architecture = header.text("general.type") or "model", header.architecture
    if kind != "model" or architecture in _GGUF_OTHERS:
        return UNSUPPORTED, f"it is a {kind} of the architecture {architecture}, and nothing here serves that"
    if architecture is not None and not any(key.startswith("tokenizer.") for key in header.metadata):
        return UNSUPPORTED, f"it has no tokenizer, so it is no language model ({architecture})"
    pooling = header.of_model("pooling_type")
    if pooling == _GGUF_RANK:
        labels = header.of_model("classifier.output_labels")
        return ("classification" if isinstance(labels, GgufArray) and labels.length > 1 else "rerank"), ""
    return ("embedding" if pooling in _GGUF_POOLINGS or architecture in _GGUF_ENCODERS else "llm"), ""


def _positive(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _gguf_type(headers: list[GgufHeader]) -> str | None:
    """The type that the file names, otherwise the type of most of its bytes."""
    named = (
        FILE_TYPES.get(headers[0].integer("general.file_type") or 0)
        if "general.file_type" in headers[0].kinds
        else None
    )
    weights: Counter[int] = Counter()
    for header in headers:
        for tensor in header.tensors:
            weights[tensor.type] += tensor.size
    return named or next((TENSOR_TYPES[kind].name for kind, _ in weights.most_common(1)), None)


def _per_layer(header: GgufHeader, key: str, default: int) -> list[int]:
    """A value that may be one number for all layers or an array with one for each."""
    count = _positive(header.of_model("block_count")) or 0
    if count > MAX_LAYERS:
        return []
    value = header.of_model(key)
    if isinstance(value, GgufArray):
        values = [max(int(number), 0) for number in value.values or () if isinstance(number, int)]
        return values if len(values) == count else [default] * count
    return [value if type(value) is int and value >= 0 else default] * count


def _gguf_layers(header: GgufHeader) -> tuple[AttentionLayer, ...]:
    """The layers as llama.cpp derives them: key and value length default to embedding / heads, KV heads to heads."""
    width = _positive(header.of_model("embedding_length")) or 0
    heads = _per_layer(header, "attention.head_count", 0)
    kv_heads = _per_layer(header, "attention.head_count_kv", -1)
    default = width // heads[0] if heads and heads[0] else 0
    key = _positive(header.of_model("attention.key_length")) or default
    value = _positive(header.of_model("attention.value_length")) or default
    return tuple(
        AttentionLayer(own if kv < 0 else kv, key, value, window)
        for own, kv, window in zip(heads, kv_heads, _gguf_windows(header, len(heads)), strict=True)
    )


def _gguf_windows(header: GgufHeader, count: int) -> list[int]:
    window = _positive(header.of_model("attention.sliding_window")) or 0
    pattern = header.of_model("attention.sliding_window_pattern")
    if isinstance(pattern, GgufArray) and pattern.values and len(pattern.values) == count:
        return [window if slides else 0 for slides in pattern.values]
    every = _positive(pattern) or _SLIDING_PATTERNS.get(header.architecture or "", 0)
    return [window if every and (index + 1) % every else 0 for index in range(count)]


# -- Hugging Face folders ------------------------------------------------------------------------------------------------


def _transformers(info: ModelInfo, *, thorough: bool) -> ModelInfo:
    folder = info.folder
    config, problems = read_config(folder)
    found = [*info.problems, *problems]
    text = text_config(config)
    task, unsupported = UNKNOWN, ""
    if config or not problems:
        modules = (folder / "modules.json").is_file()
        task, unsupported = task_of(config, tag=pipeline_tag(folder), sentence_transformer=modules)
    template, remote_code = None, False
    try:
        template, remote_code = chat_template(folder), has_remote_code(folder, config)
    except InvalidModelFile as fault:
        found.append(fault.message)
    tensors: list[SafetensorsTensor] = []
    if info.format is ModelFormat.SAFETENSORS:
        headers = [_attempt(read_safetensors, file, found) for file in info.files]
        tensors = [tensor for header in headers if header is not None for tensor in header.tensors]
    model_type = config.get("model_type")
    return replace(
        info,
        architecture=model_type if isinstance(model_type, str) and model_type else None,
        parameters=sum(tensor.elements for tensor in tensors) or None,
        context_length=number(text, "max_position_embeddings"),
        quantization=_stored_type(config, text, tensors),
        chat_template=template,
        instruct=is_instruct(info.name, config.get("_name_or_path")),
        embedding_length=number(text, "hidden_size"),
        vocabulary=number(text, "vocab_size"),
        layers=attention_layers(text),
        task=task,
        vision=task == "llm" and has_vision(config, folder),
        unsupported=unsupported,
        problems=tuple(found),
        remote_code=remote_code,
        metadata=config,
        heads=number(text, "num_attention_heads"),
        weight_bytes=sum(tensor.size for tensor in tensors) or None,
        onnx=_onnx_headers(onnx_files(folder), []) if thorough else (),
        gguf=_gguf_beside(info, thorough=thorough) if info.format is ModelFormat.SAFETENSORS else None,
    )


def _gguf_beside(info: ModelInfo, *, thorough: bool) -> ModelInfo | None:
    """The best GGUF file in the folder of other weights; None if there is none, or it cannot be loaded."""
    files = {file.name: file for file in gguf_files(info.folder)} if info.path.is_dir() else {}
    if not files:
        return None
    file = files[best_gguf(files)]
    found = _inspect(file, Detected(ModelFormat.GGUF, (file,)), thorough=thorough)
    return found if found.valid else None


def _stored_type(config: Mapping[str, Any], text: Mapping[str, Any], tensors: list[SafetensorsTensor]) -> str | None:
    """The quantization method if there is one, otherwise the type of most of the bytes."""
    quantized = config.get("quantization_config")
    if isinstance(quantized, dict):
        method, bits = quantized.get("quant_method"), quantized.get("bits")
        if isinstance(method, str) and method:
            return f"{method}-int{bits}" if type(bits) is int else method
    if tensors:
        weights: Counter[str] = Counter()
        for tensor in tensors:
            weights[tensor.dtype] += tensor.size
        dtype = weights.most_common(1)[0][0]
        return _DTYPES.get(dtype, dtype.lower())
    stored = text.get("dtype", text.get("torch_dtype"))
    return _TORCH_DTYPES.get(stored) if isinstance(stored, str) else None


# -- ONNX ----------------------------------------------------------------------------------------------------------------


def _onnx(info: ModelInfo) -> ModelInfo:
    """Facts from config.json, if there is one. The other facts are from the ONNX file that is loaded by default."""
    found: list[str] = []
    headers = _onnx_headers(info.files, found)
    if (ocr := pp_ocr_of(headers)) is not None and not found:
        return _pp_ocr(info, ocr, headers)
    header = choose(headers, None)
    if header is None:
        return replace(info, problems=(*info.problems, *found))
    described = _transformers(info, thorough=False) if (info.folder / "config.json").is_file() else info
    broken: list[str] = []
    context = described.context_length or _attempt(tokenizer_limit, info.folder, broken)
    task, unsupported = described.task, described.unsupported
    if not described.metadata.get("architectures"):
        task, unsupported = _task_of_outputs(header)
    elif task == "llm":
        task, unsupported = UNSUPPORTED, "ONNX files of models that write text are not served"
    return replace(
        described,
        files=header.files,
        size_bytes=sum(file.stat().st_size for file in header.files),
        parameters=header.parameters,
        weight_bytes=header.weight_bytes,
        context_length=context,
        quantization=header.dtype,
        task=task,
        unsupported=unsupported,
        problems=(*described.problems, *broken),
        metadata=described.metadata or {"num_labels": _width(header)},
        onnx=headers,
    )


def _pp_ocr(info: ModelInfo, ocr: PpOcr, headers: tuple[OnnxHeader, ...]) -> ModelInfo:
    files = tuple(file for part in ocr.parts for file in part.files)
    return replace(
        info,
        files=files,
        size_bytes=sum(file.stat().st_size for file in files),
        architecture=ARCHITECTURE,
        parameters=sum(part.parameters for part in ocr.parts),
        weight_bytes=sum(part.weight_bytes for part in ocr.parts),
        quantization=ocr.recogniser.dtype,
        task="ocr",
        onnx=headers,
    )


def _onnx_headers(files: Iterable[Path], problems: list[str]) -> tuple[OnnxHeader, ...]:
    return tuple(header for file in files if (header := _attempt(read_onnx, file, problems)) is not None)


def _width(header: OnnxHeader) -> int | None:
    """How many numbers the first output has for each row or token; None if its shape does not say."""
    shape = header.outputs[0].shape if header.outputs else ()
    return shape[-1] if shape else None


def _task_of_outputs(header: OnnxHeader) -> tuple[str, str]:
    """The task of a model without a usable config.json, by the usual names and shapes of its outputs."""
    outputs = {output.name: output.shape for output in header.outputs}
    logits = outputs.get("logits")
    if logits is not None:
        return ("ner" if len(logits) == 3 else "rerank" if logits[-1:] == (1,) else "classification"), ""
    if outputs.keys() & {"last_hidden_state", "token_embeddings", "sentence_embedding"}:
        return "embedding", ""
    return UNSUPPORTED, f"nothing here reads its outputs ({', '.join(sorted(outputs)[:5]) or 'none'})"
