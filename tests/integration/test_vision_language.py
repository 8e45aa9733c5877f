"""Language models that read pictures, on tiny seeded models: equal to upstream, streamed, and with tools and schemas."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lfx_local_runtimes.errors import ContextOverflow, InvalidInput
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime
from lfx_local_runtimes.runtimes.engines.transformers.vision_language import Sight
from lfx_local_runtimes.runtimes.planning import inspect_model
from lfx_local_runtimes.runtimes.requests import Request
from lfx_local_runtimes.runtimes.tasks.generation import ChatMessage, GenerationConfig, Grammar, Tool
from lfx_local_runtimes.runtimes.tasks.media import Media
from tests.transformers_runtimes import Start, run, starter, together
from tests.vision_language import by_upstream, png

pytestmark = pytest.mark.integration

CAT, DOG = Media("image/png", png(1)), Media("image/png", png(2, 20, 70))
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


def said(*things: str | Media, role: str = "user") -> ChatMessage:
    parts = [
        {"type": "text", "text": thing} if isinstance(thing, str) else {"type": "image", "image": thing}
        for thing in things
    ]
    return ChatMessage.model_validate({"role": role, "content": parts})


def upstream(folder: Path, messages: tuple[ChatMessage, ...], count: int = 12) -> str:
    """The library's answer to the same conversation."""
    data = []
    for message in messages:
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if part.type == "text":
                content.append({"type": "text", "text": part.text})
            else:
                assert isinstance(part.image, Media)
                content.append({"type": "image", "image": Image.open(io.BytesIO(part.image.data)).convert("RGB")})
        data.append({"role": message.role, "content": content})
    return by_upstream(folder, data, count)


@pytest.fixture(scope="module")
def idefics3(tiny_idefics3: Path) -> Iterator[TransformersRuntime]:
    for start in starter():
        yield start(tiny_idefics3, quantization="fp32", context_length=1024)


CONVERSATIONS = (
    (said("What is this? ", CAT),),
    (said(CAT, "A cat?"), ChatMessage(role="assistant", content="Yes."), said("And ", DOG, " with ", CAT, "?")),
)


@pytest.mark.parametrize(
    "model", ["tiny_idefics3", "tiny_smolvlm", "tiny_gemma3_vision", "tiny_llava", "tiny_qwen2_vl"]
)
def test_answers_are_upstreams_token_by_token(
    start: Start, request: pytest.FixtureRequest, model: str, idefics3: TransformersRuntime
) -> None:
    """SmolVLM's and Qwen2-VL's own processors need torchvision for videos. Pictures do without it."""
    folder = request.getfixturevalue(model)
    info = inspect_model(folder)
    assert (info.task, info.vision, info.engine) == ("llm", True, "transformers")
    runtime = idefics3 if "idefics3" in model else start(folder, quantization="fp32", context_length=1024)
    for messages in CONVERSATIONS:
        expected = upstream(folder, messages)
        assert len(set(expected)) > 3
        assert run(runtime, messages=messages, **GREEDY).text == expected
    # Two pictures are not the same to the model.
    (question,) = CONVERSATIONS[0]
    other = run(runtime, messages=(said("What is this? ", DOG),), **GREEDY, logprobs=True)
    first = run(runtime, messages=(question,), **GREEDY, logprobs=True)
    assert other.logprobs != first.logprobs


@pytest.mark.parametrize("model", ["tiny_smolvlm", "tiny_gemma3_vision", "tiny_llava", "tiny_qwen2_vl"])
def test_pictures_in_sixteen_bits(start: Start, request: pytest.FixtureRequest, model: str) -> None:
    """The pixels come in 32 bits."""
    runtime = start(request.getfixturevalue(model), quantization="bf16", context_length=1024)
    one, other = (
        run(runtime, messages=(said("What is this? ", picture),), **GREEDY, logprobs=True) for picture in (CAT, DOG)
    )
    assert one.tokens_generated == other.tokens_generated == 12
    assert one.logprobs != other.logprobs


def test_a_picture_is_encoded_once(idefics3: TransformersRuntime) -> None:
    """By its content: also in the next turn, in another place, and in another chat."""
    sight = idefics3._sight
    assert sight is not None
    fresh = Media("image/png", png(9))
    before = sight.encoded
    first = run(idefics3, messages=(said(fresh, "One?"),), **GREEDY)
    assert sight.encoded == before + 1
    turns = (
        said(fresh, "One?"),
        ChatMessage(role="assistant", content=first.text),
        said("Two?", Media("image/png", png(10))),
    )
    run(idefics3, messages=turns, **GREEDY)
    assert sight.encoded == before + 2
    again = run(idefics3, messages=(said(Media("image/png", png(9)), "One?"),), **GREEDY)
    assert (again.text, sight.encoded) == (first.text, before + 2)


def test_pictures_that_were_not_asked_for_leave(idefics3: TransformersRuntime) -> None:
    sight = idefics3._sight
    assert sight is not None
    limit, sight._limit = sight._limit, 1
    try:
        before = sight.encoded
        for seed in (20, 21, 20):
            run(idefics3, messages=(said(Media("image/png", png(seed)), "?"),), **GREEDY)
        assert sight.encoded == before + 3
        assert len(sight._kept) == 1
    finally:
        sight._limit = limit


def test_texts_and_pictures_side_by_side(idefics3: TransformersRuntime) -> None:
    """Requests with pictures keep their place between texts that are batched, and change nothing about them."""
    texts = [{"prompt": f"Tell me {word}", **GREEDY} for word in ("one", "two", "three")]
    looks = [{"messages": (said("What? ", one),), **GREEDY} for one in (CAT, DOG)]
    alone = [run(idefics3, **options).text for options in (*texts, *looks)]
    mixed = [texts[0], looks[0], texts[1], looks[1], texts[2]]
    results = [result.text for result in together(idefics3, mixed)]
    assert results == [alone[0], alone[3], alone[1], alone[4], alone[2]]


def test_an_answer_streams_and_can_be_cancelled(idefics3: TransformersRuntime) -> None:
    config = GenerationConfig(messages=CONVERSATIONS[0], temperature=0, max_tokens=200)
    stream = idefics3.stream(config)
    pieces = iter(stream)
    assert next(pieces)
    stream.cancel()
    result = stream.wait()
    assert result.finish_reason == "cancelled"
    assert result.tokens_generated < 200


def test_a_cancel_lands_between_two_pictures(idefics3: TransformersRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    sight = idefics3._sight
    assert sight is not None
    request = Request(
        "test", GenerationConfig(messages=(said(*[Media("image/png", png(seed)) for seed in range(40, 44)]),))
    )
    looked: list[str] = []

    def look(picture: Any, place: str) -> Any:
        looked.append(place)
        request.cancel()
        return Sight.look(sight, picture, place)

    monkeypatch.setattr(sight, "look", look)
    idefics3.submit(request)
    assert request.channel.get() is not None
    monkeypatch.undo()
    assert run(idefics3, messages=CONVERSATIONS[0], **GREEDY).finish_reason == "length"  # the others go on
    assert looked == ["images.0"]


def test_tools_and_schemas_hold_beside_pictures(idefics3: TransformersRuntime) -> None:
    schema = {
        "type": "object",
        "properties": {"cat": {"type": "boolean"}},
        "required": ["cat"],
        "additionalProperties": False,
    }
    grammar = Grammar(kind="json_schema", json_schema=schema)
    result = run(idefics3, messages=CONVERSATIONS[0], grammar=grammar, seed=1, max_tokens=100)
    assert set(json.loads(result.text)) == {"cat"}
    tool = Tool(name="tag", parameters=schema)
    called = run(idefics3, messages=CONVERSATIONS[0], tools=(tool,), tool_choice="tag", seed=1, max_tokens=100)
    assert [call.name for call in called.tool_calls] == ["tag"]
    assert called.finish_reason == "tool_calls"


def test_what_cannot_be_looked_at_is_refused_and_others_go_on(idefics3: TransformersRuntime) -> None:
    whole = run(idefics3, messages=CONVERSATIONS[0], **GREEDY)
    broken = Media("image/png", CAT.data[: len(CAT.data) // 2])
    with pytest.raises(InvalidInput, match=r"images\.1"):
        run(idefics3, messages=(said(CAT, broken),), **GREEDY)
    with pytest.raises(InvalidInput, match="2 places for pictures"):
        run(idefics3, messages=(said(CAT, "What is <image>?"),), **GREEDY)
    with pytest.raises(ContextOverflow):
        run(idefics3, messages=(said(CAT, "x" * 1100),), **GREEDY, truncate=True)  # a half of a picture is none
    assert run(idefics3, messages=CONVERSATIONS[0], **GREEDY).text == whole.text


def test_a_text_model_refuses_before_it_computes(tiny: TransformersRuntime) -> None:
    with pytest.raises(InvalidInput, match="vision-language model"):
        run(tiny, messages=(said(CAT, "What?"),), **GREEDY)
