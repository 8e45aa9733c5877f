"""What a model on the hub is, before its weights are fetched.

The files that describe it are fetched as a whole, and of each weight file only its header. They are laid out as the model
will lie on disk, with weight files of their full length that have nothing but holes behind the header. So all that reads and
plans local models also works here.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import httpx

from lfx_local_runtimes.errors import InvalidModelFile
from lfx_local_runtimes.runtimes.formats.gguf import MAX_HEADER as MAX_GGUF_HEADER
from lfx_local_runtimes.runtimes.formats.gguf import read_gguf
from lfx_local_runtimes.runtimes.formats.hf_config import has_remote_code, number, read_config, text_config
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.jsonfile import MAX_JSON
from lfx_local_runtimes.runtimes.formats.onnx import OnnxHeader
from lfx_local_runtimes.runtimes.formats.safetensors import MAX_HEADER as MAX_TENSOR_HEADER
from lfx_local_runtimes.runtimes.formats.tasks import UNSUPPORTED, task_of
from lfx_local_runtimes.runtimes.sources.download import Transfer
from lfx_local_runtimes.runtimes.sources.hub import onnx_dtype
from lfx_local_runtimes.runtimes.sources.repository import RemoteFile

_DESCRIBING = frozenset({
    "README.md",
    "config.json", "tokenizer_config.json", "chat_template.json", "chat_template.jinja", "modules.json", "model_index.json",
})  # fmt: skip
_INDEX = ".index.json"
_FIRST = 1 << 18
"""Bytes of a weight file that are read first. Most headers of safetensors are shorter."""
_FIRST_GGUF = 1 << 20
"""Most GGUF headers have a vocabulary of a few MB: what is read is doubled until it is enough."""


@contextmanager
def preview(transfer: Transfer, read_model: Callable[[Path], ModelInfo]) -> Iterator[ModelInfo]:
    """The facts about a model that would be fetched. The files that they speak of exist until the block ends.

    Args:
        transfer: what would be fetched.
        read_model: reads the facts from a file or a folder.

    Raises:
        DownloadFailed: no connection, no permission, or cancelled.
        InvalidModelFile: an ONNX model's config.json is broken. Other problems are in `problems`.
    """
    locks = transfer.cache / ".locks"  # on the disk that will hold the model; listings of the cache leave it out
    locks.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="preview-", dir=locks) as place, transfer.remote.client() as client:
        folder = Path(place) / PurePosixPath(transfer.remote.name).name
        for file in transfer.files:
            target = folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_head(transfer, client, file, target)
            with target.open("ab") as out:
                out.truncate(file.size)
        weights = transfer.files[-1].name
        yield _onnx(folder, transfer) if weights.endswith(".onnx") else read_model(folder / transfer.entry)


def _write_head(transfer: Transfer, client: httpx.Client, file: RemoteFile, target: Path) -> None:
    """Write the part of a file that says what the model is. That is nothing of most files."""
    url = transfer.remote.url(transfer.commit, file.name)
    there = 0

    def extend(end: int) -> None:
        nonlocal there
        end = min(end, file.size)
        with target.open("ab") as out:
            out.write(transfer.remote.read(client, url, there, end))
        there = end

    if target.name in _DESCRIBING or target.name.endswith(_INDEX):
        extend(MAX_JSON + 1)
    elif target.suffix == ".safetensors":
        extend(_FIRST)
        with target.open("rb") as head:
            length = int.from_bytes(head.read(8), "little")
        extend(max(there, 8 + min(length, MAX_TENSOR_HEADER)))
    elif target.suffix.lower() == ".gguf":
        extend(_FIRST_GGUF)
        while there < min(file.size, MAX_GGUF_HEADER) and not _holds_header(target, file.size):
            extend(2 * there)
    elif target.suffix in (".bin", ".pt"):
        extend(512)  # what a pickle is known by


def _holds_header(part: Path, size: int) -> bool:
    """Whether the whole header of a GGUF file is in its first part."""
    there = part.stat().st_size
    try:
        with part.open("ab") as out:
            out.truncate(size)
        return read_gguf(part).data_offset <= there
    except InvalidModelFile:  # its end is missing, or it is broken: then more of it does not help, up to a limit
        return False
    finally:
        with part.open("ab") as out:
            out.truncate(there)


def _onnx(folder: Path, transfer: Transfer) -> ModelInfo:
    """By config.json, names and sizes: the outline of an ONNX file is spread over the whole file."""
    config, problems = read_config(folder)
    text = text_config(config)
    weights = tuple(folder / file.name for file in transfer.files if ".onnx" in PurePosixPath(file.name).name)
    size = sum(file.stat().st_size for file in weights)
    dtype = onnx_dtype(weights[-1].name)
    header = OnnxHeader(weights[-1], dtype, 0, size, weights, (), ())
    task, unsupported = "embedding", ""
    if config.get("architectures"):
        task, unsupported = task_of(config, sentence_transformer=(folder / "modules.json").is_file())
    if task == "llm":
        task, unsupported = UNSUPPORTED, "ONNX files of models that write text are not served"
    return ModelInfo(
        folder, ModelFormat.ONNX, weights, size, architecture=str(config.get("model_type") or "") or None, name=folder.name,
        context_length=number(text, "max_position_embeddings"), quantization=dtype,
        embedding_length=number(text, "hidden_size"), vocabulary=number(text, "vocab_size"),
        task=task, unsupported=unsupported, problems=problems, remote_code=has_remote_code(folder, config), metadata=config,
        heads=number(text, "num_attention_heads"), weight_bytes=size, onnx=(header,),
    )  # fmt: skip
