"""Which form of a model is loaded, where and in which type, and what is said about it. With cards that are not there."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lfx_local_runtimes.errors import LoadFailed
from lfx_local_runtimes.runtimes import RuntimeManager
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig, RuntimeType
from lfx_local_runtimes.runtimes.devices import Device, Memory
from lfx_local_runtimes.runtimes.engines.llama_cpp import native
from lfx_local_runtimes.runtimes.engines.llama_cpp.runtime import split
from lfx_local_runtimes.runtimes.formats.info import AttentionLayer, ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.formats.onnx import OnnxHeader
from lfx_local_runtimes.runtimes.planning import LoadPlan, plan_loads
from lfx_local_runtimes.runtimes.planning.rules import Rules
from lfx_local_runtimes.runtimes.sources import hub
from lfx_local_runtimes.settings import Settings
from tests.builders import write_gguf
from tests.scripted_manager import write_model

CARD = Device(DeviceType.CUDA, 0, "card")
GB = 10**9


class Machine:
    """A machine with these accelerators, each with so many bytes; the CPU has 64 GiB."""

    def __init__(self, *accelerators: Device, size: int = 2**34) -> None:
        self._accelerators, self._size = accelerators, size

    def accelerators(self) -> Sequence[Device]:
        return self._accelerators

    def memory(self, device: Device) -> Memory:
        size = 2**36 if device.type is DeviceType.CPU else self._size
        return Memory(size, size)

    def cpu_has_bf16(self) -> bool:
        return False


def tensors(parameters: int, **facts: object) -> ModelInfo:
    """A model in safetensors, in 16 bits."""
    size, path = 2 * parameters, Path("model")
    known = {"architecture": "llama", "context_length": 4096, "quantization": "bf16", "parameters": parameters, **facts}
    return ModelInfo(path, ModelFormat.SAFETENSORS, (path / "model.safetensors",), size, weight_bytes=size, **known)  # type: ignore[arg-type]


def with_gguf(model: ModelInfo) -> ModelInfo:
    """The same with a GGUF file beside it."""
    path, size = Path("model/q4.gguf"), (model.parameters or 0) * 6 // 10
    gguf = replace(
        model,
        path=path,
        format=ModelFormat.GGUF,
        files=(path,),
        size_bytes=size,
        weight_bytes=size,
        quantization="Q4_K_M",
    )
    return replace(model, gguf=gguf)


def plans(
    model: ModelInfo, machine: Machine, settings: Settings | None = None, **config: object
) -> tuple[LoadPlan, ...]:
    wanted = ModelConfig.model_validate({"model_id": "m", "model_name": "m", **config})
    return plan_loads(wanted, model, settings=settings or Settings(), rules=Rules.load(), probe=machine)


def choices(found: tuple[LoadPlan, ...]) -> list[tuple[str, str, str]]:
    return [(plan.engine, plan.device.key, plan.dtype) for plan in found]


# -- GGUF beside safetensors ---------------------------------------------------------------------------------------------


def test_a_large_model_is_loaded_from_its_gguf_file_on_a_cpu() -> None:
    large = with_gguf(tensors(7 * GB))
    found = plans(large, Machine())
    assert choices(found)[0] == ("llama_cpp", "cpu", "Q4_K_M")
    assert ("transformers", "cpu", "fp32") in choices(found)
    assert found[0].why == (
        "The model is large for a CPU, so its GGUF file is loaded and not the safetensors. llama_cpp is the first engine for "
        "gguf files; cpu: this machine has no accelerator; Q4_K_M: as the file is stored."
    )
    for settings, config in ((Settings(force_device="cpu"), {}), (None, {"device_type": "cpu"})):
        assert plans(large, Machine(CARD), settings, **config)[0].engine == "llama_cpp"


@pytest.mark.parametrize(
    ("model", "machine"),
    [(with_gguf(tensors(1 * GB)), Machine()), (with_gguf(tensors(7 * GB)), Machine(CARD))],
    ids=["small", "accelerator"],
)
def test_otherwise_it_is_tried_after_the_safetensors(model: ModelInfo, machine: Machine) -> None:
    engines = [plan.engine for plan in plans(model, machine)]
    assert (engines[0], "llama_cpp" in engines) == ("transformers", True)


@pytest.mark.parametrize("config", [{"runtime_type": "transformers"}, {"quantization": "fp32"}])
def test_a_configured_engine_or_type_leaves_no_choice(config: dict[str, str]) -> None:
    assert "llama_cpp" not in {plan.engine for plan in plans(with_gguf(tensors(7 * GB)), Machine(), **config)}


def test_a_gguf_file_for_another_task_is_another_model() -> None:
    model = with_gguf(tensors(7 * GB))
    assert model.gguf is not None
    other = replace(model, gguf=replace(model.gguf, task="embedding"))
    assert "llama_cpp" not in {plan.engine for plan in plans(other, Machine())}


def test_a_folder_says_what_lies_beside_its_safetensors(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert read_model(tmp_path).gguf is None
    for name in ("tiny-F16.gguf", "tiny-Q8_0.gguf", "mmproj-Q4_K_M.gguf"):
        write_gguf(tmp_path / name)
    found = read_model(tmp_path)
    assert found.format is ModelFormat.SAFETENSORS
    assert found.gguf is not None
    assert (found.gguf.path.name, found.gguf.format, found.gguf.task) == ("tiny-Q8_0.gguf", ModelFormat.GGUF, "llm")
    (tmp_path / "tiny-Q8_0.gguf").write_bytes(b"GGUF broken")
    assert read_model(tmp_path).gguf is None


BOTH = {"config.json": 10, "model.safetensors": 14 * GB, "m-Q8_0.gguf": 7 * GB, "m-Q4_K_M.gguf": 4 * GB}


def test_of_a_large_model_on_the_hub_a_cpu_gets_the_gguf_file() -> None:
    def fetched(sizes: dict[str, int], machine: Machine, **config: str) -> str:
        wanted = ModelConfig.model_validate({"model_id": "o/m", "model_name": "m", **config})
        wish = hub.Wish.of(wanted, hub.HubRef("o/m"), Settings(), machine)
        return hub.choose(list(sizes), wish, "o/m", sizes).files[-1]

    assert fetched(BOTH, Machine()) == "m-Q4_K_M.gguf"
    assert fetched(BOTH, Machine(CARD), device_type="cpu") == "m-Q4_K_M.gguf"
    assert fetched(BOTH, Machine(CARD)) == "model.safetensors"
    assert fetched({**BOTH, "model.safetensors": GB}, Machine()) == "model.safetensors"
    assert fetched(BOTH, Machine(), runtime_type="transformers") == "model.safetensors"
    assert fetched(BOTH, Machine(), quantization="bf16") == "model.safetensors"


# -- eight bits ----------------------------------------------------------------------------------------------------------


def test_a_model_that_fits_in_eight_bits_only_gets_them_on_the_card() -> None:
    card = Machine(CARD, size=10 * 2**30)
    assert choices(plans(tensors(7 * GB), card))[:3] == [
        ("transformers", "cuda:0", "bf16"), ("transformers", "cuda:0", "int8"), ("transformers", "cpu", "fp32"),
    ]  # fmt: skip
    assert "int8: 16 bits do not fit on cuda:0" in plans(tensors(7 * GB), card)[1].why
    fits, too_large = tensors(3 * GB), tensors(12 * GB)
    for model in (fits, too_large):
        assert "int8" not in {plan.dtype for plan in plans(model, card)}
    assert "int8" not in {plan.dtype for plan in plans(tensors(7 * GB), card, quantization="bf16")}


def test_the_other_card_is_tried_in_sixteen_bits_first() -> None:
    cards = Machine(CARD, Device(DeviceType.CUDA, 1, "card"), size=10 * 2**30)
    found = [
        (device, dtype) for engine, device, dtype in choices(plans(tensors(7 * GB), cards)) if engine == "transformers"
    ]
    assert found[:4] == [("cuda:0", "bf16"), ("cuda:1", "bf16"), ("cuda:0", "int8"), ("cuda:1", "int8")]


def test_a_small_encoder_is_loaded_from_its_onnx_file_where_that_is_faster(tmp_path: Path) -> None:
    """In the same type on the CPU. In bf16 torch is faster."""
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes(100))
    header = OnnxHeader(file, "fp32", 1000, 4000, (file,), (), ())
    encoder = tensors(1000, task="embedding", onnx=(header,))
    first = plans(encoder, Machine())[0]
    assert (first.engine, first.dtype) == ("onnx", "fp32")
    assert first.why.startswith("onnx is faster than transformers in fp32 on cpu. ")
    assert plans(encoder, Machine(CARD))[0].engine == "transformers"


# -- what is said about it -----------------------------------------------------------------------------------------------


def test_a_model_says_how_it_would_be_loaded(tmp_path: Path) -> None:
    """The card has too little memory: the load on it is refused with the reason."""
    file = write_gguf(tmp_path / "tiny.gguf")
    settings = Settings(home=tmp_path / "home", model_dirs=(tmp_path,), offline=True, max_gpu_mem_gb=0.0001)
    manager = RuntimeManager(settings, probe=Machine(CARD))
    try:
        manager.register_model(ModelConfig(model_id=str(file), model_name="tiny", context_length=512))
        profile = manager.model_status("tiny").acceleration
        assert profile is not None
        assert (profile.engine, profile.device, profile.context_length) == ("llama_cpp", "cpu", 512)
        assert profile.memory_mb["cpu"] > 0
        assert "it is tried after cuda:0" in profile.why
        divided, whole = [one for one in profile.refused if one.engine == "llama_cpp"]
        assert (divided.engine, divided.device, divided.dtype) == ("llama_cpp", "cuda:0 and cpu", None)
        assert "layers of tiny.gguf do not fit on cuda:0 and cpu" in divided.why
        assert (whole.engine, whole.device, whole.dtype) == ("llama_cpp", "cuda:0", "F32")
        assert "on cuda:0, and all models together may take 0.0 GiB there" in whole.why
    finally:
        manager.close()


# -- layers on several devices -------------------------------------------------------------------------------------------

SECOND = Device(DeviceType.CUDA, 1, "card")
BLOCKS = (AttentionLayer(8, 128, 128),) * 32
"""32 layers with 16 MiB of cache each for 4,096 tokens."""


def gguf(**facts: object) -> ModelInfo:
    """A model of 16 GiB: 32 layers of half a GiB, its embeddings among them, and an output of 128 MiB."""
    path = Path("model.gguf")
    known = {
        "architecture": "llama", "context_length": 4096, "quantization": "Q8_0", "parameters": 16 * GB, "layers": BLOCKS,
        "layer_bytes": (2**29,) * 32, "output_bytes": 2**27, "weight_bytes": 2**34 + 2**28, "embedding_length": 4096,
        "vocabulary": 32_000, **facts,
    }  # fmt: skip
    return ModelInfo(path, ModelFormat.GGUF, (path,), 2**34, **known)  # type: ignore[arg-type]


def test_what_does_not_fit_on_a_card_goes_to_the_cpu() -> None:
    found = [plan for plan in plans(gguf(), Machine(CARD, size=10 * 2**30)) if plan.engine == "llama_cpp"]
    assert [(plan.device.key, bool(plan.layers)) for plan in found] == [
        ("cuda:0", False),
        ("cuda:0", True),
        ("cpu", False),
    ]
    divided = found[1]
    on_card = divided.layers["cuda:0"]
    assert 10 < on_card < 20
    assert divided.layers["cpu"] == 32 - on_card
    assert on_card * 2**29 < divided.memory["cuda:0"] <= 0.95 * 10 * 2**30 < divided.memory["cuda:0"] + 2**30
    assert divided.memory["cpu"] > (32 - on_card) * 2**29
    assert f"{on_card} of 32 layers are on cuda:0, {32 - on_card} on cpu." in divided.warnings
    assert divided.acceleration["layers"] == divided.layers
    assert divided.why.endswith("It fits on no card alone, so it is divided.")
    assert split(divided) == {0: on_card + 1}


def test_a_model_too_large_for_one_card_is_split_over_two() -> None:
    found = plans(gguf(), Machine(SECOND, CARD, size=10 * 2**30), runtime_type="llama_cpp")
    assert [plan.device.key for plan in found[:2]] == ["cuda:1", "cuda:0"]
    divided = found[2]
    assert divided.device.key == "cuda:0"
    assert [*divided.layers] == ["cuda:0", "cuda:1"]
    assert sum(divided.layers.values()) == 32
    assert max(divided.memory["cuda:0"], divided.memory["cuda:1"]) <= 0.95 * 10 * 2**30
    assert split(divided) == {0: divided.layers["cuda:0"], 1: divided.layers["cuda:1"] + 1}
    assert found[-1].layers == {}
    three = plans(gguf(), Machine(CARD, SECOND, size=5 * 2**30), runtime_type="llama_cpp")
    assert [[*plan.layers] for plan in three if plan.layers] == [["cuda:0", "cuda:1", "cpu"]]


def test_only_memory_that_is_free_counts() -> None:
    """Another program has most of the card."""
    wanted = ModelConfig(model_id="m", model_name="m", runtime_type=RuntimeType.LLAMA_CPP)
    card = Machine(CARD, size=40 * 2**30)
    found = [
        plan_loads(wanted, gguf(), settings=Settings(), rules=Rules.load(), probe=card, rooms=rooms)
        for rooms in (None, {"cuda:0": 8 * 2**30})
    ]
    assert [[bool(plan.layers) for plan in those] for those in found] == [[False, False], [False, True, False]]
    assert found[1][1].memory["cuda:0"] <= 8 * 2**30


def test_a_model_is_not_divided_if_not_one_layer_fits_or_the_cpu_is_not_wanted() -> None:
    small = Machine(CARD, size=2**29)
    assert not any(plan.layers for plan in plans(gguf(), small))
    card = Machine(CARD, size=10 * 2**30)
    for settings, config in ((Settings(force_device="cuda"), {}), (None, {"requires_accelerator": True})):
        assert not any(plan.layers for plan in plans(gguf(), card, settings, **config))


def test_layers_that_the_configuration_puts_on_the_card_are_accounted_for_on_both_devices() -> None:
    first = plans(gguf(), Machine(CARD, size=2**36), gpu_layers=9, parallel=1)[0]
    assert first.layers == {"cuda:0": 8, "cpu": 24}
    assert 4 * 2**30 < first.memory["cuda:0"] < 5 * 2**30
    assert first.memory["cpu"] > 12 * 2**30
    assert plans(gguf(), Machine(CARD, size=2**36), gpu_layers=99)[0].layers == {}


def test_transformers_divides_layers_too() -> None:
    model = tensors(8 * GB, layers=BLOCKS, embedding_length=4096, vocabulary=32_000)
    card, cards = Machine(CARD, size=8 * 2**30), Machine(CARD, SECOND, size=10 * 2**30)
    alone = [(plan.device.key, plan.dtype, [*plan.layers]) for plan in plans(model, card)]
    assert alone == [
        ("cuda:0", "bf16", []), ("cuda:0", "bf16", ["cuda:0", "cpu"]), ("cpu", "fp32", []),
    ]  # fmt: skip
    over = plans(model, card)[1]
    assert over.sequences == 1
    assert sum(over.layers.values()) == 32
    assert over.memory["cuda:0"] <= 0.95 * 8 * 2**30
    pair = [plan for plan in plans(model, cards) if plan.layers]
    assert [*pair[0].layers] == ["cuda:0", "cuda:1"]
    assert sum(pair[0].layers.values()) == 32


def test_an_encoder_is_not_divided() -> None:
    model = tensors(8 * GB, layers=BLOCKS, embedding_length=4096, vocabulary=32_000, task="embedding")
    assert not any(plan.layers for plan in plans(model, Machine(CARD, SECOND, size=10 * 2**30)))


class _Library:
    """llama.cpp as far as a load needs it. It refuses the file."""

    def __init__(self) -> None:
        self.params = SimpleNamespace()

    def llama_model_default_params(self) -> SimpleNamespace:
        return self.params

    def llama_max_devices(self) -> int:
        return 4

    def llama_supports_gpu_offload(self) -> bool:
        return True

    def llama_progress_callback(self, callback: object) -> object:
        return callback

    def llama_model_load_from_file(self, path: bytes, params: object) -> None:
        return None


@pytest.mark.parametrize(
    ("spread", "layers", "mode", "card", "shares"),
    [({0: 8, 1: 25}, 33, 1, 0, [8, 25, 0, 0]), ({1: 14}, 14, 0, 1, None), ({}, -1, 0, 0, None)],
)
def test_llama_cpp_is_told_which_card_gets_how_many_layers(
    spread: dict[int, int], layers: int, mode: int, card: int, shares: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = _Library()
    monkeypatch.setattr(native, "library", lambda: library)
    options = native.Options(512, 1, 256, 1, gpu=0, gpu_layers=None, split=spread, exact=False)
    with pytest.raises(LoadFailed):
        native.LlamaModel(Path("m.gguf"), options, lambda share: True)
    told = library.params
    assert (told.n_gpu_layers, told.split_mode, told.main_gpu) == (layers, mode, card)
    assert (list(told.tensor_split) if shares else getattr(told, "tensor_split", None)) == shares


def test_llama_cpps_buffers_are_counted_on_their_devices() -> None:
    model = native.LlamaModel.__new__(native.LlamaModel)
    model.buffers = {"CUDA0": 5, "CUDA1": 7, "CUDA_Host": 1, "CPU_Mapped": 2, "Metal": 3}
    assert model.memory("mps", {"cpu": 10}) == {"cuda:0": 5, "cuda:1": 7, "cpu": 13, "mps": 3}
