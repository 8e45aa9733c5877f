"""What a model's files say about it, before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.formats.onnx import OnnxHeader


class ModelFormat(str, Enum):
    """How the weights are stored, recognised by content."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"
    PICKLE = "pickle"
    ONNX = "onnx"
    DIFFUSERS = "diffusers"
    CTRANSLATE2 = "ctranslate2"
    PIPER = "piper"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """What one layer keeps per token in the KV cache. `window` is the sliding window in tokens, 0 for full attention."""

    kv_heads: int
    key_length: int
    value_length: int
    window: int = 0


@dataclass(frozen=True)
class ModelInfo:
    """The result of `read_model`: facts about files. Sizes are in bytes, lengths in tokens. `None` means not known."""

    path: Path
    format: ModelFormat
    files: tuple[Path, ...]
    """Every weight file, in order."""
    size_bytes: int
    architecture: str | None = None
    name: str | None = None
    parameters: int | None = None
    context_length: int | None = None
    quantization: str | None = None
    """As stored: Q4_K_M, bf16, fp32 …"""
    chat_template: str | None = None
    instruct: bool = False
    """The files or their names say the model was tuned to follow instructions."""
    embedding_length: int | None = None
    vocabulary: int | None = None
    layers: tuple[AttentionLayer, ...] = ()
    task: str = "llm"
    """llm, embedding, rerank, classification, zero_shot, ner, ocr, caption, vqa, image_classification …; unsupported; unknown if the
    files cannot be read."""
    vision: bool = False
    """It is a language model that reads pictures too: it has a part that encodes them, and the files that prepare them."""
    unsupported: str = ""
    """Why nothing here serves it; empty if the task is another one."""
    problems: tuple[str, ...] = ()
    """Why it cannot be loaded; empty if no problem was found."""
    remote_code: bool = False
    """The model or its tokenizer names Python code of its own to run."""
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Scalars of the header (GGUF), or config.json."""
    heads: int | None = None
    """The largest number of attention heads in a layer."""
    weight_bytes: int | None = None
    """Bytes of the tensors alone, without headers and padding."""
    layer_bytes: tuple[int, ...] = ()
    """Bytes of the tensors of each layer. Only for GGUF."""
    output_bytes: int = 0
    """Bytes of the tensors after the last layer, or of the embeddings if they are used there too. Only for GGUF."""

    onnx: tuple[OnnxHeader, ...] = ()
    """The ONNX files that come with it."""
    gguf: "ModelInfo | None" = field(default=None, repr=False)
    """The same model as a GGUF file, if one lies beside the safetensors."""

    @property
    def folder(self) -> Path:
        """The folder of the files that belong to the weights: config.json, the tokenizer …"""
        if self.path.is_dir():
            return self.path
        parent = self.path.parent
        return parent.parent if parent.name == "onnx" and not (parent / "config.json").is_file() else parent

    @property
    def valid(self) -> bool:
        """Whether no problem was found."""
        return not self.problems
