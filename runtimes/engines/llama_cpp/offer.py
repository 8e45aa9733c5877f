"""How llama.cpp would load a model: a GGUF file, in the type it is stored in."""

from collections import Counter
from dataclasses import replace

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.devices import CPU, Device
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import Offer, Terms, estimate_memory
from lfx_local_runtimes.runtimes.planning.division import fill, in_words
from lfx_local_runtimes.runtimes.planning.offers import modest, sized_offer, stored_type
from lfx_local_runtimes.runtimes.tasks import family_of

CALL = 512
"""Tokens of one call for encoders if no text is longer: llama.cpp compares each with every other of its call, so the
work grows with the square."""

_STATE_BYTES = 256 * 2**20
"""At most, for the states of prompts that had to leave the context."""


def offer(config: ModelConfig, info: ModelInfo, device: Device, terms: Terms) -> Offer:
    """The file as it is. An encoder needs room for the logits of every token of its longest text.

    Raises:
        InvalidInput: the model is no GGUF file, the configuration asks for another type, or its layers do not fit on the
            devices over which they are to be divided.
    """
    if info.format is not ModelFormat.GGUF:
        raise InvalidInput(
            f"llama.cpp loads GGUF files only, and {info.path.name} holds {info.format.value} files.",
            model_name=config.model_name, hint="Use a GGUF copy of the model, or runtime_type auto.",
        )  # fmt: skip
    found = sized_offer(config, info, device, terms, stored_type(config, info), state_limit=_STATE_BYTES)
    if family_of(terms.task) != "reading":
        chosen = config.gpu_layers is not None and device != CPU and config.gpu_layers <= len(info.layer_bytes)
        return _divided(found, config, device, terms) if terms.rooms or chosen else found
    context = found.context_length or terms.context_length
    while True:
        longest = max(CALL, context)
        memory = estimate_memory(info, context, sequences=1, batch=longest, outputs=longest)
        if not terms.shortens or context <= CALL or modest(memory, terms.budget):
            return replace(found, memory={device.key: memory.total}, context_length=context)
        context = max(CALL, context // 2)


def _divided(offer: Offer, config: ModelConfig, device: Device, terms: Terms) -> Offer:
    """The same with the layers on several devices: as many on the cards as fit, or as the configuration says.

    llama.cpp puts the first layers on the CPU and the following ones on the cards, in the order of their numbers. The
    output follows the last layer and counts as one. The embeddings stay on the CPU, also if the output
    on a card is a copy of them. Each device has buffers to compute in.
    """
    info = offer.files
    estimate = estimate_memory(info, offer.context_length, sequences=offer.sequences, outputs=offer.sequences)
    cache = estimate.kv_cache // max(1, len(info.layer_bytes))
    parts = [info.output_bytes, *(size + cache for size in reversed(info.layer_bytes))]
    host = estimate.weights - sum(info.layer_bytes) + offer.state_bytes
    if config.gpu_layers is not None:
        given = {device.key: parts[: config.gpu_layers], CPU.key: parts[config.gpu_layers :]}
        placed = {key: those for key, those in given.items() if those}
    else:
        cards = [key for key in reversed(list(terms.rooms)) if key != CPU.key]
        rooms = {key: terms.rooms[key] - estimate.compute for key in cards}
        if CPU.key in terms.rooms:
            rooms[CPU.key] = terms.rooms[CPU.key] - host - estimate.compute
        placed = fill(parts, rooms) or {}
        if not info.layer_bytes or len(placed.get(cards[0], ())) < 2:
            raise InvalidInput(
                f"The layers of {info.path.name} do not fit on {' and '.join(terms.rooms)}.", model_name=config.model_name,
                hint="Use a smaller quantization, or a shorter context_length.",
            )  # fmt: skip
    memory = Counter({key: sum(those) + estimate.compute for key, those in placed.items()})
    memory[CPU.key] += host
    counts = {key: len(placed[key]) for key in (*terms.rooms, device.key, CPU.key) if key in placed}
    counts[next(iter(placed))] -= 1  # the output is no layer
    return replace(offer, memory=memory, layers=counts, warnings=(*offer.warnings, in_words(counts)))
