"""Retrieval from the handbook of the example flow: how well each embedding model puts the passages in order."""

import asyncio
from typing import Any

from sklearn.metrics import ndcg_score

from benchmarks.device import device
from benchmarks.report import print_table, row, verdict
from benchmarks.text import THREADS, our_manager
from lfx_local_runtimes.flows.retrieval import handbook, questions
from lfx_local_runtimes.runtimes import ModelConfig
from lfx_local_runtimes.runtimes.sources.packages import BGE_SMALL, MINILM, RERANKER
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk
from lfx_local_runtimes.runtimes.tasks.text.rerank import RerankAsk

CUT = 10
FIRST = 3
AT_LEAST = 0.8
"""The share of the questions with the right passage among the first: of every embedder."""
RERANKED_AT_LEAST = 0.9
CANDIDATES = 15
EMBEDDERS: tuple[tuple[str, dict[str, str]], ...] = (
    (MINILM.name, {"quantization": "fp32"}),
    (MINILM.name, {"quantization": "bf16"}),
    (MINILM.name, {"runtime_type": "onnx", "quantization": "fp32"}),
    (MINILM.name, {"runtime_type": "onnx", "quantization": "int8"}),
    (BGE_SMALL.name, {"pooling": "cls"}),
)
"""The model, and how it is loaded. bge-small is int8, as its package has it."""


def relevance() -> Any:
    """One row per question, one column per passage: whether the one answers the other."""
    import numpy as np

    titles = [passage.partition(":")[0] for passage in handbook().split("\n\n")]
    return np.array([[float(title in asked["passages"]) for title in titles] for asked in questions()])


async def scores(config: ModelConfig) -> tuple[Any, str, str]:
    """The cosine of every question with every passage; engine and type."""
    with our_manager(config) as manager:
        asks = [
            EmbeddingAsk(texts=tuple(asked["question"] for asked in questions()), role="query", normalize=True),
            EmbeddingAsk(texts=tuple(handbook().split("\n\n")), role="document", normalize=True),
        ]
        asked, passages = [await manager.run(config.model_name, ask) for ask in asks]
    return asked.vectors @ passages.vectors.T, asked.metadata["engine"], asked.metadata["dtype"]


async def reranked(found: Any) -> Any:
    """The scores after the reranker has read the candidates, as in the example flow; the others stay behind them."""
    import numpy as np

    passages = handbook().split("\n\n")
    after = found - found.max() - 1  # a reranker's scores are shares
    with our_manager(ModelConfig(model_id=RERANKER.name, model_name=RERANKER.name, threads=THREADS)) as manager:
        for row, asked in enumerate(questions()):
            candidates = np.argsort(-found[row], kind="stable")[:CANDIDATES]
            ask = RerankAsk(query=asked["question"], documents=tuple(passages[place] for place in candidates))
            for one in (await manager.run(RERANKER.name, ask)).ranking:
                after[row, candidates[one.index]] = one.score
    return after


def hit_rate(right: Any, found: Any) -> float:
    """The share of the questions with a passage that answers them among the first ones."""
    import numpy as np

    first = np.argsort(-found, axis=1, kind="stable")[:, :FIRST]
    return float(np.take_along_axis(right, first, axis=1).any(axis=1).mean())


def main() -> None:
    """Print the table."""
    right = relevance()
    kept: list[Any] = []

    def cells(engine: str, dtype: str, found: Any, target: float = AT_LEAST) -> list[str]:
        rate = hit_rate(right, found)
        reached = f"{rate:.3f} {verdict(rate, at_least=target)}"
        return [engine, dtype, f"{ndcg_score(right, found, k=CUT):.3f}", reached, f"≥ {target}"]

    def embedded(name: str, options: dict[str, str]) -> list[str]:
        config = ModelConfig.model_validate(
            {"model_id": name, "model_name": name, "device_type": device().type, "threads": THREADS, **options}
        )
        found, engine, dtype = asyncio.run(scores(config))
        if options is EMBEDDERS[0][1]:
            kept.append(found)
        return cells(engine, dtype, found)

    rows = [row(name, embedded, name, options) for name, options in EMBEDDERS]
    rows.append(
        row(
            f"{EMBEDDERS[0][0]}, then {RERANKER.name}",
            lambda: cells("onnx", "int8", asyncio.run(reranked(kept[0])), RERANKED_AT_LEAST),
        )
    )
    print_table(
        "Retrieval",
        ["model", "engine", "type", f"nDCG@{CUT}", f"right among the first {FIRST}", "target"],
        rows,
        f"{right.shape[0]} questions, {right.shape[1]} passages of `flows/corpus`.",
    )
