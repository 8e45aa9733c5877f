"""Importing is cheap: no engine comes along. The cases share one fresh interpreter, each without what it left of ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ENGINES = (
    "torch", "transformers", "llama_cpp", "torchao", "bitsandbytes", "onnxruntime", "rapidocr", "cv2", "pypdfium2", "docx",
    "pptx",
)  # fmt: skip
HOSTS = ("lfx", "langflow", "fastapi")
HOSTLESS = "lfx_local_runtimes.runtimes"
MODULES = (
    HOSTLESS,
    "lfx_local_runtimes",
    "lfx_local_runtimes.runtimes.manager",
    "lfx_local_runtimes.routes",
    "lfx_local_runtimes.server",
    "lfx_local_runtimes.cli",
    "lfx_local_runtimes.langchain",
    "lfx_local_runtimes.langchain.chat",
    "lfx_local_runtimes.langchain.embeddings",
    "lfx_local_runtimes.nodes",
    *(
        f"lfx_local_runtimes.nodes.{name}"
        for name in (
            "describing",
            "documents",
            "embedding",
            "files",
            "inputs",
            "models",
            "provider",
            "reading",
            "reports",
            "seeing",
            "text",
            "tools",
        )
    ),
)
IMPORT_EACH = """
import importlib, json, sys

seen = {}
for module in sys.argv[1:]:
    importlib.import_module(module)
    seen[module] = sorted(sys.modules)
    for name in seen[module]:
        if name.partition(".")[0] == "lfx_local_runtimes":
            del sys.modules[name]
print(json.dumps(seen))
"""


MAKE_OFFERS = """
import json, sys
from lfx_local_runtimes.runtimes.engines.registry import engine_names, engine_row

for name in engine_names():
    row = engine_row(name)
    for reference in (row.offer, row.prepare):
        if reference is not None:
            assert callable(row._resolved(reference))
print(json.dumps(sorted(sys.modules)))
"""


def imported_by(*modules: str, cwd: Path) -> dict[str, set[str]]:
    """What is imported after each of them, one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, *modules], cwd=cwd, check=True, capture_output=True, text=True, timeout=120
    )
    return {module: set(names) for module, names in json.loads(done.stdout).items()}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    return imported_by(*MODULES, cwd=tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize("module", MODULES)
def test_no_engine_is_imported(imported: dict[str, set[str]], module: str) -> None:
    assert imported[module].isdisjoint(ENGINES)


def test_neither_rows_nor_offers_import_an_engine(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAKE_OFFERS], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120
    )
    assert set(json.loads(done.stdout)).isdisjoint(ENGINES)


def test_the_engine_room_knows_no_host(imported: dict[str, set[str]]) -> None:
    assert imported[HOSTLESS].isdisjoint(HOSTS)


def test_the_check_sees_an_engine(tmp_path: Path) -> None:
    (tmp_path / "torch.py").touch()
    assert not imported_by("torch", cwd=tmp_path)["torch"].isdisjoint(ENGINES)
