"""What each engine offers for a model, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import DeviceUnavailable, InvalidInput
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.devices import CPU, Device, Memory
from lfx_local_runtimes.runtimes.engines.gemma import size_hint
from lfx_local_runtimes.runtimes.engines.registry import engine_row
from lfx_local_runtimes.runtimes.engines.transformers.offer import KEPT_PICTURES
from lfx_local_runtimes.runtimes.formats.info import AttentionLayer, ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.onnx import OnnxHeader
from lfx_local_runtimes.runtimes.planning import LoadPlan, Offer, Rules, Terms, default_offer, plan_loads
from lfx_local_runtimes.settings import Settings

MAC = Device(DeviceType.MPS)
CARD = Device(DeviceType.CUDA)


class Machine:
    def __init__(self, *accelerators: Device) -> None:
        self._accelerators = accelerators

    def accelerators(self) -> tuple[Device, ...]:
        return self._accelerators

    def memory(self, device: Device) -> Memory:
        return Memory(2**34, 2**34)

    def cpu_has_bf16(self) -> bool:
        return True


def info(kind: ModelFormat = ModelFormat.GGUF, **facts: Any) -> ModelInfo:
    known: dict[str, Any] = {
        "context_length": 8192, "quantization": "Q4_K_M", "architecture": "gemma3", "parameters": 1000, **facts,
    }  # fmt: skip
    return ModelInfo(Path("model"), kind, (Path("model"),), 1000, **known)


def header(folder: Path, dtype: str = "fp32") -> OnnxHeader:
    file = folder / f"{dtype}.onnx"
    file.write_bytes(bytes(100))
    return OnnxHeader(file, dtype, 25, 100, (file,), (), ())


def offer(engine: str, model: ModelInfo, task: str = "llm", *, device: Device = CPU, **config: Any) -> Offer:
    wanted = ModelConfig.model_validate({"model_id": "m", "model_name": "m", "runtime_type": engine, **config})
    return engine_row(engine).make_offer(wanted, model, device, Terms(engine, task, 4096, 2**33, Machine()))


# -- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "model", "config", "reason"),
    [
        (
            "llama_cpp",
            info(ModelFormat.SAFETENSORS),
            {},
            "llama.cpp loads GGUF files only, and model holds safetensors",
        ),
        ("llama_cpp", info(), {"quantization": "int8"}, "model is stored as Q4_K_M"),
        (
            "transformers",
            info(ModelFormat.ONNX),
            {},
            "Transformers does not load ONNX files, and model holds no others",
        ),
        ("transformers", info(ModelFormat.SAFETENSORS), {"quantization": "Q4_K_M"}, "Q4_K_M is a GGUF type"),
        ("onnx", info(ModelFormat.SAFETENSORS), {}, "encoders only, and the task of model is llm"),
        ("gemma_local", info(architecture="llama"), {}, "model is a llama, not a Gemma"),
        ("gemma_local", info(architecture=None), {}, "unknown architecture, not a Gemma"),
        (
            "gemma_local",
            info(ModelFormat.SAFETENSORS),
            {"quantization": "fp16"},
            "model is a Gemma, which overflows in fp16",
        ),
    ],
)
def test_an_engine_says_why_it_refuses(engine: str, model: ModelInfo, config: dict[str, str], reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        offer(engine, model, **config)
    assert reason in str(caught.value)
    assert caught.value.model_name == "m"
    assert caught.value.hint


# -- offers --------------------------------------------------------------------------------------------------------------


def test_llama_cpp_keeps_room_for_states_of_text_models_only() -> None:
    model = info(layers=(AttentionLayer(2, 64, 64),) * 4)
    text, encoder = offer("llama_cpp", model), offer("llama_cpp", model, "embedding")
    assert text.state_bytes > 0
    assert text.memory["cpu"] > text.state_bytes
    assert offer("llama_cpp", model, device=CARD).memory.keys() == {"cuda:0", "cpu"}
    assert (encoder.state_bytes, encoder.sequences) == (0, 1)


@pytest.mark.parametrize(
    ("model", "device", "reason"),
    [
        (info(), CPU, "does not quantize a GGUF file to int8"),
        (info(ModelFormat.SAFETENSORS, metadata={"quantization_config": {"quant_method": "torchao"}}), CPU, "quantized already"),
        (info(ModelFormat.SAFETENSORS), MAC, "int8 does not run on mps"),
    ],
)  # fmt: skip
def test_transformers_says_before_a_load_where_a_type_does_not_work(
    model: ModelInfo, device: Device, reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        offer("transformers", model, device=device, quantization="int8")


def test_transformers_keeps_room_for_pictures_of_models_that_see() -> None:
    blind, seeing = (offer("transformers", info(ModelFormat.SAFETENSORS, vision=vision)) for vision in (False, True))
    assert seeing.memory["cpu"] - blind.memory["cpu"] == KEPT_PICTURES


def test_transformers_computes_rerankers_in_fp32() -> None:
    model = info(ModelFormat.SAFETENSORS)
    assert [offer("transformers", model, task).dtype for task in ("embedding", "rerank")] == ["bf16", "fp32"]
    assert offer("transformers", model, "rerank", quantization="bf16").dtype == "bf16"


def test_onnx_is_the_faster_one_on_the_cpu_only(tmp_path: Path) -> None:
    model = info(ModelFormat.SAFETENSORS, onnx=(header(tmp_path),))
    on_cpu, on_card = (offer("onnx", model, "embedding", device=device) for device in (CPU, CARD))
    assert (on_cpu.speed, on_card.speed) == (1, 0)
    assert (on_cpu.files.format, on_cpu.files.quantization, on_cpu.files.size_bytes) == (ModelFormat.ONNX, "fp32", 100)
    made = offer("onnx", replace(model, onnx=()), "embedding")
    assert (made.speed, made.files.format, made.dtype) == (0, ModelFormat.SAFETENSORS, "fp32")


def test_a_gemma_is_offered_by_the_engine_below() -> None:
    assert offer("gemma_local", info()) == offer("llama_cpp", info())
    tensors = info(ModelFormat.SAFETENSORS)
    assert offer("gemma_streaming", tensors) == offer("transformers", tensors)
    large = replace(tensors, parameters=7_000_000_000)
    (hint,) = offer("gemma_local", large).warnings
    assert hint == size_hint(7_000_000_000, "bf16", DeviceType.CPU)
    assert "7B Gemma in bf16" in hint


@pytest.mark.parametrize(
    ("parameters", "dtype", "device", "words"),
    [
        (None, "fp32", DeviceType.CPU, None),
        (2_000_000_000, "bf16", DeviceType.CPU, None),
        (2_000_000_000, "fp32", DeviceType.CPU, "int8 or a Q4 GGUF"),
        (7_000_000_000, "int4", DeviceType.CPU, None),
        (7_000_000_000, "int8", DeviceType.CPU, "is slow"),
        (7_000_000_000, "bf16", DeviceType.CUDA, None),
        (7_000_000_000, "Q4_K_M", DeviceType.CPU, None),
    ],
)
def test_advice_about_large_gemmas(parameters: int | None, dtype: str, device: DeviceType, words: str | None) -> None:
    hint = size_hint(parameters, dtype, device)
    assert hint is None if words is None else words in (hint or "")


def test_the_default_offer() -> None:
    """GGUF and ONNX files keep their type, other weights get a tensor type."""
    config = ModelConfig(model_id="m", model_name="m")
    terms = Terms("mine", "llm", 4096, 2**33, Machine())
    stored, turned = (
        default_offer(config, info(kind), CPU, terms) for kind in (ModelFormat.GGUF, ModelFormat.SAFETENSORS)
    )
    assert (stored.dtype, turned.dtype) == ("Q4_K_M", "bf16")
    assert stored.state_bytes == stored.speed == 0
    assert (stored.sequences, default_offer(config, info(), CPU, replace(terms, task="ner")).sequences) == (8, 1)


# -- devices that an engine cannot use -----------------------------------------------------------------------------------


def plans(model: ModelInfo, machine: Machine, **config: Any) -> tuple[LoadPlan, ...]:
    wanted = ModelConfig.model_validate({"model_id": "m", "model_name": "m", "runtime_type": "onnx", **config})
    return plan_loads(wanted, model, settings=Settings(), rules=Rules.load(), probe=machine)


def test_an_engine_is_not_asked_about_a_device_that_it_cannot_use(tmp_path: Path) -> None:
    model = info(ModelFormat.SAFETENSORS, onnx=(header(tmp_path),), task="embedding")
    (plan,) = plans(model, Machine(MAC))
    assert plan.device == CPU
    assert plan.warnings == ("onnx does not run on mps: running on the CPU.",)
    with pytest.raises(DeviceUnavailable, match="onnx does not run on mps"):
        plans(model, Machine(MAC), requires_accelerator=True)
    on_card = plans(model, Machine(CARD))
    assert [(plan.device.key, plan.warnings) for plan in on_card] == [("cuda:0", ()), ("cpu", ())]
