"""How a Gemma would be loaded: a GGUF file by llama.cpp, other weights by Transformers."""

import re
from dataclasses import replace

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.devices import Device
from lfx_local_runtimes.runtimes.engines.llama_cpp.offer import offer as by_llama_cpp
from lfx_local_runtimes.runtimes.engines.transformers.offer import offer as by_transformers
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import Offer, Terms

_GEMMA = re.compile(r"gemma", re.IGNORECASE)
_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.1, "int4": 0.7}


def offer(config: ModelConfig, info: ModelInfo, device: Device, terms: Terms) -> Offer:
    """The offer of the engine below, with advice about the model's size.

    Raises:
        InvalidInput: the model is no Gemma, or the engine below refuses it.
    """
    if not _GEMMA.match(info.architecture or ""):
        raise InvalidInput(
            f"{info.path.name} is a {info.architecture or 'model of unknown architecture'}, not a Gemma.",
            model_name=config.model_name, hint="Use runtime_type auto.",
        )  # fmt: skip
    below = by_llama_cpp if info.format is ModelFormat.GGUF else by_transformers
    found = below(config, info, device, terms)
    hint = size_hint(info.parameters, found.dtype, device.type)
    return replace(found, warnings=(*found.warnings, hint)) if hint else found


def size_hint(parameters: int | None, dtype: str, device: DeviceType) -> str | None:
    """Advice for a Gemma that is large for where it runs; None if there is nothing to say.

    2B-class models (up to 3 billion parameters) are comfortable on a CPU in bf16, int8 or Q4; 7B-class ones and larger
    need an accelerator, or four bits.
    """
    if parameters is None or device is not DeviceType.CPU or dtype not in _BYTES:
        return None
    needed = parameters * _BYTES[dtype] / 2**30
    if parameters > 3e9 and dtype != "int4":
        return f"A {parameters / 1e9:.0f}B Gemma in {dtype} on the CPU takes {needed:.0f} GiB and is slow: use int4 or a Q4 GGUF."
    if parameters > 1.5e9 and dtype == "fp32":
        return f"A {parameters / 1e9:.0f}B Gemma in fp32 takes {needed:.0f} GiB: int8 or a Q4 GGUF takes a quarter or less."
    return None
