"""The files an engine process needs: Python's, the libraries', the system's, a device's, and those of a model.

Read from the child's own interpreter, so that it holds for every way Python can be installed.
"""

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_SYSTEM = (
    # libraries
    "/lib", "/lib32", "/lib64", "/libx32", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/usr/libexec",
    "/usr/local/lib", "/usr/local/lib64", "/nix/store", "/run/current-system/sw/lib", "/gnu/store",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/openssl.cnf", "/etc/crypto-policies",
    # language, time, names of file types
    "/usr/share/locale", "/usr/share/i18n", "/usr/share/zoneinfo", "/etc/localtime", "/etc/timezone", "/etc/locale.alias",
    "/etc/mime.types", "/etc/os-release",
    # processors and memory: how many threads, which instructions, how much room
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/uptime", "/proc/version",
    "/proc/filesystems", "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/max_map_count",
    "/proc/sys/kernel/osrelease", "/proc/sys/kernel/pid_max",
    "/sys/devices/system/cpu", "/sys/devices/system/node",
    "/sys/kernel/mm/transparent_hugepage", "/sys/kernel/mm/hugepages", "/sys/fs/cgroup",
    # this process: the link leads to its own folder
    "/proc/self",
)  # fmt: skip
"""Never all of /proc: it shows the environment of the user's other processes, and tokens are kept there."""

_RANDOM = ("/dev/urandom", "/dev/random")
_NULL = "/dev/null"
"""Not /dev/zero: mapped as shared memory, it is memory that no limit counts."""

_CUDA_DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/dxg")
_CUDA_READ = (
    "/proc/driver/nvidia", "/proc/driver/nvidia-uvm", "/proc/devices", "/proc/modules", "/proc/sys/vm/mmap_min_addr",
    "/sys/bus/pci", "/sys/devices", "/sys/class/drm", "/sys/module", "/etc/nvidia", "/usr/share/nvidia", "/usr/local/cuda",
    "/opt/cuda", "/run/opengl-driver", "/usr/lib/wsl", "/run/nvidia-persistenced",
)  # fmt: skip

DEVICES = ("cuda",)
"""The kinds of devices a policy can name."""


def library_paths() -> list[Path]:
    """What Python, its packages and the system's libraries read. Those that do not exist are left out."""
    wanted = [Path(path) for path in (*_SYSTEM, *_RANDOM)]
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}:
        folder = Path(prefix)
        wanted += [folder / part for part in ("lib", "lib64", "include")] if _is_broad(folder) else [folder]
    searched = [Path(entry) for entry in sys.path if entry]
    searched += [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if entry]
    searched += _editable_packages()
    wanted += [path for path in searched if path.is_absolute() and not _is_broad(path)]
    for path in searched:
        if path.name in {"site-packages", "dist-packages"}:
            wanted += _packages_elsewhere(path)
    return _existing(wanted)


def device_paths(devices: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """(device files, files to read) for the kinds of devices.

    Raises:
        ValueError: no such kind.
    """
    files, read = [Path(_NULL)], []
    for device in devices:
        if device not in DEVICES:
            raise ValueError(f"{device!r} is no kind of device; there is {', '.join(DEVICES)}.")
        for pattern in _CUDA_DEVICES:
            files += sorted(Path("/").glob(pattern.lstrip("/")))
        read += [Path(path) for path in _CUDA_READ]
    return _existing(files), _existing(read)


def model_paths(model: Path, roots: Iterable[Path] = ()) -> tuple[Path, ...]:
    """A model's file or folder, with the files that links in it lead to; call it in the parent, for `Policy.read`.

    The hub's cache keeps a model as links into `blobs`. A link that leads to another place is followed only if that
    lies in one of `roots`: a folder from a stranger could link to the user's keys.
    """
    allowed = [root.resolve() for root in roots]
    blobs = model.absolute().parent.parent / "blobs"
    if model.parent.name == "snapshots" and blobs.is_dir():
        allowed.append(blobs.resolve())
    if not model.is_dir():
        return (model,)
    found = {model}
    for folder, _, names in os.walk(model):
        for file in (Path(folder, name) for name in names):
            if file.is_symlink() and file.is_file():
                target = file.resolve()
                if any(target.is_relative_to(place) for place in allowed):
                    found.add(target)
    return tuple(sorted(found))


def _is_broad(path: Path) -> bool:
    """A folder that holds the user's own files beside Python's."""
    from_home = _home()
    whole = [Path.cwd(), Path(tempfile.gettempdir())] + ([from_home] if from_home else [])
    with suppress(OSError):
        path = path.resolve()
    return any(place.resolve().is_relative_to(path) for place in whole)


def _home() -> Path | None:
    """The user's home folder, whatever HOME says: an engine process has another."""
    import pwd

    with suppress(KeyError):
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    return None


def _editable_packages() -> Iterator[Path]:
    """The sources of packages that are installed with `pip install --editable`; they are not on `sys.path`."""
    for name, module in list(sys.modules.items()):
        if name.startswith("__editable__"):
            for folder in getattr(module, "MAPPING", {}).values():
                yield Path(folder)


def _packages_elsewhere(site: Path) -> Iterator[Path]:
    """Packages that are links to another environment."""
    with suppress(OSError):
        for entry in os.scandir(site):
            if entry.is_symlink():
                target = Path(entry.path).resolve()
                if not _is_broad(target):
                    yield target


def _existing(paths: Iterable[Path]) -> list[Path]:
    return [path for path in dict.fromkeys(paths) if path.exists()]
