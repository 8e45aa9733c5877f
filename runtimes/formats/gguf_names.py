"""What the names of GGUF files say: the quantization, and which file of several to take."""

import re
from collections.abc import Iterable

_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
_TAG = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q|TQ)\d_[A-Z0-9_]+|B?F16|F32|FP16|FP32|MXFP4(?:_MOE)?)(?=[-./]|$)", re.IGNORECASE
)
_SAME_TAG = {"FP16": "F16", "FP32": "F32"}

_PREFERRED = (
    "Q4_K_M", "Q4_0", "Q5_K_M", "Q8_0", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q5_K_S", "Q5_0", "Q6_K", "Q3_K_M", "BF16", "F16", "F32",
)  # fmt: skip
"""The order of choice among several files if no tag is given: the best balance of size and quality first."""
_RANK = {tag: position for position, tag in enumerate(_PREFERRED)}


def gguf_tag(name: str) -> str | None:
    """The quantization in a GGUF file's name: `gemma-2b.q4_k_m.gguf` → `Q4_K_M`."""
    found = _TAG.findall(_PART.sub("", name).removesuffix(".gguf"))
    return same_tag(found[-1]) if found else None


def same_tag(tag: str) -> str:
    """The usual spelling of a quantization: `fp16` → `F16`."""
    return _SAME_TAG.get(tag.upper(), tag.upper())


def best_gguf(names: Iterable[str]) -> str:
    """The file to take of several, if nobody asked for a quantization."""
    return min(names, key=lambda name: (_RANK.get(gguf_tag(name) or "", len(_RANK)), len(name), name))
