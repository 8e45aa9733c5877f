"""The wheel as users get it: built from a clean copy, installed into an environment that has only the dependencies."""

import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.environments import REPOSITORY, build_wheel, environment_without_us, install

LOOK_AROUND = """
import importlib, importlib.metadata, json, pkgutil, sys
import lfx_local_runtimes

modules = [module.name for module in pkgutil.walk_packages(lfx_local_runtimes.__path__, "lfx_local_runtimes.")]
for name in modules:
    importlib.import_module(name)
public = importlib.import_module("lfx_local_runtimes.runtimes")
for name in public.__all__:
    getattr(public, name)

distribution = importlib.metadata.distribution("lfx-local-runtimes")
points = {point.group: point for point in distribution.entry_points}
extension = points["langflow.extensions"].load()
print(json.dumps({
    "file": lfx_local_runtimes.__file__,
    "files": [sys.modules[name].__file__ for name in modules],
    "modules": modules,
    "version": lfx_local_runtimes.__version__,
    "editable": distribution.read_text("direct_url.json") or "",
    "finders": [str(finder) for finder in sys.meta_path if "editable" in str(finder).lower()],
    "extension": extension.__path__[0],
    "register": callable(points["langflow.plugins"].load()),
}))
"""


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has our dependencies and, of us, the wheel alone."""
    python = environment_without_us(tmp_path_factory.mktemp("environment"))
    absent = "import importlib.util; print(importlib.util.find_spec('lfx_local_runtimes'))"
    assert run(python, "-c", absent, cwd=python.parent).strip() == "None"
    install(python, wheel)
    return python


@pytest.fixture(scope="module")
def installed(python: Path) -> dict[str, Any]:
    """What that Python sees, from a folder that is not the checkout."""
    found: dict[str, Any] = json.loads(run(python, "-c", LOOK_AROUND, cwd=python.parent).splitlines()[-1])
    return found


def test_everything_is_imported_from_the_wheel(python: Path, installed: dict[str, Any]) -> None:
    site_packages = next((python.parents[1] / "lib").glob("python*/site-packages"))
    everything = [installed["file"], *(file for file in installed["files"] if file)]
    assert [file for file in everything if not Path(file).is_relative_to(site_packages)] == []
    assert not installed["finders"]
    assert '"editable": true' not in installed["editable"]


def test_every_module_of_the_checkout_is_there(installed: dict[str, Any]) -> None:
    there = set(installed["modules"])
    for folder in ("components", "flows", "routes", "runtimes"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            assert ".".join(["lfx_local_runtimes", *parts]).removesuffix(".__init__") in there


def test_data_files_are_there(wheel: Path, installed: dict[str, Any]) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"lfx_local_runtimes/flows/{path.name}" for path in (REPOSITORY / "flows").glob("*.json")}
    expected |= {"lfx_local_runtimes/py.typed", "lfx_local_runtimes/components/extension.json"}
    expected |= {"lfx_local_runtimes/runtimes/planning/runtime_rules.json"}
    assert expected <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "runtimes/", "routes/"))]
    assert (Path(installed["extension"]) / "extension.json").is_file()


def test_entry_points_resolve(installed: dict[str, Any]) -> None:
    assert installed["register"]
    assert installed["version"] != "0.0.0"


def test_langflow_accepts_the_extension(python: Path, installed: dict[str, Any]) -> None:
    said = run(python, "-m", "lfx", "extension", "validate", installed["extension"], cwd=python.parent)
    assert "validate: ok" in said
    listed = run(python, "-m", "lfx", "extension", "list", cwd=python.parent)
    assert "local-runtimes" in listed
