"""Tiny models that see, with random weights, the same at every call, of the real architectures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.transformers.sight import TransformersSight

ANIMALS = {0: "cat", 1: "dog", 2: "bird"}
NAMED: dict[str, Any] = {"id2label": ANIMALS, "label2id": {name: index for index, name in ANIMALS.items()}}


def photo() -> Any:
    """A photograph of 640 × 427 pixels."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))


def vit(folder: Path, **config: Any) -> Path:
    """An image classifier."""
    import transformers

    small = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    made = transformers.ViTConfig(**NAMED, initializer_range=0.5, **{**small, **config})
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    return _saved(folder, lambda: transformers.ViTForImageClassification(made), processor)


def detr(folder: Path) -> Path:
    """A detector that scores with softmax."""
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    made = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_queries=8, init_std=0.5, **NAMED,
    )  # fmt: skip
    processor = transformers.DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    return _saved(folder, lambda: transformers.DetrForObjectDetection(made), processor)


def rt_detr(folder: Path) -> Path:
    """A detector that scores with sigmoid."""
    import transformers

    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    made = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[16, 16, 16], feat_strides=[8, 16, 32],
        encoder_layers=1, encoder_ffn_dim=32, encoder_attention_heads=2, d_model=32, num_queries=10,
        decoder_in_channels=[32, 32, 32], decoder_ffn_dim=32, decoder_layers=1, decoder_attention_heads=2,
        num_denoising=0, **NAMED,
    )  # fmt: skip
    processor = transformers.RTDetrImageProcessorPil(size={"height": 64, "width": 64})
    return _saved(folder, lambda: transformers.RTDetrForObjectDetection(made), processor)


def yolos(folder: Path) -> Path:
    """A detector without a convolutional backbone."""
    import transformers

    made = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=[64, 96],
        patch_size=16, num_detection_tokens=6, initializer_range=0.5, **NAMED,
    )  # fmt: skip
    processor = transformers.YolosImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    return _saved(folder, lambda: transformers.YolosForObjectDetection(made), processor)


def clip(folder: Path) -> Path:
    """Pictures and texts in one space."""
    import transformers

    words = _letters(model_max_length=77)
    both = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 37,
        "initializer_factor": 20.0,
    }
    text = both | {
        "vocab_size": len(words), "max_position_embeddings": 77, "eos_token_id": words.eos_token_id,
        "bos_token_id": words.bos_token_id, "pad_token_id": words.pad_token_id,
    }  # fmt: skip
    made = transformers.CLIPConfig(
        text_config=text, vision_config=both | {"image_size": 32, "patch_size": 8}, projection_dim=16
    )
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _saved(folder, lambda: transformers.CLIPModel(made), words, processor)


def siglip(folder: Path) -> Path:
    """The same, trained with texts of one length; each label is scored on its own."""
    import transformers

    words = _letters(model_max_length=64, names=["input_ids"])
    both = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
    text = both | {"vocab_size": len(words), "max_position_embeddings": 64, "projection_size": 32, "pad_token_id": 3}
    made = transformers.SiglipConfig(text_config=text, vision_config=both | {"image_size": 32, "patch_size": 8})
    processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return _saved(folder, lambda: transformers.SiglipModel(made), words, processor)


def dinov2(folder: Path) -> Path:
    """Vectors of pictures alone."""
    import transformers

    made = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14,
        initializer_range=0.5,
    )  # fmt: skip
    processor = transformers.BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return _saved(folder, lambda: transformers.Dinov2Model(made), processor)


def dpt(folder: Path) -> Path:
    """Depths."""
    import transformers

    made = transformers.DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=37, image_size=32, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8, is_hybrid=False,
        reassemble_factors=[4, 2, 1, 0.5], initializer_range=0.2,
    )  # fmt: skip
    processor = transformers.DPTImageProcessorPil(size={"height": 32, "width": 32})
    return _saved(folder, lambda: transformers.DPTForDepthEstimation(made), processor)


def depth_anything(folder: Path) -> Path:
    """Depths, of pictures whose proportions are kept."""
    import transformers

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14,
        out_features=stages, reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    made = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=24, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8,
        head_in_index=-1, head_hidden_size=8, patch_size=14,
    )  # fmt: skip
    processor = transformers.DPTImageProcessorPil(
        size={"height": 28, "width": 28}, ensure_multiple_of=14, keep_aspect_ratio=True
    )
    return _saved(folder, lambda: transformers.DepthAnythingForDepthEstimation(made), processor)


def segformer(folder: Path) -> Path:
    """A class for each pixel. The photograph has all three."""
    import torch
    import transformers

    made = transformers.SegformerConfig(
        num_encoder_blocks=4, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16, initializer_range=0.5, **NAMED,
    )  # fmt: skip
    processor = transformers.SegformerImageProcessorPil(size={"height": 64, "width": 64})

    def balanced() -> Any:
        model = transformers.SegformerForSemanticSegmentation(made).eval()
        with torch.no_grad():
            logits = model(**processor(images=photo(), return_tensors="pt")).logits
            model.decode_head.classifier.bias -= logits.mean(dim=(0, 2, 3))
        return model

    return _saved(folder, balanced, processor)


def _letters(names: Sequence[str] = ("input_ids", "attention_mask"), **options: Any) -> Any:
    """A tokenizer whose tokens are bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("<unk>", "<s>", "</s>", "<pad>")
    alphabet = (*special, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_input_names=list(names), **options,
    )  # fmt: skip


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
