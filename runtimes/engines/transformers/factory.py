"""The engine `transformers`: one runtime for text, one for encoders, one for models that see."""

from lfx_local_runtimes.runtimes.base import ModelRuntime
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.transformers.encoder import TransformersEncoder
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime
from lfx_local_runtimes.runtimes.engines.transformers.sight import TransformersSight
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.tasks import family_of


def transformers(config: ModelConfig, plan: LoadPlan | None = None) -> ModelRuntime:
    """The runtime for what the model does."""
    does = config.model_type if plan is None else plan.task
    kinds: dict[str, type[ModelRuntime]] = {"reading": TransformersEncoder, "seeing": TransformersSight}
    return kinds.get(family_of(does), TransformersRuntime)(config, plan)
