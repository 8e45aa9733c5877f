"""Captions and answers about pictures: equal to upstream on the same weights, streamed, from captioners and from chat models."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lfx_local_runtimes.errors import InvalidInput, WrongTask
from lfx_local_runtimes.runtimes import ModelConfig
from lfx_local_runtimes.runtimes.base import ModelRuntime
from lfx_local_runtimes.runtimes.engines.transformers.factory import transformers
from lfx_local_runtimes.runtimes.planning import inspect_model, plan_for_engine
from lfx_local_runtimes.runtimes.tasks.base import Ask
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, TextDelta
from lfx_local_runtimes.runtimes.tasks.media import Media
from lfx_local_runtimes.runtimes.tasks.multimodal.caption import INSTRUCTION, CaptionAsk
from lfx_local_runtimes.runtimes.tasks.multimodal.vqa import VqaAsk
from lfx_local_runtimes.settings import get_settings
from tests.vision_language import png

pytestmark = pytest.mark.integration

hf = pytest.importorskip("transformers")

PICTURE = Media("image/png", png(5))
PIXELS = Image.open(io.BytesIO(PICTURE.data)).convert("RGB")
COUNT = 10


@pytest.fixture(scope="module")
def models(
    tiny_blip_caption: Path,
    tiny_blip_vqa: Path,
    tiny_vit_gpt2: Path,
    tiny_trocr: Path,
    tiny_idefics3: Path,
) -> Iterator[dict[str, ModelRuntime]]:
    folders = {"blip": tiny_blip_caption, "asked": tiny_blip_vqa, "vit": tiny_vit_gpt2, "line": tiny_trocr,
               "chat": tiny_idefics3}  # fmt: skip
    started: dict[str, ModelRuntime] = {}
    for name, folder in folders.items():
        config = ModelConfig(model_id=str(folder), model_name=name, quantization="fp32", threads=1, context_length=128)
        plan = plan_for_engine(config, "transformers", folder, get_settings())
        started[name] = transformers(config, plan)
        started[name].start().result()
    yield started
    for runtime in started.values():
        if (thread := runtime.stop()) is not None:
            thread.join()


def upstream(folder: Path, auto: str, text: str | None = None) -> str:
    model = getattr(hf, auto).from_pretrained(folder, local_files_only=True)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    pixels = hf.AutoImageProcessor.from_pretrained(folder, local_files_only=True)(PIXELS, return_tensors="pt")
    words = tokenizer(text, return_tensors="pt", return_token_type_ids=False) if text else {}
    tokens = model.generate(**pixels, **words, do_sample=False, max_new_tokens=COUNT)[0]
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def ask(models: dict[str, ModelRuntime], name: str, asked: Ask[Any]) -> Any:
    return models[name].run(asked).wait()


def test_the_files_say_what_a_model_does(tiny_blip_caption: Path, tiny_blip_vqa: Path, tiny_vit_gpt2: Path) -> None:
    found = [inspect_model(folder) for folder in (tiny_blip_caption, tiny_blip_vqa, tiny_vit_gpt2)]
    assert [(info.task, info.engine) for info in found] == [
        (task, "transformers") for task in ("caption", "vqa", "caption")
    ]


def test_captions_are_upstreams(
    models: dict[str, ModelRuntime], tiny_blip_caption: Path, tiny_vit_gpt2: Path, tiny_trocr: Path
) -> None:
    for name, folder in (("blip", tiny_blip_caption), ("vit", tiny_vit_gpt2), ("line", tiny_trocr)):
        expected = upstream(folder, "AutoModelForImageTextToText")
        result = ask(models, name, CaptionAsk(image=PICTURE, max_length=COUNT))
        assert len(set(expected)) > 3
        assert result.text.strip() == expected
        assert (result.tokens_generated, result.finish_reason) == (COUNT, "length")
    begun = ask(models, "blip", CaptionAsk(image=PICTURE, prompt="a photo of", max_length=COUNT))
    assert begun.text == upstream(tiny_blip_caption, "AutoModelForImageTextToText", "a photo of")
    assert begun.text.startswith("a photo of")
    with pytest.raises(InvalidInput, match="takes no words"):
        ask(models, "vit", CaptionAsk(image=PICTURE, prompt="a photo of"))


def test_answers_to_questions_are_upstreams(models: dict[str, ModelRuntime], tiny_blip_vqa: Path) -> None:
    expected = upstream(tiny_blip_vqa, "AutoModelForVisualQuestionAnswering", "what is this?")
    result = ask(models, "asked", VqaAsk(image=PICTURE, question="what is this?", max_length=COUNT))
    assert result.text.strip() == expected
    with pytest.raises(WrongTask):
        ask(models, "asked", CaptionAsk(image=PICTURE))


def test_a_chat_model_describes_too(models: dict[str, ModelRuntime]) -> None:
    """As if the instruction and the question were said in a chat."""
    for text, one in ((INSTRUCTION, CaptionAsk(image=PICTURE, max_length=COUNT)),
                      ("What is this?", VqaAsk(image=PICTURE, question="What is this?", max_length=COUNT))):  # fmt: skip
        parts = [{"type": "image", "image": PICTURE}, {"type": "text", "text": text}]
        chat = GenerationConfig.model_validate(
            {"messages": [{"role": "user", "content": parts}], "max_tokens": COUNT, "temperature": 0}
        )
        assert ask(models, "chat", one).text == ask(models, "chat", chat).text


@pytest.mark.parametrize("name", ["blip", "chat"])
def test_a_caption_streams(models: dict[str, ModelRuntime], name: str) -> None:
    run = models[name].run(CaptionAsk(image=PICTURE, max_length=COUNT))
    deltas = list(run.deltas())
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    assert run.result is not None
    assert "".join(delta.text for delta in deltas) == run.result.text


def test_a_picture_that_is_none_is_named(models: dict[str, ModelRuntime]) -> None:
    broken = Media("image/png", PICTURE.data[:100])
    for name in ("blip", "chat"):
        with pytest.raises(InvalidInput, match="image"):
            ask(models, name, CaptionAsk(image=broken))
        assert ask(models, name, CaptionAsk(image=PICTURE, max_length=2)).tokens_generated == 2
