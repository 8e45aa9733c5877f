"""The environment of an engine process: what libraries need, and nothing that is a secret."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lfx_local_runtimes.runtimes.processes.environment import NO_HOME, child_environment

NEEDED = {
    "PATH": "/usr/bin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC", "LD_LIBRARY_PATH": "/lib",
    "DYLD_LIBRARY_PATH": "/lib", "CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "all", "HIP_VISIBLE_DEVICES": "0",
    "HSA_OVERRIDE_GFX_VERSION": "10.3.0", "OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1", "KMP_BLOCKTIME": "0",
    "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GGML_N_THREADS": "1", "PYTORCH_CUDA_ALLOC_CONF": "x",
    "TORCH_LOGS": "x", "VIRTUAL_ENV": "/venv", "PYTHONPATH": "/lib", "SystemRoot": r"C:\Windows", "PATHEXT": ".EXE",
}  # fmt: skip
SECRET = {
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "LANGFLOW_SECRET_KEY", "LANGFLOW_DATABASE_URL",
    "NVIDIA_API_KEY", "LLAMA_API_KEY", "LLAMA_ARG_HF_TOKEN", "LLAMA_CLOUD_API_KEY", "TORCH_PASSWORD", "ONNX_AUTH",
    "AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "HTTPS_PROXY", "SSH_AUTH_SOCK", "LOCAL_RUNTIMES_HOME", "HF_HOME", "HOME",
    "HF_ENDPOINT", "USERPROFILE", "APPDATA", "XDG_CACHE_HOME",
}  # fmt: skip


def test_what_libraries_need_is_kept_and_secrets_are_not() -> None:
    found = child_environment(source={**NEEDED, **dict.fromkeys(SECRET, "secret")})
    assert NEEDED.items() <= found.items()
    assert "secret" not in found.values()


def test_the_hub_is_offline_and_no_code_is_written() -> None:
    found = child_environment(source={"HF_HUB_OFFLINE": "0"})
    assert found["HF_HUB_OFFLINE"] == found["TRANSFORMERS_OFFLINE"] == found["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert found["PYTHONDONTWRITEBYTECODE"] == "1"


def test_home_is_the_scratch_folder_or_does_not_exist(tmp_path: Path) -> None:
    assert child_environment(source={})["HOME"] == NO_HOME
    assert not Path(NO_HOME).exists()
    found = child_environment(scratch=tmp_path, source={"TMPDIR": "/tmp"})
    assert {found[name] for name in ("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP")} == {str(tmp_path)}


def test_extra_variables_win() -> None:
    found = child_environment({"OMP_NUM_THREADS": "3", "HOME": "/there"}, source={"OMP_NUM_THREADS": "1"})
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["HOME"] == "/there"


def test_packages_of_the_user_are_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("site.ENABLE_USER_SITE", True)
    monkeypatch.setattr("site.getuserbase", lambda: "/home/user/.local")
    assert child_environment(source={})["PYTHONUSERBASE"] == "/home/user/.local"
    monkeypatch.setattr("site.ENABLE_USER_SITE", False)
    assert "PYTHONUSERBASE" not in child_environment(source={})


def test_a_process_starts_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    code = "import getpass, os, lfx_local_runtimes; print(getpass.getuser(), 'OPENAI_API_KEY' in os.environ)"
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, env=child_environment(), check=True, capture_output=True, text=True).stdout
    assert out.split() == ["engine", "False"]
    assert os.environ["OPENAI_API_KEY"] == "secret"
