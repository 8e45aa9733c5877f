"""The engine `transformers`: one runtime for text, another for encoders."""

from lfx_local_runtimes.runtimes.base import ModelRuntime
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.transformers.encoder import TransformersEncoder
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.tasks import family_of


def transformers(config: ModelConfig, plan: LoadPlan | None = None) -> ModelRuntime:
    """The runtime for what the model does."""
    does = config.model_type if plan is None else plan.task
    return (TransformersEncoder if family_of(does) == "reading" else TransformersRuntime)(config, plan)
