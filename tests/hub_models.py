"""Repositories for the fake hub, and a manager that downloads from it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.settings import Settings
from tests.builders import GgufTensorSpec, Typed, encode_gguf, encode_safetensors, safetensors_header, tiny_llama
from tests.fake_hub import FakeHub, serve

REPO = "acme/tiny-it"
LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 100,
}  # fmt: skip
_PADDING = bytes(300_000)


def gguf(metadata: dict[str, Typed] | None = None, *, weights: int = 600_000) -> bytes:
    """A GGUF llama that passes every check before a load, with one more tensor of so many numbers."""
    spec = tiny_llama()
    spec.metadata.update(metadata or {})
    spec.tensors.append(GgufTensorSpec("rope_freqs.weight", (weights,), bytes(4 * weights)))
    return encode_gguf(spec)


def tensors(billions: float) -> tuple[bytes, int]:
    """The first bytes of a safetensors file with so many parameters in bf16, and its size."""
    rows = max(1, int(billions * 1e9) // 1000)
    header, size = safetensors_header({"model.embed_tokens.weight": ("BF16", (rows, 1000))})
    start = encode_safetensors(header, b"")
    return start + _PADDING, len(start) + size


def put_tensors(hub: FakeHub, config: dict[str, Any], billions: float = 1.0, **files: bytes) -> None:
    """Make `REPO` a safetensors model. Its weights are never there, only their header."""
    start, size = tensors(billions)
    hub.repos[REPO] = {"config.json": json.dumps(config).encode(), "model.safetensors": start, **files}
    hub.sizes["model.safetensors"] = size


@contextmanager
def hub_manager(
    folder: Path, repos: dict[str, dict[str, bytes]], **settings: Any
) -> Iterator[tuple[FakeHub, RuntimeManager]]:
    """A hub with these repositories, and a manager that knows no other."""
    chosen = Settings(home=folder / "home", model_dirs=(), hf_token=None, **settings)
    with serve(FakeHub(repos)) as hub:
        manager = RuntimeManager(chosen, catalog=Catalog(chosen, cache=folder / "cache", endpoint=hub.url))
        try:
            yield hub, manager
        finally:
            if hub.hold is not None:
                hub.hold.set()
            manager.close()
