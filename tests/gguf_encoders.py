"""BERT models as GGUF files, as llama.cpp's converter writes them, from Hugging Face folders."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEAN, CLS, LAST, RANK = 1, 2, 3, 4
_SPECIAL = {"[PAD]": "pad", "[UNK]": "unk", "[CLS]": "bos", "[SEP]": "sep", "[MASK]": "mask"}


def save_bert_gguf(
    source: Path, target: Path, *, pooling: int | None = MEAN, labels: tuple[str, ...] = (), half: bool = False
) -> Path:
    """Write a BERT with the weights of `source`, in float32, or matrices in float16 (`half`)."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    if labels:
        writer.add_classifier_output_labels(labels)
    writer.add_token_type_count(config["type_vocab_size"])
    vocabulary = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    _add_word_pieces(writer, vocabulary, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, tensor in load_file(source / "model.safetensors").items():
        place = names.get_name(_as_mapped(name), try_suffixes=(".weight", ".bias"))
        if place is not None:
            writer.add_tensor(place, tensor.astype("f2" if half and _is_matrix(name, tensor) else "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _is_matrix(name: str, tensor: Any) -> bool:
    return tensor.ndim == 2 and "position" not in name and "token_type" not in name


def _as_mapped(name: str) -> str:
    """A weight of Transformers' BERT by a name that gguf knows: its pooler and classifier are Roberta's two layers."""
    name = name.removeprefix("bert.")
    return name.replace("classifier.", "classifier.out_proj.").replace("pooler.dense.", "classifier.dense.")


def _add_word_pieces(writer: Any, vocabulary: Mapping[str, int], size: int) -> None:
    """Words begin with ▁ and later pieces with nothing, where BERT's begin with nothing and with ##."""
    from gguf import TokenType

    tokens = [f"[unused{token}]" for token in range(size)]
    kinds = [TokenType.UNUSED] * size
    for word, token in vocabulary.items():
        if token < size:
            control = word in _SPECIAL
            tokens[token] = word if control else word[2:] if word.startswith("##") else f"▁{word}"
            kinds[token] = TokenType.CONTROL if control else TokenType.NORMAL
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for word, name in _SPECIAL.items():
        if word in vocabulary:
            getattr(writer, f"add_{name}_token_id")(vocabulary[word])
