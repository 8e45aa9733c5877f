"""Tiny models that see, with random weights, the same at every call, of the real architectures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.transformers.sight import TransformersSight

ANIMALS = {0: "cat", 1: "dog", 2: "bird"}


def photo() -> Any:
    """A photograph of 640 × 427 pixels."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))


def vit(folder: Path, **config: Any) -> Path:
    """An image classifier."""
    import transformers

    made = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        id2label=ANIMALS, label2id={name: index for index, name in ANIMALS.items()}, initializer_range=0.5, **config,
    )  # fmt: skip
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    return _saved(folder, lambda: transformers.ViTForImageClassification(made), processor)


def _saved(folder: Path, make: Callable[[], Any], *beside: Any) -> Path:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        make().save_pretrained(folder)
    for one in beside:
        one.save_pretrained(folder)
    return folder


def load_sight(path: Path, **options: Any) -> TransformersSight:
    """A started runtime."""
    config = {"model_id": str(path), "model_name": path.name, "threads": 1, **options}
    runtime = TransformersSight(ModelConfig.model_validate(config))
    runtime.start().result()
    return runtime
