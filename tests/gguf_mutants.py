"""Broken GGUF files, numbered: mutant `n` of a seed is always the same. Run as a program, it loads a range of them.

    python -m tests.gguf_mutants SEED FIRST WANTED

prints `try N` before each mutant that passes the check is given to llama.cpp, so that the last line of a run that died
names its killer, and ends with one line of JSON: `{"next": …, "refused": …, "loaded": …, "failed": …}`.
"""

import ctypes
import json
import random
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lfx_local_runtimes.errors import InvalidModelFile
from lfx_local_runtimes.runtimes.formats.gguf import read_gguf
from lfx_local_runtimes.runtimes.formats.gguf_check import check_gguf
from tests.builders import GgufSpec, Typed, encode_gguf, tiny_llama

_NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    31,
    33,
    64,
    127,
    255,
    256,
    511,
    512,
    513,
    1023,
    1025,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
_WIDE = (*_NUMBERS, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_FLOATS = (0.0, -1.0, 1e-30, 1e30, float("inf"), float("nan"))
_STRINGS = ("", "x", "none", "no_vocab", "yarn", "unspecified", "gpt2", "a\0b", "%s%n", "é" * 40, "x" * 300)
_ARCHITECTURES = (
    "bert", "clip", "cohere2", "deepseek2", "falcon", "gemma", "gemma2", "gemma3", "gpt2", "gpt-oss", "granite", "jamba",
    "llama4", "mamba", "mamba2", "mistral3", "olmo2", "phi3", "plamo2", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "rwkv6",
    "rwkv7", "starcoder2", "t5", "wavtokenizer-dec", "nonsense",
)  # fmt: skip
_TOKENIZERS = (
    "gpt2",
    "bert",
    "t5",
    "rwkv",
    "plamo2",
    "gemma4",
    "test",
    "none",
    "no_vocab",
    "hybriddna",
    "whitespace",
    "nonsense",
)
_KEYS = (
    "attention.causal", "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.key_length_mla",
    "attention.kv_lora_rank", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.max_alibi_bias",
    "attention.sliding_window", "attention.sliding_window_pattern", "attention.value_length", "block_count", "context_length",
    "embedding_length", "expert_count", "expert_feed_forward_length", "expert_group_count", "expert_group_used_count",
    "expert_used_count", "feed_forward_length", "leading_dense_block_count", "logit_scale", "nextn_predict_layers",
    "pooling_type", "rope.dimension_count", "rope.dimension_sections", "rope.freq_base", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.type", "ssm.conv_kernel", "ssm.group_count", "ssm.inner_size",
    "ssm.state_size", "ssm.time_step_rank", "vocab_size", "use_parallel_residual", "wkv.head_size",
)  # fmt: skip
_OTHER_KEYS = (
    "general.alignment", "general.architecture", "general.file_type", "general.name", "general.quantization_version",
    "split.count", "split.no", "split.tensors.count", "tokenizer.chat_template", "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token", "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.merges",
    "tokenizer.ggml.mask_token_id", "tokenizer.ggml.model", "tokenizer.ggml.padding_token_id", "tokenizer.ggml.pre",
    "tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.scores", "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.suppress_tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.token_type_count",
    "tokenizer.ggml.tokens", "tokenizer.ggml.unknown_token_id", "adapter.type", "general.type",
)  # fmt: skip
_KIND_BITS = {"u8": 8, "u16": 16, "u32": 32, "u64": 64}
_SIGNED_BITS = {"i8": 7, "i16": 15, "i32": 31, "i64": 63}


def base() -> GgufSpec:
    """The healthy file that the mutants come from."""
    return tiny_llama(layers=2, width=32, heads=4, kv_heads=2, feed_forward=32, context=128)


def mutant(seed: int, number: int, spec: GgufSpec) -> bytes:
    """The bytes of one mutant of `spec`: one to three changes to what it says, or to its bytes."""
    rng = random.Random(f"{seed}/{number}")
    copy = GgufSpec(
        dict(spec.metadata),
        [_copied(tensor) for tensor in spec.tensors],
        spec.version,
        spec.alignment,
        dict(spec.extra),
    )
    if rng.random() < 0.35:
        return _broken_bytes(encode_gguf(copy), rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(_CHANGES)(copy, rng)
    return encode_gguf(copy)


def _copied(tensor: Any) -> Any:
    return type(tensor)(tensor.name, tensor.shape, tensor.data, tensor.type, tensor.offset)


def _any_value(rng: random.Random) -> Typed:
    kind = rng.choice(
        ("u8", "u16", "u32", "u32", "u32", "u64", "i8", "i32", "i64", "f32", "f64", "bool", "str", "array")
    )
    if kind == "array":
        inner, value = _any_scalar(rng)
        return f"[{inner}]", [value] * rng.choice((0, 1, 2, 2, 3, 5, 600))
    return _any_scalar(rng, kind)


def _any_scalar(rng: random.Random, kind: str | None = None) -> Typed:
    kind = kind or rng.choice(("u8", "u16", "u32", "i32", "f32", "bool", "str"))
    if kind in _KIND_BITS:
        return kind, rng.choice(_WIDE) % 2 ** _KIND_BITS[kind]
    if kind in _SIGNED_BITS:
        return kind, rng.choice((-1, 1)) * (rng.choice(_NUMBERS) % 2 ** _SIGNED_BITS[kind])
    if kind == "bool":
        return kind, rng.random() < 0.5
    return (kind, rng.choice(_STRINGS)) if kind == "str" else (kind, rng.choice(_FLOATS))


def _key(spec: GgufSpec, rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice([*spec.metadata])
    if rng.random() < 0.5:
        return rng.choice(_OTHER_KEYS)
    return f"{spec.metadata.get('general.architecture', ('str', 'llama'))[1]}.{rng.choice(_KEYS)}"


def _set_value(spec: GgufSpec, rng: random.Random) -> None:
    spec.metadata[_key(spec, rng)] = _any_value(rng)


def _set_number(spec: GgufSpec, rng: random.Random) -> None:
    spec.metadata[_key(spec, rng)] = ("u32", rng.choice(_NUMBERS))


def _drop_key(spec: GgufSpec, rng: random.Random) -> None:
    spec.metadata.pop(rng.choice([*spec.metadata]), None)


def _architecture(spec: GgufSpec, rng: random.Random) -> None:
    """Another architecture, with the llama's numbers under its name: many of its checks then pass."""
    name = rng.choice(_ARCHITECTURES)
    for key in [key for key in spec.metadata if key.startswith("llama.")]:
        spec.metadata[f"{name}.{key.removeprefix('llama.')}"] = spec.metadata[key]
    spec.metadata["general.architecture"] = ("str", name)


def _tokenizer(spec: GgufSpec, rng: random.Random) -> None:
    spec.metadata["tokenizer.ggml.model"] = ("str", rng.choice(_TOKENIZERS))
    if rng.random() < 0.7:
        spec.metadata["tokenizer.ggml.merges"] = ("[str]", rng.choice(([], ["a b"], ["", " ", "  "], ["x"] * 3)))
    if rng.random() < 0.3:
        blob = struct.pack("<I", rng.choice((0, 4, 8, 64, 2**31))) + rng.randbytes(rng.choice((0, 1, 40, 100)))
        spec.metadata["tokenizer.ggml.precompiled_charsmap"] = ("[u8]", list(blob))


def _token(spec: GgufSpec, rng: random.Random) -> None:
    kind, tokens = spec.metadata.get("tokenizer.ggml.tokens", ("", ()))
    if kind == "[str]" and tokens:
        tokens = list(tokens)
        for _ in range(rng.choice((1, 2, 20))):
            new = rng.choice(
                (
                    b"",
                    b"\0",
                    b"<s>",
                    b"<0x0A>",
                    b"\xff\xfe",
                    b"x" * 300,
                    b"a\0b",
                    b"[EMPTY_5]",
                    b"<|end|>",
                    b"\n",
                    b"\xe2\x96",
                )
            )
            tokens[rng.randrange(len(tokens))] = new if rng.random() < 0.7 else new + rng.randbytes(3)
        spec.metadata["tokenizer.ggml.tokens"] = (kind, tokens)


def _token_types(spec: GgufSpec, rng: random.Random) -> None:
    kind, types = spec.metadata.get("tokenizer.ggml.token_type", ("", ()))
    if kind == "[i32]" and types:
        spec.metadata["tokenizer.ggml.token_type"] = (kind, [rng.choice((0, 1, 2, 3, 4, 5, 6, -1, 99)) for _ in types])


def _array_length(spec: GgufSpec, rng: random.Random) -> None:
    arrays = [key for key, (kind, _) in spec.metadata.items() if kind.startswith("[")]
    if arrays:
        key = rng.choice(arrays)
        kind, values = spec.metadata[key]
        values = list(values)
        spec.metadata[key] = (
            kind,
            values[: rng.randrange(len(values) + 1)] if rng.random() < 0.5 else values + values[:1],
        )


def _tensor(spec: GgufSpec, rng: random.Random) -> None:
    if not spec.tensors:
        return
    tensor = rng.choice(spec.tensors)
    change = rng.randrange(6)
    if change == 0:
        tensor.shape = tuple(rng.choice((0, 1, 32, 64, *_WIDE)) for _ in range(rng.randrange(6)))
    elif change == 1:  # the same bytes under another type
        tensor.type = rng.choice((1, 2, 3, 4, 8, 12, 14, 20, 24, 26, 27, 28, 30, 31, 34, 39, 42, 43, 99))
    elif change == 2:
        tensor.offset = rng.choice((0, 1, 32, 4096, *_WIDE))
    elif change == 3:
        tensor.name = rng.choice(
            ("", "x", "output.weight", "rope_freqs.weight", "blk.9.attn_q.weight", "x" * 63, "x" * 64, "a\0b")
        )
    elif change == 4:
        spec.tensors.remove(tensor)
    else:  # another type whose size fits the same shape
        tensor.type, factor = rng.choice(((1, 2), (30, 2), (8, 34 / 32), (2, 18 / 32), (28, 8), (24, 1)))
        elements = 1
        for length in tensor.shape:
            elements *= length
        if elements < 2**20:
            tensor.data = bytes(int(elements * factor))


def _counts(spec: GgufSpec, rng: random.Random) -> None:
    spec.extra[rng.choice(("keys", "tensors"))] = rng.choice(_WIDE)


def _alignment(spec: GgufSpec, rng: random.Random) -> None:
    value = rng.choice((0, 1, 3, 8, 16, 64, 4096, 65536, 131072, 2**31))
    spec.metadata["general.alignment"] = ("u32", value)
    if value in (8, 16, 64, 4096, 65536):
        spec.alignment = value


_CHANGES: tuple[Callable[[GgufSpec, random.Random], None], ...] = (
    _set_value, _set_value, _set_number, _set_number, _drop_key, _architecture, _tokenizer, _token, _token_types,
    _array_length, _tensor, _tensor, _counts, _alignment,
)  # fmt: skip


def _broken_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bit flips, overwritten numbers, cuts and insertions, mostly where the header is."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(min(len(changed), 9000) if rng.random() < 0.95 else len(changed))
        change = rng.randrange(5)
        if change <= 1:
            changed[place] ^= 1 << rng.randrange(8)
        elif change == 2:
            changed[place : place + 8] = struct.pack("<Q", rng.choice(_WIDE))
        elif change == 3:
            del changed[place : place + rng.choice((1, 4, 8))]
        else:
            changed[place:place] = rng.randbytes(rng.choice((1, 4, 8)))
        if not changed:
            break
    if rng.random() < 0.05:
        del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed)


def passes(path: Path) -> bool:
    """What stands between a file and llama.cpp lets this one through."""
    try:
        return not check_gguf(read_gguf(path, exact=True))
    except InvalidModelFile:
        return False


def _use(path: Path, llama: Any) -> bool:
    """Load, make a context, tokenise, decode and read the logits, as the engine does. False where llama.cpp refuses."""
    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        return False
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_threads = 64, 32, 32, 1
    context = llama.llama_init_from_model(model, settings)
    if not context:
        llama.llama_model_free(model)
        return False
    vocabulary = llama.llama_model_get_vocab(model)
    tokens = (llama.llama_token * 32)()
    count = llama.llama_tokenize(vocabulary, b"yes \n\xc3\xa9", 8, tokens, 32, True, True)
    if count > 0:
        done = llama.llama_decode(context, llama.llama_batch_get_one(tokens, min(count, 8))) == 0
        if done and llama.llama_get_logits_ith(context, -1):
            piece = ctypes.create_string_buffer(64)
            for token in range(min(llama.llama_vocab_n_tokens(vocabulary), 400)):
                llama.llama_token_to_piece(vocabulary, token, piece, 64, 0, True)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return True


def main(seed: int, first: int, wanted: int) -> None:
    """Load mutants from `first` on until `wanted` of them passed the check."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    healthy = base()
    number, counts = first, {"refused": 0, "loaded": 0, "failed": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.gguf"
        while counts["loaded"] + counts["failed"] < wanted:
            path.write_bytes(mutant(seed, number, healthy))
            if not passes(path):
                counts["refused"] += 1
            else:
                print(f"try {number}", flush=True)
                counts["loaded" if _use(path, llama_cpp) else "failed"] += 1
            number += 1
    print(json.dumps({"next": number, **counts}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
