"""Where the benchmarks compute: on the CPU, or where `LOCAL_RUNTIMES_FORCE_DEVICE` says. The raw libraries go there too."""

from functools import lru_cache

from lfx_local_runtimes.runtimes import DeviceType
from lfx_local_runtimes.runtimes.devices import Device, default_dtype, select_device
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
