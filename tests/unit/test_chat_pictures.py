"""Pictures in conversations: from every form in which clients send them to the prompt of a model, and across the wire."""

import base64
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from pydantic import ValidationError

from lfx_local_runtimes.errors import InvalidInput, NotAllowed
from lfx_local_runtimes.langchain.chat import ChatLocalRuntime
from lfx_local_runtimes.langchain.messages import to_chat_message
from lfx_local_runtimes.routes import PREFIX
from lfx_local_runtimes.runtimes import GenerationConfig, ScriptedRuntime
from lfx_local_runtimes.runtimes.chat.templates import BUILT_IN, Template, render
from lfx_local_runtimes.runtimes.engines.isolated import codec
from lfx_local_runtimes.runtimes.engines.transformers.vision_language import make_sight
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.tasks.generation import MAX_PICTURES, ChatMessage, Tool
from lfx_local_runtimes.runtimes.tasks.media import Media, Source
from lfx_local_runtimes.runtimes.tasks.multimodal.caption import INSTRUCTION
from tests.pictures import drawn, media_of
from tests.routes_app import KEY, MODEL, Stage, make_app
from tests.scripted_manager import Theatre, theatre

PICTURE = media_of(drawn())
OTHER = media_of(drawn(colour="green"))
BASE64 = base64.b64encode(PICTURE.data).decode()
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
EITHER = (
    "{% for message in messages %}{{ message.role }}: {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for item in message['content'] %}{{ '<image>' if item.type == 'image' else item.text }}{% endfor %}"
    "{% endif %}{{ '\n' }}{% endfor %}"
)
TEXT_ONLY = (
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{{ '!' if '<think>' in m.content }}\n{% endfor %}"
)


def part(thing: str | Media) -> dict[str, Any]:
    return {"type": "text", "text": thing} if isinstance(thing, str) else {"type": "image", "image": thing}


def said(*things: str | Media, role: str = "user", **fields: Any) -> ChatMessage:
    return ChatMessage.model_validate({"role": role, "content": [part(thing) for thing in things], **fields})


def contents(message: ChatMessage) -> list[Any]:
    return [getattr(one, one.type) for one in message.parts]


# -- messages --------------------------------------------------------------------------------------------------------


def test_a_message_keeps_its_pictures_in_their_places() -> None:
    message = said("Compare", PICTURE, "with", OTHER)
    assert message.text == "Comparewith"
    assert message.pictures == (PICTURE, OTHER)
    assert message.written("<image>") == "Compare<image>with<image>"
    assert GenerationConfig(messages=(message, said("And", PICTURE))).pictures == (PICTURE, OTHER, PICTURE)


def test_a_conversation_with_pictures_crosses_the_border_of_processes() -> None:
    config = GenerationConfig(
        messages=(said("Look:", PICTURE), ChatMessage(role="assistant", content="Red."), said(OTHER))
    )
    frame = codec.start_frame("1", "id", config)
    assert [bytes(one) for one in frame.attachments] == [PICTURE.data, OTHER.data]
    assert codec.read_ask(frame) == config
    assert GenerationConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_only_users_and_tools_show_pictures(role: str) -> None:
    with pytest.raises(ValidationError, match=f"a {role} message has no pictures"):
        said(PICTURE, role=role)


def test_too_many_pictures_are_refused() -> None:
    with pytest.raises(ValidationError, match=f"101 pictures.*{MAX_PICTURES}"):
        GenerationConfig(messages=(said(*[PICTURE] * 60), said(*[PICTURE] * 41)))


def test_paragraphs_join_beside_pictures() -> None:
    assert said("a").followed_by("b").content == "a\n\nb"
    assert contents(said(PICTURE, "a").followed_by(said("b", OTHER))) == [PICTURE, "a\n\nb", OTHER]
    assert contents(said("a").followed_by(said(OTHER, "b"))) == ["a", OTHER, "b"]


# -- templates -------------------------------------------------------------------------------------------------------

TURNS = (said("What is ", PICTURE, "?"), ChatMessage(role="assistant", content="Red."), said("Sure?"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            SMOLVLM,
            "<|im_start|>User: What is <image>?<end_of_utterance>\nAssistant: Red.<end_of_utterance>\n"
            "User: Sure?<end_of_utterance>\nAssistant:",
        ),
        (EITHER, "user: What is <image>?\nassistant: Red.\nuser: Sure?\n"),
        (TEXT_ONLY, "user: What is <image>?\nassistant: Red.\nuser: Sure?\n"),
    ],
)
def test_a_template_gets_the_form_that_it_reads(source: str, expected: str) -> None:
    """Parts, or a text for messages without a picture, or the model's mark in the text."""
    assert render(Template("model", source), TURNS, picture="<image>") == expected


def test_built_in_forms_write_the_mark() -> None:
    assert render(BUILT_IN["dialogue"], TURNS[:1], picture="<image>") == "Question: What is <image>?\nAnswer:"
    turns = (ChatMessage(role="system", content="Be brief."), said(PICTURE, "What?"))
    written = render(BUILT_IN["gemma"], turns, picture="<start_of_image>")
    assert written == "<start_of_turn>user\nBe brief.\n\n<start_of_image>What?<end_of_turn>\n<start_of_turn>model\n"


def test_a_tool_may_answer_with_a_picture() -> None:
    """The template knows no tools: the result is written as the user's, and its picture stays with it."""
    called = ChatMessage.model_validate(
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "name": "photo", "arguments": "{}"}]}
    )
    turns = (said("Show it"), called, said("Here: ", PICTURE, role="tool", tool_call_id="1"), said("What is it?"))
    written = render(Template("model", EITHER), turns, picture="<image>", tools=(Tool(name="photo"),))
    assert written.count("<image>") == 1
    assert written.index("Here: ") < written.index("<image>") < written.index("What is it?")


# -- models that see and models that do not -------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    with theatre(tmp_path, monkeypatch) as scene:
        yield scene


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRuntime, "vision", True)


def parrot(**options: Any) -> ChatLocalRuntime:
    return ChatLocalRuntime(model="parrot", **options)


def test_a_text_model_that_is_shown_a_picture_says_what_to_do(scene: Theatre) -> None:
    with pytest.raises(InvalidInput, match=r"parrot reads text only.*vision-language model"):
        parrot().invoke([HumanMessage([{"type": "text", "text": "What?"}, FORMS[0]])])
    assert scene.requests == []


@pytest.mark.usefixtures("seeing")
def test_a_text_that_has_the_mark_is_refused(scene: Theatre) -> None:
    message = HumanMessage(["What is <image>?", {"type": "image", "base64": BASE64, "mime_type": "image/png"}])
    with pytest.raises(InvalidInput, match=r"2 places for pictures.*1 pictures.*Leave <image> out"):
        parrot().invoke([message])
    assert parrot().invoke("What is <image> in HTML?").content == "Hello"


def test_a_model_that_encodes_in_a_way_of_its_own_reads_text_only() -> None:
    class Model:
        base_model = None

        def forward(self, input_ids: Any, pixel_values: Any = None) -> None:
            """As older architectures take pictures."""

    assert make_sight(Model(), SimpleNamespace(image_token="<image>")) is None


# -- LangChain -------------------------------------------------------------------------------------------------------

DATA_URL = f"data:image/png;base64,{BASE64}"
FORMS: list[dict[str, Any]] = [
    {"type": "image", "base64": BASE64, "mime_type": "image/png"},
    {"type": "image", "url": DATA_URL},
    {"type": "image", "source_type": "base64", "data": BASE64, "mime_type": "image/png"},
    {"type": "image_url", "image_url": {"url": DATA_URL}},
    {"type": "image_url", "image_url": DATA_URL},
    {"type": "input_image", "image_url": DATA_URL},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
    {"image": {"format": "png", "source": {"bytes": PICTURE.data}}},
]


@pytest.mark.parametrize("block", FORMS, ids=str)
def test_every_form_of_an_image_block_is_read(block: dict[str, Any]) -> None:
    message = to_chat_message(HumanMessage(["Look", block, {"type": "text", "text": "here"}]))
    assert contents(message) == ["Look", PICTURE, "here"]
    result = to_chat_message(ToolMessage([block], tool_call_id="1"))
    assert (result.role, result.pictures, result.tool_call_id) == ("tool", (PICTURE,), "1")


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (HumanMessage([{"type": "audio", "base64": "AA==", "mime_type": "audio/wav"}]), "audio"),
        (HumanMessage([{"type": "image", "file_id": "f-1"}]), "stored elsewhere"),
        (HumanMessage([{"type": "image", "base64": "???", "mime_type": "image/png"}]), "base64"),
        (HumanMessage([{"type": "image", "url": "file:///etc/passwd"}]), "data:, http"),
        (SystemMessage([FORMS[0]]), "system message has no pictures"),
        (AIMessage([FORMS[0]]), "assistant message has no pictures"),
    ],
)
def test_what_is_no_picture_is_refused(message: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        to_chat_message(message)


@pytest.mark.usefixtures("seeing")
async def test_a_picture_reaches_the_model(scene: Theatre) -> None:
    message = HumanMessage(["Look", FORMS[0]])
    assert parrot().invoke([message]).content == "Hello"
    assert "".join([str(chunk.content) async for chunk in parrot().astream([message])]) == "Hello"
    assert [request.pictures for request in scene.requests] == [(PICTURE,)] * 2


@pytest.mark.usefixtures("seeing")
def test_a_plain_continuation_takes_no_pictures(scene: Theatre) -> None:
    with pytest.raises(InvalidInput, match="no place for a picture"):
        parrot(raw=True).invoke([HumanMessage([FORMS[0]])])
    assert scene.requests == []


@pytest.mark.usefixtures("seeing")
async def test_a_url_needs_the_operators_permission(scene: Theatre) -> None:
    message = HumanMessage([{"type": "image", "url": "https://example.org/cat.png"}])
    assert to_chat_message(message).pictures == (Source(url="https://example.org/cat.png"),)
    with pytest.raises(NotAllowed):
        parrot().invoke([message])
    with pytest.raises(NotAllowed):
        await parrot().ainvoke([message])
    assert scene.requests == []


# -- REST ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(manager: RuntimeManager) -> Iterator[TestClient]:
    with TestClient(make_app(manager), base_url="http://test" + PREFIX, headers=KEY) as client:
        yield client


@pytest.mark.usefixtures("seeing")
@pytest.mark.parametrize(
    ("path", "field", "image"),
    [
        ("v1/chat/completions", "messages", {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}}),
        ("v1/responses", "input", {"type": "input_image", "image_url": DATA_URL}),
        ("generate", "messages", {"type": "image", "image": DATA_URL}),
        ("generate", "messages", {"type": "image", "image": BASE64}),
    ],
)
def test_a_picture_is_part_of_a_conversation(
    client: TestClient, stage: Stage, path: str, field: str, image: dict[str, Any]
) -> None:
    native = path == "generate"
    text = {"type": "input_text" if path.endswith("responses") else "text", "text": "Look"}
    body = {("model_name" if native else "model"): MODEL, field: [{"role": "user", "content": [text, image]}]}
    limit = "max_output_tokens" if path.endswith("responses") else "max_tokens"
    response = client.post(f"/{path}", json={**body, limit: 1})
    assert response.status_code == 200, response.text
    assert contents(stage.requests[-1].ask.messages[0]) == ["Look", PICTURE]


def test_errors_of_pictures_name_them(client: TestClient) -> None:
    def ask(url: str) -> Any:
        content = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": url}}]
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
        response = client.post("/v1/chat/completions", json=body)
        return response.status_code, response.json()["error"]["message"]

    status, says = ask(DATA_URL)
    assert status == 400
    assert "reads text only" in says
    status, says = ask("https://example.org/cat.png")
    assert status == 403
    assert "messages.0.content.1" in says
    status, says = ask("data:image/png;base64,???")
    assert status == 400
    assert "part 1" in says


@pytest.mark.usefixtures("seeing")
@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("multimodal/caption", {"max_length": 2}, INSTRUCTION),
        ("multimodal/caption", {"prompt": "Name its colour.", "max_length": 2}, "Name its colour."),
        ("multimodal/vqa", {"question": "Which colour?", "max_length": 2}, "Which colour?"),
    ],
)
def test_a_chat_model_describes_pictures_over_rest(
    client: TestClient, stage: Stage, path: str, fields: dict[str, Any], said: str
) -> None:
    for route, model in ((path, "model_name"), (f"v1/{path}", "model")):
        response = client.post(f"/{route}", json={model: MODEL, "image": DATA_URL, **fields})
        assert response.status_code == 200, response.text
        assert response.json()["text"] == "t0 t1 "
        (turn,) = stage.requests[-1].ask.turns
        assert contents(turn) == [PICTURE, said]


def test_a_text_model_describes_no_pictures(client: TestClient) -> None:
    response = client.post("/multimodal/caption", json={"model_name": MODEL, "image": DATA_URL})
    assert response.json()["error"]["code"] == "wrong_task"
