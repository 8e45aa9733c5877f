"""Loading in Transformers: trust, types, memory, conversion."""

import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lfx_local_runtimes.cli import app
from lfx_local_runtimes.errors import (
    DeviceFailed,
    DoesNotFit,
    InvalidInput,
    LoadFailed,
    ModelNotFound,
    PickleRefused,
    RemoteCodeRefused,
    RuntimeFault,
)
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.devices import CPU, Device
from lfx_local_runtimes.runtimes.engines import convert
from lfx_local_runtimes.runtimes.engines.llama_cpp.runtime import LlamaCppRuntime
from lfx_local_runtimes.runtimes.engines.transformers.load import faults, places
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime, tensor_bytes
from lfx_local_runtimes.runtimes.formats.info import AttentionLayer, ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import LoadPlan, plan_for_engine
from lfx_local_runtimes.runtimes.requests import Progress, Request
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig
from lfx_local_runtimes.runtimes.trust.gate import approvals_of
from lfx_local_runtimes.settings import PREFIX, get_settings
from tests.plugin_models import save_llama
from tests.transformers_runtimes import Start, copy_of, noise, run
from tests.trusted_models import code_of, pickle_of

pytestmark = pytest.mark.integration

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


# -- loading ---------------------------------------------------------------------------------------------------------


def test_a_load_reports_progress_and_can_be_called_off(start: Start, tiny_llama: Path) -> None:
    heard: list[Progress] = []
    start(tiny_llama, context=LoadContext(heard.append))
    assert len(heard) > 5
    assert [step.done for step in heard] == sorted(step.done for step in heard)
    assert heard[-1].done == heard[-1].total > 0
    context = LoadContext(lambda progress: context.cancel())
    with pytest.raises(LoadFailed, match="cancelled"):
        start(tiny_llama, context=context)


def test_a_single_file_means_its_folder(start: Start, tiny_llama: Path) -> None:
    assert noise(start(tiny_llama / "model.safetensors")).text == noise(start(tiny_llama)).text


def test_the_files_do_not_choose_the_attention_code(start: Start, tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_llama, tmp_path / "kernel", attn_implementation="someone/their-kernel")
    assert noise(start(folder)).text == noise(start(tiny_llama)).text


def test_missing_weights_are_not_made_up(start: Start, tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of(tiny_llama, tmp_path / "incomplete")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadFailed, match=r"lacks 1 .*layers\.1\.mlp\.up_proj"):
        start(folder)


REMOTE = {"model_type": "unheard_of", "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.Mine"}}
REMOTE_CODE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
pathlib.Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class MyConfig(LlamaConfig):
    model_type = "unheard_of"
class Mine(LlamaForCausalLM):
    config_class = MyConfig
"""


@pytest.mark.parametrize("in_config", [False, True])
@pytest.mark.parametrize("in_settings", [False, True])
def test_code_of_a_model_runs_with_both_permissions_only(
    start: Start, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_config: bool, in_settings: bool
) -> None:
    folder, marker = copy_of(tiny_llama, tmp_path / "code", **REMOTE), tmp_path / "ran"
    (folder / "mine.py").write_text(REMOTE_CODE.format(marker=str(marker)))
    monkeypatch.setenv(f"{PREFIX}TRUST_REMOTE_CODE", str(in_settings))
    monkeypatch.setenv(f"{PREFIX}ALLOW_UNCONFINED_CODE", "true")  # the runtime runs in this process
    get_settings.cache_clear()
    approvals_of(get_settings()).approve(folder.name, code_of(folder), "ada")
    if in_config and in_settings:
        assert noise(start(folder, trust_remote_code=True)).tokens_generated > 0
    else:
        with pytest.raises(RemoteCodeRefused):
            start(folder, trust_remote_code=in_config)
    assert marker.exists() == (in_config and in_settings)


def test_pickle_needs_permission(
    start: Start, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    folder = copy_of(tiny_llama, tmp_path / "pickle")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(PickleRefused):
        start(folder)
    monkeypatch.setenv(f"{PREFIX}ALLOW_PICKLE", "true")
    monkeypatch.setenv(f"{PREFIX}ALLOW_UNCONFINED_CODE", "true")  # the runtime runs in this process
    get_settings.cache_clear()
    approvals_of(get_settings()).approve(folder.name, pickle_of(folder), "ada")
    assert noise(start(folder)).text == noise(start(tiny_llama)).text


# -- types and memory ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 million parameters, nearly all in linear layers."""
    return save_llama(tmp_path_factory.mktemp("linear") / "linear-llama", hidden=512, layers=6, spread=0.02)


def test_quantized_weights_are_smaller_and_compute_the_same(start: Start, linear_llama: Path) -> None:
    ids = torch.tensor([list(b"The quick brown fox jumps over the lazy dog")])
    sizes, logits = {}, {}
    for dtype in ("fp32", "fp16", "int8", "int4"):
        runtime = start(linear_llama, quantization=dtype)
        model = runtime._loaded.model  # type: ignore[union-attr]
        sizes[dtype] = tensor_bytes(model)["cpu"]
        with torch.inference_mode():
            logits[dtype] = model(ids).logits.float().flatten()
        assert runtime.get_memory_usage()["devices"]["cpu"] > sizes[dtype]  # and the cache
        assert noise(runtime, max_tokens=4).metadata["quantization"] == dtype
        thread = runtime.stop()
        assert thread is not None
        thread.join()
    assert sizes["fp32"] == pytest.approx(2 * sizes["fp16"], rel=0.01)
    assert sizes["int8"] < 0.7 * sizes["fp16"]
    assert sizes["int4"] < 0.4 * sizes["fp16"]
    cosine = {dtype: float(torch.cosine_similarity(logits["fp32"], logits[dtype], dim=0)) for dtype in logits}
    assert cosine["fp16"] > 0.999
    assert cosine["int8"] > 0.99
    assert cosine["int4"] > 0.85  # random weights are the worst case for four bits


def test_gguf_and_safetensors_on_both_engines_give_the_same_tokens(
    start: Start, tiny_llama: Path, tiny_gguf: Path
) -> None:
    options: dict[str, Any] = {"prompt": "hello world", "raw": True, "temperature": 0, "max_tokens": 30}
    expected = run(start(tiny_llama, quantization="fp32"), **options)
    unpacked = run(start(tiny_gguf, quantization="fp32"), **options)
    native = LlamaCppRuntime(ModelConfig(model_id=str(tiny_gguf), model_name="native"))
    native.start().result()
    answer = native.stream(GenerationConfig(**options)).wait()
    thread = native.stop()
    assert thread is not None
    thread.join()
    assert unpacked.text == answer.text == expected.text
    assert unpacked.prompt_tokens == answer.prompt_tokens == expected.prompt_tokens


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_gguf_is_not_quantized_again(start: Start, tiny_gguf: Path, dtype: str) -> None:
    result = run(start(tiny_gguf, quantization=dtype), prompt="hello", raw=True, max_tokens=2)
    assert result.metadata["quantization"] in ("fp32", "bf16")
    assert f"Transformers does not quantize a GGUF file to {dtype}" in result.metadata["warnings"][0]


def test_gemma_does_not_run_in_fp16(start: Start, gemma_safetensors: Path) -> None:
    with pytest.raises(InvalidInput, match=r"overflows in fp16.*bf16"):
        start(gemma_safetensors, quantization="fp16")


UNLOAD = """
import json, sys, psutil
from lfx_local_runtimes.runtimes.config import (ModelConfig)
from lfx_local_runtimes.runtimes.tasks.generation import (GenerationConfig)
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime

def resident():
    return psutil.Process().memory_info().rss

def cycle(path):
    runtime = TransformersRuntime(ModelConfig(model_id=path, model_name="m", quantization="bf16"))
    runtime.start().result()
    runtime.stream(GenerationConfig(prompt="Hello", max_tokens=4)).wait()
    loaded = resident()
    runtime.stop().join()
    return loaded

cycle(sys.argv[1])  # the first time, libraries load parts of themselves that stay
before = resident()
loaded = cycle(sys.argv[1])
print(json.dumps({"before": before, "loaded": loaded, "after": resident()}))
"""


def test_an_unloaded_model_gives_its_memory_back_in_silence(gemma_safetensors: Path) -> None:
    command = [sys.executable, "-c", UNLOAD, str(gemma_safetensors)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    *chatter, report = done.stdout.splitlines()
    assert chatter == []
    size = json.loads(report)
    taken = size["loaded"] - size["before"]
    assert taken > 500 * 2**20
    assert size["loaded"] - size["after"] >= 0.95 * taken


def test_loads_on_two_threads_take_turns(start: Start, tiny_llama: Path) -> None:
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(noise(start(tiny_llama), temperature=0).text)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 3
    assert len(set(texts)) == 1


# -- conversion ------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> None:
    """`lfx-local-runtimes convert`."""
    done = CliRunner().invoke(app, ["convert", *arguments])
    if done.exception is not None:
        raise done.exception
    assert done.stdout.startswith("Wrote ")


def test_a_converted_model_computes_the_same(start: Start, tiny_llama: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "converted"
    command(str(tiny_gguf), str(target), "--dtype", "fp32")
    assert [path.name for path in target.parent.iterdir()] == ["converted"]
    options: dict[str, Any] = {"quantization": "fp32"}
    assert noise(start(target, **options)).text == noise(start(tiny_llama, **options)).text


def test_conversion_goes_among_the_models_unless_told_otherwise(tiny_gguf: Path) -> None:
    command(str(tiny_gguf))
    assert (get_settings().model_roots[0] / "tiny-llama-safetensors" / "model.safetensors").is_file()


def test_conversion_refuses_what_it_cannot_do(tiny_llama: Path, gemma_gguf: Path, tmp_path: Path) -> None:
    cases: list[tuple[Path, Path, str, str]] = [
        (gemma_gguf, tiny_llama, "bf16", "exists already"),
        (tiny_llama, tmp_path / "out", "bf16", "not a GGUF"),
        (tmp_path / "nothing.gguf", tmp_path / "out", "bf16", "does not exist"),
        (gemma_gguf, tmp_path / "out", "fp16", "overflows in fp16"),
        (gemma_gguf, tmp_path / "out", "int8", "not offered"),
    ]
    for source, target, dtype, message in cases:
        with pytest.raises(RuntimeFault, match=message):
            convert.export_safetensors(source, target, dtype)
    assert list(tmp_path.iterdir()) == [tmp_path / "local-runtimes-home"]
    with pytest.raises(ModelNotFound, match="no-such-model"):
        command("no-such-model")


# -- layers on several devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "layers", [{"cuda:0": 7, "cpu": 5}, {"cuda:0": 7, "cuda:1": 5}, {"cuda:0": 4, "cuda:1": 5, "cpu": 3}]
)
def test_the_library_puts_layers_where_the_plan_says(layers: dict[str, int], tied: bool) -> None:
    """By the library's own map of a model without weights: no card is needed."""
    from transformers.integrations.accelerate import _get_device_map

    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=12, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=4000, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    info = ModelInfo(
        Path("m"), ModelFormat.SAFETENSORS, (), 2 * parameters, parameters=parameters, weight_bytes=2 * parameters,
        vocabulary=4000, embedding_length=256, layers=(AttentionLayer(2, 64, 64),) * 12,
        metadata={"tie_word_embeddings": tied},
    )  # fmt: skip
    plan = LoadPlan(info, "transformers", Device(DeviceType.CUDA, 0), "bf16", 512, layers=layers)
    asked = places(plan)
    found = _get_device_map(model, asked["device_map"], asked["max_memory"], None)
    where = Counter(device for name, device in found.items() if name.rpartition(".")[2].isdigit())
    assert where == {"cpu" if key == "cpu" else int(key[-1]): count for key, count in layers.items()}


def test_a_divided_model_answers_one_request_at_a_time(start: Start, tiny_llama: Path) -> None:
    """All of its layers are on the CPU here, but it is loaded by limits for each device, and not batched."""
    config = ModelConfig(model_id=str(tiny_llama), model_name="tiny", threads=1)
    whole = plan_for_engine(config, "transformers", tiny_llama)
    runtime = TransformersRuntime(config, replace(whole, layers={"cpu": 2}, sequences=1))
    try:
        runtime.start().result()
        assert runtime._batch is None
        divided = noise(runtime, temperature=0)
        assert divided.metadata["acceleration"]["layers"] == {"cpu": 2}
        assert divided.text == noise(start(tiny_llama), temperature=0).text
    finally:
        thread = runtime.stop()
        assert thread is not None
        thread.join()


def test_weights_that_are_away_from_the_card_are_in_host_memory() -> None:
    """The library keeps such weights as tensors without data, all of them at the address 0."""
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False))
    assert tensor_bytes(model) == {"cpu": 2 * 8 * 8 * 4}


# -- a device that fails ---------------------------------------------------------------------------------------------


def test_an_error_of_the_driver_is_told_from_others() -> None:
    plan = LoadPlan(
        ModelInfo(Path("m"), ModelFormat.SAFETENSORS, (), 1), "transformers", Device(DeviceType.CUDA), "bf16", 16
    )
    driver = RuntimeError(
        "CUDA error: no kernel image is available for execution on the device\nFor debugging consider …"
    )
    with pytest.raises(DeviceFailed, match=r"cuda:0 failed: CUDA error: no kernel image.*device\.$"), faults(plan):
        raise driver
    with pytest.raises(RuntimeError, match="no kernel image"), faults(replace(plan, device=CPU)):
        raise driver
    with pytest.raises(RuntimeError, match="shapes"), faults(plan):
        raise RuntimeError("shapes do not match")
    with pytest.raises(DoesNotFit, match="cuda:0 ran out of memory"), faults(plan):
        raise torch.OutOfMemoryError


def test_a_device_that_fails_ends_the_model(
    start: Start, tiny_llama: Path, tiny_bloom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batched or not: each later request on it would fail in the same way."""
    for path in (tiny_llama, tiny_bloom):
        runtime = start(path)
        died = threading.Event()
        runtime.on_death(died.set)
        model = runtime._loaded.model if runtime._loaded else None
        assert model is not None
        monkeypatch.setattr(type(model), "forward", _fail)
        request = Request("m", GenerationConfig(prompt="abc", raw=True, max_tokens=4))
        runtime.submit(request)
        assert died.wait(60)
        monkeypatch.undo()
        assert isinstance(runtime.death, DeviceFailed)


def _fail(*arguments: Any, **options: Any) -> None:
    raise DeviceFailed("cuda:0 failed.")
