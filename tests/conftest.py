"""What every test gets: its own data folder and caches, fresh settings, and a check that no model is left running."""

import functools
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# huggingface_hub reads these once, when it is imported: point it away from the user's cache before anything does.
_HUB_HOME = tempfile.TemporaryDirectory(prefix="hub-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _HUB_HOME.name
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
for _name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_TOKEN", "HF_ENDPOINT"):
    os.environ.pop(_name, None)

from lfx_local_runtimes.settings import PREFIX, get_settings  # noqa: E402

pytest_plugins = ["tests.cards", "tests.plugin_models", "tests.vision_language", "tests.langflow_server"]

_BARE_SETTINGS = (
    "FORCE_DEVICE", "MAX_GPU_MEM_GB", "TRUST_REMOTE_CODE", "HF_TOKEN", "ALLOW_UNSANDBOXED", "ENABLE_LARGE_MODELS",
    "TRANSFORMERS_CACHE", "UNIVERSAL_RUNTIME_HOST", "UNIVERSAL_RUNTIME_PORT",
)  # fmt: skip
_GRACE_S = 60.0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side (`-n 2 --dist loadfile`), all files that use the one Langflow count as one, so that it starts once."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "langflow" if _uses_langflow(config.rootpath / file) else file

    return Scheduling(config, log)


def pytest_configure_node(node: Any) -> None:
    """Side by side, each process has cores of its own, as have the models that it starts. The threads of a model wait for each
    other many times in a step, so two models on the same two cores take far longer than each on one.
    """
    if node.config.getvalue("dist") == "loadfile" and hasattr(os, "sched_getaffinity"):
        cores, number = sorted(os.sched_getaffinity(0)), int(node.gateway.id.removeprefix("gw"))
        node.workerinput["cores"] = cores[number :: node.workerinput["workercount"]]


def pytest_configure(config: pytest.Config) -> None:
    """In a process of several: keep to its cores."""
    if cores := getattr(config, "workerinput", {}).get("cores"):
        os.sched_setaffinity(0, cores)


@functools.cache
def _uses_langflow(file: Path) -> bool:
    return file.parent.name == "browser" or "langflow_server:" in file.read_text()


@pytest.fixture(scope="session")
def packaged_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models that come in packages are put together, once for all tests."""
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(autouse=True)
def isolated_settings(tmp_path: Path, packaged_models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the user's environment reaches a test, and nothing of a test reaches the user's data folder."""
    for name in [*os.environ]:
        if name.startswith(PREFIX) or name in _BARE_SETTINGS:
            monkeypatch.delenv(name)
    home = tmp_path / "local-runtimes-home"
    home.mkdir()
    (home / "packages").symlink_to(packaged_models, target_is_directory=True)
    monkeypatch.setenv(f"{PREFIX}HOME", str(home))
    monkeypatch.setenv(f"{PREFIX}SPARE_PROCESSES", "0")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture(autouse=True)
def no_model_left_running(isolated_settings: None) -> Iterator[None]:
    """A test ends the models it starts. Those of wider fixtures were there before and may stay."""
    threads = set(_model_threads())
    managers = set(_manager_module()._managers) if _manager_module() else set()
    yield
    module = _manager_module()
    if module and module._shared is not None and module._shared not in managers:  # made by the test itself
        module._shared.close()
        module._forget()
    started = [thread for thread in _model_threads() if thread not in threads]
    for thread in started:
        thread.join(_GRACE_S)
    left = [thread.name for thread in started if thread.is_alive()]
    assert not left, f"still running after the test: {', '.join(left)}"


def _manager_module() -> Any:
    """Looked up, not imported: most tests need no manager."""
    return sys.modules.get("lfx_local_runtimes.runtimes.manager")


def _model_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("model ")]
