"""The engines' libraries load a model and compute in a confined process, each from a file that only its policy names."""

import json
from pathlib import Path

import pytest

from lfx_local_runtimes.runtimes.processes.confinement import Policy
from tests.confined import run_child

pytestmark = pytest.mark.integration

GIBIBYTE = 2**30

TORCH = """
report["level"] = enter().level
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(values["model"])
model = AutoModelForCausalLM.from_pretrained(values["model"], use_safetensors=True)
inputs = tokenizer("hello", return_tensors="pt", return_token_type_ids=False)
answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
report["tokens"] = json.dumps(answer.tolist())
report["same"] = str(torch.equal(model(answer[None, :-1]).logits[0].argmax(-1)[-8:], answer[-8:]))
large = torch.ones(1500, 1500)
report["parallel"] = str(float((large @ large)[0, 0]))
"""

LLAMA_CPP = """
report["level"] = enter().level
import ctypes
import llama_cpp as llama

llama.llama_backend_init()
parameters = llama.llama_model_default_params()
parameters.n_gpu_layers = 0
model = llama.llama_model_load_from_file(values["model"].encode(), parameters)
vocabulary = llama.llama_model_get_vocab(model)
options = llama.llama_context_default_params()
options.n_ctx, options.n_threads = 256, 2
context = llama.llama_init_from_model(model, options)
text = b"Question: What is the capital of France?\\nAnswer:"
tokens = (ctypes.c_int * 64)()
count = llama.llama_tokenize(vocabulary, text, len(text), tokens, 64, True, True)
answer = b""
batch = llama.llama_batch_get_one(tokens, count)
for _ in range(8):
    assert llama.llama_decode(context, batch) == 0
    scores = llama.llama_get_logits_ith(context, -1)
    best = max(range(llama.llama_vocab_n_tokens(vocabulary)), key=lambda token: scores[token])
    if llama.llama_vocab_is_eog(vocabulary, best):
        break
    piece = ctypes.create_string_buffer(64)
    length = llama.llama_token_to_piece(vocabulary, best, piece, 64, 0, False)
    answer += piece.raw[:length]
    last = (ctypes.c_int * 1)(best)
    batch = llama.llama_batch_get_one(last, 1)
report["answer"] = answer.decode()
"""

ONNX = """
report["level"] = enter().level
import numpy
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(values["model"], options, providers=["CPUExecutionProvider"])
report["sum"] = str(float(session.run(None, {"x": numpy.ones((512, 64), numpy.float32)})[0].sum()))
"""

WARM = """
import importlib
for name in values["libraries"]:
    importlib.import_module(name)
report["level"] = enter().level
attempt("read", Path("/etc/passwd").read_text)
"""


def test_transformers_generates(tiny_llama: Path) -> None:
    report = run_child(TORCH, Policy(read=(tiny_llama,), memory=2 * GIBIBYTE), model=str(tiny_llama))
    assert report["level"] == "full"
    assert report["same"] == "True"
    assert report["parallel"] == "1500.0"
    assert len(json.loads(report["tokens"])) > 8


def test_llama_cpp_answers(gemma_gguf: Path) -> None:
    report = run_child(LLAMA_CPP, Policy(read=(gemma_gguf,), memory=GIBIBYTE), model=str(gemma_gguf))
    assert report["level"] == "full"
    assert "Paris" in report["answer"]


def test_onnxruntime_computes(tmp_path: Path) -> None:
    file = tmp_path / "doubled.onnx"
    save_doubling(file)
    report = run_child(ONNX, Policy(read=(file,), memory=GIBIBYTE), model=str(file))
    assert report == {"level": "full", "sum": str(2.0 * 512 * 64)}


@pytest.mark.parametrize(
    "libraries",
    [
        ["llama_cpp", "llguidance"],
        ["onnxruntime", "tokenizers"],
        ["torch", "transformers", "transformers.models.auto.modeling_auto", "transformers.generation"],
    ],
)
def test_a_spare_process_may_import_first(libraries: list[str]) -> None:
    """With OPENBLAS_NUM_THREADS=1 the libraries start no thread before there is work, so that confining later holds."""
    report = run_child(WARM, Policy(), libraries=libraries)
    assert report["level"] == "full"
    assert report["read"].startswith("PermissionError")


def test_a_model_that_the_policy_does_not_name_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "doubled.onnx"
    save_doubling(file)
    report = run_child(f"attempt('load', lambda: exec({ONNX!r}, globals()))", Policy(), model=str(file))
    assert report["level"] == "full"
    assert "sum" not in report
    assert "doubled.onnx" in report["load"]


def save_doubling(file: Path) -> None:
    """An ONNX model that multiplies by two."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    weights = onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32) * 2, "w")
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 64]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "double", shapes[:1], shapes[1:], [weights]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
