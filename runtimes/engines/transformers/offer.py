"""How Transformers would load a model: its weights, turned into the type asked for or the device's usual one."""

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.devices import Device
from lfx_local_runtimes.runtimes.engines.transformers.known import check_readable
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import Offer, Terms
from lfx_local_runtimes.runtimes.planning.offers import sized_offer, tensor_type


def offer(config: ModelConfig, info: ModelInfo, device: Device, terms: Terms) -> Offer:
    """The weights in a tensor type. GGUF weights are unpacked for it.

    Raises:
        InvalidInput: the model has ONNX files only, the configuration asks for a type that only GGUF files have, or
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
    return sized_offer(config, info, device, terms, dtype, loaded=dtype)
