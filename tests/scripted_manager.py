"""The process-wide manager replaced by one whose models follow a script, and what they saw."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, RuntimeManager, ScriptedRuntime, register_engine
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.testing import Step
from lfx_local_runtimes.settings import Settings
from tests.routes_app import write_model

PATIENCE_S = 20.0


class Theatre:
    """A manager with two scripted models, `parrot` and `owl`, in the folder `models`."""

    def __init__(self, folder: Path) -> None:
        self.script: Callable[[GenerationConfig], Iterable[Step]] = lambda config: ("Hel", "lo")
        self.requests: list[GenerationConfig] = []
        self.runtimes: dict[str, ScriptedRuntime] = {}
        self.models = folder / "models"
        for name in ("parrot", "owl"):
            write_model(self.models / name)
        register_engine("scripted", self._make)
        self.manager = RuntimeManager(Settings(home=folder / "home", model_dirs=(self.models,), offline=True))
        for name in ("parrot", "owl"):
            self.manager.register_model(self.config(name))

    def config(self, name: str, **options: Any) -> ModelConfig:
        """The registration of a model."""
        return ModelConfig(model_id=str(self.models / name), model_name=name, runtime_type="scripted", **options)

    def _make(self, config: ModelConfig, plan: LoadPlan | None) -> ScriptedRuntime:
        runtime = self.runtimes[config.model_name] = ScriptedRuntime(config, plan, script=self._play)
        return runtime

    def _play(self, config: GenerationConfig) -> Iterable[Step]:
        self.requests.append(config)
        return self.script(config)

    def endless(self) -> threading.Event:
        """Answers go on until they are cancelled; the event says that one has begun."""
        begun, never = threading.Event(), threading.Event()

        def script(config: GenerationConfig) -> Iterable[Step]:
            yield "more "
            begun.set()
            yield never

        self.script = script
        return begun

    def wait_until_idle(self, name: str = "parrot") -> None:
        """Until nobody uses the model."""
        waited = threading.Event()
        for _ in range(int(PATIENCE_S / 0.01)):
            if self.manager.model_status(name).leases == 0:
                return
            waited.wait(0.01)
        raise AssertionError(f"{name} is still in use")


@contextlib.contextmanager
def theatre(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    """Let the nodes, the chat model and the provider meet the scripted models."""
    stage = Theatre(folder)
    monkeypatch.setattr("lfx_local_runtimes.runtimes.manager._shared", stage.manager)
    yield stage
    stage.manager.close()
