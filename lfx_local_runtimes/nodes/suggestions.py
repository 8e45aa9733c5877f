"""Models worth fetching from the hub, for each task. Lists show them below the models of this machine."""

from collections.abc import Sequence
from dataclasses import dataclass

_GB = 1e9
_HEADROOM = 1.3
"""A loaded model takes more than its files: the context, buffers and the libraries."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A model on the hub. Its size is that of the files that are fetched, in GB."""

    name: str
    model_type: str
    size_gb: float
    gated: bool = False
    """Its licence has to be accepted on the hub first, and a token is needed (`HF_TOKEN`)."""

    @property
    def memory_bytes(self) -> int:
        """What it takes when it is loaded, roughly."""
        return int(self.size_gb * _GB * _HEADROOM)


SUGGESTIONS = (
    Suggestion("Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M", "llm", 0.5),
    Suggestion("Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M", "llm", 1.1),
    Suggestion("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M", "llm", 1.1),
    Suggestion("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", "llm", 2.5),
    Suggestion("Qwen/Qwen3-8B-GGUF:Q4_K_M", "llm", 5.0),
    Suggestion("google/gemma-3-270m-it", "llm", 0.6, gated=True),
    Suggestion("google/gemma-3-1b-it", "llm", 2.0, gated=True),
    Suggestion("google/gemma-2-2b-it", "llm", 5.2, gated=True),
    Suggestion("google/gemma-3-4b-it", "llm", 8.6, gated=True),
    Suggestion("google/gemma-7b-it", "llm", 17.1, gated=True),
    Suggestion("google/gemma-2-9b-it", "llm", 18.5, gated=True),
    Suggestion("sentence-transformers/all-MiniLM-L6-v2", "embedding", 0.1),
    Suggestion("BAAI/bge-small-en-v1.5", "embedding", 0.1),
    Suggestion("intfloat/multilingual-e5-small", "embedding", 0.5),
    Suggestion("cross-encoder/ms-marco-MiniLM-L6-v2", "rerank", 0.1),
    Suggestion("BAAI/bge-reranker-base", "rerank", 1.1),
    Suggestion("distilbert/distilbert-base-uncased-finetuned-sst-2-english", "classification", 0.3),
    Suggestion("unitary/toxic-bert", "classification", 0.4),
    Suggestion("SamLowe/roberta-base-go_emotions", "classification", 0.5),
    Suggestion("cross-encoder/nli-deberta-v3-small", "zero_shot", 0.6),
    Suggestion("facebook/bart-large-mnli", "zero_shot", 1.6),
    Suggestion("dslim/distilbert-NER", "ner", 0.3),
    Suggestion("dslim/bert-base-NER", "ner", 0.4),
    Suggestion("google/vit-base-patch16-224", "image_classification", 0.4),
    Suggestion("PekingU/rtdetr_r50vd", "object_detection", 0.2),
    Suggestion("hustvl/yolos-tiny", "object_detection", 0.1),
    Suggestion("openai/clip-vit-base-patch32", "zero_shot_image_classification", 0.6),
    Suggestion("google/siglip-base-patch16-224", "zero_shot_image_classification", 0.8),
    Suggestion("depth-anything/Depth-Anything-V2-Small-hf", "depth_estimation", 0.1),
    Suggestion("facebook/dinov2-small", "image_embedding", 0.1),
    Suggestion("nvidia/segformer-b0-finetuned-ade-512-512", "image_segmentation", 0.1),
)
"""A few for each task, small ones first. All of them follow instructions, or do one task without any."""


def suggested(model_types: Sequence[str], memory_bytes: int) -> list[Suggestion]:
    """The suggestions for these tasks that fit into the memory, in the order of the tasks."""
    fitting = [one for one in SUGGESTIONS if one.model_type in model_types and one.memory_bytes <= memory_bytes]
    return sorted(fitting, key=lambda one: model_types.index(one.model_type))
