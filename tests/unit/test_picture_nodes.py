"""Pictures in Langflow: dropped into the chat, remembered with it, and described by a node of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lfx.components.input_output.chat_output  # noqa: F401 - Langflow's modules import each other; this order works
import pytest
from lfx.schema.message import Message
from lfx.services.deps import get_settings_service

from lfx_local_runtimes.components.local_runtimes.image_describer import ImageDescriberComponent
from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.errors import InvalidInput, ModelNotFound
from lfx_local_runtimes.langchain.messages import to_chat_message
from lfx_local_runtimes.nodes.history import _turn
from lfx_local_runtimes.runtimes import ScriptedRuntime
from lfx_local_runtimes.runtimes.tasks.multimodal.caption import INSTRUCTION
from tests.pictures import drawn, media_of
from tests.scripted_manager import Theatre, theatre

PICTURE = media_of(drawn())


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    with theatre(tmp_path, monkeypatch) as stage:
        yield stage


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file that Langflow lets its nodes read."""
    monkeypatch.setattr(get_settings_service().settings, "restrict_local_file_access", False)
    file = tmp_path / "red.png"
    file.write_bytes(PICTURE.data)
    return str(file)


@pytest.fixture
def _seeing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRuntime, "vision", True)


def dropped(picture: str, text: str = "What is this?") -> Message:
    """What Chat Input makes of a question with a picture."""
    return Message(text=text, files=[picture], sender="User", sender_name="User")


def describer(**options: Any) -> ImageDescriberComponent:
    return ImageDescriberComponent(**{"model_name": "parrot", **options})


@pytest.mark.usefixtures("_seeing")
async def test_a_picture_in_the_chat_reaches_the_model(stage: Theatre, picture: str) -> None:
    answer = await LocalModelComponent(model_name="parrot", input_value=dropped(picture), stream=False).text_response()
    assert answer.text == "Hello"
    (turn,) = stage.requests[-1].turns
    assert (turn.text, turn.pictures) == ("What is this?", (PICTURE,))


async def test_a_text_model_says_that_it_reads_no_pictures(stage: Theatre, picture: str) -> None:
    with pytest.raises(ValueError, match="vision-language model"):
        await LocalModelComponent(model_name="parrot", input_value=dropped(picture), stream=False).text_response()


def test_an_earlier_picture_stays_in_its_turn(picture: str) -> None:
    turn = to_chat_message(_turn(dropped(picture)))
    assert (turn.role, turn.text, turn.pictures) == ("user", "What is this?", (PICTURE,))


@pytest.mark.usefixtures("_seeing")
async def test_the_describer_describes_and_answers(stage: Theatre, picture: str) -> None:
    node = describer(input_value=dropped(picture, ""), max_tokens=7)
    assert (await node.described()).text == "Hello"
    assert node.status == "Hello"
    (turn,) = stage.requests[-1].turns
    assert (turn.text, turn.pictures, stage.requests[-1].max_tokens) == (INSTRUCTION, (PICTURE,), 7)
    await describer(image_file=[picture], question=" Which colour? ").described()
    assert stage.requests[-1].turns[0].text == "Which colour?"


async def test_what_the_describer_needs(stage: Theatre, picture: str) -> None:
    with pytest.raises(InvalidInput, match="no picture to look at"):
        await describer(input_value=Message(text="no picture here")).described()
    with pytest.raises(ModelNotFound, match="Choose one"):
        await describer(model_name="", image_file=[picture]).described()


async def test_the_describer_offers_models_that_read_pictures(stage: Theatre) -> None:
    folder = stage.models / "owl"
    (folder / "config.json").write_text(
        '{"model_type": "idefics3", "architectures": ["Idefics3ForConditionalGeneration"], "vision_config": {}}'
    )
    (folder / "processor_config.json").write_text("{}")
    node = describer()
    fields = await node.update_build_config(node.to_frontend_node()["data"]["node"]["template"], "", "model_name")
    assert fields["model_name"]["options"] == ["owl", "parrot"]  # the chosen one stays in the list
