"""Retrieval from the handbook of the example flow: how well each embedding model puts the passages in order."""

import asyncio
from typing import Any

from sklearn.metrics import ndcg_score

from benchmarks import models
from benchmarks.report import print_table
from benchmarks.text import THREADS, our_manager
from lfx_local_runtimes.flows.retrieval import handbook, questions
from lfx_local_runtimes.runtimes import DeviceType, ModelConfig
from lfx_local_runtimes.runtimes.tasks.embedding import EmbeddingAsk

CUT = 10
FIRST = 3
EMBEDDERS = (
    ("all-MiniLM-L6-v2", models.minilm, "fp32"),
    ("all-MiniLM-L6-v2", models.minilm, "bf16"),
)
"""Name, where its files are, and in which type it is computed."""


def relevance() -> Any:
    """One row per question, one column per passage: whether the one answers the other."""
    import numpy as np

    titles = [passage.partition(":")[0] for passage in handbook().split("\n\n")]
    return np.array([[float(title in asked["passages"]) for title in titles] for asked in questions()])


async def scores(config: ModelConfig) -> Any:
    """The cosine of every question with every passage."""
    with our_manager(config) as manager:
        asks = [
            EmbeddingAsk(texts=tuple(asked["question"] for asked in questions()), role="query", normalize=True),
            EmbeddingAsk(texts=tuple(handbook().split("\n\n")), role="document", normalize=True),
        ]
        asked, passages = [(await manager.run(config.model_name, ask)).vectors for ask in asks]
    return asked @ passages.T


def hit_rate(right: Any, found: Any) -> float:
    """The share of the questions with a passage that answers them among the first ones."""
    import numpy as np

    first = np.argsort(-found, axis=1, kind="stable")[:, :FIRST]
    return float(np.take_along_axis(right, first, axis=1).any(axis=1).mean())


def main() -> None:
    """Print the table."""
    right = relevance()
    rows = []
    for name, path, dtype in EMBEDDERS:
        config = ModelConfig(
            model_id=str(path()), model_name=name, device_type=DeviceType.CPU, threads=THREADS, quantization=dtype
        )
        found = asyncio.run(scores(config))
        rows.append([name, dtype, f"{ndcg_score(right, found, k=CUT):.3f}", f"{hit_rate(right, found):.3f}"])
    print_table(
        "Retrieval",
        ["model", "type", f"nDCG@{CUT}", f"hit rate of the first {FIRST}"],
        rows,
        f"{right.shape[0]} questions, {right.shape[1]} passages of `flows/corpus`.",
    )
