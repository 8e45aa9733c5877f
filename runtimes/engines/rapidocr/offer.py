"""How RapidOCR would load a model: its three files as they are, on the CPU."""

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.devices import Device
from lfx_local_runtimes.runtimes.formats.info import ModelInfo
from lfx_local_runtimes.runtimes.formats.pp_ocr import ARCHITECTURE
from lfx_local_runtimes.runtimes.planning import Offer, Terms
from lfx_local_runtimes.runtimes.planning.offers import stored_type

PER_WEIGHT_BYTE = 2.0
"""ONNX Runtime keeps a copy of the weights that suits the processor."""
PAGE_BYTES = 650 * 2**20
"""What the largest page takes while it is recognised: a picture of 2,000 by 2,000 pixels, and what is computed of it."""


def offer(config: ModelConfig, info: ModelInfo, device: Device, terms: Terms) -> Offer:
    """The files as they are stored.

    Raises:
        InvalidInput: the model is no PP-OCR model, or another type is asked for.
    """
    if info.architecture != ARCHITECTURE:
        raise InvalidInput(
            f"{info.path.name} is not a PP-OCR model.", model_name=config.model_name,
            hint="Give a folder with the ONNX files of its detector and its recogniser.",
        )  # fmt: skip
    size = int(PER_WEIGHT_BYTE * (info.weight_bytes or 0)) + PAGE_BYTES
    return Offer(info, stored_type(config, info), {device.key: size}, context_length=terms.context_length)
