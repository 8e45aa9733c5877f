"""From a model's files to a model in Transformers: what is trusted, which type, where."""

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import (
    DeviceFailed,
    DoesNotFit,
    LoadFailed,
    MissingExtra,
    PickleRefused,
    RemoteCodeRefused,
    RuntimeFault,
)
from lfx_local_runtimes.optional import require
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.config import DeviceType
from lfx_local_runtimes.runtimes.devices import CPU, device_of
from lfx_local_runtimes.runtimes.engines.hf_tokenizer import read_tokenizer
from lfx_local_runtimes.runtimes.engines.transformers.offer import sizes_of
from lfx_local_runtimes.runtimes.engines.transformers.token_text import bytes_of_tokens, silent_tokens
from lfx_local_runtimes.runtimes.formats.info import ModelFormat
from lfx_local_runtimes.runtimes.planning import LoadPlan, estimate_memory
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.trust.report import PICKLE, REMOTE_CODE

_EXTRA = "transformers"
_CHATTY = ("transformers", "accelerate", "torchao", "bitsandbytes", "torch.utils._pytree")
TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "bfloat16", "int4": "bfloat16"}
"""What a model computes in, as torch calls it; the quantized types in bf16, which also halves what stays unquantized."""
_ENDS_OF_TURN = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>")
_loading = threading.Lock()
"""Transformers sets process-wide state (torch's default type, say) while it loads: one load at a time."""


@dataclass
class Loaded:
    """A model ready to generate, on the thread that made it."""

    model: Any
    tokenizer: Any
    compute_dtype: str
    """fp32, fp16 or bf16."""
    end_ids: frozenset[int]
    """The tokens that end an answer."""
    silent: frozenset[int]
    """The special tokens, which are left out of text."""
    piece: Callable[[int], bytes]
    """Tells the bytes a token stands for."""

    def tokenize(self, text: str) -> list[int]:
        """Text inside of an answer: nothing is put around it."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def text(self, tokens: list[int]) -> str:
        """What tokens read as, special ones included."""
        return str(self.tokenizer.decode(tokens))


@lru_cache(maxsize=1)
def libraries() -> tuple[Any, Any]:
    """(torch, transformers), imported once and kept quiet below errors.

    Raises:
        MissingExtra: one of them is not installed.
    """
    torch, transformers = require("torch", _EXTRA), require("transformers", _EXTRA)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    return torch, transformers


def warm() -> None:
    """Import ahead what a load imports: Transformers imports its parts when they are first named.

    One model class brings nearly all that the others import too.
    """
    _, transformers = libraries()
    for name in ("AutoTokenizer", "AutoModelForCausalLM", "LlamaForCausalLM"):
        getattr(transformers, name)


def load(plan: LoadPlan, context: LoadContext) -> Loaded:
    """Bring a model into memory as planned.

    Raises:
        NotAllowed: pickle weights or remote code without permission.
        DoesNotFit: it ran out of memory.
        LoadFailed: cancelled, or weights are missing.
        MissingExtra: a library is not installed.
    """
    torch, transformers = libraries()
    with progress_events(context, plan.info.size_bytes), faults(plan):
        if plan.info.format is ModelFormat.GGUF:
            model, tokenizer, missing = _from_gguf(torch, transformers, plan)
        else:
            model, tokenizer, missing = _from_folder("AutoModelForCausalLM", plan, context)
    _check_complete(plan, missing)
    end_ids = _end_ids(model, tokenizer)
    model.generation_config = transformers.GenerationConfig()  # the file's would change what our options mean
    compute = next(ours for ours, theirs in TORCH_DTYPES.items() if model.dtype == getattr(torch, theirs))
    return Loaded(model, tokenizer, compute, end_ids, silent_tokens(tokenizer), bytes_of_tokens(tokenizer))


def load_encoder(auto: str, plan: LoadPlan, context: LoadContext) -> tuple[Any, Any]:
    """The same for a model that reads: the model, by one of Transformers' `auto` classes, and its tokenizer.

    Raises:
        RuntimeFault: as `load`.
    """
    with progress_events(context, plan.info.size_bytes), faults(plan):
        model, tokenizer, missing = _from_folder(auto, plan, context)
    _check_complete(plan, [name for name in missing if "pooler." not in name])  # BERT's own pooler is not used
    return model.eval(), tokenizer


def load_sight(auto: str, plan: LoadPlan, context: LoadContext) -> tuple[Any, Any]:
    """The same for a model that sees: the model, and its image processor.

    Raises:
        RuntimeFault: as `load`.
    """
    with progress_events(context, plan.info.size_bytes), faults(plan):
        model, processor, missing = _from_folder(auto, plan, context, read_processor)
    _check_complete(plan, missing)
    return model.eval(), processor


def read_processor(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The image processor that lies in a folder, in its form for Pillow. Torchvision is not needed.

    Raises:
        LoadFailed: there is none.
        MissingExtra: Pillow is not installed.
    """
    require("PIL.Image", "vision")
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise LoadFailed(f"{folder.name} has no image processor.", hint="Fetch preprocessor_config.json too.")
    _, transformers = libraries()
    return transformers.AutoImageProcessor.from_pretrained(
        str(folder), backend="pil", local_files_only=True, trust_remote_code=trust_remote_code
    )


def _check_complete(plan: LoadPlan, missing: Collection[str]) -> None:
    if missing:
        names = ", ".join(sorted(missing)[:3])
        raise LoadFailed(f"{plan.info.path.name} lacks {len(missing)} of the model's weights: {names} …")


# -- reading ---------------------------------------------------------------------------------------------------------


def _from_folder(
    auto: str, plan: LoadPlan, context: LoadContext, read_beside: Callable[..., Any] = read_tokenizer
) -> tuple[Any, Any, Collection[str]]:
    """The model, what lies beside it (its tokenizer), and the names of missing weights."""
    torch, transformers = libraries()
    trust = context.may_run(REMOTE_CODE)
    path = plan.info.path
    folder = str(plan.info.folder)
    local = {"local_files_only": True, "trust_remote_code": trust}
    config = transformers.AutoConfig.from_pretrained(folder, **local)
    config._attn_implementation = config._experts_implementation = None  # a file may name code on the hub here
    weights = getattr(config, "transformers_weights", None)
    if weights is not None and not str(weights).removesuffix(".index.json").endswith(".safetensors"):
        raise PickleRefused(f"{path.name} names {weights} as its weights.")
    beside = read_beside(plan.info.folder, trust_remote_code=trust)
    pickle = plan.info.format is ModelFormat.PICKLE and context.may_run(PICKLE)
    model, report = getattr(transformers, auto).from_pretrained(
        folder,
        config=config,
        dtype=getattr(torch, TORCH_DTYPES[plan.dtype]),
        **places(plan),
        use_safetensors=not pickle,
        quantization_config=_quantization(torch, transformers, plan),
        output_loading_info=True,
        **local,
    )
    return model, beside, report["missing_keys"]


def places(plan: LoadPlan) -> dict[str, Any]:
    """Where the weights go, as `from_pretrained` takes it: all to one device, or the layers to several as planned.

    The library fills the devices in order. It keeps room on the first card, to copy parts to that are on the CPU. Each device
    gets half a layer more, because the planned size of a layer is a mean. What is left goes to the last device.
    """
    if not plan.layers:
        return {"device_map": {"": plan.device.key}}
    layer, ends, spare = sizes_of(plan.info, plan.dtype)
    rooms = {key: count * layer + layer // 2 for key, count in plan.layers.items()}
    rooms[next(iter(rooms))] += ends + spare
    rooms[list(rooms)[-1]] = 2 * estimate_memory(plan.info, dtype=plan.dtype).weights
    names = {"cpu" if key == CPU.key else device_of(key).index: room for key, room in rooms.items()}
    return {"device_map": "sequential", "max_memory": names}


def _from_gguf(torch: Any, transformers: Any, plan: LoadPlan) -> tuple[Any, Any, Collection[str]]:
    file = plan.info.files[0] if plan.info.files else plan.info.path
    return read_gguf(file, getattr(torch, TORCH_DTYPES[plan.dtype]), plan.device.key)


def read_gguf(file: Path, dtype: Any, device: str) -> tuple[Any, Any, Collection[str]]:
    """Model, tokenizer and names of missing weights of a GGUF file, its weights unpacked to `dtype` (a torch type).

    Slow, about 40 seconds for a vocabulary of 262,144: a fallback, and what `convert` does once.
    """
    _, transformers = libraries()
    source = {"gguf_file": file.name, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), **source)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        dtype=dtype,
        device_map={"": device},
        quantization_config=transformers.GgufConfig(dequantize=True),
        output_loading_info=True,
        **source,
    )
    return model, tokenizer, report["missing_keys"]


def _quantization(torch: Any, transformers: Any, plan: LoadPlan) -> Any:
    """How the linear layers are quantized while they are read; None when they are not."""
    if plan.dtype == "int8":
        return transformers.TorchAoConfig(require("torchao.quantization", _EXTRA).Int8WeightOnlyConfig())
    if plan.dtype == "int4":
        require("bitsandbytes", _EXTRA)
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return None


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """What the tokenizer, the generation config and the known families end an answer with."""
    ids: set[int] = set()
    for source in (tokenizer, model.generation_config, model.config):
        named = getattr(source, "eos_token_id", None)
        ids.update(named if isinstance(named, (list, tuple)) else [] if named is None else [named])
    for token in _ENDS_OF_TURN:
        known = tokenizer.convert_tokens_to_ids(token)
        if isinstance(known, int) and tokenizer.convert_ids_to_tokens(known) == token:
            ids.add(known)
    return frozenset(ids)


# -- surroundings ----------------------------------------------------------------------------------------------------


def _stop_if_cancelled(context: LoadContext) -> None:
    if context.cancelled:
        raise LoadFailed("The load was cancelled.")


@contextlib.contextmanager
def faults(plan: LoadPlan) -> Iterator[None]:
    """Translate what torch and Transformers raise; what has no fault of its own passes."""
    torch, _ = libraries()
    try:
        yield
    except RuntimeFault:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(plan) from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):
            raise _too_large(plan) from error
        if plan.device.type is not DeviceType.CPU and _is_of_device(torch, error):
            raise DeviceFailed(f"{plan.device.key} failed: {str(error).splitlines()[0]}.") from error
        raise
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise RemoteCodeRefused(f"{plan.info.path.name} brings code of its own.") from error
        raise
    except ImportError as error:
        raise MissingExtra(
            f"{plan.info.path.name} needs a library that is not here: {error}",
            hint=f"Run: pip install 'lfx-local-runtimes[{_EXTRA}]'",
        ) from error


def _is_of_device(torch: Any, error: RuntimeError) -> bool:
    """Whether the driver of an accelerator reports it. Nothing can be computed there by this process any more."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)


def _too_large(plan: LoadPlan) -> DoesNotFit:
    return DoesNotFit(
        f"{plan.device.key} ran out of memory.",
        hint=f"Try int8 or int4, a context shorter than {plan.context_length:,} tokens, or unload other models.",
    )


class _Bar:
    """Stands in for a tqdm bar over what is loaded: silent, reporting, and the place where a cancel lands."""

    def __init__(self, items: Iterable[Any], step: Callable[[int, int], None]) -> None:
        self._items, self._step = items, step

    def __iter__(self) -> Iterator[Any]:
        items = list(self._items)
        for done, item in enumerate(items):
            self._step(done, len(items))
            yield item


@contextlib.contextmanager
def progress_events(context: LoadContext, size: int) -> Iterator[None]:
    """Take the turn to load, and turn this thread's progress bars into `Progress` events of `size` bytes in all.

    Raises:
        LoadFailed: cancelled.
    """
    _, transformers = libraries()
    from transformers import modeling_gguf_pytorch_utils as gguf_loader  # it draws its bar without the hook

    thread = threading.get_ident()

    def step(done: int, total: int) -> None:
        _stop_if_cancelled(context)
        context.report(Progress("load", size * done // total, size))

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if threading.get_ident() == thread and args:
            return _Bar(args[0], step)
        return factory(*args, **options) if previous is None else previous(factory, args, options)

    _stop_if_cancelled(context)
    while not _loading.acquire(timeout=0.1):
        _stop_if_cancelled(context)
    previous, own_bar = transformers.utils.logging.set_tqdm_hook(hook), gguf_loader.tqdm
    gguf_loader.tqdm = lambda *args, **options: hook(own_bar, args, options)
    try:
        yield
    finally:
        transformers.utils.logging.set_tqdm_hook(previous)
        gguf_loader.tqdm = own_bar
        _loading.release()
    context.report(Progress("load", size, size))
