"""Answers held to a JSON schema against free ones: the same model, prompts and lengths, in turns."""

import json
import statistics
import time
from collections.abc import Sequence

from benchmarks import models
from benchmarks.device import device
from benchmarks.report import print_table, row, verdict
from benchmarks.text import CONTEXT, SUBJECTS, THREADS, our_manager, place
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, Grammar

ROUNDS = 7
TARGET = 0.85
"""Of the free answers' tokens per second."""

SCHEMA = {
    "type": "array",
    "minItems": 100,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "role": {"enum": ["farmer", "baker", "teacher", "smith"]},
            "married": {"type": "boolean"},
            "hobbies": {"type": "array", "items": {"type": "string", "pattern": "^[a-z ]{3,20}$"}, "maxItems": 3},
            "address": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 60}]},
        },
        "required": ["name", "age", "role", "married", "hobbies", "address"],
        "additionalProperties": False,
    },
}
"""More than an answer has room for: every answer is cut, at the same length as the free ones."""


def main(tokens: int = 128) -> None:
    """Print the table."""
    path = models.gguf()
    config = ModelConfig(
        model_id=str(path), model_name="gemma", device_type=device().type, context_length=CONTEXT, threads=THREADS
    )
    grammar = Grammar(kind="json_schema", json_schema=SCHEMA)
    with our_manager(config) as manager:
        speed(manager, prompts(0, 1), 1, None)
        begin = time.perf_counter()
        speed(manager, prompts(0, 1), 1, grammar)
        first = time.perf_counter() - begin
        rows = [
            row("1 stream" if streams == 1 else f"{streams} streams", compare, manager, streams, grammar, tokens)
            for streams in (1, 4)
        ]
    print_table(
        "llama.cpp: JSON schema",
        ["", "free, tokens/s", "with the schema, tokens/s", f"ratio (≥ {TARGET})"],
        rows,
        f"Gemma 3 270M Q4_K_M, {tokens} tokens greedy, {place()}, medians of {ROUNDS} rounds in turns; a schema of "
        f"{len(json.dumps(SCHEMA)):,} characters, compiled for every answer. The model's first grammar took {first:.1f} s.",
    )


def compare(manager: RuntimeManager, streams: int, grammar: Grammar, tokens: int) -> list[str]:
    """The cells of a row: so many answers at once, free and held."""
    free: list[float] = []
    held: list[float] = []
    for number in range(ROUNDS + 1):
        texts = prompts(number, streams)
        sides = [(free, None), (held, grammar)]
        for speeds, what in sides if number % 2 else reversed(sides):
            found = speed(manager, texts, tokens, what)
            if number:  # the first round warms up
                speeds.append(found)
    ratio = statistics.median(one / other for one, other in zip(held, free, strict=True))
    medians = (f"{statistics.median(speeds):.1f}" for speeds in (free, held))
    return [*medians, f"{ratio:.3f} {verdict(ratio, at_least=TARGET)}"]


def prompts(number: int, count: int) -> list[str]:
    """For a round."""
    return [f"{number}. A list of people who know {subject}, as JSON:\n" for subject in SUBJECTS[:count]]


def speed(manager: RuntimeManager, texts: Sequence[str], tokens: int, grammar: Grammar | None) -> float:
    """Tokens per second over all answers, from asking to the end of the last one.

    Raises:
        RuntimeError: an answer ended early, so that the sides cannot be compared.
    """
    begin = time.perf_counter()
    streams = [
        manager.stream(
            "gemma",
            GenerationConfig(prompt=text, raw=True, max_tokens=tokens, temperature=0, ignore_eos=True, grammar=grammar),
        )
        for text in texts
    ]
    made = sum(stream.wait().tokens_generated for stream in streams)
    if made != tokens * len(texts):
        raise RuntimeError(f"{made} tokens instead of {tokens * len(texts)}")
    return made / (time.perf_counter() - begin)
