"""The task `caption`: what a picture shows, in a sentence."""

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from lfx_local_runtimes.runtimes.tasks.base import Ask, TaskRow
from lfx_local_runtimes.runtimes.tasks.generation import (
    ChatMessage,
    GenerationConfig,
    GenerationResult,
    ImagePart,
    TextDelta,
    TextPart,
)
from lfx_local_runtimes.runtimes.tasks.media import MEDIA_BODY_BYTES, Image, Media, Source

INSTRUCTION = "Describe this picture in one sentence."
"""For a chat model, if the request has no prompt."""

MaxLength = Annotated[int, Field(ge=1, le=4096, description="The answer has at most this many tokens.")]
Words = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]


class CaptionAsk(Ask[GenerationResult]):
    """A picture to describe. The answer takes the most likely token each time."""

    task: ClassVar[str] = "caption"
    image: Image = Field(description="The picture.")
    prompt: Words | None = Field(
        default=None,
        description="For a model that writes captions: the words that the caption begins with. For a chat model: what to write.",
    )
    max_length: MaxLength = 64

    def conversation(self) -> GenerationConfig:
        """The same, asked of a chat model."""
        return about_picture(self.image, self.prompt or INSTRUCTION, self.max_length)


def about_picture(image: Media | Source, text: str, max_length: int) -> GenerationConfig:
    """A chat of one turn about a picture."""
    parts = (ImagePart(type="image", image=image), TextPart(type="text", text=text))
    turn = ChatMessage(role="user", content=parts)
    return GenerationConfig(messages=(turn,), max_tokens=max_length, temperature=0)


ROW = TaskRow(
    name="caption", family="describing", ask=CaptionAsk, result=GenerationResult, delta=TextDelta,
    path="multimodal/caption", body_bytes=MEDIA_BODY_BYTES,
    summary="What a picture shows, in words. Models that write captions serve it, and chat models that read pictures.",
)  # fmt: skip
