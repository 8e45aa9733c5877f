"""Importing is cheap: no engine comes along. Each case is a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

ENGINES = ("torch", "transformers", "llama_cpp", "torchao", "bitsandbytes", "onnxruntime")
HOSTS = ("lfx", "langflow", "fastapi")


def imported(module: str, among: tuple[str, ...], cwd: Path) -> str:
    code = f"import sys, {module}; print(*sorted(sys.modules.keys() & set({among!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "lfx_local_runtimes",
        "lfx_local_runtimes.runtimes",
        "lfx_local_runtimes.runtimes.manager",
        "lfx_local_runtimes.routes",
        "lfx_local_runtimes.server",
        "lfx_local_runtimes.cli",
        "lfx_local_runtimes.chat",
        "lfx_local_runtimes.provider",
        "lfx_local_runtimes.nodes",
        "lfx_local_runtimes.node_inputs",
        "lfx_local_runtimes.node_tools",
    ],
)
def test_no_engine_is_imported(module: str, tmp_path: Path) -> None:
    assert imported(module, ENGINES, tmp_path) == ""


def test_the_engine_room_knows_no_host(tmp_path: Path) -> None:
    assert imported("lfx_local_runtimes.runtimes", HOSTS, tmp_path) == ""


def test_the_check_sees_an_engine(tmp_path: Path) -> None:
    assert imported("torch", ENGINES, tmp_path) == "torch"
