"""The files an engine process reads: Python's, the libraries', the system's, a device's, and those of a model."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lfx_local_runtimes.runtimes.formats.info import ModelInfo

_SYSTEM = (
    # libraries and their settings
    "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64",
    "/nix/store", "/gnu/store", "/run/current-system/sw/lib", "/etc/ld.so.cache", "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/openssl.cnf", "/etc/crypto-policies",
    # language, time, types of files, name of the system
    "/usr/share/locale", "/usr/share/i18n", "/usr/share/zoneinfo", "/etc/localtime", "/etc/timezone", "/etc/mime.types",
    "/etc/os-release",
    # processors and memory: how many threads, which instructions, how much room
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/uptime", "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage",
    "/sys/kernel/mm/hugepages", "/sys/fs/cgroup",
    # this process: the link leads to its own folder
    "/proc/self",
    "/dev/urandom", "/dev/random",
)  # fmt: skip
"""Never all of /proc: it shows the environment of the user's other processes, and tokens are kept there."""

_NULL = Path("/dev/null")
"""The one device that every engine may write. Not /dev/zero: mapped as shared memory, it is memory that no limit counts."""

_CUDA_DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/dxg")
_CUDA_READ = (
    "/proc/driver/nvidia", "/proc/driver/nvidia-uvm", "/proc/devices", "/proc/modules", "/proc/sys/vm/mmap_min_addr",
    "/sys/bus/pci", "/sys/devices", "/sys/class/drm", "/sys/module", "/etc/nvidia", "/usr/share/nvidia", "/usr/local/cuda",
    "/opt/cuda", "/run/opengl-driver", "/run/nvidia-persistenced",
)  # fmt: skip

DEVICES = ("cuda",)
"""The kinds of devices that a policy can name."""


def library_paths() -> list[Path]:
    """What Python, its packages and the system's libraries read; what does not exist is left out.

    It is read from this interpreter, so that it fits every way in which Python and packages can be installed. A folder on
    `sys.path` that holds the user's own files too (the home folder, the working folder) is left out.
    """
    private = _private_folders()
    wanted = [Path(path) for path in _SYSTEM]
    for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix):
        folder = Path(prefix)
        wanted += [folder / part for part in ("lib", "lib64", "include")] if _holds(folder, private) else [folder]
    searched = [Path(entry) for entry in (*sys.path, *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)) if entry]
    for path in searched:
        if path.name in {"site-packages", "dist-packages"}:
            wanted += (target for target in _links(path) if not _holds(target, private))
    searched += _editable_packages()
    wanted += [path for path in searched if path.is_absolute() and not _holds(path, private)]
    return _existing(wanted)


def device_paths(devices: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """(files to read, device files to drive) for the kinds of devices.

    Raises:
        ValueError: no such kind.
    """
    read, files = [], [_NULL]
    for device in devices:
        if device not in DEVICES:
            raise ValueError(f"There is no kind of device {device!r}, only: {', '.join(DEVICES)}.")
        read += [Path(path) for path in _CUDA_READ]
        for pattern in _CUDA_DEVICES:
            files += sorted(Path("/").glob(pattern.lstrip("/")))
    return _existing(read), _existing(files)


def model_paths(model: Path, roots: Iterable[Path] = ()) -> tuple[Path, ...]:
    """A model's file or folder, and the files that links in the folder lead to. For `Policy.read`; called in the parent.

    The hub's cache keeps a model as links into its folder `blobs`. Any other link that leaves the model's folder is
    followed only if it leads into one of `roots`: a stranger's folder could link to the user's keys.
    """
    if not model.is_dir():
        return (model,)
    trusted = [root.resolve() for root in roots]
    if model.absolute().parent.name == "snapshots":
        trusted.append((model.absolute().parent.parent / "blobs").resolve())
    found = {model}
    for folder, _, names in os.walk(model):
        for file in (Path(folder, name) for name in names):
            if file.is_symlink() and file.is_file():
                target = file.resolve()
                if any(target.is_relative_to(place) for place in trusted):
                    found.add(target)
    return tuple(sorted(found))


def files_of(info: "ModelInfo", roots: Iterable[Path]) -> tuple[Path, ...]:
    """What a process that loads a model may read: its folder, or its files and the small ones that go with them.

    Args:
        info: the model.
        roots: as for `model_paths`.
    """
    found = set(info.files)
    if info.path.is_dir():
        found |= set(model_paths(info.path, roots))
    elif info.folder != info.path.parent:  # an ONNX file beside its model's folder
        found |= set(model_paths(info.folder, roots))
    else:
        found |= {info.path, *info.folder.glob("*.json")}
    linked = {file.resolve() for file in found if file.is_symlink()}
    return tuple(sorted(path for path in found | linked if path.exists()))  # what has gone, the engine reports


def _private_folders() -> list[Path]:
    """Folders of the user that no rule for a library may open as a whole."""
    import pwd

    folders = [Path.cwd(), Path("/tmp"), Path("/var/tmp"), Path(os.environ.get("TMPDIR") or "/tmp")]
    with suppress(KeyError):  # a user without an entry; HOME is of no use here, an engine process has another
        folders.append(Path(pwd.getpwuid(os.getuid()).pw_dir))
    return [folder.resolve() for folder in folders]


def _holds(folder: Path, private: Iterable[Path]) -> bool:
    resolved = folder.resolve()
    return any(place.is_relative_to(resolved) for place in private)


def _editable_packages() -> Iterator[Path]:
    """The sources of packages installed with `pip install --editable`: they need not be on `sys.path`."""
    for name, module in list(sys.modules.items()):
        if name.startswith("__editable__"):
            yield from (Path(folder) for folder in getattr(module, "MAPPING", {}).values())


def _links(site: Path) -> Iterator[Path]:
    """Where packages are that lie in another environment and are linked into this one."""
    with suppress(OSError), os.scandir(site) as entries:
        yield from (Path(entry.path).resolve() for entry in entries if entry.is_symlink())


def _existing(paths: Iterable[Path]) -> list[Path]:
    return [path for path in dict.fromkeys(paths) if path.exists()]
