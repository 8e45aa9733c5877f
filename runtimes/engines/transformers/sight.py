"""Models that see, in Hugging Face Transformers: labels, boxes, vectors, maps."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lfx_local_runtimes.errors import InvalidInput, WrongTask
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.engines.encoder.seeing import SeeingRuntime
from lfx_local_runtimes.runtimes.engines.encoder.spec import activation_of, labels_of
from lfx_local_runtimes.runtimes.engines.encoder.tokens import PieceTokenizer, padded
from lfx_local_runtimes.runtimes.engines.hf_tokenizer import read_tokenizer
from lfx_local_runtimes.runtimes.engines.host import physical_cores, release_memory
from lfx_local_runtimes.runtimes.engines.transformers.load import TORCH_DTYPES, faults, libraries, load_sight
from lfx_local_runtimes.runtimes.engines.transformers.runtime import tensor_bytes
from lfx_local_runtimes.runtimes.media.drawing import fitted
from lfx_local_runtimes.runtimes.media.pictures import open_picture
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.tasks.text.reading import Piece, Spec, Tokens
from lfx_local_runtimes.runtimes.tasks.vision.seeing import Look, Pixels

_MOST_AT_ONCE = 2**24
"""Numbers of logits that are scaled to the size of a picture at once."""


class TransformersSight(SeeingRuntime):
    """A model that sees, computed by torch."""

    engine = "transformers"

    def _open(self, plan: LoadPlan, context: LoadContext) -> "TorchSight":
        torch, _ = libraries()
        torch.set_num_threads(self.config.threads or physical_cores())  # counts for this thread
        kind = NETWORKS[plan.task]
        return kind(*load_sight(kind.auto, plan, context), plan)

    def _close(self) -> None:
        super()._close()
        release_memory()


class TorchSight:
    """The model and its image processor. A subclass for each task reads the output.

    Args:
        model: on its device, in its type.
        processor: of images, in its form for Pillow.
        plan: of the load.
    """

    auto: ClassVar[str]
    """Transformers' name for the class that loads such a model."""

    def __init__(self, model: Any, processor: Any, plan: LoadPlan) -> None:
        self._torch, transformers = libraries()
        self._model, self._processor, self._plan = model, processor, plan
        self.spec = self._read_spec()
        compute = next(ours for ours, name in TORCH_DTYPES.items() if model.dtype == getattr(self._torch, name))
        self.about: Mapping[str, Any] = {
            "engine_version": transformers.__version__, "dtype": compute, "quantization": plan.dtype,
        }  # fmt: skip

    def _read_spec(self) -> Spec:
        config = self._plan.info.metadata
        return Spec(self._plan.task, max_length=1, labels=labels_of(config), activation=activation_of(config))

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes of the weights."""
        return tensor_bytes(self._model)

    def look(self, look: Look) -> Pixels:
        """Decode a picture, and scale it as the model's image processor says."""
        picture = open_picture(look.image, look.place)
        try:
            values = self._processor(images=picture, return_tensors="np")["pixel_values"][0]
        except Exception as error:
            width, height = picture.size
            raise InvalidInput(
                f"{look.place} ({width:,} × {height:,} pixels) cannot be scaled for the model: {error}.",
                hint="Send a picture that is less narrow.",
            ) from error
        return Pixels(values, picture.size, fitted(picture) if look.keeps else None)

    def tokenize(self, pieces: Sequence[Piece], *, chunks: bool) -> list[list[Tokens]]:
        """Refuse texts."""
        raise WrongTask("The model reads no texts.", hint="Use a model for pictures and texts, such as CLIP.")

    def compute(self, batch: Sequence[Any]) -> Any:
        """What the model gives for pictures of one size."""
        import numpy as np

        torch = self._torch
        with torch.inference_mode(), faults(self._plan):
            values = torch.from_numpy(np.stack([one.values for one in batch]))
            return self._see(values.to(self._model.device, self._model.dtype), batch)

    def _see(self, values: Any, batch: Sequence[Pixels]) -> Any:
        """The output for pixels of shape (rows, channels, height, width)."""
        raise NotImplementedError


def array(tensor: Any) -> Any:
    """A tensor as float32 in numpy."""
    return tensor.float().cpu().numpy()


class Classifier(TorchSight):
    """Logits of shape (rows, labels)."""

    auto = "AutoModelForImageClassification"

    def _see(self, values: Any, batch: Sequence[Pixels]) -> Any:
        return array(self._model(pixel_values=values).logits)


class Detector(TorchSight):
    """For each row the logits and the boxes of its queries."""

    auto = "AutoModelForObjectDetection"
    _MOST: ClassVar[Mapping[str, int]] = {
        "conditional_detr": 100, "deformable_detr": 100, "d_fine": 0, "rt_detr": 0, "rt_detr_v2": 0,
    }  # fmt: skip
    """Architectures that score with sigmoid, and how many objects their image processors keep; 0 is one for each query."""

    def _read_spec(self) -> Spec:
        config = self._plan.info.metadata
        kind = str(config.get("model_type"))
        return Spec(
            self._plan.task, max_length=1, labels=labels_of(config), most=self._MOST.get(kind, 0),
            activation="sigmoid" if kind in self._MOST else "softmax",
        )  # fmt: skip

    def _see(self, values: Any, batch: Sequence[Pixels]) -> Any:
        output = self._model(pixel_values=values)
        pairs = zip(array(output.logits), array(output.pred_boxes), strict=True)
        return [{"logits": logits, "boxes": boxes} for logits, boxes in pairs]


class Depth(TorchSight):
    """For each row the depths in the size of its picture."""

    auto = "AutoModelForDepthEstimation"

    def _see(self, values: Any, batch: Sequence[Pixels]) -> Any:
        depths = self._model(pixel_values=values).predicted_depth
        return [array(self._scaled(depth, one.size)) for depth, one in zip(depths, batch, strict=True)]

    def _scaled(self, depth: Any, size: tuple[int, int]) -> Any:
        scale = self._torch.nn.functional.interpolate
        return scale(depth.float()[None, None], size=size[::-1], mode="bicubic", align_corners=False)[0, 0]


class Segmenter(TorchSight):
    """For each row the class of each pixel of its picture."""

    auto = "AutoModelForSemanticSegmentation"

    def _see(self, values: Any, batch: Sequence[Pixels]) -> Any:
        logits = self._model(pixel_values=values).logits.float()
        return [self._classes(one, row.size).cpu().numpy() for one, row in zip(logits, batch, strict=True)]

    def _classes(self, logits: Any, size: tuple[int, int]) -> Any:
        """The best class of each pixel. A few classes are scaled at a time: all of them could take gigabytes."""
        torch = self._torch
        some = max(1, _MOST_AT_ONCE // (size[0] * size[1]))
        kind = torch.uint8 if len(logits) <= 256 else torch.int16
        best = classes = None
        for first in range(0, len(logits), some):
            part = torch.nn.functional.interpolate(
                logits[None, first : first + some], size=size[::-1], mode="bilinear", align_corners=False
            )[0]
            highest, which = part.max(dim=0)
            if best is None:
                best, classes = highest, which.to(kind)
                continue
            better = highest > best
            best = torch.where(better, highest, best)
            classes = torch.where(better, (which + first).to(kind), classes)
        return classes


class PicturesAndTexts(TorchSight):
    """A vector for each row, of pictures and of texts in one space: CLIP, SigLIP."""

    auto = "AutoModel"

    def __init__(self, model: Any, processor: Any, plan: LoadPlan) -> None:
        tokenizer = read_tokenizer(plan.info.folder)
        self._text = model.config.text_config
        self._longest = min(int(tokenizer.model_max_length), int(self._text.max_position_embeddings))
        super().__init__(model, processor, plan)
        self._pieces = PieceTokenizer(tokenizer, self._longest)
        self._inputs = tokenizer.model_input_names
        self._pad = tokenizer.pad_token_id or 0

    @property
    def _is_siglip(self) -> bool:
        return self._plan.info.architecture == "siglip"

    def _read_spec(self) -> Spec:
        bias = float(self._model.logit_bias.detach()) if self._is_siglip else 0.0
        return Spec(
            self._plan.task, max_length=self._longest, pooling="none", normalize=True, bias=bias,
            scale=float(self._model.logit_scale.detach().exp()), activation="sigmoid" if self._is_siglip else "softmax",
        )  # fmt: skip

    def tokenize(self, pieces: Sequence[Piece], *, chunks: bool) -> list[list[Tokens]]:
        """Rows of tokens."""
        return self._pieces(pieces, chunks=chunks)

    def compute(self, batch: Sequence[Any]) -> Any:
        """Vectors of pictures of one size, or of texts."""
        if isinstance(batch[0], Pixels):
            return super().compute(batch)
        torch = self._torch
        # SigLIP was trained with texts of one length, and reads the last token
        columns = padded(batch, self._pad, width=self._longest if self._is_siglip else 0)
        inputs = {name: torch.from_numpy(column) for name, column in columns.items() if name in self._inputs}
        with torch.inference_mode(), faults(self._plan):
            found = self._model.get_text_features(**{k: one.to(self._model.device) for k, one in inputs.items()})
            return array(found.pooler_output)

    def _see(self, values: Any, batch: Sequence[Pixels]) -> Any:
        return array(self._model.get_image_features(pixel_values=values).pooler_output)


class Embedder(TorchSight):
    """A vector for each picture: DINOv2, ViT."""

    auto = "AutoModel"

    def _read_spec(self) -> Spec:
        return Spec(self._plan.task, max_length=1, pooling="none")

    def _see(self, values: Any, batch: Sequence[Pixels]) -> Any:
        return array(self._model(pixel_values=values).pooler_output)


NETWORKS: Mapping[str, type[TorchSight]] = {
    "image_classification": Classifier,
    "object_detection": Detector,
    "zero_shot_image_classification": PicturesAndTexts,
    "image_embedding": Embedder,
    "depth_estimation": Depth,
    "image_segmentation": Segmenter,
}
"""By task."""
