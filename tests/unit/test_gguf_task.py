"""What a GGUF file's header says the model does, and how its rows share calls."""

from pathlib import Path

import pytest

from lfx_local_runtimes.runtimes.engines.llama_cpp.encoder import CALL, TEXTS, _calls
from lfx_local_runtimes.runtimes.planning import inspect_model
from lfx_local_runtimes.runtimes.tasks.text.reading import Tokens
from tests.builders import Typed, write_gguf


def rank(*labels: str, architecture: str = "bert") -> dict[str, Typed]:
    return {
        f"{architecture}.pooling_type": ("u32", 4),
        **({f"{architecture}.classifier.output_labels": ("[str]", labels)} if labels else {}),
    }


@pytest.mark.parametrize(
    ("architecture", "metadata", "task"),
    [
        ("llama", {}, "llm"),
        ("llama", {"llama.pooling_type": ("u32", 0)}, "llm"),
        ("llama", {"llama.pooling_type": ("str", "mean")}, "llm"),
        ("qwen3", {"qwen3.pooling_type": ("u32", 3)}, "embedding"),
        ("bert", {}, "embedding"),
        ("bert", {"bert.pooling_type": ("u32", 2)}, "embedding"),
        ("nomic-bert", {"nomic-bert.pooling_type": ("u32", 1)}, "embedding"),
        ("modern-bert", {"bert.pooling_type": ("u32", 4)}, "embedding"),
        ("bert", rank(), "rerank"),
        ("bert", rank("LABEL_0"), "rerank"),
        ("bert", rank("sad", "happy"), "classification"),
        ("llama", rank(architecture="llama"), "rerank"),
    ],
)
def test_tasks(tmp_path: Path, architecture: str, metadata: dict[str, Typed], task: str) -> None:
    named: dict[str, Typed] = {"general.architecture": ("str", architecture)}
    assert inspect_model(write_gguf(tmp_path / "model.gguf", metadata=named | metadata)).task == task


def test_encoders_keep_no_cache(tmp_path: Path) -> None:
    blocks: dict[str, Typed] = {"bert.block_count": ("u32", 2), "bert.attention.head_count": ("u32", 4)}
    encoder = blocks | {"general.architecture": ("str", "bert")}
    assert inspect_model(write_gguf(tmp_path / "encoder.gguf", metadata=encoder)).layers == ()
    assert len(inspect_model(write_gguf(tmp_path / "decoder.gguf")).layers) == 2


@pytest.mark.parametrize(
    ("lengths", "calls"),
    [
        ([3], [1]),
        ([CALL - 1, 1, 1], [2, 1]),
        ([CALL * 4, 3, CALL * 4], [1, 1, 1]),
        ([1] * (TEXTS + 1), [TEXTS, 1]),
    ],
)
def test_rows_share_calls_in_order(lengths: list[int], calls: list[int]) -> None:
    rows = [Tokens([0] * length, [0] * length) for length in lengths]
    made = list(_calls(rows))
    assert [len(call) for call in made] == calls
    assert [id(row) for call in made for row in call] == [id(row) for row in rows]
