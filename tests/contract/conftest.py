"""The runtimes that pass the contract suite. A new one adds a row to `CASES` and nothing else."""

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from lfx_local_runtimes import runtimes
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, ModelRuntime

CONTEXT = 256
"""Tokens: small, so that the end of it is soon reached."""


@dataclass(frozen=True)
class Case:
    """A runtime class of the public API, fixtures with the paths of models, and the engine its results name."""

    runtime: str
    model: str | None
    small: str | None
    """What loads fastest of what the runtime takes."""
    engine: str


CASES = [
    Case("ScriptedRuntime", None, None, "scripted"),
    Case("LlamaCppRuntime", "gemma_gguf", "tiny_gguf", "llama_cpp"),
    Case("TransformersRuntime", "gemma_safetensors", "tiny_llama", "transformers"),
    Case("GemmaStreamingRuntime", "gemma_gguf", "gemma_gguf", "llama_cpp"),
]


def recite(config: GenerationConfig) -> Iterator[str | threading.Event]:
    """For the scripted runtime: counts on when it is greedy, otherwise words by the seed.

    A model takes its time, a script does not: asked for more than the context holds, it waits for the cancel.
    """
    chance = random.Random(config.seed)
    for number in range(CONTEXT):
        if number == 10 and config.max_tokens > CONTEXT:
            yield threading.Event()
        yield from (
            (" ", str(number), ",") if config.temperature == 0 else (" ", chance.choice(("red", "green", "blue")))
        )


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, marks=[pytest.mark.integration] if case.model else [], id=case.runtime) for case in CASES
    ],
)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def make(case: Case, request: pytest.FixtureRequest) -> Callable[[str | None], ModelRuntime]:
    """Makes a runtime of the case from the fixture with the path of its model; not loaded."""
    options = {} if case.model else {"script": recite}

    def runtime_of(model: str | None) -> ModelRuntime:
        path = request.getfixturevalue(model) if model else "nowhere"
        # one thread: several that wait for each other crawl on a busy machine
        config = ModelConfig(model_id=str(path), model_name="a model", context_length=CONTEXT, threads=1)
        return getattr(runtimes, case.runtime)(config, **options)

    return runtime_of


@pytest.fixture(scope="module")
def runtime(make: Callable[[str | None], ModelRuntime], case: Case) -> Iterator[ModelRuntime]:
    """One loaded runtime for the tests that leave it loaded."""
    runtime = make(case.model)
    runtime.start().result(timeout=120)
    yield runtime
    _end(runtime)


@pytest.fixture
def fresh(make: Callable[[str | None], ModelRuntime], case: Case) -> Iterator[ModelRuntime]:
    """A runtime of the test's own, not loaded."""
    runtime = make(case.model)
    yield runtime
    _end(runtime)


@pytest.fixture
def small(make: Callable[[str | None], ModelRuntime], case: Case) -> Iterator[ModelRuntime]:
    """The same with the small model, for what is done to it more than once."""
    runtime = make(case.small)
    yield runtime
    _end(runtime)


def _end(runtime: ModelRuntime) -> None:
    thread = runtime.stop()
    if thread is not None:
        thread.join(60)
        assert not thread.is_alive()
