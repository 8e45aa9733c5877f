"""What models do besides writing text: a module for each task. A new one is a new line in `TASKS`."""

from typing import Any

from lfx_local_runtimes.runtimes.tasks.base import Task
from lfx_local_runtimes.runtimes.tasks.classification import Classification
from lfx_local_runtimes.runtimes.tasks.embedding import Embedding
from lfx_local_runtimes.runtimes.tasks.ner import Ner
from lfx_local_runtimes.runtimes.tasks.rerank import Rerank
from lfx_local_runtimes.runtimes.tasks.zero_shot import ZeroShot

TASKS: dict[str, Task[Any, Any]] = {
    "embedding": Embedding(),
    "rerank": Rerank(),
    "classification": Classification(),
    "zero_shot": ZeroShot(),
    "ner": Ner(),
}
"""By name, which is what a `ModelConfig.model_type` says."""
