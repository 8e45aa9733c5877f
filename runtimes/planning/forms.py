"""Which of its forms a model is loaded in, if its folder has several."""

from dataclasses import dataclass

from lfx_local_runtimes.runtimes.config import ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.devices import HEAVY, DeviceProbe, goes_to_cpu
from lfx_local_runtimes.runtimes.formats.info import ModelInfo
from lfx_local_runtimes.settings import Settings


@dataclass(frozen=True, slots=True)
class Form:
    """A model in one of the formats in which its folder has it."""

    info: ModelInfo
    why: str = ""
    """Why this one comes first. Empty if it is the usual one."""


def forms(config: ModelConfig, info: ModelInfo, settings: Settings, probe: DeviceProbe) -> list[Form]:
    """The forms of a model that are worth trying, best first.

    A GGUF file beside safetensors comes first if the model is large and runs on the CPU. Otherwise it is tried if the
    safetensors cannot be loaded. A configuration that names an engine or a type leaves no choice.
    """
    gguf = info.gguf
    if (
        gguf is None
        or config.runtime_type != RuntimeType.AUTO
        or config.quantization is not None
        or gguf.task != info.task
    ):
        return [Form(info)]
    weights = 2 * info.parameters if info.parameters else info.size_bytes
    on_cpu = goes_to_cpu(config.device_type, force=settings.force_device, probe=probe)
    if on_cpu and weights >= HEAVY and gguf.size_bytes < info.size_bytes:
        return [
            Form(gguf, "The model is large for a CPU, so its GGUF file is loaded and not the safetensors."),
            Form(info),
        ]
    return [Form(info), Form(gguf)]
