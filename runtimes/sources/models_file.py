"""A machine's models in one YAML file, which can live in version control.

    models:
      - name: assistant
        model: google/gemma-3-1b-it
        task: llm
        device: auto
        dtype: bf16
        prompts: {system: "You are brief."}
        defaults: {temperature: 0.2, max_tokens: 256}
        limits: {context_length: 8192, parallel: 4}
        pin: true

`prompts` and `defaults` are those of `ModelConfig`. `limits` are its fields that limit something. Its other fields may be
written by their own names.
"""

import logging
import threading
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lfx_local_runtimes.errors import SettingsFault
from lfx_local_runtimes.runtimes.config import ModelConfig

MAX_BYTES = 2**20

_FIELDS = {
    "name": "model_name", "model": "model_id", "task": "model_type", "device": "device_type", "dtype": "quantization",
    "pin": "pinned",
}  # fmt: skip
_LIMITS = frozenset({"context_length", "keep_alive", "max_queued", "parallel", "threads"})

logger = logging.getLogger(__name__)


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: list[dict[str, Any]] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _may_be_empty(cls, value: Any) -> Any:
        return {} if value is None else value


class ModelsFile:
    """The models of a file. It is read at the start, and again when it has changed. Safe to use from any thread.

    A file that is not valid is an error at the start. Later the models stay as they were, and the log has the reason.

    Raises:
        SettingsFault: the file is not valid. A file that is not there has no models.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._signature = self._stat()
        self._models = self._read() if self._signature else {}

    def all(self) -> dict[str, ModelConfig]:
        """The models by name."""
        with self._lock:
            if (signature := self._stat()) != self._signature:
                self._signature = signature
                try:
                    self._models = self._read() if signature else {}
                except SettingsFault as fault:
                    logger.warning("%s The models stay as they were.", fault)
            return dict(self._models)

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> dict[str, ModelConfig]:
        import yaml

        try:
            with self.path.open("rb") as file:
                text = file.read(MAX_BYTES + 1)
            if len(text) > MAX_BYTES:
                raise self._fault(f"is longer than {MAX_BYTES:,} bytes")
            entries = _Content.model_validate(yaml.safe_load(text)).models
        except OSError as error:
            raise self._fault(f"cannot be read ({error.strerror})") from error
        except (yaml.YAMLError, RecursionError) as error:
            raise self._fault(f"is not valid YAML: {' '.join(str(error).split())}") from error
        except ValidationError as error:
            raise self._fault(f"is not valid at {_problem(error)}") from error
        models: dict[str, ModelConfig] = {}
        for number, entry in enumerate(entries):
            try:
                config = ModelConfig.model_validate(_fields(entry))
            except ValidationError as error:
                raise self._fault(f"is not valid at models[{number}].{_problem(error)}") from error
            except ValueError as error:
                raise self._fault(f"is not valid at models[{number}]: {error}") from error
            if config.model_name in models:
                raise self._fault(f"has two models called {config.model_name}")
            models[config.model_name] = config
        return models

    def _fault(self, what: str) -> SettingsFault:
        return SettingsFault(
            f"The models file {self.path} {what}.", hint="Correct it; it is read again when it changes."
        )


def _fields(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry as the fields of a `ModelConfig`. Raises ValueError for limits that are none."""
    fields = {_FIELDS.get(name, name): value for name, value in entry.items() if name != "limits"}
    limits = entry.get("limits") or {}
    if not isinstance(limits, dict) or not limits.keys() <= _LIMITS:
        raise ValueError(f"limits must be some of {', '.join(sorted(_LIMITS))}")
    if fields.get("quantization") == "auto":
        del fields["quantization"]
    return {**fields, **limits}


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    ours = {long: short for short, long in _FIELDS.items()}
    place = ".".join(ours.get(str(part), str(part)) for part in first["loc"])
    return f"{place or 'the top'}: {first['msg']}"
