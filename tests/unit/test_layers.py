"""Imports run one way, and no engine is imported before a model needs it. Read from the source, so that a rule holds
for code that no test runs."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = "lfx_local_runtimes"
FOLDERS = {
    PACKAGE: REPOSITORY / PACKAGE,
    **{f"{PACKAGE}.{name}": REPOSITORY / name for name in ("components", "flows", "routes", "runtimes")},
}

BASE = {PACKAGE, *(f"{PACKAGE}.{name}" for name in ("errors", "settings", "optional"))}
ADAPTERS = {
    f"{PACKAGE}.{name}"
    for name in (
        "langchain", "nodes",
        "chat", "embeddings", "node_inputs", "provider", "task_nodes",  # older places, for flows and programs
    )
}  # fmt: skip
APPS = {f"{PACKAGE}.{name}" for name in ("cli", "client", "server", "terminal", "trusting")}

MAY_IMPORT = {
    "base": {"base"},
    "runtimes": {"base", "runtimes"},
    "adapters": {"base", "runtimes", "adapters"},
    "routes": {"base", "runtimes", "routes"},
    "apps": {"base", "runtimes", "routes", "apps"},
    "components": {"base", "runtimes", "adapters"},
    "flows": {"base", "runtimes", "components", "flows"},
}
HEAVY = {
    "torch",
    "transformers",
    "llama_cpp",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "torchao",
    "bitsandbytes",
    "numpy",
    "accelerate",
    "gguf",
    "llguidance",
    "PIL",
    "rapidocr",
    "cv2",
    "pypdfium2",
    "docx",
    "pptx",
}
ENGINES = (f"{PACKAGE}.runtimes.engines.",)
"""Where they belong."""
HOMES = {  # tasks work on the arrays that engines give them
    "numpy": (*ENGINES, f"{PACKAGE}.runtimes.tasks.", f"{PACKAGE}.runtimes.media."),
    "PIL": (*ENGINES, f"{PACKAGE}.runtimes.tasks.media", f"{PACKAGE}.runtimes.media."),
}
HOSTS = {"lfx", "langflow", "langchain_core", "fastapi", "starlette"}
"""What the engine room must not know, so that it can move into a process of its own."""


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    at_module_level: bool


def sources() -> dict[str, Path]:
    """Module name → file, for every module of the package."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imports(source: str) -> list[Import]:
    """Every import, also those by name through `require`, `import_module` and `__import__`."""
    found: list[Import] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for child in node.orelse:
                visit(child, inside)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, not inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            module = node.module or ""
            found.append(Import(module, node.lineno, not inside))
            found.extend(Import(f"{module}.{alias.name}", node.lineno, not inside) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in {"require", "import_module", "__import__"} and isinstance(node.args[0].value, str):
                found.append(Import(node.args[0].value, node.lineno, not inside))
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), inside=False)
    return found


def layer(module: str) -> str | None:
    """The layer a module of ours belongs to; None for other people's."""
    if module.partition(".")[0] != PACKAGE:
        return None
    second = module.removeprefix(PACKAGE).lstrip(".").partition(".")[0]
    if second in {"components", "flows", "routes", "runtimes"}:
        return second
    name = f"{PACKAGE}.{second}"
    return "adapters" if name in ADAPTERS else "apps" if name in APPS else "base"


def violations(module: str, source: str) -> list[str]:
    """What a module imports against the rules."""
    here = layer(module)
    assert here is not None
    found = []
    for item in imports(source):
        there, top = layer(item.module), item.module.partition(".")[0]
        if there is not None and there not in MAY_IMPORT[here]:
            found.append(f"line {item.line}: {here} imports {item.module}")
        home = HOMES.get(top, ENGINES)
        if top in HEAVY and not module.startswith(home):
            found.append(f"line {item.line}: {top} belongs to {' or '.join(home)}")
        if top in HEAVY and item.at_module_level:
            found.append(f"line {item.line}: {top} is imported at module level")
        if top in HOSTS and here in {"base", "runtimes"}:
            found.append(f"line {item.line}: {here} imports {top}")
    return found


SOURCES = sources()


@pytest.mark.parametrize("module", SOURCES)
def test_imports_run_one_way(module: str) -> None:
    assert violations(module, SOURCES[module].read_text(encoding="utf-8")) == []


def test_every_root_module_has_a_layer() -> None:
    root = {".".join(module.split(".")[:2]) for module in SOURCES if layer(module) in {"base", "adapters", "apps"}}
    assert root <= BASE | ADAPTERS | APPS


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors", "from lfx_local_runtimes.runtimes import config"),
        ("settings", "import fastapi"),
        ("runtimes.manager", "from lfx_local_runtimes import langchain"),
        ("runtimes.manager", "from lfx_local_runtimes.routes.schemas import Body"),
        ("runtimes.manager", "def load():\n    import torch"),
        ("runtimes.manager", "def load():\n    return require('llama_cpp', 'llamacpp')"),
        ("runtimes.manager", "def load():\n    from lfx.io import Input"),
        ("runtimes.tasks.embedding", "def pool():\n    import torch"),
        ("runtimes.manager", "def decode():\n    from PIL import Image"),
        ("runtimes.engines.transformers", "import torch"),
        ("runtimes.engines.transformers", "class Engine:\n    import torch"),
        ("runtimes.engines.transformers", "torch = require('torch', 'transformers')"),
        ("routes.models", "from lfx_local_runtimes.components.local_runtimes import model"),
        ("routes.models", "from lfx_local_runtimes import nodes"),
        ("components.local_runtimes.model", "def build():\n    import lfx_local_runtimes.routes.models"),
        ("components.local_runtimes.model", "import numpy"),
        ("langchain.chat", "from lfx_local_runtimes import routes"),
        ("routes.models", "from lfx_local_runtimes import server"),
        ("cli", "from lfx_local_runtimes.langchain.chat import ChatLocalRuntime"),
    ],
)
def test_a_violation_is_seen(module: str, source: str) -> None:
    assert violations(f"{PACKAGE}.{module}", source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("settings", "from lfx_local_runtimes.errors import SettingsFault"),
        ("nodes.text", "from lfx_local_runtimes.langchain.chat import ChatLocalRuntime"),
        ("server", "from lfx_local_runtimes.routes import build_router"),
        ("runtimes.engines.transformers", "def load():\n    import torch"),
        ("runtimes.engines.transformers", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("routes.models", "from fastapi import APIRouter\nfrom lfx_local_runtimes.runtimes import ModelConfig"),
        ("components.local_runtimes.model", "from lfx.io import StrInput\nfrom lfx_local_runtimes.nodes import run"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(f"{PACKAGE}.{module}", source) == []
