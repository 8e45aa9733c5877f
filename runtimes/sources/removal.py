"""Deletes the files of a model.

Only two places are ever deleted from: the data folder, and the hub's cache, which is where downloads go. Model folders
elsewhere, packages and whatever a link leads to stay.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import filelock

from lfx_local_runtimes.errors import ModelBusy, NotAllowed, RuntimeFault
from lfx_local_runtimes.runtimes.sources.hub import describe, gguf_models
from lfx_local_runtimes.runtimes.sources.locks import lock_folder, locks_without_waiting
from lfx_local_runtimes.settings import Settings

_SPLIT_END = re.compile(r"-\d{5}(-of-\d{5}\.gguf)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Removal:
    """A model's files that may be deleted. Nothing is deleted before `run`."""

    path: Path
    """The model's file or folder."""
    repo: Path | None = None
    """Its repository in the hub's cache; None if it is in the data folder."""

    def run(self) -> int:
        """Delete the files. Returns the bytes that are free again.

        Raises:
            ModelBusy: a file of its repository is being downloaded. Nothing was deleted.
            RuntimeFault: a file cannot be deleted. Those that were deleted before it are gone.
        """
        try:
            if self.repo is not None:
                return _delete_from_cache(self.repo, self.path)
            files = list(_files(self.path)) if self.path.is_dir() else _parts(self.path)
            freed = _used(files)
            if self.path.is_dir():
                shutil.rmtree(self.path)
            else:
                for part in files:
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise RuntimeFault(
                f"{error.filename or self.path} could not be deleted: {error.strerror or error}.",
                hint="Check that you may write to the folder. Then delete the model again.",
            ) from error
        return freed


def plan_removal(path: Path, settings: Settings, cache: Path) -> Removal:
    """The files of the model at `path`, if they may be deleted.

    Args:
        path: the model's file or folder.
        settings: names the data folder.
        cache: the hub's cache folder.

    Raises:
        NotAllowed: they are somewhere else, or a link leads to them.
    """
    if (inside := _inside(path, cache)) is not None:
        parts = inside.relative_to(cache.resolve()).parts
        if len(parts) > 2 and parts[0].startswith("models--") and parts[1] == "snapshots":
            return Removal(inside, cache.resolve() / parts[0])
    inside = _inside(path, settings.home)
    if inside is not None and not inside.is_symlink() and inside not in settings.model_roots:
        return Removal(inside)
    raise NotAllowed(
        f"{path} is not deleted: it is neither in the data folder nor in the hub's cache.",
        hint="Delete it by hand if nothing else needs it. The registration can be removed without the files.",
    )


def _inside(path: Path, root: Path) -> Path | None:
    """The path with its folders' links resolved, if it lies strictly inside `root` and no folder below `root` is a link."""
    real = root.resolve()
    for place in (root, real):
        if path.is_relative_to(place) and path != place:
            found = real / path.relative_to(place)
            return found if found.parent.resolve() == found.parent and ".." not in found.parts else None
    return None


def _parts(path: Path) -> list[Path]:
    """A file, or all parts of a GGUF that is split."""
    whole = _SPLIT_END.sub(r"\1", path.name)
    if whole == path.name:
        return [path]
    return [file for file in path.parent.iterdir() if _SPLIT_END.sub(r"\1", file.name) == whole]


def _delete_from_cache(repo: Path, path: Path) -> int:
    """Delete a model's files of one snapshot, the blobs that no other snapshot needs, and what is empty then.

    Meanwhile nobody downloads what is there: a download that finds a blob would link to it while it is deleted.
    """
    there = list(_files(repo))
    folder = lock_folder(repo)
    digests = {file.name.partition(".")[0] for file in there if file.parent == repo / "blobs"}
    locks = {folder / f"{digest}.lock" for digest in digests} | set(_files(folder))
    try:
        with locks_without_waiting(sorted(locks)):
            return _delete(repo, path, there)
    except filelock.Timeout as error:
        raise ModelBusy(
            f"Files of {'/'.join(repo.name.split('--')[1:])} are being downloaded.",
            hint="Wait for the download or cancel it. Then delete the model again.",
        ) from error


def _delete(repo: Path, path: Path, there: list[Path]) -> int:
    """As `_delete_from_cache`, which holds the locks of the files that are `there`. Returns the bytes that are free again."""
    snapshot = repo / "snapshots" / path.relative_to(repo / "snapshots").parts[0]
    before = _used(there)
    files = set(_files(snapshot))
    gone = files.intersection(_parts(path)) if path != snapshot else files
    left = [file.relative_to(snapshot).as_posix() for file in files - gone]
    if not gguf_models(left) and describe(left) is None:
        gone = files  # no model is left in it
    blobs = {file.resolve() for file in gone if file.is_symlink()}
    for file in gone:
        file.unlink()
    needed = {file.resolve() for file in _files(repo / "snapshots")}
    for blob in blobs - needed:
        if blob.parent == repo / "blobs":
            blob.unlink(missing_ok=True)
    if gone == files:
        for ref in _files(repo / "refs"):
            if ref.read_text(encoding="utf-8", errors="replace").strip() == snapshot.name:
                ref.unlink()
    if not needed:
        for file in there:
            file.unlink(missing_ok=True)
    for folder, _, _ in os.walk(repo, topdown=False):
        with suppress(OSError):  # it is not empty
            Path(folder).rmdir()
    return before - _used(file for file in there if os.path.lexists(file))


def _files(folder: Path) -> Iterator[Path]:
    """The files and links under a folder. Linked folders are not entered."""
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        else:
            yield entry


def _used(files: Iterable[Path]) -> int:
    """The bytes of files. Links take none."""
    return sum(file.lstat().st_size for file in files if not file.is_symlink())
