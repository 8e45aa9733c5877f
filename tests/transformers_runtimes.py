"""Transformers runtimes for tests: started, asked, and compared with the library's own `generate`."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.transformers.runtime import TransformersRuntime
from lfx_local_runtimes.runtimes.requests import Finished, Request
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, GenerationResult, TextDelta

NOISE: dict[str, Any] = {"prompt": "abc", "raw": True, "max_tokens": 40, "min_p": 0, "top_p": 1, "top_k": 5}
Start = Callable[..., TransformersRuntime]


def starter() -> Iterator[Start]:
    """What loads models; they are unloaded when it is taken up again."""
    import torch

    torch.set_num_threads(1)  # several that wait for each other crawl on a busy machine
    started: list[TransformersRuntime] = []

    def start(path: Path, *, context: LoadContext | None = None, **options: Any) -> TransformersRuntime:
        config = ModelConfig(model_id=str(path), model_name=path.name, **{"threads": 1, **options})
        runtime = TransformersRuntime(config)
        started.append(runtime)
        runtime.start(context).result()
        return runtime

    yield start
    for runtime in started:
        thread = runtime.stop()
        if thread is not None:
            thread.join()


def run(runtime: TransformersRuntime, **options: Any) -> GenerationResult:
    return runtime.stream(GenerationConfig(**options)).wait()


def noise(runtime: TransformersRuntime, seed: int = 1, **options: Any) -> GenerationResult:
    """Random bytes of a random model: every step is a draw. It ends at `max_tokens`."""
    return run(runtime, **{**NOISE, "seed": seed, **options})


def copy_of(model: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(model, target)
    file = target / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return target


def by_generate(model: Any, tokenizer: Any, prompt: str, count: int) -> str:
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=count)[0, inputs.input_ids.shape[1] :]
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def together(runtime: TransformersRuntime, requests: list[dict[str, Any]]) -> list[GenerationResult]:
    streams = [runtime.stream(GenerationConfig(**options)) for options in requests]
    return [stream.wait() for stream in streams]


def answer_of(runtime: TransformersRuntime, request: Request) -> GenerationResult:
    runtime.submit(request)
    while not isinstance(event := request.channel.get(), Finished):
        assert isinstance(event, TextDelta)
    return event.result
