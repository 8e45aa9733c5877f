"""Names on the Hugging Face hub, its cache on disk, and which files of a repository make a model.

Only file names are used here: no network, and no weights are read.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from huggingface_hub import constants

from lfx_local_runtimes.errors import ModelNotFound, PickleRefused
from lfx_local_runtimes.runtimes.config import ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.devices import HEAVY, MACHINE, DeviceProbe, goes_to_cpu
from lfx_local_runtimes.runtimes.formats.gguf_names import best_gguf, gguf_tag, same_tag
from lfx_local_runtimes.runtimes.formats.info import ModelFormat
from lfx_local_runtimes.runtimes.formats.onnx import MADE, PRECISION, preference
from lfx_local_runtimes.settings import Settings

_REPO = re.compile(r"([A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*?)(?::([\w.-]{1,64}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})(?=\.(?:gguf|safetensors)$)")
_PICKLE = re.compile(r"(?:diffusion_)?pytorch_model[\w.-]*\.bin")
_SIDE_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken", ".spm"})
_OTHER_ENGINES = frozenset({"onnx", "openvino", "original", "coreml", "metal", "flax", "gguf"})


@dataclass(frozen=True, slots=True)
class HubRef:
    """A repository on the hub; `tag` picks one GGUF of several (`org/name:Q4_K_M`)."""

    repo: str
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubRef | None":
        """`org/name` or `org/name:tag`; None for anything else."""
        match = _REPO.fullmatch(text)
        if (
            match is None
            or len(match[1]) > 96
            or re.search(r"--|\.\.|/.*[.-]$|\.(?:git|gguf|safetensors|onnx|bin)$", match[1])
        ):
            return None
        return cls(match[1], match[2])


@dataclass(frozen=True, slots=True)
class Wish:
    """Which form of a model to take from a repository that may hold several."""

    tag: str | None = None
    """Take this GGUF."""
    gguf: bool = False
    """Take GGUF even if there are safetensors too."""
    light: bool = field(default=False, compare=False)
    """Fetch GGUF if the safetensors are heavy: the model will run on the CPU. What is cached is used as it is,
    and whoever downloads the same repository shares one download."""
    onnx: bool = False
    """Take ONNX even if there are safetensors too."""
    dtype: str | None = None
    """The type of the ONNX file."""
    tensors: bool = False
    """Do not take ONNX: Transformers will load the model."""
    offline: bool = False
    """Accept what is cached; planning reports what is missing."""
    pickle: bool = False
    python: bool = False
    size_limit: int | None = None
    """The most bytes to fetch."""

    @classmethod
    def of(cls, config: ModelConfig, ref: HubRef, settings: Settings, probe: DeviceProbe = MACHINE) -> "Wish":
        """From a configuration. A floating-point or integer type is not a GGUF tag."""
        tag = ref.tag
        if tag is None and config.quantization is not None and "_" in config.quantization:
            tag = config.quantization
        return cls(
            tag,
            gguf=tag is not None or config.runtime_type == RuntimeType.LLAMA_CPP,
            light=config.runtime_type == RuntimeType.AUTO
            and config.quantization is None
            and goes_to_cpu(config.device_type, force=settings.force_device, probe=probe),
            onnx=config.runtime_type == RuntimeType.ONNX,
            dtype=config.quantization,
            tensors=config.runtime_type == RuntimeType.TRANSFORMERS,
            offline=settings.downloads == "off" or constants.HF_HUB_OFFLINE,
            pickle=settings.allow_pickle,
            python=config.trust_remote_code and settings.trust_remote_code,
            size_limit=settings.size_limit,
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """The files of one model: small ones first and weights last. So if the weights are complete, the model is."""

    files: tuple[str, ...]
    entry: str = ""
    """The file to load; empty for the folder."""


def safe_name(name: str) -> bool:
    """Whether a relative path stays inside its folder on every platform."""
    parts = name.split("/")
    return name.isprintable() and not re.search(r'[\\:*?"<>|]', name) and all(part.strip(". ") for part in parts)


def gguf_models(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """All parts of each GGUF model, by the path of its first part. Models with a missing part are left out."""
    models = [
        name
        for name in names
        if name.lower().endswith(".gguf") and not re.search(r"mmproj|imatrix", name, re.IGNORECASE)
    ]
    return {parts[0]: parts for parts in _complete(models)}


def describe(names: Sequence[str]) -> tuple[ModelFormat, tuple[str, ...]] | None:
    """Format and weight files of a model folder other than GGUF; None if it is not a complete model.

    Args:
        names: its files, as relative paths with `/`.
    """
    there = set(names)
    if "model_index.json" in there:
        weights = _tensors(names)
        folders = {PurePosixPath(name).parent for name in weights}
        parts = {PurePosixPath(name).parent for name in names if name.count("/") == 1 and name.endswith("/config.json")}
        return (ModelFormat.DIFFUSERS, weights) if weights and parts <= folders else None
    if "config.json" not in there:
        return None
    root = [name for name in names if "/" not in name]
    weights = _tensors(names)
    if any("/" not in name for name in weights):
        return ModelFormat.SAFETENSORS, weights
    if "model.bin" in there:
        return ModelFormat.CTRANSLATE2, ("model.bin",)
    if weights := tuple(name for name in root if _PICKLE.fullmatch(name)):
        return ModelFormat.PICKLE, weights
    onnx = _pick_onnx(names, None)
    return (ModelFormat.ONNX, onnx) if onnx else None


def choose(names: Sequence[str], wish: Wish, repo: str, sizes: Mapping[str, int] | None = None) -> Choice:
    """The files to take from a repository.

    Args:
        names: its files.
        wish: which form of the model to take.
        repo: its name, for errors.
        sizes: bytes by file. Without them no file is heavy.

    Raises:
        ModelNotFound: it holds no weights in a form that is served, or none in the form asked for.
        PickleRefused: its only weights are pickle.
    """
    ggufs, found = gguf_models(names), describe(names)
    if ggufs and (wish.gguf or found is None):
        first = _pick_gguf(ggufs, wish.tag, repo)
        return Choice(ggufs[first], entry=first)
    if ggufs and found is not None and wish.light and sizes and _is_lighter(ggufs[best_gguf(ggufs)], found, sizes):
        first = best_gguf(ggufs)
        return Choice(ggufs[first], entry=first)
    if wish.tag is not None:
        raise ModelNotFound(f"{repo} holds no GGUF file.", hint=f"Leave out {wish.tag}, or name a GGUF repository.")
    if found is None or found[0] is ModelFormat.CTRANSLATE2:
        raise ModelNotFound(
            f"{repo} holds no complete GGUF, safetensors or ONNX model.", hint="Name a repository that does."
        )
    kind, weights = found
    if wish.tensors and kind is ModelFormat.ONNX:
        raise ModelNotFound(
            f"{repo} holds ONNX files only, which Transformers does not load.",
            hint="Name a repository with safetensors, or use runtime_type auto.",
        )
    if wish.onnx or kind is ModelFormat.ONNX:
        picked = _pick_onnx(names, wish.dtype)
        if not picked and kind is ModelFormat.ONNX:
            raise ModelNotFound(f"{repo} has no ONNX file in {wish.dtype}.", hint="Leave quantization unset.")
        if picked:
            kind, weights = ModelFormat.ONNX, picked  # if there is none, one is made from the other weights
    if kind is ModelFormat.PICKLE and not wish.pickle:
        raise PickleRefused(f"{repo} holds only pickle weights, which can run code.")
    suffixes = _SIDE_SUFFIXES | {".py"} if wish.python else _SIDE_SUFFIXES
    layered = _layered(names)
    side = [name for name in names if _in_scope(name, layered) and PurePosixPath(name).suffix in suffixes]
    side += [name for name in names if name == "README.md"]  # its head says what the model does
    return Choice((*sorted(side), *weights))


def _is_lighter(gguf: Sequence[str], found: tuple[ModelFormat, Sequence[str]], sizes: Mapping[str, int]) -> bool:
    """Whether the other weights are heavy safetensors, and the GGUF is smaller."""
    heavy = sum(sizes[name] for name in found[1])
    return found[0] is ModelFormat.SAFETENSORS and heavy >= HEAVY and sum(sizes[name] for name in gguf) < heavy


def _pick_gguf(ggufs: dict[str, tuple[str, ...]], tag: str | None, repo: str) -> str:
    if tag is None:
        return best_gguf(ggufs)
    tags = {first: gguf_tag(first) for first in ggufs}
    wanted = same_tag(tag)
    for first in sorted(ggufs, key=lambda first: (len(first), first)):
        if tags[first] == wanted:
            return first
    there = ", ".join(sorted({known for known in tags.values() if known})) or "no file that names its type"
    raise ModelNotFound(f"{repo} has no {wanted} file.", hint=f"It has: {there}.")


def onnx_dtype(name: str) -> str:
    """The type of the weights, by an ONNX file's name: `onnx/model_quantized.onnx` → `int8`."""
    stem = PurePosixPath(name).stem.lower()
    types = ((r"q4|bnb4|int4", "int4"), (r"int8|quantized", "int8"), (r"bf16", "bf16"), (r"fp16|float16|_o4", "fp16"))
    return next((dtype for pattern, dtype in types if re.search(pattern, stem)), "fp32")


def _pick_onnx(names: Sequence[str], dtype: str | None) -> tuple[str, ...]:
    """One ONNX file of a repository: in the type asked for, otherwise the most exact one. Empty if there is none.

    Its external weights come before it, and so do the dense layers of a sentence-transformers pipeline, which are in
    folders of their own.
    """
    models = sorted((name for name in names if name.endswith(".onnx")), key=preference)
    layers = (name for name in _tensors(names) if "/" in name)
    for wanted in PRECISION if dtype is None else (dtype,):
        for model in models:
            if onnx_dtype(model) == wanted:
                data = sorted(name for name in names if name.startswith((f"{model}_data", f"{model}.data")))
                return (*layers, *data, model)
    return ()


def _complete(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of split files that have all their parts. A file that is not split is a group of one."""
    groups: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name in sorted(names):
        split = _SPLIT.search(name)
        groups[(_SPLIT.sub("", name), int(split[2]) if split else 1)].append(name)
    return [tuple(parts) for (_, count), parts in groups.items() if len(parts) == count]


def _layered(names: Iterable[str]) -> bool:
    """Whether it is a pipeline (diffusers, sentence-transformers) with its parts in folders."""
    return any(name in ("model_index.json", "modules.json") for name in names)


def _in_scope(name: str, layered: bool) -> bool:
    folders = PurePosixPath(name).parts[:-1]
    return not folders or (layered and not any(part.startswith(".") or part in _OTHER_ENGINES for part in folders))


def _tensors(names: Sequence[str]) -> tuple[str, ...]:
    """The safetensors files to load: one complete form per folder; empty if there are none."""
    layered = _layered(names)
    folders: dict[PurePosixPath, list[tuple[str, ...]]] = defaultdict(list)
    for parts in _complete([name for name in names if name.endswith(".safetensors") and _in_scope(name, layered)]):
        folders[PurePosixPath(parts[0]).parent].append(parts)
    if "model_index.json" in names and len(folders) > 1:
        folders.pop(PurePosixPath(), None)  # the same pipeline again, as one file
    chosen: list[str] = []
    for groups in folders.values():
        plain = [parts for parts in groups if not _is_variant(parts[0])]
        for parts in plain or groups:
            chosen += parts
    return tuple(sorted(chosen))


def _is_variant(name: str) -> bool:
    """`model.fp16.safetensors` or Mistral's `consolidated.safetensors`: the same weights again."""
    stem = _SPLIT.sub("", PurePosixPath(name).name).removesuffix(".safetensors")
    return bool(re.search(r"\.(?:fp16|bf16|fp32|non_ema|ema)$", stem)) or stem.startswith("consolidated")


# -- the cache on disk ---------------------------------------------------------------------------------------------------


def hub_cache(settings: Settings) -> Path:
    """The hub's cache folder."""
    return settings.hub_cache.expanduser() if settings.hub_cache else Path(constants.HF_HUB_CACHE)


def repo_folder(cache: Path, repo: str) -> Path:
    """Where the cache keeps a model repository."""
    return cache / f"models--{repo.replace('/', '--')}"


def snapshot_folder(folder: Path, revision: str | None) -> Path | None:
    """The cached snapshot of a revision; if unset, that of `main`, or the only one there is."""
    snapshots = folder / "snapshots"
    wanted = revision or constants.DEFAULT_REVISION
    if not safe_name(wanted):
        return None
    commit = wanted
    if not _COMMIT.fullmatch(wanted):
        try:
            commit = (folder / "refs" / wanted).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            only = list(snapshots.iterdir()) if revision is None and snapshots.is_dir() else []
            commit = only[0].name if len(only) == 1 else ""
    return snapshots / commit if _COMMIT.fullmatch(commit) and (snapshots / commit).is_dir() else None


def cached_model(cache: Path, ref: HubRef, revision: str | None, wish: Wish) -> Path | None:
    """The file or folder of a model in the cache. None if it is incomplete or not in the form asked for.

    If the wish is offline, a folder in another form is returned too.
    """
    folder = snapshot_folder(repo_folder(cache, ref.repo), revision)
    if folder is None:
        return None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    ggufs, found = gguf_models(names), describe(names)
    if ggufs and (wish.gguf or found is None):
        try:
            return folder / _pick_gguf(ggufs, wish.tag, ref.repo)
        except ModelNotFound:
            return None
    if found is None or wish.gguf:
        return None
    return folder if wish.offline or _fits(found[0], names, wish) else None


def _fits(kind: ModelFormat, names: Sequence[str], wish: Wish) -> bool:
    """Whether the files have the form asked for, or it can be made from them."""
    if wish.onnx and kind is ModelFormat.SAFETENSORS and wish.dtype in (None, *MADE):
        return True
    if wish.onnx or kind is ModelFormat.ONNX:
        return not wish.tensors and bool(_pick_onnx(names, wish.dtype))
    return True
