"""From a configuration and the files to the loads worth trying: engine, device, type, context, memory.

Each plan is one attempt; the next is tried when it fails.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lfx_local_runtimes.errors import (
    DeviceUnavailable,
    InvalidInput,
    InvalidModelFile,
    ModelNotFound,
    PickleRefused,
    RemoteCodeRefused,
)
from lfx_local_runtimes.runtimes.config import AUTO_TASK, DeviceType, ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.devices import CPU, MACHINE, Device, DeviceProbe, default_dtype, select_device
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.inspect import inspect_model
from lfx_local_runtimes.runtimes.formats.memory import estimate_memory
from lfx_local_runtimes.runtimes.formats.onnx import MADE, choose
from lfx_local_runtimes.runtimes.ledger import device_budget
from lfx_local_runtimes.runtimes.rules import Rules
from lfx_local_runtimes.runtimes.tasks import family_of, task_rows
from lfx_local_runtimes.settings import Settings, get_settings

DEFAULT_CONTEXT = 4096
"""Tokens, where neither the configuration nor the model says less."""

_TENSOR_DTYPES = frozenset({"fp32", "fp16", "bf16", "int8", "int4"})

_STATE_BYTES = 256 * 2**20
"""For states that left, at most; no more than the cache they left."""


@dataclass(frozen=True)
class LoadPlan:
    """One way to load a model."""

    info: ModelInfo
    engine: str
    device: Device
    dtype: str
    """fp32, fp16, bf16, int8, int4; for GGUF in llama.cpp the file's own type."""
    context_length: int
    """Tokens."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Estimated bytes per device key."""
    sequences: int = 1
    """Requests computed at once, each with a context of its own."""
    state_bytes: int = 0
    """Host memory for the states of prompts that had to leave the context, part of `memory`."""
    warnings: tuple[str, ...] = ()
    """What the user should know about this choice."""
    task: str = "llm"
    """What the model does."""


def task_of_model(config: ModelConfig, info: ModelInfo | None) -> str:
    """What a model does: as it was registered, or as its files say."""
    if config.model_type != AUTO_TASK:
        return config.model_type
    return info.task if info is not None else "llm"


def plan_loads(
    config: ModelConfig, info: ModelInfo, *, settings: Settings, rules: Rules, probe: DeviceProbe = MACHINE
) -> tuple[LoadPlan, ...]:
    """Every load worth trying, best first: each engine on the device chosen, then on the CPU.

    Raises:
        InvalidModelFile: the files have problems.
        NotAllowed: pickle weights or remote code without permission.
        DeviceUnavailable: the device is forced, or required, and not there.
        InvalidInput: no engine takes these files, or not with these options.
    """
    _refuse(config, info, settings)
    engines = (str(config.runtime_type),) if config.runtime_type != RuntimeType.AUTO else rules.engines_for(info)
    if not engines:
        raise InvalidInput(
            f"No engine serves {info.format.value} files ({info.path.name}).", model_name=config.model_name,
            hint="Use a GGUF or safetensors copy of the model, or name a runtime_type.",
        )  # fmt: skip
    devices, warnings = _devices(config, settings, probe)
    task = task_of_model(config, info)
    context = _context_length(config, info)
    plans: list[LoadPlan] = []
    refusal: InvalidInput | None = None
    for engine in engines:
        for device in devices:
            try:
                files, dtype = _form(config, info, engine, device, probe)
            except InvalidInput as error:
                refusal = refusal or error
                continue
            stored = _reads_as_stored(engine, files)
            loaded = None if stored else dtype
            if family_of(task) == "reading":
                memory = {device.key: _encoder_memory(files, context, loaded)}
                plans.append(LoadPlan(files, engine, device, dtype, context, memory, warnings=warnings, task=task))
                continue
            sequences = _sequences(config, info, context, loaded, device_budget(device, settings, probe))
            estimate = estimate_memory(info, context, dtype=loaded, sequences=sequences, outputs=sequences)
            states = min(_STATE_BYTES, estimate.kv_cache) if stored else 0
            memory = Counter({device.key: estimate.total}) + Counter({CPU.key: states})
            plans.append(LoadPlan(info, engine, device, dtype, context, memory, sequences, states, warnings, task))
    if not plans and refusal is not None:
        raise refusal
    return tuple(sorted(plans, key=lambda plan: not _faster(plan, plans[0])))


def plan_for_engine(config: ModelConfig, engine: str) -> LoadPlan:
    """The first plan for a runtime that is used without a manager; `model_id` is a path.

    Raises:
        ModelNotFound: no such path.
        RuntimeFault: as `plan_loads`.
    """
    path = Path(config.model_id).expanduser()
    if not path.exists():
        raise ModelNotFound(
            f"{config.model_id} is not a path.", model_name=config.model_name,
            hint="A runtime used on its own loads from disk; RuntimeManager also finds hub and packaged models.",
        )  # fmt: skip
    settings = get_settings()
    info = inspect_model(path, config.context_length, thorough=True)
    chosen = config.model_copy(update={"runtime_type": RuntimeType(engine)})
    return plan_loads(chosen, info, settings=settings, rules=Rules.load(settings.rules_file))[0]


def _refuse(config: ModelConfig, info: ModelInfo, settings: Settings) -> None:
    name = config.model_name
    if info.problems:
        raise InvalidModelFile(
            f"{info.path.name} cannot be loaded: {'; '.join(info.problems)}.", model_name=name,
            hint="Fetch the file again, or use another copy of the model.",
        )  # fmt: skip
    onnx = config.runtime_type == RuntimeType.ONNX and info.onnx  # its pickle files are left alone
    if info.format is ModelFormat.PICKLE and not onnx and not settings.allow_pickle:
        raise PickleRefused(f"{info.path.name} holds pickle weights, which can run code.", model_name=name)
    if info.format is ModelFormat.ONNX and config.runtime_type == RuntimeType.TRANSFORMERS:
        raise InvalidInput(
            f"{info.path.name} holds ONNX files only, which Transformers does not load.", model_name=name,
            hint="Use a safetensors copy of the model, or runtime_type auto.",
        )  # fmt: skip
    if config.trust_remote_code and not settings.trust_remote_code:
        raise RemoteCodeRefused(f"{name} asks to run code that came with it.", model_name=name)


def _devices(config: ModelConfig, settings: Settings, probe: DeviceProbe) -> tuple[list[Device], tuple[str, ...]]:
    """The devices to try in order, and what to tell the user about them."""
    warnings: tuple[str, ...] = ()
    try:
        device = select_device(config.device_type, force=settings.force_device, probe=probe)
    except DeviceUnavailable as error:
        if settings.force_device or config.requires_accelerator:
            error.model_name = config.model_name
            raise
        device, warnings = CPU, (f"{config.device_type.value} is not there: running on the CPU.",)
    if device.type is DeviceType.CPU:
        if config.requires_accelerator:
            raise DeviceUnavailable(
                f"{config.model_name} is marked as needing an accelerator, and this machine offers none.",
                model_name=config.model_name, hint="Unset requires_accelerator to run it on the CPU.",
            )  # fmt: skip
        return [CPU], warnings
    if settings.force_device or config.requires_accelerator:
        return [device], warnings
    return [device, CPU], warnings


def _context_length(config: ModelConfig, info: ModelInfo) -> int:
    trained = info.context_length
    if config.context_length is None:
        return min(DEFAULT_CONTEXT, trained or DEFAULT_CONTEXT)
    if trained is not None and config.context_length > trained:
        raise InvalidInput(
            f"context_length {config.context_length:,} is more than the {trained:,} tokens the model was trained for.",
            model_name=config.model_name, hint=f"Ask for {trained:,} or less.",
        )  # fmt: skip
    return config.context_length


def _sequences(config: ModelConfig, info: ModelInfo, context: int, dtype: str | None, budget: int) -> int:
    """How many requests are computed at once where nobody says: up to 8, as long as their caches take no more memory
    than the weights, or a GiB, and the whole takes no more than half of the device's budget."""
    if config.parallel is not None:
        return config.parallel
    for count in (8, 4, 2):
        estimate = estimate_memory(info, context, dtype=dtype, sequences=count)
        if estimate.kv_cache <= max(estimate.weights, 2**30) and estimate.total <= budget // 2:
            return count
    return 1


def _encoder_memory(info: ModelInfo, context: int, dtype: str | None) -> int:
    """Nothing is kept between two batches; llama.cpp makes room for the logits of every token of its longest text."""
    if info.format is ModelFormat.GGUF and dtype is None:
        longest = max(512, context)
        return estimate_memory(info, context, sequences=1, batch=longest, outputs=longest).total
    return estimate_memory(info, context, dtype=dtype, sequences=0, outputs=0).total


def _reads_as_stored(engine: str, info: ModelInfo) -> bool:
    return info.format is ModelFormat.ONNX or (info.format is ModelFormat.GGUF and engine != RuntimeType.TRANSFORMERS)


def _faster(plan: LoadPlan, first: LoadPlan) -> bool:
    """In the same type on the CPU, ONNX Runtime goes before torch (`python -m benchmarks encoders`)."""
    same = plan.dtype == first.dtype and plan.device == first.device == CPU
    return same and plan.engine == RuntimeType.ONNX and plan.info.format is ModelFormat.ONNX


def _form(
    config: ModelConfig, info: ModelInfo, engine: str, device: Device, probe: DeviceProbe
) -> tuple[ModelInfo, str]:
    """The files an engine loads, and the type they are loaded in.

    Raises:
        InvalidInput: it has nothing that fits what is asked for.
    """
    task = task_of_model(config, info)
    if engine == RuntimeType.ONNX:
        return _onnx_form(config, info, task)
    if task == "rerank" and config.quantization is None and not _reads_as_stored(engine, info):
        return info, "fp32"  # in bf16 one logit in a narrow range ties documents that differ
    return info, _dtype(config, info, engine, device, probe)


def _onnx_form(config: ModelConfig, info: ModelInfo, task: str) -> tuple[ModelInfo, str]:
    """The ONNX file that a model comes with, or the model that one is to be made from, which has to be asked for."""
    name, wanted = config.model_name, config.quantization
    if family_of(task) != "reading":
        served = ", ".join(name for name, row in task_rows().items() if row.family == "reading")
        raise InvalidInput(
            f"ONNX Runtime serves {served} here; {info.path.name} is {task}.", model_name=name,
            hint="Use a GGUF or safetensors copy of the model, and runtime_type auto.",
        )  # fmt: skip
    header = choose(info.onnx, wanted)
    if header is not None:
        size = sum(file.stat().st_size for file in header.files)
        carried = replace(
            info, format=ModelFormat.ONNX, files=header.files, size_bytes=size, parameters=header.parameters,
            weight_bytes=header.weight_bytes, quantization=header.dtype,
        )  # fmt: skip
        return carried, header.dtype
    if info.format is ModelFormat.ONNX or config.runtime_type != RuntimeType.ONNX:
        there = ", ".join(sorted({one.dtype for one in info.onnx})) or "none"
        raise InvalidInput(
            f"{info.path.name} has no ONNX file in {wanted or 'any type'}; it has {there}.", model_name=name,
            hint="Ask for one of those, or leave quantization unset.",
        )  # fmt: skip
    if info.format is not ModelFormat.SAFETENSORS or wanted not in (None, *MADE):
        raise InvalidInput(
            f"No ONNX file in {wanted or 'fp32'} can be made from {info.path.name} ({info.format.value}).",
            model_name=name, hint="fp32 and int8 are made, from safetensors.",
        )  # fmt: skip
    return info, wanted or "fp32"


def _dtype(config: ModelConfig, info: ModelInfo, engine: str, device: Device, probe: DeviceProbe) -> str:
    wanted = config.quantization
    if _reads_as_stored(engine, info):
        stored = info.quantization or "gguf"
        if wanted is not None and wanted.lower() != stored.lower():
            raise InvalidInput(
                f"quantization {wanted} does not apply: {info.path.name} is stored as {stored}.",
                model_name=config.model_name, hint="Leave quantization unset, or use the Transformers engine.",
            )  # fmt: skip
        return stored
    if wanted is None:
        return default_dtype(device, probe)
    if wanted not in _TENSOR_DTYPES:
        if info.format is ModelFormat.GGUF and wanted.lower() == (info.quantization or "").lower():
            return default_dtype(device, probe)  # it chose the file; Transformers computes in floating point
        raise InvalidInput(
            f"quantization {wanted} is a GGUF type; {info.path.name} is loaded by {engine}.",
            model_name=config.model_name, hint=f"Use one of {', '.join(sorted(_TENSOR_DTYPES))}.",
        )  # fmt: skip
    return wanted
