"""The work behind Image Describer."""

from typing import Any, ClassVar

import lfx.custom  # noqa: F401 - before lfx.io, which cannot be imported first
from lfx.io import Output
from lfx.schema.message import Message

from lfx_local_runtimes.langchain.task_model import TaskModel
from lfx_local_runtimes.nodes.inputs import value_of
from lfx_local_runtimes.nodes.models import list_models_in, model_choices
from lfx_local_runtimes.nodes.reports import Reporter
from lfx_local_runtimes.nodes.seeing import SeeingBaseComponent
from lfx_local_runtimes.runtimes.tasks.generation import GenerationResult
from lfx_local_runtimes.runtimes.tasks.multimodal.caption import CaptionAsk
from lfx_local_runtimes.runtimes.tasks.multimodal.vqa import VqaAsk


class ImageDescriberBaseComponent(SeeingBaseComponent):
    """What a picture shows, or the answer to a question about it. Of several pictures it looks at the first."""

    model_type = "caption"
    also_by = ("vqa", "llm")
    outputs: ClassVar[list[Output]] = [Output(display_name="Text", name="text", method="described")]

    async def described(self) -> Message:
        """The text about the picture. Stop ends the computation."""
        picture, *_ = await self.pictures()
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
