"""`inspect_model`: what a model's files say, and what follows from it: the engine and the memory it will take."""

from dataclasses import dataclass, fields
from pathlib import Path

from lfx_local_runtimes.runtimes.formats.info import ModelInfo
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.formats.tasks import UNSUPPORTED
from lfx_local_runtimes.runtimes.planning.estimates import MemoryEstimate, estimate_memory
from lfx_local_runtimes.runtimes.planning.rules import Rules
from lfx_local_runtimes.settings import get_settings


@dataclass(frozen=True)
class Inspection(ModelInfo):
    """The facts about a model's files, with the engine and the memory for it."""

    engine: str | None = None
    """The first engine that the rules name for it; None if nothing here serves it."""
    memory: MemoryEstimate | None = None
    """For the weights as they are stored. None if the files could not be read."""


def inspect_model(
    path: str | Path, context_length: int | None = None, *, thorough: bool = False, rules: Rules | None = None
) -> Inspection:
    """Format, engine, architecture, sizes, chat template, problems and memory estimate of a model on disk.

    What is wrong with the files is in `problems`, so that a broken model can be listed. Only a path that leads nowhere
    raises.

    Args:
        path: a file or a folder.
        context_length: tokens the memory estimate is for; unset, 4,096, or the model's own if that is less.
        thorough: also check what takes time (a GGUF vocabulary token by token). Needed before a GGUF file is loaded.
        rules: format to engine; unset, those of the settings.

    Raises:
        ModelNotFound: the path does not exist.
        SettingsFault: the rules file is not valid.
    """
    rules = rules or Rules.load(get_settings().rules_file)
    info = read_model(path, thorough=thorough)
    facts = {field.name: getattr(info, field.name) for field in fields(ModelInfo)}
    if not info.files:
        return Inspection(**facts)
    engine = None if info.task == UNSUPPORTED else next(iter(rules.engines_for(info)), None)
    return Inspection(**facts, engine=engine, memory=estimate_memory(info, context_length))
