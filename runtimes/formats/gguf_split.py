"""GGUF models in several files, named as llama.cpp's splitter names them: `name-00001-of-00005.gguf`."""

import re
from pathlib import Path

from lfx_local_runtimes.runtimes.formats.gguf import GgufHeader

MAX_SPLITS = 1000

_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.IGNORECASE)


def first_split(path: Path) -> Path:
    """The first part of a split model, which is the one to load. Any other path is returned as it is."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match["number"]) == 1:
        return path
    return path.with_name(f"{match['stem']}-00001-of-{match['count']}.gguf")


def split_files(header: GgufHeader) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Every part of the model whose first part has this `header`, and the problems of the set."""
    count = header.integer("split.count") or 1
    if count <= 1:
        return (header.path,), ()
    match = _SPLIT_NAME.fullmatch(header.path.name)
    if match is None or count > MAX_SPLITS or int(match["count"]) != count:
        return (header.path,), (f"{header.path.name} is one of {count:,} parts, but its name does not say so",)
    parts = [header.path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    problems = (f"{len(missing)} of {count} parts are missing: {', '.join(missing[:5])}",) if missing else ()
    return tuple(part for part in parts if part.name not in missing), problems
