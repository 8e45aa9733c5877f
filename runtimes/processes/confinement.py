"""What an engine process gives up before it reads a model, so that a hostile model file can harm no one.

Three layers of Linux do it. Landlock: files. seccomp: the network, programs, other processes, and the parts of the kernel
that an engine does not use. Limits: memory, the size of a file, threads. They hold until the process ends, and nothing can
take them back. Other systems have nothing like it that works without an installation; there the report says `none`.

What is left to a hostile model: it may compute for ever and fill its memory (the parent ends it), fill its scratch folder
with many files (the parent watches it, or gives none), see whether a path exists, and answer wrongly.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lfx_local_runtimes.runtimes.processes import landlock, limits, linux, paths, seccomp

Level = Literal["full", "partial", "none"]

FILES = "filesystem"
CALLS = ("network", "programs", "processes", "kernel")
LIMITS = "limits"
MEMORY = "memory"

_UNWRITABLE = "/proc/self"
"""A folder that always exists and in which nobody can make a file."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What an engine process may still use. Plain data: the parent sends it to the child as JSON.

    Attributes:
        read: the model's files and folders. Python's and the libraries' need not be named.
        write: the scratch folder, if there is one.
        devices: `("cuda",)` for a model on a graphics card.
        memory: bytes of private memory at most. Weights that are mapped to be read only do not count; safetensors files
            that torch maps do. None sets no limit, as CUDA needs it.
        file_size: bytes of one written file at most.
    """

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    devices: tuple[str, ...] = ()
    memory: int | None = None
    file_size: int = 64 * 2**20

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "read": [str(path) for path in self.read], "write": [str(path) for path in self.write],
                "devices": list(self.devices)}  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Policy":
        """Back from `to_json`."""
        return cls(
            read=tuple(Path(path) for path in data["read"]),
            write=tuple(Path(path) for path in data["write"]),
            devices=tuple(data["devices"]),
            memory=data["memory"],
            file_size=data["file_size"],
        )


@dataclass(frozen=True, slots=True)
class Confinement:
    """What holds for an engine process.

    Attributes:
        level: `full` if files and system calls are restricted, `partial` if one of them is, else `none`.
        layers: what it cannot reach or exceed: filesystem, network, programs, processes, kernel, limits, memory.
        missing: why it is not full, in words for the user.
    """

    level: Level
    layers: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"level": self.level, "layers": list(self.layers), "missing": list(self.missing)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Confinement":
        """Back from `to_json`."""
        return cls(data["level"], tuple(data["layers"]), tuple(data["missing"]))


def available() -> Confinement:
    """What `confine` could do on this machine. Changes nothing; the parent may ask."""
    if not linux.is_linux():
        return _not_linux()
    layers, missing = [LIMITS, MEMORY], []
    try:
        landlock.version()
        layers.append(FILES)
    except OSError as error:
        missing.append(landlock.why_missing(error))
    try:
        seccomp.check_available()
        layers += CALLS
    except seccomp.SeccompMissingError as error:
        missing.append(_without_seccomp(error))
    return _report(layers, missing)


def confine(policy: Policy) -> Confinement:
    """Give up everything that the policy does not name, for good.

    Call it before the engine's library is imported. Afterwards is possible too, but only if the library has started no
    thread: Landlock and seccomp bind the thread that asks and those it starts later.

    Raises:
        RuntimeError: other threads run already. Nothing is given up.
        ValueError: the policy names an unknown kind of device. Nothing is given up.
        OSError: a path of the policy does not exist, or the kernel refused a step. The process is confined in part at
            best, and must end.
    """
    if not linux.is_linux():
        return _not_linux()
    _check_single_thread()
    device_files, devices = paths.device_paths(policy.devices)
    readable = [*paths.library_paths(), *device_files, *policy.read]
    limits.offer_to_oom_killer()
    linux.drop_capabilities()
    limits.restrict(policy.memory, policy.file_size)
    layers = [LIMITS] if policy.memory is None else [LIMITS, MEMORY]
    missing, truncation = [], False
    try:
        landlock.version()
    except OSError as error:
        missing.append(landlock.why_missing(error))
    else:
        truncation = landlock.restrict(readable, policy.write, devices) >= landlock.TRUNCATION_ABI
        layers.append(FILES)
        _set_temporary_folder(policy)
    exceptions = seccomp.Exceptions(
        devices=bool(policy.devices), shared_memory=policy.memory is None, truncation=truncation
    )
    try:
        seccomp.install(exceptions)
        layers += CALLS
    except seccomp.SeccompMissingError as error:
        missing.append(_without_seccomp(error))
    return _report(layers, missing)


def _check_single_thread() -> None:
    names = linux.thread_names()
    if len(names) != 1:
        raise RuntimeError(
            f"{len(names)} threads run already ({', '.join(names)}): they would stay free. Confine the process earlier."
        )


def _set_temporary_folder(policy: Policy) -> None:
    """Let libraries be imported if there is no scratch folder.

    Some ask for the folder of temporary files while they are imported (dill), and Python raises an error if there is none.
    torch makes a folder there, and needs that it exists afterwards.
    """
    folder = str(policy.write[0]) if policy.write else _UNWRITABLE
    tempfile.tempdir = folder
    if not policy.write:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder


def _without_seccomp(error: seccomp.SeccompMissingError) -> str:
    return f"{error}: network, programs and other processes are not restricted"


def _not_linux() -> Confinement:
    name = {"darwin": "macOS", "win32": "Windows"}.get(sys.platform, sys.platform)
    return Confinement("none", missing=(f"{name} has no confinement that this package can use; Linux has",))


def _report(layers: list[str], missing: list[str]) -> Confinement:
    order = (FILES, *CALLS, LIMITS, MEMORY)
    held = (FILES in layers) + (CALLS[0] in layers)
    levels: tuple[Level, Level, Level] = ("none", "partial", "full")
    return Confinement(levels[held], tuple(sorted(layers, key=order.index)), tuple(missing))
