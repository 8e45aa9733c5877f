"""How llama.cpp would load a model: a GGUF file, in the type it is stored in."""

from dataclasses import replace

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.devices import Device
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import Offer, Terms, estimate_memory
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
        InvalidInput: the model is no GGUF file, or the configuration asks for another type.
    """
    if info.format is not ModelFormat.GGUF:
        raise InvalidInput(
            f"llama.cpp loads GGUF files only, and {info.path.name} holds {info.format.value} files.",
            model_name=config.model_name, hint="Use a GGUF copy of the model, or runtime_type auto.",
        )  # fmt: skip
    found = sized_offer(config, info, device, terms, stored_type(config, info), state_limit=_STATE_BYTES)
    if family_of(terms.task) != "reading":
        return found
    context = found.context_length or terms.context_length
    while True:
        longest = max(CALL, context)
        memory = estimate_memory(info, context, sequences=1, batch=longest, outputs=longest)
        if not terms.shortens or context <= CALL or modest(memory, terms.budget):
            return replace(found, memory={device.key: memory.total}, context_length=context)
        context = max(CALL, context // 2)
