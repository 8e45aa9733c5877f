"""Where the benchmarks compute: on the CPU, or where `LOCAL_RUNTIMES_FORCE_DEVICE` says. The raw libraries go there too.

`python -m benchmarks.device` says whether this machine can compute on a CUDA card.
"""

import sys
from functools import lru_cache

from lfx_local_runtimes.runtimes import DeviceType
from lfx_local_runtimes.runtimes.devices import MACHINE, Device, default_dtype, select_device
from lfx_local_runtimes.settings import get_settings


@lru_cache(maxsize=1)
def device() -> Device:
    """The device of both sides.

    Raises:
        DeviceUnavailable: this machine does not have what the setting asks for.
    """
    return select_device(force=get_settings().force_device or DeviceType.CPU)


def dtype() -> str:
    """The floating-point type that is usual there."""
    return default_dtype(device())


def gpu_layers() -> int:
    """How many layers llama.cpp puts on the card: all (-1) or none."""
    return 0 if device().type is DeviceType.CPU else -1


def missing_for_cuda() -> str | None:
    """Why this machine cannot compute on a CUDA card, in a sentence that says what to do; None if it can."""
    if not any(one.type is DeviceType.CUDA for one in MACHINE.accelerators()):
        return "No CUDA card is seen: NVIDIA's driver must be there, and CUDA_VISIBLE_DEVICES must not hide the card."
    import llama_cpp
    import torch

    if not torch.cuda.is_available():
        return f"There is a card, but torch {torch.__version__} does not use it: run `make cuda`."
    if not llama_cpp.llama_supports_gpu_offload():
        return f"There is a card, but llama-cpp-python {llama_cpp.__version__} was built without CUDA: run `make cuda`."
    return None


if __name__ == "__main__":
    if (missing := missing_for_cuda()) is not None:
        sys.exit(missing)
    print(", ".join(one.name for one in MACHINE.accelerators()))
