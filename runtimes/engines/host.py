"""Cores and memory of the process that engines run in."""

import ctypes
import gc
import sys
from functools import lru_cache
from typing import Any

import psutil


def physical_cores() -> int:
    """Cores this process may use, hyper-threads not counted: more threads slow matrix products down."""
    process = psutil.Process()
    allowed = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def release_memory() -> None:
    """Return unused memory to the system: reference cycles, torch's device caches, the C allocator's free pages.

    Without the last step, a process on glibc keeps most of an unloaded model resident.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
