"""Checks a GGUF file before llama.cpp may read it.

llama.cpp checks many rules itself and refuses a bad file with an error. Other rules it only asserts: if a file breaks
one of them, llama.cpp ends the process. This module checks the rules that llama.cpp asserts when it loads a model, makes
a context and decodes (llama.cpp as in llama-cpp-python 0.3.36). They were found by reading its sources and by loading
mutated files.
"""

from collections.abc import Iterator
from itertools import pairwise

from lfx_local_runtimes.errors import InvalidModelFile
from lfx_local_runtimes.runtimes.formats.ggml_types import TENSOR_TYPES
from lfx_local_runtimes.runtimes.formats.gguf import (
    DEFAULT_ALIGNMENT,
    FLOAT32,
    INT32,
    STRING,
    UINT16,
    GgufArray,
    GgufHeader,
    read_gguf,
    read_numbers,
    read_strings,
)

MAX_LAYERS = 512
MAX_EXPERTS = 1024
MAX_PROBLEMS = 20
_NO_PRODUCT = frozenset({"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"})
_ROUTING_TABLE = "tid2eid"
"""DeepSeek 4 keeps tables of whole numbers that map tokens to experts."""
_BYTE_FALLBACK = frozenset({"llama", "plamo2"})
"""These tokenizers write unknown text as bytes. If a byte has no token, they end the process."""
_NO_TOKEN = 2**32 - 1
_BYTE_TOKEN = 6
_ROPE_SCALING = frozenset({"none", "linear", "yarn", "longrope"})


def check_gguf(header: GgufHeader, *, first: bool = True) -> tuple[str, ...]:
    """The problems that keep a model from being loaded; empty if there are none.

    Args:
        header: of one file. If it was not read with `exact`, the file is read again.
        first: the file holds the model's metadata; False for the later parts of a split model.

    Raises:
        OSError: the file cannot be read.
    """
    problems: list[str] = []
    checks = (_layout, _types, _model, _numbers, _experts, _vocabulary) if first else (_layout, _types, _part)
    try:
        if not header.exact:
            header = read_gguf(header.path, exact=True)
        for check in checks:
            for problem in check(header):
                problems.append(problem)
                if len(problems) == MAX_PROBLEMS:
                    return tuple(problems)
    except InvalidModelFile as fault:
        problems.append(fault.message)
    return tuple(problems)


def _layout(header: GgufHeader) -> Iterator[str]:
    if header.tensors and header.data_offset % DEFAULT_ALIGNMENT:
        yield f"the tensor data starts at {header.data_offset:,}, which is not a multiple of {DEFAULT_ALIGNMENT}"
    ordered = sorted(header.tensors, key=lambda tensor: tensor.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.size > after.offset:
            yield f"tensors {before.name!r} and {after.name!r} overlap"


def _types(header: GgufHeader) -> Iterator[str]:
    """llama.cpp needs vectors (norms, biases) in F32, and matrices in a type that it can multiply."""
    for tensor in header.tensors:
        kind = TENSOR_TYPES[tensor.type].name
        if tensor.elements == max(tensor.shape, default=1):
            if kind != "F32":
                yield f"tensor {tensor.name!r} is a vector of {kind}, not of F32"
        elif kind in _NO_PRODUCT and not (kind == "I32" and _ROUTING_TABLE in tensor.name):
            yield f"tensor {tensor.name!r} is a matrix of {kind}, which is not a weight type"


def _part(header: GgufHeader) -> Iterator[str]:
    if header.kinds.get("split.no") != UINT16:
        yield f"{header.path.name} does not say which part of the model it is"


def _model(header: GgufHeader) -> Iterator[str]:
    arch = header.architecture
    if arch is None:
        yield "general.architecture is missing"
        return
    layers = header.of_model("block_count")
    if not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
        yield f"{arch}.block_count is {layers}, not 1 to {MAX_LAYERS}"
        return
    predicting = header.of_model("nextn_predict_layers") or 0
    if not isinstance(predicting, int) or predicting > layers:
        yield f"{arch}.nextn_predict_layers is {predicting}, more than the {layers} layers"
    scaling = header.of_model("rope.scaling.type")
    if scaling is not None and scaling not in _ROPE_SCALING:
        yield f"{arch}.rope.scaling.type is {scaling!r}, not one of {', '.join(sorted(_ROPE_SCALING))}"


def _numbers(header: GgufHeader) -> Iterator[str]:
    """Numbers that llama.cpp asserts when it computes, not when it loads."""
    arch = header.architecture
    for key, value in header.metadata.items():
        if key.endswith("_epsilon") and not (isinstance(value, float) and 0 <= value < 1):
            yield f"{key} is {value!r}, not a small positive number"
    heads, width = header.of_model("attention.head_count"), header.of_model("embedding_length")
    if isinstance(heads, GgufArray):
        heads = next(iter(heads.values or ()), 0)
    default = width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else 0
    for suffix in ("", "_swa"):
        rotated = header.of_model(f"rope.dimension_count{suffix}")
        length = header.of_model(f"attention.key_length{suffix}") or header.of_model("attention.key_length") or default
        if heads and isinstance(rotated, int) and isinstance(length, int) and rotated > length:
            yield f"{arch}.rope.dimension_count{suffix} is {rotated:,}, more than the {length:,} of a head"


def _experts(header: GgufHeader) -> Iterator[str]:
    def number(key: str) -> int:
        value = header.of_model(key)
        if isinstance(value, GgufArray):
            value = max(value.values or (0,))
        return int(value) if isinstance(value, int) else 0

    experts, used = number("expert_count"), number("expert_used_count")
    groups, groups_used = number("expert_group_count"), number("expert_group_used_count")
    if experts > MAX_EXPERTS:
        yield f"{experts:,} experts are more than the {MAX_EXPERTS:,} supported"
    if used > experts or (experts and not used):
        yield f"{used:,} experts used of {experts:,}"
    if groups and (groups >= experts or (groups > 1 and (experts % groups or not 0 < groups_used < groups))):
        yield f"{experts:,} experts in {groups:,} groups, of which {groups_used:,} are used"


def _vocabulary(header: GgufHeader) -> Iterator[str]:
    tokens = header.array("tokenizer.ggml.tokens")
    if tokens is None or tokens.kind != STRING or not tokens.length:
        yield "the file holds no vocabulary (tokenizer.ggml.tokens)"
        return
    if not header.text("tokenizer.ggml.model") or header.text("tokenizer.ggml.model") in ("none", "no_vocab"):
        yield "the file names no tokenizer (tokenizer.ggml.model)"
    yield from _token_arrays(header, tokens)
    for key, value in header.metadata.items():
        named = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
        if named and not (isinstance(value, int) and (0 <= value < tokens.length or value == _NO_TOKEN)):
            yield f"{key} is {value!r}, beyond the {tokens.length:,} tokens"
    texts = read_strings(header, tokens)
    yield from _duplicates(texts)
    if header.text("tokenizer.ggml.model") in _BYTE_FALLBACK:
        known = set(texts)
        lost = [byte for byte in range(256) if known.isdisjoint((b"<0x%02X>" % byte, bytes([byte])))]
        if lost:
            yield f"the vocabulary has no token for {len(lost)} of the 256 bytes, such as 0x{lost[0]:02X}"


def _duplicates(tokens: list[bytes]) -> Iterator[str]:
    """Tokens that are the same to llama.cpp: it cuts a token at a NUL byte and renames empty ones."""
    unique = set(tokens)
    if len(unique) == len(tokens) and b"" not in unique and b"\0" not in b"".join(tokens):
        return
    seen: set[bytes] = set()
    for index, token in enumerate(tokens):
        text = token.partition(b"\0")[0] or b"[EMPTY_%d]" % index
        if text in seen:
            yield f"token {index:,} ({text[:40]!r}) is in the vocabulary twice"
        seen.add(text)


def _token_arrays(header: GgufHeader, tokens: GgufArray) -> Iterator[str]:
    """Wrong types or lengths of the arrays that belong to the vocabulary."""
    for name, kinds in (("scores", (FLOAT32, INT32)), ("token_type", (INT32,))):
        key = f"tokenizer.ggml.{name}"
        if key not in header.metadata:
            continue
        array = header.array(key)
        if array is None or array.kind not in kinds:
            yield f"{key} is not an array of the right type"
        elif array.length != tokens.length:
            yield f"{key} has {array.length:,} entries for {tokens.length:,} tokens"
        elif header.text("tokenizer.ggml.model") == "bert" and _BYTE_TOKEN in read_numbers(header, array):
            yield "a WordPiece vocabulary holds byte tokens"
    merges = header.metadata.get("tokenizer.ggml.merges")
    if merges is not None and not (isinstance(merges, GgufArray) and merges.kind == STRING):
        yield "tokenizer.ggml.merges is not an array of strings"
