"""The work behind the nodes whose models see: labels, boxes, depths and classes of pictures."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import lfx.custom  # noqa: F401 - before lfx.io, which cannot be imported first
from lfx.io import FileInput, HandleInput, Output, StrInput
from lfx.schema.data import Data
from lfx.schema.dataframe import DataFrame
from lfx.schema.image import get_file_paths
from lfx.schema.message import Message

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.langchain.task_model import TaskModel
from lfx_local_runtimes.nodes.files import listed, read_stored, store_picture
from lfx_local_runtimes.nodes.inputs import CHOICES, labels_of, value_of
from lfx_local_runtimes.nodes.reading import LabelsBaseComponent, TaskBaseComponent, ZeroShotBaseComponent
from lfx_local_runtimes.nodes.reports import Reporter
from lfx_local_runtimes.runtimes.media.sources import Wanted, read_source
from lfx_local_runtimes.runtimes.tasks.base import Ask
from lfx_local_runtimes.runtimes.tasks.media import MAX_IMAGE_BYTES, Media, Source, as_image
from lfx_local_runtimes.runtimes.tasks.text.classification import Label
from lfx_local_runtimes.runtimes.tasks.vision.classification import ImageClassificationAsk
from lfx_local_runtimes.runtimes.tasks.vision.depth import DepthAsk, DepthResult
from lfx_local_runtimes.runtimes.tasks.vision.detection import ObjectDetectionAsk, ObjectDetectionResult
from lfx_local_runtimes.runtimes.tasks.vision.segmentation import SegmentationAsk, SegmentationResult
from lfx_local_runtimes.runtimes.tasks.vision.zero_shot import ImageZeroShotAsk
from lfx_local_runtimes.settings import get_settings

SEEING_ENGINES = ("auto", "transformers")
IMAGE_TYPES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff")
"""The endings of the files that are read."""

_PICTURE = Output(display_name="Picture", name="picture", method="picture", group_outputs=True)


def picture_inputs(name: str = "input_value") -> list[Any]:
    """Where a node's pictures come from. `name`: the input for those of other nodes."""
    return [
        HandleInput(
            name=name, display_name="Image", input_types=["Message", "Data", "JSON"], is_list=True, required=False,
            info="A message with pictures, such as one with a picture that was dropped into the chat; or data with a file_path, "
            "or with an image as a data URL.",
        ),
        FileInput(
            name="image_file", display_name="Image File", file_types=list(IMAGE_TYPES), is_list=True,
            info="Pictures to look at if nothing is connected to Image.",
        ),
        StrInput(
            name="path", display_name="Path", value="", advanced=True,
            info="The picture to look at if there is no other: its path in a folder of LOCAL_RUNTIMES_MEDIA_DIRS. For flows "
            "that run without a user interface.",
        ),
    ]  # fmt: skip


class SeeingBaseComponent(TaskBaseComponent):
    """A node that looks at pictures. It asks the model once per run, for any number of connected outputs."""

    picture_field: ClassVar[str] = "input_value"
    """The input for pictures of other nodes."""

    async def ask_about(self, kind: type[Ask[Any]], **options: Any) -> Any:
        """The model's result of this run for the node's pictures."""
        if self._result is None:
            pictures = await self.pictures()
            model = self.task_model(TaskModel)
            with Reporter(self, model.model) as model.observer:
                self._result = await model.ask_async(kind, images=pictures, **options)
        return self._result

    async def pictures(self) -> tuple[Media, ...]:
        """The pictures that are connected, or else the files of the node, or else the one at its path.

        Raises:
            InvalidInput: there is none, or one cannot be read.
            NotAllowed: Langflow or the operator does not let this flow read it.
        """
        found = [picture for one in self._given() for picture in await self._pictures_of(one)]
        if not found and (path := self._path()):
            found.append(await asyncio.to_thread(read_source, Source(path=path), get_settings(), Wanted("Path")))
        if not found:
            raise InvalidInput(
                "There is no picture to look at.",
                hint="Drop one into the chat and connect Chat Input to Image, or choose a file in the node.",
            )
        return tuple(found)

    @property
    def has_pictures(self) -> bool:
        """Something is connected or chosen that may have pictures."""
        return bool(self._given() or self._path())

    def _given(self) -> list[Any]:
        # the Local Embeddings of older flows have none of these fields
        return listed(getattr(self, self.picture_field, None)) or listed(getattr(self, "image_file", None))

    def _path(self) -> str:
        return str(value_of(getattr(self, "path", None)) or "").strip()

    async def _pictures_of(self, value: Any) -> list[Media]:
        if isinstance(value, Message):
            return [await self._stored(str(path)) for path in get_file_paths(value.files or [])]
        if isinstance(value, str):
            return [await self._stored(value)]
        if not isinstance(value, Data):
            raise InvalidInput(f"{type(value).__name__} is neither a message nor data.", hint="Connect one of those.")
        if (stored := value.data.get("file_path")) is not None:
            return [await self._stored(str(stored))]
        try:
            image = as_image(value.data.get("image"))
        except ValueError as error:
            raise InvalidInput(f"The data have no picture: {error}.", hint="Put it in image or file_path.") from error
        if isinstance(image, Source):
            image = await asyncio.to_thread(read_source, image, get_settings(), Wanted("image"))
        return [image]

    async def _stored(self, path: str) -> Media:
        image = as_image(await read_stored(self, path, MAX_IMAGE_BYTES, "Scale it down."))
        assert isinstance(image, Media)
        return image

    async def shown(self, pictures: Iterable[Media], text: str) -> Message:
        """A message with pictures, which the Playground shows.

        The Playground shows no files of an answer, so the text has their addresses as Markdown.
        """
        stored = [await store_picture(self, one.data) for one in pictures]
        links = [f"![Picture {number}]({address})" for number, (_, address) in enumerate(stored, 1) if address]
        return Message(text="\n\n".join(filter(None, [text, *links])), files=[path for path, _ in stored])

    async def sent_on(self, pictures: Iterable[Media]) -> Message:
        """A message with pictures for other nodes, without a text."""
        return Message(text="", files=[(await store_picture(self, one.data))[0] for one in pictures])


def in_words(labels: Iterable[str]) -> str:
    """How often each label occurs: `cat: 2, dog: 1`."""
    return ", ".join(f"{label}: {count}" for label, count in Counter(labels).most_common())


# -- Image Classifier and Zero-Shot Image Classifier ---------------------------------------------------------------------


class _PictureLabels(SeeingBaseComponent, LabelsBaseComponent):
    """The labels of pictures. `Label` and the routes are those of the first picture."""

    async def _all(self) -> Sequence[tuple[Label, ...]]:
        raise NotImplementedError

    async def found(self) -> tuple[Label, ...]:
        """The first picture's labels, best score first."""
        labels = (await self._all())[0]
        self.status = f"{labels[0].label} {labels[0].score:.2f}"
        return labels

    async def scores(self) -> DataFrame:
        """One row per picture and label, best score first. Pictures count from 1."""
        await self.found()
        rows = [(number, one) for number, labels in enumerate(await self._all(), 1) for one in labels]
        return DataFrame([{"image": number, "label": one.label, "score": one.score} for number, one in rows])


class ImageClassifierBaseComponent(_PictureLabels):
    """Which of the model's own labels a picture has."""

    model_type = "image_classification"

    async def _all(self) -> Sequence[tuple[Label, ...]]:
        options = {"top_k": self.top_k or None, "multi_label": CHOICES[self.multi_label]}
        result = await self.ask_about(ImageClassificationAsk, **options)
        labels: Sequence[tuple[Label, ...]] = result.labels
        return labels


class ZeroShotImageBaseComponent(_PictureLabels, ZeroShotBaseComponent):
    """Which of the user's labels a picture has, with an output for each."""

    model_type = "zero_shot_image_classification"
    also_by = ()

    async def _all(self) -> Sequence[tuple[Label, ...]]:
        options = {
            "labels": tuple(labels_of(self.labels)), "hypothesis": value_of(self.hypothesis),
            "multi_label": CHOICES[self.multi_label],
        }  # fmt: skip
        result = await self.ask_about(ImageZeroShotAsk, **options)
        labels: Sequence[tuple[Label, ...]] = result.labels
        return labels

    async def passed_on(self) -> Message:
        """The message with the picture, or one that is made for it."""
        given = next((one for one in listed(self.input_value) if isinstance(one, Message)), None)
        return given or await self.sent_on((await self.pictures())[:1])


# -- Object Detector -----------------------------------------------------------------------------------------------------


class ObjectDetectorBaseComponent(SeeingBaseComponent):
    """The things in pictures, with their boxes."""

    model_type = "object_detection"
    outputs: ClassVar[list[Output]] = [
        Output(display_name="Objects", name="objects", method="objects", group_outputs=True), _PICTURE,
    ]  # fmt: skip

    async def _found(self) -> ObjectDetectionResult:
        result: ObjectDetectionResult = await self.ask_about(ObjectDetectionAsk, threshold=self.threshold, draw=True)
        self.status = self._text(result)
        return result

    @staticmethod
    def _text(result: ObjectDetectionResult) -> str:
        return in_words(one.label for objects in result.objects for one in objects) or "nothing found"

    async def objects(self) -> DataFrame:
        """One row per object: the picture (from 1), label, score, and the box in pixels."""
        columns = ("label", "score", "xmin", "ymin", "xmax", "ymax")
        rows = [(number, one) for number, objects in enumerate((await self._found()).objects, 1) for one in objects]
        return DataFrame(
            [{"image": number} | {column: getattr(one, column) for column in columns} for number, one in rows]
        )

    async def picture(self) -> Message:
        """The pictures with the boxes; the text says what was found."""
        result = await self._found()
        return await self.shown(result.drawings, self._text(result))


# -- Depth ---------------------------------------------------------------------------------------------------------------


class DepthBaseComponent(SeeingBaseComponent):
    """How far away each pixel is."""

    model_type = "depth_estimation"
    outputs: ClassVar[list[Output]] = [
        Output(display_name="Depths", name="depths", method="depths", group_outputs=True), _PICTURE,
    ]  # fmt: skip

    async def _found(self) -> DepthResult:
        result: DepthResult = await self.ask_about(DepthAsk, draw=True)
        self.status = "; ".join(f"{one.min:.2f} to {one.max:.2f}" for one in result.depths)
        return result

    async def depths(self) -> DataFrame:
        """One row per picture: its size, and the smallest, largest, mean and median depth."""
        columns = ("width", "height", "min", "max", "mean", "median")
        found = enumerate((await self._found()).depths, 1)
        return DataFrame(
            [{"image": number} | {column: getattr(one, column) for column in columns} for number, one in found]
        )

    async def picture(self) -> Message:
        """The depths as colours."""
        drawings = [one.drawing for one in (await self._found()).depths if one.drawing is not None]
        return await self.shown(drawings, str(self.status))


# -- Segmenter -----------------------------------------------------------------------------------------------------------


class SegmenterBaseComponent(SeeingBaseComponent):
    """The class of each pixel."""

    model_type = "image_segmentation"
    outputs: ClassVar[list[Output]] = [
        Output(display_name="Segments", name="segments", method="segments", group_outputs=True), _PICTURE,
        Output(display_name="Class Map", name="class_map", method="class_map", group_outputs=True),
    ]  # fmt: skip

    async def _found(self) -> SegmentationResult:
        result: SegmentationResult = await self.ask_about(SegmentationAsk, draw=True)
        best = (one.segments[0] for one in result.segmentations)
        self.status = "; ".join(f"{one.label} {one.share:.0%}" for one in best)
        return result

    async def segments(self) -> DataFrame:
        """One row per picture and class, the largest first: label, number in the class map, pixels, share of the picture."""
        columns = ("label", "class_id", "area", "share")
        found = enumerate((await self._found()).segmentations, 1)
        rows = [(number, one) for number, picture in found for one in picture.segments]
        return DataFrame(
            [{"image": number} | {column: getattr(one, column) for column in columns} for number, one in rows]
        )

    async def picture(self) -> Message:
        """The pictures in the colours of their classes; the text says how large each class is."""
        found = (await self._found()).segmentations
        parts = [f"{one.label} {one.share:.0%}" for picture in found for one in picture.segments]
        return await self.shown((one.drawing for one in found if one.drawing is not None), ", ".join(parts))

    async def class_map(self) -> Message:
        """The class maps: grey pictures whose numbers are those of the classes."""
        return await self.shown((one.class_map for one in (await self._found()).segmentations), "")
