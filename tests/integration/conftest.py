"""Transformers models, loaded, and the tokenizer that takes longest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime
from tests.encoder_models import TEXTS
from tests.transformers_runtimes import Start, starter


@pytest.fixture
def start() -> Iterator[Start]:
    """Load a model; it is unloaded after the test."""
    yield from starter()


@pytest.fixture(scope="session")
def tiny(tiny_llama: Path) -> Iterator[TransformersRuntime]:
    for start in starter():
        yield start(tiny_llama, quantization="fp32")


@pytest.fixture(scope="session")
def gemma(gemma_safetensors: Path) -> Iterator[TransformersRuntime]:
    for start in starter():
        yield start(gemma_safetensors, quantization="bf16", context_length=2048)


@pytest.fixture(scope="session")
def gemma_tokenizer(gemma_safetensors: Path) -> Any:
    """The library's own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gemma_safetensors, local_files_only=True)


@pytest.fixture(scope="session")
def reference(minilm: Path) -> Any:
    """What sentence-transformers makes of `TEXTS` with MiniLM, in fp32."""
    import numpy as np
    from sentence_transformers import SentenceTransformer

    return np.asarray(SentenceTransformer(str(minilm), device="cpu").encode(list(TEXTS)))
