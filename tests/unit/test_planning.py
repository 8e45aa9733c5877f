"""Which loads are tried, on which device, in which type: with cards that are not there."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from lfx_local_runtimes.errors import (
    DeviceUnavailable,
    InvalidInput,
    InvalidModelFile,
    PickleRefused,
    RemoteCodeRefused,
    RuntimeFault,
)
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.devices import Device, Memory
from lfx_local_runtimes.runtimes.formats.info import AttentionLayer, ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import LoadPlan, plan_loads
from lfx_local_runtimes.runtimes.planning.rules import Rules
from lfx_local_runtimes.settings import Settings

CARD = Device(DeviceType.CUDA, 0, "card")


class Machine:
    def __init__(self, *accelerators: Device) -> None:
        self._accelerators = accelerators

    def accelerators(self) -> Sequence[Device]:
        return self._accelerators

    def memory(self, device: Device) -> Memory:
        return Memory(2**34, 2**34)

    def cpu_has_bf16(self) -> bool:
        return False


def info(kind: ModelFormat = ModelFormat.GGUF, **fields: object) -> ModelInfo:
    path = Path("model.gguf")
    known = {"context_length": 8192, "quantization": "Q4_K_M", "architecture": "llama", "parameters": 1000, **fields}
    return ModelInfo(path, kind, (path,), 1000, **known)  # type: ignore[arg-type]


def plans(
    model: ModelInfo, machine: Machine | None = None, settings: Settings | None = None, **config: object
) -> tuple[LoadPlan, ...]:
    wanted = ModelConfig.model_validate({"model_id": "m", "model_name": "m", **config})
    return plan_loads(
        wanted, model, settings=settings or Settings(), rules=Rules.load(None), probe=machine or Machine()
    )


def choices(found: tuple[LoadPlan, ...]) -> list[tuple[str, str, str]]:
    return [(plan.engine, plan.device.key, plan.dtype) for plan in found]


def test_gguf_goes_to_llama_cpp_then_to_transformers() -> None:
    assert choices(plans(info())) == [("llama_cpp", "cpu", "Q4_K_M"), ("transformers", "cpu", "fp32")]


def test_each_engine_falls_back_to_the_cpu() -> None:
    assert choices(plans(info(), Machine(CARD))) == [
        ("llama_cpp", "cuda:0", "Q4_K_M"), ("llama_cpp", "cpu", "Q4_K_M"),
        ("transformers", "cuda:0", "bf16"), ("transformers", "cpu", "fp32"),
    ]  # fmt: skip


def test_another_card_is_tried_before_the_cpu() -> None:
    second = Device(DeviceType.CUDA, 1, "card")
    cards = Machine(CARD, second)
    found = plans(info(), cards, runtime_type="llama_cpp")
    assert [plan.device.key for plan in found] == ["cuda:0", "cuda:1", "cpu"]
    forced = plans(info(), cards, Settings(force_device="cuda"), runtime_type="llama_cpp")
    assert [plan.device.key for plan in forced] == ["cuda:0", "cuda:1"]
    assert [plan.device.key for plan in plans(info(), cards, device_type="cpu", runtime_type="llama_cpp")] == ["cpu"]


def test_safetensors_on_a_mac() -> None:
    mac = Machine(Device(DeviceType.MPS))
    found = plans(info(ModelFormat.SAFETENSORS, quantization="bf16"), mac)
    assert choices(found) == [("transformers", "mps", "fp32"), ("transformers", "cpu", "fp32")]


def test_a_forced_or_required_device_has_no_fallback() -> None:
    assert len(plans(info(), Machine(CARD), Settings(force_device="cuda"), runtime_type="llama_cpp")) == 1
    assert len(plans(info(), Machine(CARD), runtime_type="llama_cpp", requires_accelerator=True)) == 1
    with pytest.raises(DeviceUnavailable, match="needs an accelerator"):
        plans(info(), requires_accelerator=True)
    with pytest.raises(DeviceUnavailable):
        plans(info(), device_type="cuda", requires_accelerator=True)


def test_a_preferred_device_that_is_missing_is_a_warning() -> None:
    (first, *_) = plans(info(), device_type="cuda")
    assert first.device.key == "cpu"
    assert first.warnings == ("This machine has no cuda: running on the CPU.",)


def test_a_type_that_files_do_not_have_is_refused() -> None:
    with pytest.raises(InvalidInput, match="stored as Q4_K_M"):
        plans(info(), quantization="Q8_0", runtime_type="llama_cpp")
    with pytest.raises(InvalidInput, match="GGUF type"):
        plans(info(ModelFormat.SAFETENSORS), quantization="Q4_K_M")


def test_an_integer_type_that_a_device_cannot_do_runs_on_the_cpu() -> None:
    mac = Machine(Device(DeviceType.MPS))
    first, *others = plans(info(ModelFormat.SAFETENSORS), mac, quantization="int8")
    assert (first.device.key, first.dtype, first.warnings) == ("cpu", "int8", ("int8 does not run on mps.",))
    assert choices(tuple(others)) == [("transformers", "mps", "fp32"), ("transformers", "cpu", "fp32")]
    assert others[0].warnings == ("int8 was asked for, and the model is loaded in fp32.",)


@pytest.mark.parametrize("config", [{}, {"runtime_type": "llama_cpp"}, {"runtime_type": "transformers"}])
@pytest.mark.parametrize("wanted", ["int8", "int4"])
def test_an_integer_type_is_never_refused(wanted: str, config: dict[str, str]) -> None:
    """A GGUF file is not quantized again: it is loaded as it is stored, or unpacked."""
    first = plans(info(), quantization=wanted, **config)[0]
    assert first.dtype == ("fp32" if config.get("runtime_type") == "transformers" else "Q4_K_M")
    assert f"{wanted} was asked for, and the model is loaded in {first.dtype}." in first.warnings[0]
    assert "GGUF" in first.warnings[0] or "stored as Q4_K_M" in first.warnings[0]


def test_four_bits_become_eight_before_they_become_sixteen() -> None:
    found = plans(info(ModelFormat.SAFETENSORS), quantization="int4")
    assert [plan.dtype for plan in found] == ["int4", "int8", "fp32"]


def test_context() -> None:
    assert plans(info())[0].context_length == 8192
    assert plans(info(context_length=512))[0].context_length == 512
    assert plans(info(), context_length=8192)[0].context_length == 8192
    with pytest.raises(InvalidInput, match="8,192 tokens the model was trained for"):
        plans(info(), context_length=8193)


WIDE = (AttentionLayer(8, 128, 128),) * 32
"""128 KiB of cache for each token in two bytes."""


def test_an_unset_context_is_as_long_as_memory_allows() -> None:
    """A GiB, or as much as the weights take, for the caches of two requests at once."""
    facts = {"layers": WIDE, "context_length": 131_072}
    small, large = (plans(info(**facts, weight_bytes=size))[0] for size in (2**20, 3 * 2**30))
    assert (small.context_length, small.sequences) == (4096, 2)
    assert (large.context_length, large.sequences) == (12_288, 2)
    alone = plans(info(**facts, weight_bytes=3 * 2**30), parallel=1)[0]
    assert (alone.context_length, alone.sequences) == (24_576, 1)
    asked = plans(info(**facts), context_length=100_000)[0]
    assert (asked.context_length, asked.sequences) == (100_000, 1)


def test_a_machine_with_much_memory_has_longer_contexts() -> None:
    class Large(Machine):
        def memory(self, device: Device) -> Memory:
            return Memory(2**37, 2**37)

    plan = plans(info(layers=WIDE, context_length=131_072), Large())[0]
    assert plan.context_length > 28_000
    assert plan.sequences == 2


def test_an_unset_context_is_shorter_before_a_load_is_refused() -> None:
    plan = plans(info(layers=WIDE, context_length=8192, weight_bytes=2**31))[0]
    assert (plan.context_length, plan.sequences) == (8192, 2)
    assert [(one.context_length, one.sequences) for one in plan.smaller] == [(8192, 1), (4096, 1)]
    assert plan.smaller[0].warnings == ("Memory is short: one request at a time.",)
    assert plan.smaller[1].warnings == ("Memory is short: the context is 4,096 tokens instead of 8,192.",)
    asked = plans(info(layers=WIDE, context_length=8192), context_length=4096)[0]
    assert asked.sequences == 2
    assert [(one.context_length, one.sequences) for one in asked.smaller] == [(4096, 1)]


def test_as_many_sequences_as_their_caches_are_worth() -> None:
    """Half a GiB of cache for each in bf16, a GiB in fp32; no more than a GiB beside weights this small."""
    model = info(ModelFormat.SAFETENSORS, layers=WIDE)
    for dtype, kept in (("bf16", 2), ("fp32", 1)):
        (plan,) = plans(model, quantization=dtype, context_length=4096)
        assert plan.sequences == kept
        assert 2**30 <= plan.memory["cpu"] < 1.4 * 2**30
    assert plans(model, parallel=5)[0].sequences == 5
    assert plans(info(ModelFormat.SAFETENSORS))[0].sequences == 8


def test_a_gguf_encoder_needs_room_for_the_logits_of_its_longest_text() -> None:
    encoder = {"task": "embedding", "vocabulary": 30_000, "embedding_length": 384, "context_length": 512}
    (llama, torch) = plans(info(**encoder), quantization=None)
    assert (llama.engine, torch.engine) == ("llama_cpp", "transformers")
    assert llama.memory["cpu"] > 4 * 512 * 30_000 > torch.memory["cpu"]
    assert llama.sequences == 1
    assert llama.state_bytes == 0


def test_an_encoder_reads_texts_of_8192_tokens_unless_memory_or_the_user_says_otherwise() -> None:
    encoder = info(task="embedding", vocabulary=150_000, embedding_length=1024, context_length=32_768)
    (llama, torch) = plans(encoder)
    assert torch.context_length == 8192
    assert llama.context_length == 1024, "llama.cpp has logits for every token: 2,048 would take more than a GiB"
    assert plans(encoder, context_length=16_384)[0].context_length == 16_384


@pytest.mark.parametrize(
    ("model", "config", "fault"),
    [
        (info(problems=("it is cut off",)), {}, InvalidModelFile),
        (info(ModelFormat.PICKLE), {}, PickleRefused),
        (info(ModelFormat.SAFETENSORS), {"trust_remote_code": True}, RemoteCodeRefused),
        (info(ModelFormat.PIPER), {}, InvalidInput),
    ],
)
def test_refusals(model: ModelInfo, config: dict[str, object], fault: type[RuntimeFault]) -> None:
    with pytest.raises(fault):
        plans(model, None, None, **config)


def test_permission_lifts_them() -> None:
    assert plans(info(ModelFormat.PICKLE), None, Settings(allow_pickle=True))
    assert plans(info(ModelFormat.SAFETENSORS), None, Settings(trust_remote_code=True), trust_remote_code=True)
