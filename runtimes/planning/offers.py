"""What an engine says about a load before it tries it: the files, the type, the memory."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.devices import CPU, Device, DeviceProbe, default_dtype
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning.estimates import DEFAULT_CONTEXT, MemoryEstimate, estimate_memory
from lfx_local_runtimes.runtimes.tasks import family_of

TENSOR_TYPES = frozenset({"fp32", "fp16", "bf16", "int8", "int4"})
"""The types that an engine can turn weights into."""


@dataclass(frozen=True)
class Terms:
    """What planning has settled before it asks an engine for an offer."""

    engine: str
    """The engine's name."""
    task: str
    """What the model does."""
    context_length: int
    """Tokens: those that were asked for, otherwise as many as the model was trained for."""
    budget: int
    """Bytes that all models together may take on the device."""
    probe: DeviceProbe
    shortens: bool = False
    """Nobody asked for this context: an offer may have a shorter one to save memory."""
    rooms: Mapping[str, int] = field(default_factory=dict)
    """Bytes by device over which the layers are to be divided, because the model fits on none of them; the CPU last, if it
    may take some. Empty: the model is loaded on one device."""


@dataclass(frozen=True)
class Offer:
    """One way in which an engine can load a model on a device."""

    files: ModelInfo
    """The model with the files that the engine loads."""
    dtype: str
    """fp32, fp16, bf16, int8, int4, or the type the file is stored in."""
    memory: Mapping[str, int]
    """Estimated bytes by device key. What the engine's own libraries take does not count."""
    sequences: int = 1
    """Requests computed at once, each with its own context."""
    context_length: int | None = None
    """Tokens. None: as the terms say."""
    state_bytes: int = 0
    """Host memory for the states of prompts that had to leave the context. It is a part of `memory`."""
    speed: int = 0
    """Of two offers with one type on one device, the offer with the higher speed is tried first. 0 is the usual speed."""
    layers: Mapping[str, int] = field(default_factory=dict)
    """Layers by device if the model is divided, as the terms ask. An engine that cannot do that leaves it empty."""
    warnings: tuple[str, ...] = ()
    """What the user should know about this load."""


class MakeOffer(Protocol):
    """An engine's offer for a model on a device. It reads no weights and imports no engine library."""

    def __call__(self, config: ModelConfig, info: ModelInfo, device: Device, terms: Terms, /) -> Offer:
        """Say how the engine would load the model.

        Raises:
            InvalidInput: the engine cannot load it as the configuration asks, with the reason.
        """


def default_offer(config: ModelConfig, info: ModelInfo, device: Device, terms: Terms) -> Offer:
    """For an engine that brings no offer. GGUF and ONNX files keep their type; other weights get a tensor type."""
    if info.format in (ModelFormat.GGUF, ModelFormat.ONNX):
        return sized_offer(config, info, device, terms, stored_type(config, info))
    dtype = tensor_type(config, info, device, terms)
    return sized_offer(config, info, device, terms, dtype, loaded=dtype)


# -- what engines make their offers of -------------------------------------------------------------------------------


def stored_type(config: ModelConfig, info: ModelInfo) -> str:
    """The type of a file that is loaded as it is stored.

    Raises:
        InvalidInput: the configuration asks for another type.
    """
    stored, wanted = info.quantization or info.format.value, config.quantization
    if wanted is not None and wanted.lower() != stored.lower():
        raise InvalidInput(
            f"quantization {wanted} does not apply: {info.path.name} is stored as {stored}.",
            model_name=config.model_name, hint="Leave quantization unset, or use the Transformers engine.",
        )  # fmt: skip
    return stored


def tensor_type(config: ModelConfig, info: ModelInfo, device: Device, terms: Terms) -> str:
    """The type that weights are turned into: the one asked for, else the device's usual one.

    Rerankers get fp32: in bf16, scores in a narrow range become equal for documents that differ. So do models that see: in
    bf16, boxes and depths have three digits.

    Raises:
        InvalidInput: the configuration asks for a type that only GGUF files have.
    """
    wanted = config.quantization
    if wanted is None:
        exact = terms.task == "rerank" or family_of(terms.task) == "seeing"
        return "fp32" if exact else default_dtype(device, terms.probe)
    if wanted in TENSOR_TYPES:
        return wanted
    if info.format is ModelFormat.GGUF and wanted.lower() == (info.quantization or "").lower():
        return default_dtype(device, terms.probe)  # it chose the file; the engine computes in floating point
    raise InvalidInput(
        f"quantization {wanted} is a GGUF type, and {terms.engine} does not load {info.path.name} in it.",
        model_name=config.model_name, hint=f"Use one of {', '.join(sorted(TENSOR_TYPES))}.",
    )  # fmt: skip


def sized_offer(
    config: ModelConfig, info: ModelInfo, device: Device, terms: Terms, dtype: str, *, loaded: str | None = None,
    state_limit: int = 0, warnings: tuple[str, ...] = (),
) -> Offer:  # fmt: skip
    """An offer with the usual memory: weights alone for a model that reads or sees, weights and caches for text.

    A context that nobody asked for is as long as memory allows.

    Args:
        config: the model's.
        info: the files to load.
        device: where to.
        terms: as planning set them.
        dtype: the type to report.
        loaded: the type the weights are turned into; unset, they stay as they are stored.
        state_limit: bytes of host memory for the states of prompts that had to leave; they take no more than the cache.
        warnings: for the user.
    """
    if family_of(terms.task) in ("reading", "seeing"):
        context = min(terms.context_length, LONGEST_TEXT) if terms.shortens else terms.context_length
        total = estimate_memory(info, context, dtype=loaded, sequences=0, outputs=0).total
        return Offer(info, dtype, {device.key: total}, context_length=context, warnings=warnings)
    context, sequences = _context_and_sequences(config, info, terms, loaded)
    estimate = estimate_memory(info, context, dtype=loaded, sequences=sequences, outputs=sequences)
    states = min(state_limit, estimate.kv_cache)
    memory = Counter({device.key: estimate.total}) + Counter({CPU.key: states})
    return Offer(info, dtype, memory, sequences, context, states, warnings=warnings)


LONGEST_TEXT = 8192
"""Tokens of an encoder's context if nobody asks for more: its work and memory grow with the square of a text's length."""

_STEP = 1024
"""Tokens by which a context is made shorter."""

_TOGETHER = 4
"""Requests that are computed at once are worth more than a context of more than 4,096 tokens, up to this many."""


def modest(estimate: MemoryEstimate, budget: int) -> bool:
    """Whether a load that nobody gave sizes for leaves enough memory for others, and is not slow.

    What it takes besides the weights is touched at the load. It may be as large as the weights, or a GiB, or a
    sixteenth of the budget. All of it may take half of the budget.
    """
    allowed = max(estimate.weights, 2**30, budget // 16)
    return estimate.total - estimate.weights <= allowed and estimate.total <= budget // 2


def _context_and_sequences(
    config: ModelConfig, info: ModelInfo, terms: Terms, dtype: str | None
) -> tuple[int, int]:  # fmt: skip
    """Tokens for each request, and how many requests are computed at once.

    An unset context is as long as the model was trained for. It is shortened in steps, down to 4,096 tokens, until four
    requests at once (or as many as the configuration says) have a modest size. An unset number of requests is the largest
    of 8, 4 and 2 that is modest with this context, otherwise 1.
    """

    def fits(context: int, count: int) -> bool:
        return modest(estimate_memory(info, context, dtype=dtype, sequences=count, outputs=count), terms.budget)

    context = terms.context_length
    if terms.shortens and context > DEFAULT_CONTEXT:
        lengths = [*range(DEFAULT_CONTEXT, context, _STEP), context]
        too_long = bisect_left(lengths, True, key=lambda length: not fits(length, config.parallel or _TOGETHER))
        context = lengths[max(0, too_long - 1)]
    return context, config.parallel or next((count for count in (8, 4, 2) if fits(context, count)), 1)
