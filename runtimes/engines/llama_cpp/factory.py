"""The engine `llama_cpp`: one runtime for text, another for encoders."""

from lfx_local_runtimes.runtimes.base import ModelRuntime
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.llama_cpp.encoder import LlamaCppEncoder
from lfx_local_runtimes.runtimes.engines.llama_cpp.runtime import LlamaCppRuntime
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.tasks import family_of


def llama_cpp(config: ModelConfig, plan: LoadPlan | None = None) -> ModelRuntime:
    """The runtime for what the model does."""
    does = config.model_type if plan is None else plan.task
    return (LlamaCppEncoder if family_of(does) == "reading" else LlamaCppRuntime)(config, plan)
