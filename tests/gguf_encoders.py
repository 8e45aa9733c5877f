"""BERT and XLM-RoBERTa models as GGUF files, as llama.cpp's converter writes them, from Hugging Face folders."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.encoder_models import MAX_LENGTH, WORDS

MEAN, CLS, LAST, RANK = 1, 2, 3, 4
_SPECIAL = {"[PAD]": "pad", "[UNK]": "unk", "[CLS]": "bos", "[SEP]": "sep", "[MASK]": "mask"}
_UNIGRAM_SPECIAL = {"<pad>": "pad", "<unk>": "unk", "<s>": "bos", "</s>": "eos"}


def save_bert_gguf(
    source: Path,
    target: Path,
    *,
    pooling: int | None = MEAN,
    labels: tuple[str, ...] = (),
    half: bool = False,
    add_sep: bool | None = None,
) -> Path:
    """Write a BERT, or an XLM-RoBERTa whose tokens are unigrams, with the weights of `source`, in float32, or matrices
    in float16 (`half`). `add_sep` is the file's `add_sep_token`, None for a file without one."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    first = config["pad_token_id"] + 1 if config["model_type"] == "xlm-roberta" else 0
    writer.add_context_length(config["max_position_embeddings"] - first)
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
    if add_sep is not None:
        writer.add_add_sep_token(add_sep)
    tokens = json.loads((source / "tokenizer.json").read_text())["model"]
    (_add_unigrams if tokens["type"] == "Unigram" else _add_word_pieces)(writer, tokens["vocab"], config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, tensor in load_file(source / "model.safetensors").items():
        place = names.get_name(_as_mapped(name), try_suffixes=(".weight", ".bias"))
        if place is not None:
            tensor = tensor[first:] if "position_embeddings" in name else tensor
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
    if name.startswith("roberta.") or "out_proj" in name or "classifier.dense" in name:
        return name.removeprefix("roberta.")
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


def _add_unigrams(writer: Any, vocabulary: Sequence[tuple[str, float]], size: int) -> None:
    from gguf import TokenType

    unused = [(f"[unused{token}]", 0.0) for token in range(len(vocabulary), size)]
    tokens, scores = zip(*vocabulary, *unused, strict=True)
    kinds = [TokenType.CONTROL if token in _UNIGRAM_SPECIAL else TokenType.NORMAL for token, _ in vocabulary]
    kinds[tokens.index("<unk>")] = TokenType.UNKNOWN
    writer.add_tokenizer_model("t5")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds + [TokenType.UNUSED] * len(unused))
    writer.add_add_space_prefix(True)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    for token, name in _UNIGRAM_SPECIAL.items():
        getattr(writer, f"add_{name}_token_id")(tokens.index(token))


def save_unigrams(folder: Path, between: str) -> None:
    """Write an XLM-RoBERTa's tokenizer of a few words and all letters; `between` stands between the texts of a pair."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [f"\u2581{word}" for word in WORDS if word.isalpha()]
    pieces = [*((word, -2.0) for word in words), *((letter, -5.0) for letter in ("\u2581", ".", *letters))]
    made = Tokenizer(models.Unigram([*((token, 0.0) for token in _UNIGRAM_SPECIAL), *pieces], unk_id=1))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=f"<s> $A {between} $B </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        cls_token="<s>", sep_token="</s>", model_max_length=MAX_LENGTH,
    ).save_pretrained(folder)  # fmt: skip
