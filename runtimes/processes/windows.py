"""Windows: a job object ends a child process together with its parent.

Windows closes the handles of a process that ends. A job that was made with "kill on close" then ends its processes. So
no process is left, however the parent ended.
"""

import ctypes
from typing import Any

_EXTENDED_LIMIT_INFORMATION = 9
_KILL_ON_JOB_CLOSE = 0x2000
_EXIT_STATUS = 1


class _BasicLimits(ctypes.Structure):
    _fields_ = (
        ("per_process_user_time_limit", ctypes.c_int64),
        ("per_job_user_time_limit", ctypes.c_int64),
        ("limit_flags", ctypes.c_uint32),
        ("minimum_working_set_size", ctypes.c_size_t),
        ("maximum_working_set_size", ctypes.c_size_t),
        ("active_process_limit", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority_class", ctypes.c_uint32),
        ("scheduling_class", ctypes.c_uint32),
    )


class _ExtendedLimits(ctypes.Structure):
    _fields_ = (
        ("basic", _BasicLimits),
        ("io_counters", ctypes.c_uint64 * 6),
        ("process_memory_limit", ctypes.c_size_t),
        ("job_memory_limit", ctypes.c_size_t),
        ("peak_process_memory_used", ctypes.c_size_t),
        ("peak_job_memory_used", ctypes.c_size_t),
    )


def _load_kernel32() -> Any:
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]  # only there on Windows
    kernel32.CreateJobObjectW.restype = ctypes.c_void_p
    kernel32.CreateJobObjectW.argtypes = (ctypes.c_void_p, ctypes.c_wchar_p)
    kernel32.SetInformationJobObject.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32)
    kernel32.AssignProcessToJobObject.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    kernel32.TerminateJobObject.argtypes = (ctypes.c_void_p, ctypes.c_uint)
    kernel32.CloseHandle.argtypes = (ctypes.c_void_p,)
    return kernel32


class Job:
    """A job with one process and what that starts.

    Args:
        process: the handle of the process.
        kernel32: the functions of Windows; tests replace them.

    Raises:
        OSError: Windows refuses the job.
    """

    def __init__(self, process: int, kernel32: Any = None) -> None:
        self._kernel32 = kernel32 or _load_kernel32()
        self._handle = self._kernel32.CreateJobObjectW(None, None)
        if not self._handle:
            raise OSError("Windows did not create a job object.")
        limits = _ExtendedLimits()
        limits.basic.limit_flags = _KILL_ON_JOB_CLOSE
        told = self._kernel32.SetInformationJobObject(
            self._handle, _EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), ctypes.sizeof(limits)
        )
        if not told or not self._kernel32.AssignProcessToJobObject(self._handle, process):
            self.close()
            raise OSError("Windows did not put the process into a job object.")

    def kill(self) -> None:
        """End the process and all processes it started."""
        if self._handle:
            self._kernel32.TerminateJobObject(self._handle, _EXIT_STATUS)

    def close(self) -> None:
        """Give the handle back. That ends whatever still runs in the job."""
        handle, self._handle = self._handle, None
        if handle:
            self._kernel32.CloseHandle(handle)
