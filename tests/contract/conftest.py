"""The runtimes that pass the contract suites. A new one adds a row to `CASES` or `READERS` and nothing else.

Each runs twice: inline, and in a process of its own. The engines that use CUDA do so on a card too, where there is one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from lfx_local_runtimes import runtimes
from lfx_local_runtimes.runtimes import ModelConfig, ModelRuntime
from lfx_local_runtimes.runtimes.engines.isolated.runtime import IsolatedRuntime
from lfx_local_runtimes.runtimes.engines.registry import EngineRow, engine_row
from lfx_local_runtimes.runtimes.planning import plan_for_engine
from lfx_local_runtimes.settings import get_settings
from tests.cards import need_build_for_cuda
from tests.isolated_engines import CONTEXT, Reciter, recite, scripted_plan

Isolation = Literal["inline", "process"]


@dataclass(frozen=True)
class Case:
    """A runtime class of the public API, fixtures with the paths of models, and the engine its results name."""

    runtime: str
    model: str | None
    small: str | None
    """What loads fastest of what the runtime takes."""
    engine: str
    isolation: Isolation = "inline"
    row: str | None = None
    """The engine as planning knows it, for a process."""
    device: str = "auto"

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        """What the case needs."""
        needs = [pytest.mark.integration] if self.model else []
        return [*needs, pytest.mark.cuda] if self.device == "cuda" else needs


INLINE = [
    Case("ScriptedRuntime", None, None, "scripted"),
    Case("LlamaCppRuntime", "gemma_gguf", "tiny_gguf", "llama_cpp"),
    Case("TransformersRuntime", "tiny_llama", "tiny_llama", "transformers"),
    Case("GemmaLocalRuntime", "tiny_gemma", "tiny_gemma", "transformers"),
    Case("GemmaStreamingRuntime", "gemma_gguf", "gemma_gguf", "llama_cpp"),
]
PROCESS = [
    Case("ScriptedRuntime", None, None, "scripted", "process"),
    Case("LlamaCppRuntime", "gemma_gguf", "tiny_gguf", "llama_cpp", "process", "llama_cpp"),
    Case("TransformersRuntime", "tiny_llama", "tiny_llama", "transformers", "process", "transformers"),
    Case("GemmaLocalRuntime", "gemma_gguf", "gemma_gguf", "llama_cpp", "process", "gemma_local"),
    Case("GemmaStreamingRuntime", "gemma_gguf", "gemma_gguf", "llama_cpp", "process", "gemma_streaming"),
]
CARD = [
    replace(case, device="cuda")
    for case in (*INLINE, *PROCESS)
    if case.runtime in ("LlamaCppRuntime", "TransformersRuntime")
]
CASES = [*INLINE, *PROCESS, *CARD]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            case,
            marks=case.marks,
            id=f"{case.runtime}-{case.isolation}{'-cuda' if case.device == 'cuda' else ''}",
        )
        for case in CASES
    ],
)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def make(case: Case, request: pytest.FixtureRequest) -> Callable[[str | None], ModelRuntime]:
    """Makes a runtime of the case from the fixture with the path of its model; not loaded."""
    options: dict[str, Any] = {} if case.model else {"script": recite}
    if case.device == "cuda":
        need_build_for_cuda(case.engine)

    def runtime_of(model: str | None) -> ModelRuntime:
        path = request.getfixturevalue(model) if model else "nowhere"
        # one thread: several that wait for each other crawl on a busy machine
        config = ModelConfig(
            model_id=str(path), model_name="a model", context_length=CONTEXT, threads=1, device_type=case.device
        )
        if case.isolation == "process":
            return in_process(config, case.row)
        return getattr(runtimes, case.runtime)(config, **options)

    return runtime_of


def in_process(config: ModelConfig, engine: str | None) -> ModelRuntime:
    """A runtime of an engine in a process; of the scripted one if none is named. Not loaded."""
    if engine is None:
        row = EngineRow(Reciter.engine, f"{Reciter.__module__}:{Reciter.__name__}")
        return IsolatedRuntime(row, config, scripted_plan(config, row.name), get_settings())
    return IsolatedRuntime(engine_row(engine), config, plan_for_engine(config, engine), get_settings())


@pytest.fixture(scope="module")
def runtime(make: Callable[[str | None], ModelRuntime], case: Case) -> Iterator[ModelRuntime]:
    """One loaded runtime for the tests that leave it loaded."""
    runtime = make(case.model)
    runtime.start().result(timeout=120)
    assert case.device == "auto" or runtime.plan.device.type == case.device
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
