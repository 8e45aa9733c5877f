"""The memory a model will take, by the formulas."""

from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.formats.info import AttentionLayer, ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import estimate_memory

PARAMETERS = 6464


def info(**facts: Any) -> ModelInfo:
    known: dict[str, Any] = {
        "parameters": PARAMETERS, "context_length": 512, "embedding_length": 64, "vocabulary": 10, "heads": 4,
        "layers": (AttentionLayer(kv_heads=2, key_length=16, value_length=16),) * 2, "weight_bytes": 13_056, **facts,
    }  # fmt: skip
    return ModelInfo(Path("m"), ModelFormat.SAFETENSORS, (), 14_000, **known)


def test_weights_by_type() -> None:
    untied = info(metadata={"tie_word_embeddings": False})
    weights = {dtype: estimate_memory(untied, dtype=dtype).weights for dtype in ("fp32", "bf16", "int8", "int4")}
    kept = 2 * 10 * 64
    assert weights["fp32"] == 4 * PARAMETERS
    assert weights["bf16"] == 2 * PARAMETERS
    assert weights["int8"] == int((PARAMETERS - kept) * 1.01 + 2 * kept)
    assert weights["int4"] == int((PARAMETERS - kept) * 0.5625 + 2 * kept)


def test_weights_that_are_quantized_already_load_as_they_are() -> None:
    quantized = info(metadata={"quantization_config": {"quant_method": "awq", "bits": 4}})
    assert estimate_memory(quantized, dtype="fp32").weights == 13_056


def test_the_cache_grows_with_context_type_and_sequences() -> None:
    cache = 512 * 2 * 2 * (16 + 16)
    assert estimate_memory(info(), 9999, dtype="fp32").kv_cache == 4 * cache  # never beyond the model's context
    assert estimate_memory(info(), 9999, dtype="bf16", sequences=3).kv_cache == 3 * 2 * cache
    assert estimate_memory(info(), 256).context_length == 256


def test_sliding_layers_keep_their_window() -> None:
    layers = tuple(AttentionLayer(heads, 8, 16, window) for heads, window in ((1, 64), (2, 0), (4, 64)))
    model = info(layers=layers, context_length=2048)
    full, sliding = estimate_memory(model, 1024), estimate_memory(model, 1024, swa_full=False, batch=32)
    assert full.kv_cache == 1024 * (1 + 2 + 4) * (8 + 16) * 2
    assert sliding.kv_cache == (96 * (1 + 4) + 1024 * 2) * (8 + 16) * 2
