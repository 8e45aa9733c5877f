"""Tiny encoders with random weights, the same at every call, of the real architectures."""

from pathlib import Path
from typing import Any, TypeVar

from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.encoder.runtime import EncoderRuntime, PieceRuntime
from lfx_local_runtimes.runtimes.engines.transformers.encoder import TransformersEncoder
from lfx_local_runtimes.runtimes.requests import Request, Run
from lfx_local_runtimes.runtimes.tasks.base import Ask, ResultT

ARCHITECTURES = ("Bert", "Roberta", "DistilBert", "ModernBert", "DebertaV2")
WORDS = ("the", "cat", "sat", "on", "mat", "in", "paris", "alice", "met", "bob", "and", "ran", "##s", "##ing", ".", ",")
MAX_LENGTH = 64
TEXTS = (
    "The cat sat on the mat.",
    "Alice met Bob in Paris.",
    "Une phrase en français, with some English in it",
    "日本語のテキスト",
    "a",
    "The runtime keeps an account of memory. " * 8,
    "The cat ran and ran. " * 60,
)
"""For a real model; the last one is too long for MiniLM."""


def save_encoder(folder: Path, architecture: str, head: str, **config: Any) -> Path:
    """Write a model and a word-piece tokenizer; `head` is Model, ForSequenceClassification …"""
    import torch
    import transformers

    tokenizer = word_pieces()
    kind = getattr(transformers, f"{architecture}Config")
    sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2} if architecture == "DistilBert" else {}
    made = kind(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=MAX_LENGTH + 2, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2,
        sep_token_id=3, initializer_range=0.5, **sizes, **config,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{architecture}{head}")(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def word_pieces() -> Any:
    """A BERT tokenizer of a few words and all letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    made = Tokenizer(models.WordPiece({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=MAX_LENGTH,
    )  # fmt: skip


RuntimeT = TypeVar("RuntimeT", bound=EncoderRuntime)


def load_encoder(path: Path, **options: Any) -> TransformersEncoder:
    """A started runtime; in fp32 unless told otherwise."""
    return started(TransformersEncoder, path, **{"quantization": "fp32", **options})


def started(kind: type[RuntimeT], path: Path, **options: Any) -> RuntimeT:
    """A runtime of an engine's, its model loaded."""
    runtime = kind(ModelConfig.model_validate({"model_id": str(path), "model_name": path.name, **options}))
    runtime.start().result()
    return runtime


def unload(runtime: PieceRuntime[Any]) -> None:
    """And wait until it is gone."""
    thread = runtime.stop()
    assert thread is not None
    thread.join()


def begin(runtime: PieceRuntime[Any], ask: Ask[ResultT]) -> Run[Any, ResultT]:
    """Ask without waiting."""
    request = Request(runtime.config.model_name, ask)
    runtime.submit(request)
    return Run(request)


def answer(runtime: PieceRuntime[Any], ask: Ask[ResultT]) -> ResultT:
    """Ask and wait."""
    return begin(runtime, ask).wait()


def cosines(ones: Any, others: Any) -> Any:
    """Row by row."""
    import numpy as np

    return (ones * others).sum(1) / np.linalg.norm(ones, axis=1) / np.linalg.norm(others, axis=1)
