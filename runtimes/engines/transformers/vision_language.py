"""Pictures for a language model that sees: what stands for a picture in the prompt, and what the model computes from it.

A picture is prepared and encoded once. What came out is kept under the picture's content, so that the next turn of a chat does
neither again.
"""

import inspect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.engines.transformers.load import libraries
from lfx_local_runtimes.runtimes.engines.transformers.offer import KEPT_PICTURES
from lfx_local_runtimes.runtimes.media.pictures import open_picture
from lfx_local_runtimes.runtimes.tasks.media import Media, Source

_TOKEN_KINDS = ("token_type_ids", "mm_token_type_ids")
"""The names under which models take which tokens are a picture's."""


@dataclass(eq=False)
class Seen:
    """A picture as the model reads it."""

    text: str
    """What stands for it in the prompt: as many image tokens as it has features."""
    inputs: dict[str, Any]
    """What the processor made of it: tensors. The pixels leave when they are encoded."""
    kinds: tuple[str, ...] = ()
    """Those of `_TOKEN_KINDS` that the model wants."""
    features: Any = field(default=None, repr=False)
    """What the model's encoder made of the pixels; None until they are encoded."""

    @property
    def size(self) -> int:
        """Bytes."""
        tensors = [*self.inputs.values(), *_parts(self.features)]
        return sum(tensor.nbytes for tensor in tensors if hasattr(tensor, "nbytes"))


class Sight:
    """The eyes of a vision-language model.

    `look` may be called on any thread, `features` on the model's thread only.

    Args:
        model: from `AutoModelForImageTextToText`.
        processor: from `AutoProcessor`.
        limit: bytes of pictures that are kept.
    """

    def __init__(self, model: Any, processor: Any, limit: int = KEPT_PICTURES) -> None:
        self._model, self._processor, self._limit = model, processor, limit
        self._encode = model.base_model.get_image_features
        self._taken = set(inspect.signature(self._encode).parameters)
        self._known = set(inspect.signature(model.forward).parameters)
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Seen] = OrderedDict()
        self.mark = str(processor.image_token)
        """The text that stands for a picture in a prompt that has not been prepared."""
        self.encoded = 0
        """How many pictures the encoder has computed."""

    def look(self, picture: Media | Source, place: str) -> Seen:
        """Decode a picture and prepare it for the encoder, or find it among those that are kept.

        Raises:
            InvalidInput: it cannot be decoded. The message has its place.
        """
        key = sha256(picture.data).digest() if isinstance(picture, Media) else b""
        with self._lock:
            if (seen := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return seen
        image = open_picture(picture, place)
        try:
            data = self._processor(
                images=[image], text=[self.mark], return_tensors="pt", return_text_replacement_offsets=True
            )
        except (ValueError, ZeroDivisionError) as error:  # such as a side that is too long for the other one
            raise InvalidInput(
                f"{place} does not suit the model: {error}", hint="Cut the picture to a more usual shape."
            ) from error
        ((replaced,),) = data.pop("text_replacement_offsets")
        text = {"input_ids", "attention_mask", *_TOKEN_KINDS}
        inputs = {name: value for name, value in data.items() if name not in text}
        seen = Seen(
            replaced["replacement"],
            inputs,
            tuple(name for name in _TOKEN_KINDS if name in data and name in self._known),
        )
        with self._lock:
            self._kept[key] = seen
            self._shrink()
        return seen

    def expand(self, prompt: str, pictures: Sequence[Seen]) -> str:
        """The prompt with each mark replaced by what stands for its picture."""
        texts = prompt.split(self.mark)
        return texts[0] + "".join(seen.text + text for seen, text in zip(pictures, texts[1:], strict=True))

    def features(self, tokens: Any, pictures: Sequence[Seen]) -> dict[str, Any]:
        """The arguments of `generate` for these pictures. Encodes those that are not encoded yet.

        Args:
            tokens: the prompt's, of shape (1, length).
            pictures: in the order in which the prompt has them.
        """
        torch, transformers = libraries()
        device = self._model.device
        for seen in pictures:
            if seen.features is None:
                given = {name: self._ready(value) for name, value in seen.inputs.items() if name in self._taken}
                with torch.inference_mode():
                    seen.features = self._encode(**given, return_dict=True).pooler_output
                self.encoded += 1
                seen.inputs = {name: value for name, value in seen.inputs.items() if not name.startswith("pixel_")}
        with self._lock:
            self._shrink()
        parts = [part for seen in pictures for part in _parts(seen.features)]
        whole = torch.cat(parts) if torch.is_tensor(pictures[0].features) else parts
        output = transformers.modeling_outputs.BaseModelOutputWithPooling(pooler_output=whole)
        arguments: dict[str, Any] = {"mm_encoder_outputs": {"image": output}}
        for name in pictures[0].inputs:
            if name in self._known:
                arguments[name] = torch.cat([seen.inputs[name] for seen in pictures]).to(device)
        ids = torch.tensor(self._processor.image_token_ids, device=device)
        for name in pictures[0].kinds:
            arguments[name] = torch.isin(tokens, ids).long()
        return arguments

    def _ready(self, tensor: Any) -> Any:
        """On the model's device. Pixels also in its type."""
        return tensor.to(self._model.device, self._model.dtype if tensor.is_floating_point() else tensor.dtype)

    def _shrink(self) -> None:
        """Let the pictures go that were not asked for the longest, until the others have room. The last one stays."""
        total = sum(seen.size for seen in self._kept.values())
        while total > self._limit and len(self._kept) > 1:
            total -= self._kept.popitem(last=False)[1].size


def make_sight(model: Any, processor: Any) -> Sight | None:
    """The eyes of a model; None if the library encodes its pictures in a way of its own."""
    encodes = hasattr(model.base_model, "get_image_features") and getattr(processor, "image_token", None)
    takes = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    return Sight(model, processor) if encodes and takes else None


def _parts(features: Any) -> list[Any]:
    """The tensors of a picture's features: one, or a list of them."""
    return [] if features is None else list(features) if isinstance(features, list | tuple) else [features]
