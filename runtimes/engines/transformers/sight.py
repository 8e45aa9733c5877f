"""Models that see, in Hugging Face Transformers: labels, boxes, vectors, maps."""

from collections.abc import Mapping, Sequence
from typing import Any

from lfx_local_runtimes.errors import InvalidInput, RuntimeFault, WrongTask
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.engines.encoder.seeing import SeeingRuntime
from lfx_local_runtimes.runtimes.engines.encoder.spec import activation_of, labels_of
from lfx_local_runtimes.runtimes.engines.host import physical_cores, release_memory
from lfx_local_runtimes.runtimes.engines.transformers.load import TORCH_DTYPES, faults, libraries, load_sight
from lfx_local_runtimes.runtimes.engines.transformers.runtime import tensor_bytes
from lfx_local_runtimes.runtimes.media.pictures import open_picture
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece, Spec, Tokens
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Look, Pixels

AUTO = {
    "image_classification": "AutoModelForImageClassification",
}
"""Transformers' name for the class that loads a model of a task."""


class TransformersSight(SeeingRuntime):
    """A model that sees, computed by torch."""

    engine = "transformers"

    def _open(self, plan: LoadPlan, context: LoadContext) -> "TorchSight":
        torch, _ = libraries()
        torch.set_num_threads(self.config.threads or physical_cores())  # counts for this thread
        model, processor = load_sight(AUTO[plan.task], plan, context)
        return TorchSight(model, processor, plan)

    def _close(self) -> None:
        super()._close()
        release_memory()


class TorchSight:
    """The model and its image processor.

    Args:
        model: on its device, in its type.
        processor: of images, in its form for Pillow.
        plan: of the load.
    """

    def __init__(self, model: Any, processor: Any, plan: LoadPlan) -> None:
        self._torch, transformers = libraries()
        self._model, self._processor, self._plan = model, processor, plan
        self.spec = Spec(
            task=plan.task, max_length=1, labels=labels_of(plan.info.metadata),
            activation=activation_of(plan.info.metadata),
        )  # fmt: skip
        compute = next(ours for ours, name in TORCH_DTYPES.items() if model.dtype == getattr(self._torch, name))
        self.about: Mapping[str, Any] = {
            "engine_version": transformers.__version__, "dtype": compute, "quantization": plan.dtype,
        }  # fmt: skip

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes of the weights."""
        return tensor_bytes(self._model)

    def look(self, look: Look) -> Pixels:
        """Decode a picture, and scale it as the model's image processor says."""
        picture = open_picture(look.image, look.place)
        try:
            values = self._processor(images=picture, return_tensors="np")["pixel_values"][0]
        except RuntimeFault:
            raise
        except Exception as error:
            width, height = picture.size
            raise InvalidInput(
                f"{look.place} ({width:,} × {height:,} pixels) cannot be scaled for the model: {error}.",
                model_name=self._plan.info.name, hint="Send a picture that is less narrow.",
            ) from error  # fmt: skip
        return Pixels(values, picture.size, picture if look.keeps else None)

    def tokenize(self, pieces: Sequence[Piece]) -> list[list[Tokens]]:
        raise WrongTask("The model reads no texts.", hint="Use a model for pictures and texts, such as CLIP.")

    def compute(self, batch: Sequence[Any]) -> Any:
        """What the model gives for pictures of one size."""
        import numpy as np

        torch = self._torch
        with torch.inference_mode(), faults(self._plan):
            values = torch.from_numpy(np.stack([one.values for one in batch]))
            output = self._model(pixel_values=values.to(self._model.device, self._model.dtype))
            return output.logits.float().cpu().numpy()
