"""Models to test with: the packaged Gemma in both formats, and tiny seeded ones."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import models


@pytest.fixture(scope="session")
def gemma_gguf() -> Path:
    """The packaged Gemma 3 270M, Q4_K_M."""
    return models.gguf()


@pytest.fixture(scope="session")
def gemma_safetensors() -> Path:
    """The same weights unpacked to bf16; about a minute the first time. Its parent is a folder of models."""
    return models.safetensors()


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The packaged all-MiniLM-L6-v2, safetensors, with its sentence-transformers files."""
    return models.minilm()


@pytest.fixture(scope="session")
def minilm_gguf(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 as a GGUF file, in float32."""
    from tests.gguf_encoders import save_bert_gguf

    return save_bert_gguf(minilm, tmp_path_factory.mktemp("gguf") / "minilm.gguf")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 100,000 parameters that reads and writes bytes; loads in milliseconds."""
    return save_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_llama: Path) -> Path:
    """The tiny Llama as a GGUF file, in float32."""
    return save_gguf(tiny_llama, tiny_llama.with_suffix(".gguf"))


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 as small as the tiny Llama. Its end token's score is always zero, too."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer, folder = byte_tokenizer(), tmp_path_factory.mktemp("gemma") / "tiny-gemma"
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, sliding_window=64, bos_token_id=0, eos_token_id=1,
        pad_token_id=1, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = Gemma3ForCausalLM(config)
        model.lm_head.weight[1].zero_()
    model.to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that Transformers does not batch: its attention would not see the cache."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer, folder = byte_tokenizer(), tmp_path_factory.mktemp("bloom") / "tiny-bloom"
    config = BloomConfig(
        vocab_size=len(tokenizer), hidden_size=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BloomForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_llama(folder: Path, *, hidden: int = 64, layers: int = 2, spread: float = 0.1) -> Path:
    """Write a Llama with random weights, the same at every call, and its tokenizer.

    The end token's score is always zero: among the best few tokens it never comes, and an answer does not end by itself.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=hidden * 4, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        initializer_range=spread, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        model.lm_head.weight[1].zero_()
    model.to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer() -> Any:
    """`<s>` is 0, `</s>` is 1, then a token per byte and one for two spaces; a prompt begins with `<s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *letters, "ĠĠ"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "Ġ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def save_gguf(source: Path, target: Path, *, fim: Sequence[int] = ()) -> Path:
    """Write what `save_llama` wrote as a GGUF file, weights unchanged. `fim`: its tokens for prefix, suffix and middle."""
    import gguf
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    config = json.loads((source / "config.json").read_text())
    words = sorted(AutoTokenizer.from_pretrained(source).get_vocab().items(), key=lambda item: item[1])
    heads, width = config["num_attention_heads"], config["hidden_size"]
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(words) - 2))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    for name, token in zip(("pre", "suf", "mid"), fim, strict=bool(fim)):
        writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", token)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(source / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:  # llama.cpp rotates neighbours, Transformers halves
            tensor = tensor.reshape(heads, 2, width // heads // 2, width).swapaxes(1, 2).reshape(width, width)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
