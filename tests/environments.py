"""The wheel, and virtual environments that have everything this one has except this package (links, no copies)."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
OURS = "lfx_local_runtimes"
SOURCES = ("components", "flows", "lfx_local_runtimes", "routes", "runtimes", "pyproject.toml", "README.md", "LICENSE")


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a clean copy of the sources, in `folder`, and return it."""
    copy = folder / "source"
    copy.mkdir()
    for source in (REPOSITORY / name for name in SOURCES):
        if source.is_dir():
            shutil.copytree(source, copy / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.whl"))


def environment_without_us(folder: Path) -> Path:
    """Make a virtual environment in `folder` that shares every installed package but ours; returns its Python."""
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    target = Path(subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip())
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if OURS not in entry.name.replace("-", "_"):
            (target / entry.name).symlink_to(entry)
    return python


def install(python: Path, wheel: Path) -> None:
    """Install a wheel into an environment, and nothing else."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    command = [*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(command, check=True, capture_output=True, text=True)
