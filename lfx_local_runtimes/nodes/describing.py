"""The work behind Image Describer."""

import asyncio
from typing import Any, ClassVar

from lfx.io import Output
from lfx.schema.message import Message
from lfx.utils.constants import MESSAGE_SENDER_USER

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.langchain.messages import to_chat_message
from lfx_local_runtimes.langchain.task_model import TaskModel
from lfx_local_runtimes.nodes.inputs import value_of
from lfx_local_runtimes.nodes.models import list_models_in, model_choices
from lfx_local_runtimes.nodes.reading import TaskBaseComponent
from lfx_local_runtimes.nodes.reports import Reporter
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult
from lfx_local_runtimes.runtimes.tasks.media import Media, Source
from lfx_local_runtimes.runtimes.tasks.multimodal.caption import CaptionAsk
from lfx_local_runtimes.runtimes.tasks.multimodal.vqa import VqaAsk


class ImageDescriberBaseComponent(TaskBaseComponent):
    """What a picture shows, or the answer to a question about it."""

    model_type = "caption"
    also_by = ("vqa", "llm")
    outputs: ClassVar[list[Output]] = [Output(display_name="Text", name="text", method="described")]

    async def described(self) -> Message:
        """The text about the picture. Stop ends the computation."""
        picture = await asyncio.to_thread(self._picture)
        question = str(value_of(self.question) or "").strip()
        model = self.task_model(TaskModel)
        with Reporter(self, model.model) as model.observer:
            result: GenerationResult
            if question:
                result = await model.ask_async(VqaAsk, image=picture, question=question, max_length=self.max_tokens)
            else:
                result = await model.ask_async(CaptionAsk, image=picture, max_length=self.max_tokens)
        self.status = result.text
        return Message(text=result.text)

    async def update_build_config(
        self, build_config: dict[str, Any], field_value: Any, field_name: str | None = None
    ) -> dict[str, Any]:
        """List the models that describe pictures, then chat models that read them."""
        return list_models_in(
            build_config, *await model_choices(*self.also_by, model_type=self.model_type, vision=True)
        )

    def _picture(self) -> Media | Source:
        """The first picture of the message, or else the file that was chosen in the node.

        Raises:
            InvalidInput: there is none.
        """
        message = self.input_value if isinstance(self.input_value, Message) else None
        files = [*(message.files or [] if message else []), *filter(None, [value_of(self.image_file)])]
        shown = Message(text="", files=files, sender=MESSAGE_SENDER_USER).to_lc_message()
        pictures = to_chat_message(shown).pictures
        if not pictures:
            raise InvalidInput(
                "There is no picture to describe.",
                hint="Drop one into the chat and connect the Chat Input to Image, or choose a file in the node.",
            )
        return pictures[0]
