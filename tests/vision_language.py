"""Tiny seeded models that read pictures and write text, and pictures for them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}MARK{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
_TEXT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 64, "max_position_embeddings": 4096, "initializer_range": 0.2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 3, "tie_word_embeddings": False,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8, "initializer_range": 0.2,
}  # fmt: skip
_WORDS = {"vocab_size": 260, "bos_token_id": 1, "eos_token_id": 2}
"""Four special tokens and a token for each byte."""
_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def png(seed: int = 0, width: int = 48, height: int = 32) -> bytes:
    """A picture of random pixels, as a PNG file."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def tiny_idefics3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The architecture of SmolVLM, a picture as one tile of four tokens."""
    import transformers as hf

    tokenizer = _tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    text = {**_TEXT, "num_key_value_heads": 2, "model_type": "llama", "vocab_size": len(tokenizer)}
    config = hf.Idefics3Config(
        vision_config=_VISION,
        text_config=text,
        scale_factor=2,
        image_token_id=4,
        pad_token_id=3,
        tie_word_embeddings=False,
    )
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    processor = hf.Idefics3Processor(
        hf.Idefics3ImageProcessorPil(**sizes, do_image_splitting=False), tokenizer, image_seq_len=4,
        chat_template=CHAT.replace("MARK", "<image>"),
    )  # fmt: skip
    return _save(hf.Idefics3ForConditionalGeneration, config, processor, tmp_path_factory.mktemp("idefics3"))


@pytest.fixture(scope="session")
def tiny_gemma3_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 with eyes. The tokens of a picture see each other, and a window slides."""
    import transformers as hf

    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer("<start_of_turn>", "<end_of_turn>", *named.values(), extra_special_tokens=named)
    begin, end, soft = (tokenizer.convert_tokens_to_ids(token) for token in named.values())
    config = hf.Gemma3Config(
        text_config={**_TEXT, "vocab_size": len(tokenizer), "sliding_window": 32}, vision_config=_VISION,
        mm_tokens_per_image=4, boi_token_index=begin, eoi_token_index=end, image_token_index=soft, tie_word_embeddings=False,
    )  # fmt: skip
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}), tokenizer, image_seq_length=4,
        chat_template=CHAT.replace("MARK", "<start_of_image>"),
    )  # fmt: skip
    return _save(hf.Gemma3ForConditionalGeneration, config, processor, tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP encoder before a Llama. Its template takes parts only, and puts pictures before texts."""
    import transformers as hf

    tokenizer = _tokenizer("<image>")
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**{**_VISION, "num_hidden_layers": 2, "projection_dim": 16}),
        text_config=hf.LlamaConfig(**{**_TEXT, "vocab_size": len(tokenizer)}), image_token_index=4, vision_feature_layer=-1,
        tie_word_embeddings=False,
    )  # fmt: skip
    chat = (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    pixels = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.LlavaProcessor(
        pixels, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat,
    )  # fmt: skip
    return _save(hf.LlavaForConditionalGeneration, config, processor, tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def tiny_smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolVLM with pictures in four tiles and a whole. Its own processor needs torchvision, for videos."""
    import transformers as hf

    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer = _tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles)
    tokenizer.chat_template = CHAT.replace("MARK", "<image>")
    text = {**_TEXT, "num_key_value_heads": 2, "model_type": "llama", "vocab_size": len(tokenizer)}
    config = hf.SmolVLMConfig(
        vision_config=_VISION,
        text_config=text,
        scale_factor=2,
        image_token_id=4,
        pad_token_id=3,
        tie_word_embeddings=False,
    )
    pixels = hf.SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    folder = _save(hf.SmolVLMForConditionalGeneration, config, pixels, tmp_path_factory.mktemp("smolvlm"))
    return _named(folder, tokenizer, "SmolVLMProcessor", image_seq_len=4)


@pytest.fixture(scope="session")
def tiny_qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2-VL: as many tokens as a picture needs, with positions in rows and columns."""
    import transformers as hf

    tokenizer = _tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer.chat_template = CHAT.replace("MARK", "<|vision_start|><|image_pad|><|vision_end|>")
    text = {key: value for key, value in _TEXT.items() if key != "head_dim"}
    text |= {"vocab_size": len(tokenizer), "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    vision = {
        "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "mlp_ratio": 2,
    }  # fmt: skip
    config = hf.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=4, video_token_id=5, vision_start_token_id=6,
        vision_end_token_id=7, tie_word_embeddings=False,
    )  # fmt: skip
    sizes = {"shortest_edge": 64, "longest_edge": 1024}
    pixels = hf.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=sizes)
    folder = _save(hf.Qwen2VLForConditionalGeneration, config, pixels, tmp_path_factory.mktemp("qwen2-vl"))
    return _named(folder, tokenizer, "Qwen2VLProcessor")


def _named(folder: Path, tokenizer: Any, kind: str, **options: Any) -> Path:
    """Complete a folder as the library writes one where it can make the processor."""
    tokenizer.save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "processor_class": kind}))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": kind, **options}))
    return folder


@pytest.fixture(scope="session")
def tiny_blip_caption(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP that writes captions."""
    return _blip("BlipForConditionalGeneration", tmp_path_factory.mktemp("blip-caption"))


@pytest.fixture(scope="session")
def tiny_blip_vqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP that answers questions."""
    return _blip("BlipForQuestionAnswering", tmp_path_factory.mktemp("blip-vqa"))


@pytest.fixture(scope="session")
def tiny_vit_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT before a GPT-2 that looks at it."""
    import transformers as hf

    decoder = hf.GPT2Config(
        n_embd=32, n_layer=1, n_head=2, n_positions=128, initializer_range=0.5, add_cross_attention=True, **_WORDS
    )
    return _encoder_decoder(decoder, tmp_path_factory.mktemp("vit-gpt2"))


@pytest.fixture(scope="session")
def tiny_trocr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT before TrOCR's decoder, which reads a line of text."""
    import transformers as hf

    decoder = hf.TrOCRConfig(
        d_model=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, cross_attention_hidden_size=32,
        max_position_embeddings=128, init_std=0.5, decoder_start_token_id=1, is_decoder=True, add_cross_attention=True,
        pad_token_id=3, **_WORDS,
    )  # fmt: skip
    return _encoder_decoder(decoder, tmp_path_factory.mktemp("trocr"))


def _encoder_decoder(decoder: Any, folder: Path) -> Path:
    import transformers as hf

    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(hf.ViTConfig(**_VISION), decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 3
    pixels = hf.ViTImageProcessorPil(size={"height": 32, "width": 32})
    _tokenizer().save_pretrained(_save(hf.VisionEncoderDecoderModel, config, pixels, folder))
    return folder


def _blip(name: str, folder: Path) -> Path:
    import transformers as hf

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    words = ["a", "the", "dog", "cat", "what", "is", "this", "photo", "of", "in", "red", "blue", "?", "yes", "no"]
    letters = [chr(code) for code in range(ord("b"), ord("z") + 1)]
    vocabulary = [*special, *words, *letters, *(f"##{letter}" for letter in ["a", *letters])]
    tokenizer = hf.BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}, bos_token="[DEC]")
    text = {
        **_TEXT, "vocab_size": len(vocabulary), "encoder_hidden_size": 32, "projection_dim": 16, "pad_token_id": 0,
        "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "max_position_embeddings": 128,
    }  # fmt: skip
    config = hf.BlipConfig(text_config=text, vision_config=_VISION, projection_dim=16, image_text_hidden_size=16)
    processor = hf.BlipProcessor(hf.BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)
    return _save(getattr(hf, name), config, processor, folder)


def by_upstream(folder: Path, messages: Sequence[dict[str, Any]], count: int) -> str:
    """The library's own answer to a conversation, greedy. A picture is {"type": "image", "image": a PIL image}."""
    import transformers as hf

    from lfx_local_runtimes.runtimes.engines.transformers.load import read_chat_processor

    model = hf.AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    processor = read_chat_processor(folder, tokenizer)
    inputs = processor.apply_chat_template(
        list(messages), chat_template=processor.chat_template or tokenizer.chat_template, add_generation_prompt=True,
        tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"return_token_type_ids": "gemma3" in model.config.model_type},
    )  # fmt: skip
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=count)[0, inputs["input_ids"].shape[1] :]
    return str(processor.decode(tokens, skip_special_tokens=True))


def _tokenizer(*special: str, **options: Any) -> Any:
    """A token per byte, after the special ones. Nothing is put around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*_SPECIAL, *special]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate([*tokens, *letters])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens)
    unknown, begin, end, padding = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, bos_token=begin, eos_token=end, pad_token=padding,
        clean_up_tokenization_spaces=False, **options,
    )  # fmt: skip


def _save(kind: Any, config: Any, processor: Any, folder: Path) -> Path:
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = kind(config).to(torch.float32)
        for name, weights in model.named_parameters():
            if "projection_weight" in name:  # Gemma's is zero when it is new: pictures would change nothing
                weights.normal_(std=0.5)
        if (head := model.get_output_embeddings()) is not None and head.weight.data_ptr() != (
            model.get_input_embeddings().weight.data_ptr()
        ):
            head.weight[2].zero_()  # the end token: an answer does not end by itself
    if hasattr(config, "decoder_start_token_id"):
        model.generation_config.decoder_start_token_id = config.decoder_start_token_id
        model.generation_config.pad_token_id = config.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
