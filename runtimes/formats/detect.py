"""Recognises what a file or a folder holds by its content. Names only decide which files are read."""

import re
import struct
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lfx_local_runtimes.errors import InvalidModelFile
from lfx_local_runtimes.runtimes.formats import protobuf
from lfx_local_runtimes.runtimes.formats.gguf import MAGIC
from lfx_local_runtimes.runtimes.formats.gguf_split import first_split
from lfx_local_runtimes.runtimes.formats.info import ModelFormat
from lfx_local_runtimes.runtimes.formats.jsonfile import read_json
from lfx_local_runtimes.runtimes.formats.safetensors import INDEX_NAME, read_index

MAX_ENTRIES = 10_000
"""At most this many entries of one folder are looked at."""

_PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
_NOT_WEIGHTS = re.compile(r"training_args|optimizer|scheduler|rng_state|scaler", re.IGNORECASE)
_PROJECTOR = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_LATER_SPLIT = re.compile(r".+-(?!00001)[0-9]{5}-of-[0-9]{5}\.gguf", re.IGNORECASE)
_SHARD = re.compile(r".+-[0-9]{5}-of-[0-9]{5}\.safetensors")

_ONNX_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_ONNX_GRAPH = 7


@dataclass(frozen=True, slots=True)
class Detected:
    """What was found: the format, the weight files in order, and the problems of the set."""

    format: ModelFormat
    files: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()


def detect(path: Path) -> Detected:
    """Recognise a file or a folder.

    In a folder, a diffusers pipeline comes first, then safetensors with a config.json, GGUF, other safetensors,
    CTranslate2, pickle weights, Piper and ONNX.

    Raises:
        OSError: it cannot be read.
    """
    return _folder(path) if path.is_dir() else _file(path)


def file_format(path: Path) -> ModelFormat:
    """The format of one file, by its first bytes (ONNX: by its fields).

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(MAGIC):
        return ModelFormat.GGUF
    if _is_safetensors(head, path.stat().st_size):
        return ModelFormat.SAFETENSORS
    if _is_pickle(head):
        return ModelFormat.PICKLE
    if _is_ctranslate2(head):
        return ModelFormat.CTRANSLATE2
    if _is_onnx(path):
        return ModelFormat.PIPER if _is_piper(path) else ModelFormat.ONNX
    return ModelFormat.UNKNOWN


def _file(path: Path) -> Detected:
    found = file_format(path)
    if found is ModelFormat.UNKNOWN:
        return Detected(found, (path,), (f"{path.name} is not in a known format",))
    if found is ModelFormat.GGUF:
        return Detected(found, (first_split(path),))
    return Detected(found, (path,))


def _folder(path: Path) -> Detected:
    names = sorted(entry.name for entry in islice(path.iterdir(), MAX_ENTRIES))
    if "model_index.json" in names:
        return _diffusers(path)
    tensors = [path / name for name in names if name.endswith(".safetensors")]
    ggufs = [path / name for name in names if name.lower().endswith(".gguf")]
    if tensors and ("config.json" in names or not ggufs):
        return _safetensors(path, tensors)
    if ggufs:
        return _ggufs(ggufs)
    weights = [path / name for name in names if name.endswith(_PICKLE_ENDINGS) and not _NOT_WEIGHTS.search(name)]
    formats = {weight: file_format(weight) for weight in weights if weight.is_file()}
    for wanted in (ModelFormat.CTRANSLATE2, ModelFormat.PICKLE, ModelFormat.SAFETENSORS):
        files = tuple(weight for weight, found in formats.items() if found is wanted)
        if files:
            return Detected(wanted, files)
    return _onnx_folder(path)


def _safetensors(folder: Path, files: list[Path]) -> Detected:
    single = folder / "model.safetensors"
    if single in files:
        return Detected(ModelFormat.SAFETENSORS, (single,))
    if (folder / INDEX_NAME).is_file():
        try:
            shards = read_index(folder / INDEX_NAME)
        except InvalidModelFile as fault:
            return Detected(ModelFormat.SAFETENSORS, tuple(files), (fault.message,))
        missing = [shard.name for shard in shards if not shard.is_file()]
        problems = (f"{len(missing)} of {len(shards)} shards are missing: {', '.join(missing[:5])}",) if missing else ()
        return Detected(
            ModelFormat.SAFETENSORS, tuple(shard for shard in shards if shard.name not in missing), problems
        )
    if any(_SHARD.fullmatch(file.name) for file in files):
        return Detected(ModelFormat.SAFETENSORS, tuple(files), (f"{INDEX_NAME} is missing: it lists the shards",))
    if len(files) > 1:
        return Detected(ModelFormat.SAFETENSORS, tuple(files), (_several(files),))
    return Detected(ModelFormat.SAFETENSORS, tuple(files))


def _ggufs(files: list[Path]) -> Detected:
    models = [file for file in files if _is_model(file)]
    if not models:  # a split model without its first part: reading the first part reports that
        return Detected(ModelFormat.GGUF, (first_split(files[0]),))
    if len(models) > 1:
        return Detected(ModelFormat.GGUF, tuple(models), (_several(models),))
    return Detected(ModelFormat.GGUF, (models[0],))


def _is_model(gguf: Path) -> bool:
    """Neither a later part of a split model nor a part of another kind."""
    return not _LATER_SPLIT.fullmatch(gguf.name) and not _PROJECTOR.search(gguf.name)


def gguf_files(folder: Path) -> list[Path]:
    """The GGUF models in a folder, by their first parts.

    Raises:
        OSError: it cannot be read.
    """
    entries = islice(folder.iterdir(), MAX_ENTRIES)
    return sorted(file for file in entries if file.suffix.lower() == ".gguf" and _is_model(file) and file.is_file())


def _several(files: list[Path]) -> str:
    names = ", ".join(file.name for file in files[:8])
    return f"the folder holds {len(files)} models: give the path of one of {names}{' …' if len(files) > 8 else ''}"


def _diffusers(folder: Path) -> Detected:
    try:
        parts = [name for name, value in read_json(folder / "model_index.json").items() if isinstance(value, list)]
    except InvalidModelFile as fault:
        return Detected(ModelFormat.DIFFUSERS, (), (fault.message,))
    files: list[Path] = []
    for part in sorted(parts):
        if not any(sign in part for sign in "/\\\0:.") and (folder / part).is_dir():
            inside = sorted(islice((folder / part).iterdir(), MAX_ENTRIES))
            tensors = [file for file in inside if file.suffix == ".safetensors"]
            files += tensors or [file for file in inside if file.suffix in (".bin", ".onnx")]
    return Detected(ModelFormat.DIFFUSERS, tuple(files), () if files else ("the pipeline's weights are missing",))


def onnx_files(folder: Path) -> list[Path]:
    """The ONNX files of a folder, or of the folder `onnx` in it.

    Raises:
        OSError: it cannot be read.
    """
    for place in (folder, folder / "onnx"):
        if place.is_dir():
            files = sorted(file for file in islice(place.iterdir(), MAX_ENTRIES) if file.suffix == ".onnx")
            files = [file for file in files if file.is_file() and _is_onnx(file)]
            if files:
                return files
    return []


def _onnx_folder(folder: Path) -> Detected:
    files = onnx_files(folder)
    voices = tuple(file for file in files if _is_piper(file))
    if voices:
        return Detected(ModelFormat.PIPER, voices)
    if files:
        return Detected(ModelFormat.ONNX, tuple(files))
    return Detected(ModelFormat.UNKNOWN, (), (f"{folder.name} holds no model in a known format",))


def _is_safetensors(head: bytes, size: int) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack_from("<Q", head)[0] <= size - 8


def _is_pickle(head: bytes) -> bool:
    """torch.save: a zip whose first entry is data.pkl, or (before 1.6) a bare pickle of protocol 2 or later."""
    if head.startswith(b"PK\x03\x04") and len(head) >= 30:
        length = struct.unpack_from("<H", head, 26)[0]
        name = head[30 : 30 + length]
        return name.endswith((b"data.pkl", b"/version", b"/byteorder"))
    return len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5 and head[2:3] in (b"\x8a", b"}", b"c", b"\x95", b"(")


def _is_ctranslate2(head: bytes) -> bool:
    """A binary version, then the name of the model's specification: `WhisperSpec`, `TransformerDecoderModelSpec` …"""
    if len(head) < 8:
        return False
    version, length = struct.unpack_from("<IH", head)
    name = head[6 : 6 + length]
    return 2 <= version <= 100 and name.endswith(b"Spec\0") and name[:-1].isalnum()


def _is_piper(path: Path) -> bool:
    config_file = path.with_name(f"{path.name}.json")
    try:
        config = read_json(config_file) if config_file.is_file() else {}
    except InvalidModelFile:
        return False
    return isinstance(config.get("audio"), dict) and ("espeak" in config or "phoneme_id_map" in config)


def _is_onnx(path: Path) -> bool:
    """Whether the file is a protobuf message that has a graph and only the fields of an ONNX model.

    Field numbers are from onnx.proto (`ModelProto`).
    """
    size = path.stat().st_size
    found = set()
    with path.open("rb") as file:
        for field in protobuf.fields(file, 0, size, 64):
            kind = protobuf.VARINT if field.number in (1, 5) else protobuf.BYTES
            if field.number not in _ONNX_FIELDS or field.kind != kind or field.end > size:
                return False
            found.add(field.number)
    return _ONNX_GRAPH in found
