"""The memory that a model will take, estimated from its header.

The formulas are those of llama.cpp's own buffers. On the packaged Gemma 3 270M at 4,096 tokens they give the 72 MiB of
KV cache that llama.cpp reports and half of its 14 MiB of compute buffer; with logits for all of 512 tokens (`outputs`),
as other programs run it, its 514.5 MiB within 1 %.
"""

from dataclasses import dataclass

from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo

DEFAULT_CONTEXT = 4096
"""Tokens, if neither the configuration nor the model says less."""

BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.01, "int4": 0.5625}
"""int8 has one scale per output channel; int4 is nf4 with a float32 scale for every 64 weights."""

_UNQUANTIZED_BYTES = 2.0


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes a loaded model is expected to take, at a context of `context_length` tokens."""

    weights: int
    kv_cache: int
    compute: int
    context_length: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.kv_cache + self.compute


def estimate_memory(
    info: ModelInfo, context_length: int | None = None, *, dtype: str | None = None, sequences: int = 1, batch: int = 256,
    outputs: int = 1,
    kv_bytes: float | None = None, swa_full: bool | None = None, flash_attention: bool = True,
) -> MemoryEstimate:  # fmt: skip
    """Bytes for weights, KV cache and compute buffers.

    - Weights: the tensors as they are stored; with `dtype`, parameters · bytes of that type, where int8 and int4 leave
      the embeddings (and the output layer) in two bytes. Weights that are stored quantized in another way than GGUF
      (AWQ, GPTQ …) load as they are.
    - KV cache of a layer: n_ctx · n_seq · (k_len + v_len) · head_kv · bytes. A sliding layer holds
      min(window + batch, n_ctx), unless the full-size cache is asked for.
    - Compute, for n_embd d, vocabulary V, heads h: max(4·b·(1 + 4d + n_ctx·(1 + h)), 4·(b·d + outputs·V)); flash
      attention does without the term n_ctx·h.

    Recurrent state (Mamba and the like) is small beside these and not counted.

    Args:
        info: the model.
        context_length: tokens per sequence; unset, 4,096. Never more than the model's own.
        dtype: the type an engine turns the weights into; unset, as stored.
        sequences: how many run at once.
        batch: tokens computed in one step.
        outputs: how many of them logits are computed for; our engines ask for the last one's only.
        kv_bytes: per cached number. f16 2, q8_0 34/32, q4_0 18/32; unset, 2, or 4 where `dtype` is fp32.
        swa_full: sliding layers get a full-size cache. Unset: as llama.cpp's default (yes) for weights as stored.
        flash_attention: the attention scores are not kept.
    """
    context = min(context_length or DEFAULT_CONTEXT, info.context_length or context_length or DEFAULT_CONTEXT)
    if kv_bytes is None:
        kv_bytes = 4.0 if dtype == "fp32" else 2.0
    if swa_full is None:
        swa_full = dtype is None
    cells = 0
    for layer in info.layers:
        length = context if swa_full or not layer.window else min(layer.window + batch, context)
        cells += length * (layer.key_length + layer.value_length) * layer.kv_heads
    return MemoryEstimate(
        weights=_weights(info, dtype), kv_cache=int(cells * sequences * kv_bytes),
        compute=_compute(info, context, min(batch, context), outputs, flash_attention=flash_attention), context_length=context,
    )  # fmt: skip


def _weights(info: ModelInfo, dtype: str | None) -> int:
    stored = info.weight_bytes or info.size_bytes
    prequantized = info.format is not ModelFormat.GGUF and "quantization_config" in info.metadata
    if dtype not in BYTES_PER_WEIGHT or info.parameters is None or prequantized:
        return stored
    kept = 0
    if dtype in ("int8", "int4") and info.vocabulary and info.embedding_length:
        copies = 1 if info.metadata.get("tie_word_embeddings", True) else 2
        kept = min(copies * info.vocabulary * info.embedding_length, info.parameters)
    return int((info.parameters - kept) * BYTES_PER_WEIGHT[dtype] + kept * _UNQUANTIZED_BYTES)


def _compute(info: ModelInfo, context: int, batch: int, outputs: int, *, flash_attention: bool) -> int:
    width, vocabulary = info.embedding_length or 0, info.vocabulary or 0
    scores = context * (1 if flash_attention else 1 + (info.heads or 0))
    return (
        max(4 * batch * (1 + 4 * width + scores), 4 * (batch * width + min(outputs, batch) * vocabulary))
        if width
        else 0
    )
