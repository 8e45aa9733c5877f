"""Which engine serves which files: an ordered list in `runtime_rules.json`.

    {"rules": [{"format": "gguf", "architectures": ["gemma*"], "engines": ["llama_cpp", "transformers"]}, …]}

The first rule that fits decides; its engines are tried in order. `architectures` are shell patterns and optional. A
file of the user's own replaces the shipped one as a whole. It may also have the form of other runtimes:

    {"runtime_rules": {"gguf": {"engine": "llama_cpp"}, …}, "fallback": {"enabled": true, "default_runtime": "transformers"}}
"""

import json
import logging
import re
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from lfx_local_runtimes.errors import SettingsFault
from lfx_local_runtimes.runtimes.config import RuntimeType
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo

DEFAULT_FILE = Path(__file__).with_name("runtime_rules.json")
MAX_RULES_FILE = 2**20

_Engine = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
_OtherEngine = Annotated[
    _Engine, BeforeValidator(lambda name: re.sub("[.-]", "_", name.lower()) if isinstance(name, str) else name)
]
"""`llama.cpp` and `llama-cpp` are `llama_cpp`."""
_Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]


logger = logging.getLogger(__name__)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Strict):
    """One line of the list."""

    format: ModelFormat
    architectures: tuple[_Pattern, ...] | None = Field(default=None, min_length=1, description="Unset: any.")
    engines: tuple[_Engine, ...] = Field(description="In the order they are tried; none means no engine serves it.")

    def fits(self, info: ModelInfo) -> bool:
        """The rule speaks of this model."""
        if self.format is not info.format:
            return False
        return self.architectures is None or any(
            fnmatchcase((info.architecture or "").lower(), pattern.lower()) for pattern in self.architectures
        )


class Rules(_Strict):
    """The whole list."""

    rules: tuple[Rule, ...]

    @classmethod
    def load(cls, file: Path | None = None) -> "Rules":
        """Read a rules file, or the shipped one.

        Raises:
            SettingsFault: it cannot be read, or is not valid; says where.
        """
        return _shipped() if file is None else _read(file)

    def engines_for(self, info: ModelInfo) -> tuple[str, ...]:
        """The engines to try for a model, in order; empty when no engine serves it."""
        for rule in self.rules:
            if rule.fits(info):
                return rule.engines
        return ()


class _OtherRule(_Strict):
    engine: _OtherEngine
    command: str | None = None
    args: tuple[str, ...] = ()


class _Fallback(_Strict):
    enabled: bool = True
    default_runtime: _OtherEngine | None = None


class _OtherForm(_Strict):
    """The form of other runtimes: one engine for each format, and one for what it cannot load."""

    runtime_rules: dict[ModelFormat, _OtherRule]
    fallback: _Fallback = _Fallback(enabled=False)

    def rules(self) -> Rules:
        """The same as a list. Unset, the default runtime is the engines that the shipped rules name."""
        shipped = {rule.format: rule.engines for rule in _shipped().rules}
        formats = [*self.runtime_rules, *(kind for kind in shipped if kind not in self.runtime_rules)]
        return Rules(rules=tuple(Rule(format=kind, engines=self._engines(kind, shipped)) for kind in formats))

    def _engines(self, kind: ModelFormat, shipped: dict[ModelFormat, tuple[str, ...]]) -> tuple[str, ...]:
        first = (self.runtime_rules[kind].engine,) if kind in self.runtime_rules else ()
        default = self.fallback.default_runtime
        others = (default,) if default else shipped.get(kind, ())
        return tuple(dict.fromkeys((*first, *(others if self.fallback.enabled else ()))))


@lru_cache(maxsize=1)
def _shipped() -> Rules:
    return _read(DEFAULT_FILE)


def _read(file: Path) -> Rules:
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_RULES_FILE + 1)
        if len(text) > MAX_RULES_FILE:
            raise _fault(file, f"is longer than {MAX_RULES_FILE:,} bytes")
        rules = _validated(json.loads(text), file)
    except OSError as error:
        raise _fault(file, f"cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise _fault(file, f"is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        raise _fault(file, f"is not valid at {place or 'the top'}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise _fault(file, f"is not valid JSON: {error}") from error
    for rule in rules.rules:
        if RuntimeType.AUTO in rule.engines:
            raise _fault(file, f"names the engine auto for {rule.format.value}, which is not an engine")
    return rules


def _validated(content: object, file: Path) -> Rules:
    if not isinstance(content, dict) or "runtime_rules" not in content:
        return Rules.model_validate(content)
    other = _OtherForm.model_validate(content)
    for kind, rule in other.runtime_rules.items():
        if rule.command is not None or rule.args:
            logger.warning(
                "%s: the command line of %s is not run. Each model has a process of its own here; its options are in the "
                "model's configuration.", file, kind.value,
            )  # fmt: skip
    return other.rules()


def _fault(file: Path, what: str) -> SettingsFault:
    return SettingsFault(f"The rules file {file} {what}.", hint="Correct it, or unset LOCAL_RUNTIMES_RULES_FILE.")
