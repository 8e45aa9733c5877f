"""The older place of `lfx_local_runtimes.nodes.reading` and `.embedding`: flows saved with 0.1.0 import from here.

See `lfx_local_runtimes.nodes` for the rule that keeps this file.
"""

from lfx_local_runtimes.nodes.embedding import LocalEmbeddingsBaseComponent
from lfx_local_runtimes.nodes.reading import (
    EntityTaggerBaseComponent,
    LabelsBaseComponent,
    LocalRerankBaseComponent,
    TaskBaseComponent,
    TextClassifierBaseComponent,
    ZeroShotBaseComponent,
    label_outputs,
)

__all__ = [
    "EntityTaggerBaseComponent",
    "LabelsBaseComponent",
    "LocalEmbeddingsBaseComponent",
    "LocalRerankBaseComponent",
    "TaskBaseComponent",
    "TextClassifierBaseComponent",
    "ZeroShotBaseComponent",
    "label_outputs",
]
