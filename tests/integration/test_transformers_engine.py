"""Transformers on the real Gemma and on tiny seeded models: what the contract suite does not ask."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import (
    ContextOverflow,
    InvalidInput,
    LoadFailed,
    PickleRefused,
    RemoteCodeRefused,
    RuntimeFault,
)
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.config import GenerationConfig, GenerationResult, ModelConfig
from lfx_local_runtimes.runtimes.engines import convert
from lfx_local_runtimes.runtimes.engines.llama_cpp.runtime import LlamaCppRuntime
from lfx_local_runtimes.runtimes.engines.transformers import runtime as engine
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime, tensor_bytes
from lfx_local_runtimes.runtimes.requests import Event, Finished, Progress, Request, TextDelta
from lfx_local_runtimes.settings import PREFIX, get_settings
from tests.plugin_models import byte_tokenizer, save_llama

pytestmark = pytest.mark.integration

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PARIS = "What is the capital of France?"
NOISE: dict[str, Any] = {"prompt": "abc", "raw": True, "max_tokens": 40, "min_p": 0, "top_p": 1, "top_k": 5}
Start = Callable[..., TransformersRuntime]


@pytest.fixture
def start() -> Iterator[Start]:
    """Load a model; it is unloaded after the test."""
    yield from _starter()


@pytest.fixture(scope="module")
def gemma(gemma_safetensors: Path) -> Iterator[TransformersRuntime]:
    for start in _starter():
        yield start(gemma_safetensors, quantization="bf16", context_length=2048)


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> Iterator[TransformersRuntime]:
    for start in _starter():
        yield start(tiny_llama)


def _starter() -> Iterator[Start]:
    started: list[TransformersRuntime] = []

    def start(path: Path, *, context: LoadContext | None = None, **options: Any) -> TransformersRuntime:
        runtime = TransformersRuntime(ModelConfig(model_id=str(path), model_name=path.name, **options))
        started.append(runtime)
        runtime.start(context).result()
        return runtime

    yield start
    for runtime in started:
        thread = runtime.stop()
        if thread is not None:
            thread.join()


def run(runtime: TransformersRuntime, **options: Any) -> GenerationResult:
    return runtime.stream(GenerationConfig(**options)).wait()


def noise(runtime: TransformersRuntime, seed: int = 1, **options: Any) -> GenerationResult:
    """Random bytes of a random model: every step is a draw. It ends at `max_tokens`."""
    return run(runtime, **{**NOISE, "seed": seed, **options})


def copy_of(model: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(model, target)
    file = target / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return target


# -- answers ---------------------------------------------------------------------------------------------------------


def test_a_base_model_answers_in_the_dialogue_form(gemma: TransformersRuntime) -> None:
    result = run(gemma, prompt=PARIS, temperature=0, max_tokens=24)
    assert result.text.startswith("Paris")
    assert "Question" not in result.text
    assert result.finish_reason == "stop"
    expected = {
        "engine": "transformers", "engine_version": transformers.__version__, "device": "cpu", "dtype": "bf16",
        "quantization": "bf16", "template": "dialogue", "context_length": 2048, "warnings": [],
    }  # fmt: skip
    assert {name: result.metadata[name] for name in expected} == expected
    assert result.time_to_first_token is not None
    assert 0 < result.time_to_first_token < result.execution_time


def test_greedy_takes_the_tokens_that_generate_takes(gemma: TransformersRuntime, gemma_safetensors: Path) -> None:
    prompt, count = "Once upon a time", 24
    tokenizer = transformers.AutoTokenizer.from_pretrained(gemma_safetensors, local_files_only=True)
    raw = transformers.AutoModelForCausalLM.from_pretrained(
        gemma_safetensors, dtype=torch.bfloat16, local_files_only=True
    )
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = raw.generate(**inputs, do_sample=False, max_new_tokens=count)[0, inputs.input_ids.shape[1] :]
    result = run(gemma, prompt=prompt, raw=True, temperature=0, max_tokens=count)
    assert result.text == tokenizer.decode(tokens, skip_special_tokens=True)
    assert result.tokens_generated == len(tokens)
    assert result.prompt_tokens == inputs.input_ids.shape[1]


def test_a_stop_string_ends_the_answer_across_tokens(gemma: TransformersRuntime) -> None:
    options: dict[str, Any] = {"prompt": "Once upon a time", "raw": True, "temperature": 0, "max_tokens": 16}
    whole = run(gemma, **options).text
    stop = whole[9:17]  # begins and ends inside words
    stream = gemma.stream(GenerationConfig(stop=(stop,), **options))
    assert "".join(stream) == whole[: whole.index(stop)]
    assert stream.result is not None
    assert stream.result.finish_reason == "stop"
    assert stream.result.tokens_generated < 16


def test_the_stream_is_the_whole_answer(tiny: TransformersRuntime) -> None:
    stream = tiny.stream(GenerationConfig(**NOISE, seed=3))
    pieces = list(stream)
    assert stream.result is not None
    assert len(pieces) > 10
    assert "".join(pieces) == stream.result.text


def test_the_seed_decides(tiny: TransformersRuntime) -> None:
    first = noise(tiny, seed=0)
    assert first.metadata["seed"] == 0
    assert noise(tiny, seed=0).text == first.text
    assert noise(tiny, seed=1).text != first.text
    drawn = noise(tiny, seed=None)
    assert noise(tiny, seed=drawn.metadata["seed"]).text == drawn.text


def test_two_models_on_two_threads_do_not_disturb_each_other(start: Start, tiny: TransformersRuntime) -> None:
    other = start(Path(tiny.config.model_id))
    alone = noise(tiny, seed=5, max_tokens=200).text
    streams = [
        runtime.stream(GenerationConfig(**{**NOISE, "seed": 5, "max_tokens": 200}))
        for runtime in (tiny, other, tiny, other)
    ]
    assert [stream.wait().text for stream in streams] == [alone] * 4


def test_the_answer_ends_where_the_context_does(start: Start, tiny_llama: Path) -> None:
    runtime = start(tiny_llama, context_length=32)
    result = noise(runtime, prompt="a" * 20, max_tokens=500)
    assert result.prompt_tokens == 21
    assert result.tokens_generated == 32 - 21
    assert result.finish_reason == "length"
    with pytest.raises(ContextOverflow, match=r"41 tokens.*holds 32"):
        noise(runtime, prompt="a" * 40)


def test_an_empty_prompt_begins_with_bos(tiny: TransformersRuntime) -> None:
    assert noise(tiny, prompt="").prompt_tokens == 1


def test_bos_is_there_once(tiny: TransformersRuntime) -> None:
    assert noise(tiny, prompt="<s>abc").prompt_tokens == noise(tiny, prompt="abc").prompt_tokens == 4


def test_an_end_token_ends_the_answer_and_is_not_counted(start: Start, tiny_llama: Path, tmp_path: Path) -> None:
    runtime = start(tiny_llama)
    whole = noise(runtime, temperature=0, max_tokens=3)
    first = byte_tokenizer()(whole.text).input_ids[1]
    folder = copy_of(tiny_llama, tmp_path / "ends")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, first]}))
    result = noise(start(folder), temperature=0)
    assert (result.text, result.tokens_generated, result.finish_reason) == ("", 0, "stop")


def test_the_files_generation_config_does_not_change_our_options(
    start: Start, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_llama, tmp_path / "opinionated")
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "num_beams": 3, "repetition_penalty": 5.0, "max_new_tokens": 2, "top_k": 2})
    )
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    assert noise(start(folder), **options).text == noise(start(tiny_llama), **options).text


# -- cancelling ------------------------------------------------------------------------------------------------------


class CancelsAfter(Request):
    """Cancels itself at its n-th piece of text."""

    def __init__(self, pieces: int, **options: Any) -> None:
        super().__init__("test", GenerationConfig(**options))
        self.left = pieces
        self.tokens = 0
        """Generated when it cancelled."""

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, TextDelta):
            self.left -= 1
            if self.left == 0:
                self.tokens = event.tokens
                self.cancel()


def answer_of(runtime: TransformersRuntime, request: Request) -> GenerationResult:
    runtime.submit(request)
    while not isinstance(event := request.channel.get(), Finished):
        assert isinstance(event, TextDelta)
    return event.result


def test_a_cancel_lands_within_one_token(tiny: TransformersRuntime) -> None:
    request = CancelsAfter(3, prompt="abc", raw=True, max_tokens=400, temperature=0)
    result = answer_of(tiny, request)
    assert result.finish_reason == "cancelled"
    assert result.tokens_generated == request.tokens
    assert result.tokens_generated < 30
    whole = noise(tiny, max_tokens=400, temperature=0)
    assert whole.finish_reason == "length"
    assert whole.text.startswith(result.text)


def test_a_cancel_lands_within_one_prefill_chunk(tiny: TransformersRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PREFILL_CHUNK", 50)
    looks: list[None] = []

    class CancelsInPrefill(Request):
        @property
        def cancelled(self) -> bool:
            looks.append(None)
            return len(looks) > 2

    request = CancelsInPrefill("test", GenerationConfig(prompt="a" * 400, raw=True))
    result = answer_of(tiny, request)
    assert len(looks) == 3  # before each chunk, up to the one that was not computed
    assert (result.finish_reason, result.tokens_generated, result.time_to_first_token) == ("cancelled", 0, None)


def test_prefill_in_chunks_computes_the_same(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where layers see a sliding window that is shorter than the prompt and than a chunk."""
    tokenizer = byte_tokenizer()
    config = transformers.Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=24, max_position_embeddings=512, bos_token_id=0,
        eos_token_id=1, pad_token_id=1, initializer_range=0.2,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Gemma3ForCausalLM(config).eval()
    folder = tmp_path / "tiny-gemma"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompt = "The quick brown fox jumps over the lazy dog. " * 5
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=30)[0, inputs.input_ids.shape[1] :]
    runtime = start(folder, quantization="fp32")
    texts = []
    for chunk in (512, 64, 17):
        monkeypatch.setattr(engine, "PREFILL_CHUNK", chunk)
        texts.append(run(runtime, prompt=prompt, raw=True, temperature=0, max_tokens=30).text)
    assert texts == [tokenizer.decode(tokens, skip_special_tokens=True)] * 3


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
    get_settings.cache_clear()
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
    get_settings.cache_clear()
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
def test_a_gguf_is_not_quantized_again(start: Start, gemma_gguf: Path, dtype: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{dtype}.*convert"):
        start(gemma_gguf, quantization=dtype)


def test_what_is_quantized_already_is_not_quantized_again(start: Start, tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy_of(
        tiny_llama, tmp_path / "q", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
    )
    with pytest.raises(InvalidInput, match="quantized already"):
        start(folder, quantization="int8")


def test_gemma_does_not_run_in_fp16(start: Start, gemma_safetensors: Path) -> None:
    with pytest.raises(InvalidInput, match=r"overflows in fp16.*bf16"):
        start(gemma_safetensors, quantization="fp16")


UNLOAD = """
import json, sys, psutil
from lfx_local_runtimes.runtimes.config import GenerationConfig, ModelConfig
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


def test_a_converted_model_computes_the_same(start: Start, tiny_llama: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "converted"
    assert convert.main([str(tiny_gguf), str(target), "--dtype", "fp32"]) == 0
    assert [path.name for path in target.parent.iterdir()] == ["converted"]
    options: dict[str, Any] = {"quantization": "fp32"}
    assert noise(start(target, **options)).text == noise(start(tiny_llama, **options)).text


def test_conversion_goes_among_the_models_unless_told_otherwise(tiny_gguf: Path) -> None:
    assert convert.main([str(tiny_gguf)]) == 0
    assert (get_settings().model_roots[0] / "tiny-llama-safetensors" / "model.safetensors").is_file()


def test_conversion_refuses_what_it_cannot_do(
    tiny_llama: Path, gemma_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: list[tuple[Path, Path, str, str]] = [
        (gemma_gguf, tiny_llama, "bf16", "there already"),
        (tiny_llama, tmp_path / "out", "bf16", "not a GGUF"),
        (tmp_path / "nothing.gguf", tmp_path / "out", "bf16", "not there"),
        (gemma_gguf, tmp_path / "out", "fp16", "overflows in fp16"),
        (gemma_gguf, tmp_path / "out", "int8", "not offered"),
    ]
    for source, target, dtype, message in cases:
        with pytest.raises(RuntimeFault, match=message):
            convert.export_safetensors(source, target, dtype)
    assert list(tmp_path.iterdir()) == [tmp_path / "local-runtimes-home"]
    assert convert.main([str(gemma_gguf), str(tiny_llama)]) == 1
    assert "there already" in capsys.readouterr().err
    assert convert.main(["no-such-model"]) == 1
    assert "no-such-model" in capsys.readouterr().err
