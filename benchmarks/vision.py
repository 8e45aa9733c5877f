"""Pictures: our batching against Transformers' pipeline, against itself one by one, and across the process border."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.device import device
from benchmarks.report import print_table, row, verdict
from benchmarks.text import THREADS, alone, our_manager, place
from lfx_local_runtimes.runtimes import ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.tasks.vision.classification import ImageClassificationAsk

ROUNDS = 5
PICTURES = 64
CALLERS = 16
MODEL = "vit-small"


def classifier() -> Path:
    """A ViT-S/16 for 224 × 224 pixels and 1,000 labels (22 M parameters) with seeded random weights."""

    def make(folder: Path) -> None:
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, initializer_range=0.1,
            id2label={number: f"label {number}" for number in range(1000)},
            label2id={f"label {number}": number for number in range(1000)},
        )  # fmt: skip
        transformers.ViTForImageClassification(config).save_pretrained(folder)
        transformers.ViTImageProcessorPil().save_pretrained(folder)

    return models.made(models.CACHE / MODEL, make)


def pictures() -> list[bytes]:
    """JPEG files of 640 × 427 pixels: the two photographs of scikit-learn, each moved by some columns."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    files = []
    for index in range(PICTURES):
        pixels = np.roll(load_sample_images().images[index % 2], 10 * index, axis=1)
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def reference(path: Path, files: Sequence[bytes]) -> tuple[float, list[str]]:
    """Seconds and best labels of Transformers' pipeline, fp32, batches of 8."""
    import torch
    import transformers
    from PIL import Image

    global _reference  # noqa: PLW0603 - a process's own
    if _reference is None:
        torch.set_num_threads(THREADS)
        _reference = transformers.pipeline(
            "image-classification", model=str(path), device=device().key, dtype=torch.float32
        )
    begin = time.perf_counter()
    answers = _reference([Image.open(BytesIO(file)) for file in files], batch_size=8, top_k=1)
    return time.perf_counter() - begin, [answer[0]["label"] for answer in answers]


_reference: Any = None


def ours(manager: RuntimeManager, files: Sequence[bytes]) -> tuple[float, list[str]]:
    """Seconds and best labels of one call."""
    begin = time.perf_counter()
    result = manager.start(MODEL, ImageClassificationAsk(images=tuple(files), top_k=1)).wait()
    return time.perf_counter() - begin, [labels[0].label for labels in result.labels]


async def at_once(manager: RuntimeManager, files: Sequence[bytes]) -> float:
    """Seconds for as many callers with one picture each."""
    begin = time.perf_counter()
    await asyncio.gather(*(manager.run(MODEL, ImageClassificationAsk(images=(file,))) for file in files))
    return time.perf_counter() - begin


async def one_by_one(manager: RuntimeManager, files: Sequence[bytes]) -> float:
    """The same, one after the other."""
    begin = time.perf_counter()
    for file in files:
        await manager.run(MODEL, ImageClassificationAsk(images=(file,)))
    return time.perf_counter() - begin


def against_the_pipeline(path: Path) -> Sequence[object]:
    """One call with all pictures."""
    files, faster = pictures(), []
    with our_manager(_config(path)) as manager, alone() as process:
        for number in range(ROUNDS + 1):
            theirs, mine = process.submit(reference, path, files).result(), ours(manager, files)
            if theirs[1] != mine[1]:
                raise RuntimeError("the labels differ from those of the pipeline")
            if number:  # the first round warms up
                faster.append(theirs[0] / mine[0])
    return ["the pipeline, fp32, batches of 8", *_ratio(statistics.median(faster), 1.2)]


def of_callers(path: Path) -> Sequence[object]:
    """Many callers with one picture each."""
    files, gains = pictures()[:CALLERS], []
    with our_manager(_config(path)) as manager:
        for number in range(ROUNDS + 1):
            many, single = asyncio.run(at_once(manager, files)), asyncio.run(one_by_one(manager, files))
            if number:
                gains.append(single / many)
    return ["one by one", *_ratio(statistics.median(gains), 1.5)]


def over_the_border(path: Path) -> Sequence[object]:
    """The model in a process of its own, against the model in this process."""
    files, shares = pictures(), []
    home = models.settings().home / "inline"
    with our_manager(_config(path)) as apart, alone() as process:
        for number in range(ROUNDS + 1):
            inline = process.submit(inline_seconds, path, files, home).result()
            isolated = ours(apart, files)[0]
            if number:
                shares.append(inline / isolated)
    return ["inline", *_ratio(statistics.median(shares), 0.97)]


def inline_seconds(path: Path, files: Sequence[bytes], home: Path) -> float:
    """Seconds of one call of a manager that runs models in its own process."""
    global _inline  # noqa: PLW0603 - a process's own
    if _inline is None:
        _inline = RuntimeManager(models.settings().model_copy(update={"isolation": "inline", "home": home}))
        _inline.catalog.remove(MODEL)
        _inline.register_model(_config(path))
    return ours(_inline, files)[0]


_inline: RuntimeManager | None = None


def main() -> None:
    """Print the table."""
    path = classifier()
    rows = [
        row(f"{PICTURES} pictures in one call", against_the_pipeline, path),
        row(f"{CALLERS} callers with one picture each", of_callers, path),
        row(f"{PICTURES} pictures in one call, model in a process of its own", over_the_border, path),
    ]
    print_table(
        "Pictures: ViT-S/16, seeded random weights",
        ["", "against", "ratio", "target"],
        rows,
        f"fp32, JPEG files of 640 × 427 pixels, {place()}, medians of {ROUNDS} rounds; the labels are those of the pipeline.",
    )


def _config(path: Path) -> ModelConfig:
    return ModelConfig(
        model_id=str(path), model_name=MODEL, device_type=device().type, threads=THREADS, quantization="fp32"
    )


def _ratio(value: float, target: float) -> tuple[str, str]:
    return f"{value:.2f} {verdict(value, at_least=target)}", f"≥ {target}"
