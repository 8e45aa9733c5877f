"""The environment variables that an engine process gets: what libraries need to run, and no secret of the user's."""

import os
import re
import site
from collections.abc import Mapping
from pathlib import Path

NO_HOME = "/nonexistent"

_NAMES = frozenset((
    "PATH", "LANG", "LANGUAGE", "TZ", "TZDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES", "VIRTUAL_ENV",
    "PYTHONHOME", "PYTHONPATH", "PYTHONUTF8", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "NUMBER_OF_PROCESSORS",
    # Windows
    "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "OS", "TEMP", "TMP", "PROGRAMDATA", "PROGRAMFILES",
    "PROGRAMFILES(X86)", "PROGRAMW6432", "COMMONPROGRAMFILES", "ALLUSERSPROFILE", "PROCESSOR_ARCHITECTURE",
    "PROCESSOR_IDENTIFIER",
    # macOS
    "__CF_USER_TEXT_ENCODING", "TMPDIR",
))  # fmt: skip
_PREFIXES = (
    "LC_", "DYLD_", "MALLOC_", "CONDA_", "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "HIP_", "ROCR_", "ROCM_",
    "HSA_", "MTL_", "METAL_", "OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "OPENBLAS_", "BLIS_", "VECLIB_",
    "NUMEXPR_", "RAYON_", "GGML_", "LLAMA_", "PYTORCH_", "TORCH_", "ATEN_", "ONNX", "ORT_", "TOKENIZERS_", "SAFETENSORS_",
)  # fmt: skip
_SECRET = re.compile(r"(^|_)(API_?KEY|KEYS?|TOKENS?|SECRETS?|PASS|PASSWD|PASSWORD|CREDENTIALS?|AUTH)($|_)")
"""`NVIDIA_API_KEY` and `LLAMA_ARG_HF_TOKEN` begin like names that libraries need."""

_ALWAYS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "USER": "engine",  # getpass.getuser reads it; else it reads /etc/passwd and fails
    "LOGNAME": "engine",
}


def child_environment(
    extra: Mapping[str, str] | None = None, *, scratch: Path | None = None, source: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment for an engine process.

    Args:
        extra: variables to add; they win.
        scratch: the folder it may write, which becomes its home and its folder for temporary files. Without one its home
            is a folder that does not exist.
        source: the environment to choose from; by default this process's.
    """
    given = os.environ if source is None else source
    chosen = {name: value for name, value in given.items() if _is_needed(name.upper())}
    chosen.update(_ALWAYS)
    if site.ENABLE_USER_SITE:  # packages of `pip install --user` are found by HOME, which changes
        chosen.setdefault("PYTHONUSERBASE", site.getuserbase())
    chosen["HOME"] = chosen["USERPROFILE"] = NO_HOME
    return {**chosen, **scratch_environment(scratch), **(extra or {})}


def scratch_environment(scratch: Path | None) -> dict[str, str]:
    """The variables that name the folder a process may write; empty if there is none."""
    return {} if scratch is None else dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), str(scratch))


def _is_needed(name: str) -> bool:
    return (name in _NAMES or name.startswith(_PREFIXES)) and not _SECRET.search(name)
