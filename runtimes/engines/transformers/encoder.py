"""Encoders in Hugging Face Transformers: embeddings, cross-encoders, classifiers, taggers."""

from collections.abc import Mapping, Sequence
from typing import Any

from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.encoder.runtime import EncoderRuntime
from lfx_local_runtimes.runtimes.engines.encoder.spec import read_spec
from lfx_local_runtimes.runtimes.engines.encoder.tokens import PieceTokenizer, padded
from lfx_local_runtimes.runtimes.engines.host import physical_cores, release_memory
from lfx_local_runtimes.runtimes.engines.transformers.load import TORCH_DTYPES, faults, libraries, load_encoder
from lfx_local_runtimes.runtimes.engines.transformers.runtime import tensor_bytes
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.tasks.text.reading import Tokens

_AUTO = {"embedding": "AutoModel", "ner": "AutoModelForTokenClassification"}


def auto_class(task: str) -> str:
    """Transformers' name for the class that loads a model of a task."""
    return _AUTO.get(task, "AutoModelForSequenceClassification")


class TransformersEncoder(EncoderRuntime):
    """A model that reads, computed by torch."""

    engine = "transformers"

    def _open(self, plan: LoadPlan, context: LoadContext) -> "TorchNetwork":
        torch, _ = libraries()
        torch.set_num_threads(self.config.threads or physical_cores())  # counts for this thread
        model, tokenizer = load_encoder(auto_class(plan.task), plan, context)
        return TorchNetwork(model, tokenizer, plan, self.config)

    def _close(self) -> None:
        super()._close()
        release_memory()


class TorchNetwork:
    """The model and its tokenizer.

    Args:
        model: on its device, in its type.
        tokenizer: a fast one.
        plan: of the load.
        config: the model's.
    """

    def __init__(self, model: Any, tokenizer: Any, plan: LoadPlan, config: ModelConfig) -> None:
        self._torch, transformers = libraries()
        self._model, self._plan = model, plan
        self.spec = read_spec(plan, int(tokenizer.model_max_length), config.pooling)
        self.tokenize = PieceTokenizer(tokenizer, self.spec.max_length)
        self._inputs = tokenizer.model_input_names
        self._pad = tokenizer.pad_token_id or 0
        compute = next(ours for ours, name in TORCH_DTYPES.items() if model.dtype == getattr(self._torch, name))
        self.about: Mapping[str, Any] = {
            "engine_version": transformers.__version__, "dtype": compute, "quantization": plan.dtype,
        }  # fmt: skip

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes of the weights."""
        return tensor_bytes(self._model)

    def compute(self, batch: Sequence[Tokens]) -> Any:
        """States or logits of padded rows, as float32 in numpy."""
        torch = self._torch
        inputs = {
            name: torch.from_numpy(array) for name, array in padded(batch, self._pad).items() if name in self._inputs
        }
        with torch.inference_mode(), faults(self._plan):
            output = self._model(**{name: tensor.to(self._model.device) for name, tensor in inputs.items()})
        found = getattr(output, "logits", None)
        return (output.last_hidden_state if found is None else found).float().cpu().numpy()
