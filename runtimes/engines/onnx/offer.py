"""How ONNX Runtime would load a model: the ONNX file it comes with, or one that is made from its safetensors."""

from dataclasses import replace

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.config import ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.devices import CPU, Device
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.onnx import MADE, OnnxHeader, choose
from lfx_local_runtimes.runtimes.planning import Offer, Terms
from lfx_local_runtimes.runtimes.planning.offers import sized_offer
from lfx_local_runtimes.runtimes.tasks import family_of


def offer(config: ModelConfig, info: ModelInfo, device: Device, terms: Terms) -> Offer:
    """The file that fits best. A file is made only if the configuration names this engine.

    Raises:
        InvalidInput: the model writes text, no file has the type asked for, or none can be made.
    """
    name, wanted = config.model_name, config.quantization
    if family_of(terms.task) != "reading":
        raise InvalidInput(
            f"ONNX Runtime serves encoders only, and the task of {info.path.name} is {terms.task}.", model_name=name,
            hint="Use a GGUF or safetensors copy of the model, and runtime_type auto.",
        )  # fmt: skip
    header = choose(info.onnx, wanted)
    if header is not None:
        found = sized_offer(config, with_file(info, header), device, terms, header.dtype)
        # In the same type on the CPU it is faster than torch (`python -m benchmarks encoders`).
        return replace(found, speed=1 if device == CPU else 0)
    if info.format is ModelFormat.ONNX or config.runtime_type != RuntimeType.ONNX:
        there = ", ".join(sorted({one.dtype for one in info.onnx})) or "none"
        raise InvalidInput(
            f"{info.path.name} has no ONNX file in {wanted or 'any type'}; it has {there}.", model_name=name,
            hint="Ask for one of those, or leave quantization unset.",
        )  # fmt: skip
    if info.format is not ModelFormat.SAFETENSORS or wanted not in (None, *MADE):
        raise InvalidInput(
            f"No ONNX file in {wanted or 'fp32'} can be made from {info.path.name} ({info.format.value}).",
            model_name=name, hint="Files in fp32 and int8 can be made, from safetensors.",
        )  # fmt: skip
    dtype = wanted or "fp32"
    return sized_offer(config, info, device, terms, dtype, loaded=dtype)


def with_file(info: ModelInfo, header: OnnxHeader) -> ModelInfo:
    """The model with an ONNX file as what is loaded."""
    size = sum(file.stat().st_size for file in header.files)
    return replace(
        info, format=ModelFormat.ONNX, files=header.files, size_bytes=size, parameters=header.parameters,
        weight_bytes=header.weight_bytes, quantization=header.dtype,
    )  # fmt: skip
