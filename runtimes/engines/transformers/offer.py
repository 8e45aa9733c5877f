"""How Transformers would load a model: its weights, turned into the type asked for or the device's usual one."""

import math
import re
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.optional import require_installed
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.devices import CPU, Device
from lfx_local_runtimes.runtimes.engines.transformers.known import check_readable
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import Offer, Terms, estimate_memory
from lfx_local_runtimes.runtimes.planning.division import fill, in_words
from lfx_local_runtimes.runtimes.planning.estimates import BYTES_PER_WEIGHT
from lfx_local_runtimes.runtimes.planning.offers import sized_offer, tensor_type
from lfx_local_runtimes.runtimes.tasks import family_of

CHUNK = 256
"""Tokens evaluated in one step: prompts longer than what running answers leave of it take several."""

KEPT_PICTURES = 64 * 2**20
"""Bytes of pictures that a vision-language model keeps, so that the next turn does not encode them again."""

_WORDS = 40 * 2**20
"""Host memory that a model of words takes beside its weights: the tokenizer and its libraries. Measured with MiniLM."""

_BATCHING = 300 * 2**20
"""Host memory that a text model takes beside weights and cache: the first forward passes, grammars, the tokenizer. Measured
with Gemma 3 270M in bf16."""


def offer(config: ModelConfig, info: ModelInfo, device: Device, terms: Terms) -> Offer:
    """The weights in a tensor type. GGUF weights are unpacked for it.

    Raises:
        InvalidInput: the model has ONNX files only, the type does not work for this model, format or device, or
            Transformers does not know the architecture or the stored quantization, or its layers do not fit on the devices
            over which they are to be divided.
        RemoteCodeRefused: only code that comes with the model knows its architecture, and it may not run.
        MissingExtra: the model takes pictures, and Pillow is not installed.
    """
    if info.format is ModelFormat.ONNX:
        raise InvalidInput(
            f"Transformers does not load ONNX files, and {info.path.name} holds no others.",
            model_name=config.model_name, hint="Use a safetensors copy of the model, or runtime_type auto.",
        )  # fmt: skip
    if info.format is not ModelFormat.GGUF:
        check_readable(config, info)
    if info.vision or family_of(terms.task) in ("seeing", "describing"):
        require_installed("PIL", "vision")
    dtype = tensor_type(config, info, device, terms)
    _check_type(dtype, config, info, device)
    if family_of(terms.task) == "seeing" and dtype in ("int8", "int4"):
        raise InvalidInput(
            f"A model for pictures is not quantized to {dtype}.", model_name=config.model_name,
            hint="Use fp32, fp16 or bf16.",
        )  # fmt: skip
    found = sized_offer(config, info, device, terms, dtype, loaded=dtype)
    if family_of(terms.task) == "seeing":
        return found
    found = replace(found, memory=Counter(found.memory) + Counter({CPU.key: _WORDS}))
    if family_of(terms.task) == "reading":
        return found
    if family_of(terms.task) == "describing":
        return replace(found, sequences=1)
    if terms.rooms:
        return _divided(found, config, dtype, terms)
    memory = Counter(found.memory) + Counter({device.key: _masks(found, dtype), CPU.key: _BATCHING})
    memory[device.key] += KEPT_PICTURES if info.vision else 0
    return replace(found, memory=memory)


def _divided(offer: Offer, config: ModelConfig, dtype: str, terms: Terms) -> Offer:
    """The same with the layers on several devices, one request at a time.

    The embeddings and the first layers go to the first card, and the last ones to the last device. Layers on the CPU are
    copied to the first card when they are computed. So each card has room for the cache, and the first one also for a part that is copied.
    """
    info = offer.files
    if dtype in ("int8", "int4") or info.format is ModelFormat.GGUF:
        raise InvalidInput(
            f"Transformers does not divide {info.path.name} in {dtype} over several devices.", model_name=config.model_name,
            hint="Leave quantization unset.",
        )  # fmt: skip
    estimate = estimate_memory(info, offer.context_length, dtype=dtype)
    layer, ends, spare = sizes_of(info, dtype)
    beside = estimate.kv_cache + estimate.compute
    first = next(iter(terms.rooms))
    taken = {key: 0 if key == CPU.key else beside + (ends + spare if key == first else 0) for key in terms.rooms}
    count = len(info.layers)
    placed = fill([layer] * count + [ends], {key: room - taken[key] for key, room in terms.rooms.items()}) or {}
    if not count or len(placed.get(first, ())) == 0:
        raise InvalidInput(
            f"The layers of {info.path.name} do not fit on {' and '.join(terms.rooms)}.", model_name=config.model_name,
            hint="Use a smaller quantization, or a shorter context_length.",
        )  # fmt: skip
    counts = {key: len(those) for key, those in placed.items()}
    counts[list(counts)[-1]] -= 1  # the output is no layer
    counts = {key: number for key, number in counts.items() if number}
    memory = Counter({key: sum(those) + taken[key] for key, those in placed.items()}) + Counter({CPU.key: _BATCHING})
    told = in_words(counts)
    return replace(offer, memory=memory, layers=counts, sequences=1, warnings=(*offer.warnings, told))


class Sizes(NamedTuple):
    """Bytes of a model's parts. Its layers count as alike."""

    layer: int
    ends: int
    """The embeddings; the output is as large."""
    spare: int
    """What the library keeps free on the first card to copy parts to that are on the CPU: the largest part."""


def sizes_of(info: ModelInfo, dtype: str) -> Sizes:
    """The sizes in a type."""
    ends = int((info.vocabulary or 0) * (info.embedding_length or 0) * BYTES_PER_WEIGHT[dtype])
    tied = bool(info.metadata.get("tie_word_embeddings", True))
    weights = estimate_memory(info, dtype=dtype).weights
    layer = max(0, weights - (1 if tied else 2) * ends) // max(1, len(info.layers))
    return Sizes(layer, ends, layer if tied else max(layer, ends))


def _masks(offer: Offer, dtype: str) -> int:
    """Bytes of the attention masks of batching: a row for each token of a step, as wide as the whole paged cache.

    The library divides the layers into groups of equal size, each of one kind (sliding or full), and has a mask for each
    kind. All groups share the cache, so it has as many cells as the layers of one group would fill.
    """
    layers = offer.files.layers
    kinds = Counter(bool(layer.window) for layer in layers)
    if not kinds:
        return 0
    context = offer.context_length
    cache = estimate_memory(offer.files, context, dtype=dtype, sequences=offer.sequences, kv_bytes=1).kv_cache
    cell = math.gcd(*kinds.values()) * max((one.key_length + one.value_length) * one.kv_heads for one in layers)
    number = 4 if dtype == "fp32" else 2
    return len(kinds) * CHUNK * number * cache // cell


def _check_type(dtype: str, config: ModelConfig, info: ModelInfo, device: Device) -> None:
    """Raises InvalidInput for a type that would not work, before anything is read."""
    name = info.path.name
    if dtype == "fp16" and re.match("gemma", info.architecture or "", re.IGNORECASE):
        raise InvalidInput(
            f"{name} is a Gemma, which overflows in fp16.", model_name=config.model_name,
            hint="Use bf16, fp32, int8 or int4.",
        )  # fmt: skip
    if dtype not in ("int8", "int4"):
        return
    if info.format is ModelFormat.GGUF:
        raise InvalidInput(
            f"Transformers does not quantize a GGUF file to {dtype}.", model_name=config.model_name,
            hint=f"Leave quantization unset, or convert it first: lfx-local-runtimes convert {name}",
        )  # fmt: skip
    if info.metadata.get("quantization_config"):
        raise InvalidInput(
            f"{name} is quantized already; {dtype} does not apply.", model_name=config.model_name,
            hint="Leave quantization unset.",
        )  # fmt: skip
    if device.type is DeviceType.MPS:
        raise InvalidInput(
            f"{dtype} does not run on {device.key}.", model_name=config.model_name,
            hint="Use fp32, fp16 or bf16, or the CPU.",
        )  # fmt: skip
