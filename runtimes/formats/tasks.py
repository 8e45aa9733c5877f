"""What a model does, by its configuration, its model card and its files. A file's name says nothing."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.config import task_named
from lfx_local_runtimes.runtimes.formats.hf_config import number, text_config

UNSUPPORTED = "unsupported"
"""The task of a model that does something which nothing here serves."""

UNKNOWN = "unknown"
"""The task of a model whose files cannot be read."""

_CARD_BYTES = 64 * 2**10
_TAG = re.compile(r"^pipeline_tag:[ \t]*[\"']?([a-z0-9-]{1,64})", re.MULTILINE)
_ENCODERS = ("Model", "ForMaskedLM")
_TEXT_ENCODERS = frozenset({
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "eurobert", "ernie", "gte", "mpnet",
    "modernbert", "new", "nomic_bert", "roberta", "roformer", "xlm-roberta", "xlm-roberta-xl",
})  # fmt: skip
_NOT_PLAIN_TEXT = frozenset({
    "bros", "data2vec-audio", "hubert", "layoutlm", "layoutlmv2", "layoutlmv3", "lilt", "sew", "sew-d", "unispeech",
    "unispeech-sat", "wav2vec2", "wav2vec2-bert", "wav2vec2-conformer", "wavlm",
})  # fmt: skip
"""Their heads for classification have the same names as those for text, but they read sound or scanned pages."""
_SIGHT = {
    "ForImageClassification": "image_classification", "ForObjectDetection": "object_detection",
    "ForDepthEstimation": "depth_estimation", "ForSemanticSegmentation": "image_segmentation",
}  # fmt: skip
"""The ends of the names of architectures that see."""
_SEERS = {
    "object_detection": (
        "conditional_detr", "d_fine", "deformable_detr", "detr", "rt_detr", "rt_detr_v2", "table-transformer", "yolos",
    ),
    "depth_estimation": ("depth_anything", "dpt", "glpn"),
}  # fmt: skip
"""Of these tasks only such models. Other detectors look for what a text says, other models of depth scale their output in
ways of their own."""
_PICTURE_MODELS = {
    "CLIPModel": "zero_shot_image_classification", "SiglipModel": "zero_shot_image_classification",
    "Dinov2Model": "image_embedding", "Dinov2WithRegistersModel": "image_embedding", "DINOv3ViTModel": "image_embedding",
    "ViTModel": "image_embedding",
}  # fmt: skip
"""Architectures without a head."""
_OTHER_TAGS = frozenset({
    "audio-classification", "audio-to-audio", "automatic-speech-recognition", "depth-estimation", "graph-ml",
    "image-classification", "image-feature-extraction", "image-segmentation", "image-to-3d", "image-to-image",
    "image-to-text", "image-to-video", "keypoint-detection", "mask-generation", "object-detection",
    "reinforcement-learning", "robotics", "tabular-classification", "tabular-regression", "text-to-3d", "text-to-audio",
    "text-to-image", "text-to-speech", "text-to-video", "time-series-forecasting", "unconditional-image-generation",
    "video-classification", "video-to-video", "voice-activity-detection", "zero-shot-image-classification",
    "zero-shot-object-detection",
})  # fmt: skip
"""The hub's tasks that neither read nor write plain text, also if the model is built like a language model."""


def pipeline_tag(folder: Path) -> str | None:
    """The hub's task of a model, as the head of its README.md says; None if it does not.

    Raises:
        OSError: the file exists but cannot be read.
    """
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open("rb") as file:
        text = file.read(_CARD_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    head = text[4:].partition("\n---")[0] if text.startswith("---\n") else ""
    found = _TAG.search(head)
    return found[1] if found else None


def task_of(
    config: Mapping[str, Any], *, tag: str | None = None, sentence_transformer: bool = False
) -> tuple[str, str]:
    """The task of a model, and if it is `unsupported`, why.

    Args:
        config: config.json.
        tag: the hub's task, if a model card names one.
        sentence_transformer: the folder has a modules.json.
    """
    names = config.get("architectures")
    name = str(names[0])[:80] if isinstance(names, list) and names else ""
    kind = str(config.get("model_type"))
    if kind in _NOT_PLAIN_TEXT:
        return UNSUPPORTED, f"{name or kind} does not read plain text"
    task = _by_head(config, name, kind, sentence_transformer)
    if task is None and tag in _OTHER_TAGS:
        return UNSUPPORTED, f"its model card says {tag}, and nothing here serves that"
    task = task or _by_card(config, name, task_named(tag) if tag else None)
    if task is None:
        return UNSUPPORTED, f"nothing here serves {name}" if name else "config.json names no architecture"
    return task, ""


def _by_head(config: Mapping[str, Any], name: str, kind: str, sentence_transformer: bool) -> str | None:
    """The task of a model whose architecture leaves no choice."""
    if name.endswith("ForSequenceClassification"):
        return _classifier(config)
    if name.endswith("ForTokenClassification"):
        return "ner"
    sees = next((task for head, task in _SIGHT.items() if name.endswith(head)), None)
    if sees is not None:
        return sees if kind in _SEERS.get(sees, (kind,)) else None
    if name in _PICTURE_MODELS:
        return _PICTURE_MODELS[name]
    encoder = kind in _TEXT_ENCODERS and (not name or name.endswith(_ENCODERS))
    return "embedding" if sentence_transformer or encoder else None


def _by_card(config: Mapping[str, Any], name: str, card: str | None) -> str | None:
    """The task of another model. A decoder can also give vectors: then its model card decides."""
    has_words = number(text_config(config), "vocab_size") is not None
    own_code = config.get("auto_map")
    writes = isinstance(own_code, dict) and "AutoModelForCausalLM" in own_code  # its architecture may have any name
    if writes or name.endswith(("ForCausalLM", "LMHeadModel")):
        return "embedding" if card == "embedding" else "llm"
    if name.endswith("ForConditionalGeneration"):
        return "llm" if "text_config" in config else None
    if name:
        return "embedding" if name.endswith("Model") and has_words and card == "embedding" else None
    return card if card in ("llm", "embedding") else "llm" if has_words else None


def _classifier(config: Mapping[str, Any]) -> str:
    tags = config.get("id2label")
    labels = [str(label).lower() for label in tags.values()] if isinstance(tags, dict) else ["", ""]
    if len(labels) == 1 or config.get("num_labels") == 1:
        return "rerank"
    return "zero_shot" if any(label.startswith("entail") for label in labels) else "classification"
