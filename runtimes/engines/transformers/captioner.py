"""Models that are made to describe a picture or to answer a question about it: BLIP, and an encoder of pictures with a
language model behind it (vit-gpt2, TrOCR). They have no chat template.
"""

from dataclasses import replace
from typing import Any

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.chat.answer import Answer
from lfx_local_runtimes.runtimes.chat.templates import BUILT_IN
from lfx_local_runtimes.runtimes.engines.host import physical_cores
from lfx_local_runtimes.runtimes.engines.transformers.load import libraries, load_captioner
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime, steering
from lfx_local_runtimes.runtimes.engines.transformers.sampling import Sampler
from lfx_local_runtimes.runtimes.engines.transformers.scheduler import Job
from lfx_local_runtimes.runtimes.engines.transformers.token_text import TokenDecoder
from lfx_local_runtimes.runtimes.media.pictures import open_picture
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Request
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig
from lfx_local_runtimes.runtimes.tasks.multimodal.caption import CaptionAsk
from lfx_local_runtimes.runtimes.tasks.multimodal.vqa import VqaAsk


class TransformersCaptioner(TransformersRuntime):
    """One request at a time. The pictures of those that wait are prepared meanwhile."""

    @property
    def tasks(self) -> frozenset[str]:
        """The one that the model is made for."""
        return frozenset({self.config.model_type if self._plan is None else self._plan.task})

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        torch, _ = libraries()
        torch.set_num_threads(self.config.threads or physical_cores())  # counts for this thread
        loaded = self._loaded = load_captioner(plan, context)
        self._writer = getattr(loaded.model, "text_decoder", loaded.model)
        self._writer.register_forward_pre_hook(self._before_forward)
        self._plan = replace(plan, sequences=1)

    def _prepare(self, request: Request[Any]) -> Job:
        """The picture's pixels, and the tokens of the question or of the caption's beginning.

        Raises:
            RuntimeFault: the picture cannot be decoded, or the model takes no words beside it.
        """
        loaded, plan, ask = self._loaded, self._plan, request.ask
        assert loaded is not None
        assert plan is not None
        picture = open_picture(ask.image, "image")
        pixels = loaded.processor(images=[picture], return_tensors="pt")["pixel_values"]
        words, begins = _words(ask), isinstance(ask, CaptionAsk) and ask.prompt is not None
        if begins and not hasattr(loaded.model, "text_decoder"):
            raise InvalidInput(
                f"prompt: {request.model_name} takes no words beside the picture.", model_name=request.model_name,
                hint="Leave prompt out, or use a chat model that reads pictures.",
            )  # fmt: skip
        # From here on the request is one for text: the words stand before the answer.
        request.ask = GenerationConfig(
            prompt=words, raw=True, echo=begins, max_tokens=ask.max_length, temperature=0, keep_alive=ask.keep_alive
        )
        answer = Answer(request, BUILT_IN["none"], echoes=True)
        tokens = list(loaded.tokenizer(words).input_ids) if words else []
        limit = answer.admit(len(tokens), plan.context_length)
        sampler = Sampler(request.ask, answer.seed, tokens, loaded.end_ids)
        shown = tokens[:-1] if begins else []
        decoder = TokenDecoder(
            lambda ids: loaded.text([token for token in ids if token not in loaded.silent]), shown[-8:]
        )
        return Job(request, answer, tokens, limit, sampler, decoder, loaded, pixels=pixels)

    def _generate(self, job: Job) -> None:
        assert self._loaded is not None
        torch, _ = libraries()
        model = self._loaded.model
        given = {"pixel_values": job.pixels.to(model.device, model.dtype)}
        if job.tokens:
            given["input_ids"] = torch.tensor([job.tokens], device=model.device)
            given["attention_mask"] = torch.ones_like(given["input_ids"])
        if job.request.ask.echo:
            job.answer.echo(job.request.ask.prompt or "", ())
        with self._watched(job.request), torch.inference_mode():
            model.generate(**given, **steering(job), do_sample=False, num_beams=1, max_new_tokens=job.limit)


def _words(ask: CaptionAsk | VqaAsk) -> str:
    return ask.question if isinstance(ask, VqaAsk) else ask.prompt or ""
