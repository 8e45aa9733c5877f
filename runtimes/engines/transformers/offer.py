"""How Transformers would load a model: its weights, turned into the type asked for or the device's usual one."""

import math
import re
from collections import Counter
from dataclasses import replace

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.devices import CPU, Device
from lfx_local_runtimes.runtimes.engines.transformers.known import check_readable
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import Offer, Terms, estimate_memory
from lfx_local_runtimes.runtimes.planning.offers import sized_offer, tensor_type
from lfx_local_runtimes.runtimes.tasks import family_of

CHUNK = 256
"""Tokens evaluated in one step: prompts longer than what running answers leave of it take several."""

_BATCHING = 300 * 2**20
"""Host memory that a text model takes beside weights and cache: the first forward passes, grammars, the tokenizer. Measured
with Gemma 3 270M in bf16."""


def offer(config: ModelConfig, info: ModelInfo, device: Device, terms: Terms) -> Offer:
    """The weights in a tensor type. GGUF weights are unpacked for it.

    Raises:
        InvalidInput: the model has ONNX files only, the type does not work for this model, format or device, or
            Transformers does not know the architecture or the stored quantization.
        RemoteCodeRefused: only code that comes with the model knows its architecture, and it may not run.
    """
    if info.format is ModelFormat.ONNX:
        raise InvalidInput(
            f"Transformers does not load ONNX files, and {info.path.name} holds no others.",
            model_name=config.model_name, hint="Use a safetensors copy of the model, or runtime_type auto.",
        )  # fmt: skip
    if info.format is not ModelFormat.GGUF:
        check_readable(config, info)
    dtype = tensor_type(config, info, device, terms)
    _check_type(dtype, config, info, device)
    found = sized_offer(config, info, device, terms, dtype, loaded=dtype)
    if family_of(terms.task) == "reading":
        return found
    memory = Counter(found.memory) + Counter({device.key: _masks(found, dtype), CPU.key: _BATCHING})
    return replace(found, memory=memory)


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
