"""The task `vqa`: the answer to a question about a picture."""

from typing import ClassVar

from pydantic import Field

from lfx_local_runtimes.runtimes.tasks.base import Ask, TaskRow
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, GenerationResult, TextDelta
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES, Image
from lfx_local_runtimes.runtimes.tasks.multimodal.caption import MaxLength, Words, about_picture


class VqaAsk(Ask[GenerationResult]):
    """A picture and a question about it. The answer takes the most likely token each time."""

    task: ClassVar[str] = "vqa"
    image: Image = Field(description="The picture.")
    question: Words = Field(description="What to answer.")
    max_length: MaxLength = 64

    def conversation(self) -> GenerationConfig:
        """The same, asked of a chat model."""
        return about_picture(self.image, self.question, self.max_length)


ROW = TaskRow(
    name="vqa", family="describing", ask=VqaAsk, result=GenerationResult, delta=TextDelta,
    path="multimodal/vqa", body_bytes=MEDIA_BODY_BYTES,
    summary="The answer to a question about a picture. Models for that serve it, and chat models that read pictures.",
)  # fmt: skip
