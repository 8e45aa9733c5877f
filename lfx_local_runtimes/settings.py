"""Settings: one frozen object. Only this module reads the environment.

Every name has the prefix `LOCAL_RUNTIMES_`. Some are also read without it, and some have other names, which
docs/other-names.md lists. The name with the prefix wins.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from lfx_local_runtimes.errors import SettingsFault

PREFIX = "LOCAL_RUNTIMES_"


_TRUST = {"auto": True, "always": True, "never": False}
"""The words of other runtimes. None of them skips an approval or the confinement."""


def _also(name: str, *others: str) -> AliasChoices:
    """The name with the prefix, then other names of the same setting."""
    return AliasChoices(f"{PREFIX}{name}", *others)


def _also_bare(name: str) -> AliasChoices:
    return _also(name, name)


class Settings(BaseSettings):
    """What the operator decides. Sizes are GiB, times are seconds; `None` means not set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True
    )

    home: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("lfx-local-runtimes"),
        description="Data folder: registrations and, by default, models.",
    )
    model_dirs: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Allowed model folders, separated like the entries of PATH. Unset: the folder `models` in HOME.",
    )
    media_dirs: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Folders from which requests may read pictures and documents by their paths, separated like the entries of "
        "PATH. Unset: the folder `media` in HOME.",
    )
    media_urls: bool = Field(
        default=False, description="Fetch pictures and documents from http and https URLs of the public internet."
    )
    memory_budget_gb: float | None = Field(
        default=None, gt=0, description="RAM for models. Unset: 90 % of the machine's."
    )
    max_gpu_mem_gb: float | None = Field(
        default=None,
        gt=0,
        validation_alias=_also_bare("MAX_GPU_MEM_GB"),
        description="Memory for models, per accelerator.",
    )
    force_device: Literal["cuda", "mps", "cpu"] | None = Field(
        default=None,
        validation_alias=_also_bare("FORCE_DEVICE"),
        description="Run every model on this device. An error if it is not there.",
    )
    max_loaded_models: int | None = Field(default=None, ge=1, description="The most models in memory at once.")
    keep_alive_s: float = Field(
        default=300.0, ge=-1, description="Seconds a model stays in memory when idle; -1 keeps it forever."
    )
    stream_interval_ms: int = Field(
        default=40,
        ge=0,
        le=10_000,
        description="Milliseconds between two sends of an event stream. Tokens made meanwhile travel together; the first token "
        "and the end do not wait. 0 sends every token at once.",
    )
    trust_remote_code: bool = Field(
        default=False,
        validation_alias=_also_bare("TRUST_REMOTE_CODE"),
        description="Let models run the Python code that they bring, if their configuration asks for it.",
    )
    allow_pickle: bool = Field(default=False, description="Load pickle weights, which can run code.")
    allow_unconfined_code: bool = Field(
        default=False,
        validation_alias=_also("ALLOW_UNCONFINED_CODE", "ALLOW_UNSANDBOXED"),
        description="Run approved code of a model where its process cannot be fully confined.",
    )
    enable_large_models: bool = Field(
        default=False,
        validation_alias=_also_bare("ENABLE_LARGE_MODELS"),
        description="Fetch and load models above LARGE_MODEL_GB.",
    )
    large_model_gb: float = Field(
        default=24.0, gt=0, description="Models whose files are larger need ENABLE_LARGE_MODELS."
    )
    isolation: Literal["process", "inline"] = Field(
        default="process", description="Run each model in a process of its own, or inside this one."
    )
    confine: Literal["auto", "require", "off"] = Field(
        default="auto",
        description="Take network, files and programs away from a model's process. auto: as far as the system can. require: a "
        "model is only loaded if all of it is possible. off: never.",
    )
    spare_processes: int = Field(
        default=1, ge=0, le=16, description="Processes that wait for the next model, for each engine that was used."
    )
    step_limit_s: float = Field(
        default=600.0,
        gt=0,
        description="Seconds that a model, or its load, may take without going on, before its process is killed.",
    )
    cancel_limit_s: float = Field(
        default=60.0, gt=0, description="Seconds after a cancel before a process that does not react is killed."
    )
    models_file: Path | None = Field(
        default=None, description="A YAML file of models. Unset: `models.yaml` in HOME, if it is there."
    )
    rules_file: Path | None = Field(default=None, description="Your own runtime_rules.json.")
    hub_cache: Path | None = Field(
        default=None,
        validation_alias=_also("HUB_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"),
        description="Folder of the Hugging Face cache. Unset: the folder `hub` in HF_HOME.",
    )
    offline: bool = Field(default=False, description="The older name of DOWNLOADS=off.")
    downloads: Literal["on", "ask", "off"] = Field(
        default="on",
        validate_default=True,
        description="on: a first use downloads a model. ask: only an explicit download does. off: the network is never used.",
    )
    max_download_gb: float | None = Field(
        default=None,
        gt=0,
        description="The largest model, in GiB, that a first use or a request over REST may download. Unset: no limit.",
    )
    hf_token: SecretStr | None = Field(
        default=None, validation_alias=_also_bare("HF_TOKEN"), description="For gated models."
    )
    host: str = Field(
        default="127.0.0.1",
        validation_alias=_also("HOST", "UNIVERSAL_RUNTIME_HOST"),
        description="The address of the standalone server.",
    )
    port: int = Field(
        default=11540,
        ge=1,
        le=65535,
        validation_alias=_also("PORT", "UNIVERSAL_RUNTIME_PORT"),
        description="The port of the standalone server.",
    )
    api_key: SecretStr | None = Field(
        default=None, description="What the standalone server asks for; without one it serves this machine only."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="More names of this machine, separated by commas, by which the standalone server may be called without a "
        "key: host.docker.internal for a container.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins, separated by commas, whose web pages may call the standalone server: https://app.example. `*` is "
        "every page, and needs a key.",
    )

    @field_validator("model_dirs", "media_dirs", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(Path(part) for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("downloads")
    @classmethod
    def _offline_is_off(cls, value: str, info: ValidationInfo) -> str:
        return "off" if info.data.get("offline") else value

    @field_validator("force_device", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("trust_remote_code", mode="before")
    @classmethod
    def _trust(cls, value: object) -> object:
        return _TRUST.get(value.lower(), value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.force_device == "cpu" and self.max_gpu_mem_gb is not None:
            raise ValueError("MAX_GPU_MEM_GB has no meaning with FORCE_DEVICE=cpu: unset one of them")
        for name, folders in (("MODEL_DIRS", self.model_dirs), ("MEDIA_DIRS", self.media_dirs)):
            for folder in folders:
                if not folder.is_dir():
                    raise ValueError(f"{name} names {folder}, which is not a folder")
        for name, file in (("RULES_FILE", self.rules_file), ("MODELS_FILE", self.models_file)):
            if file is not None and not file.is_file():
                raise ValueError(f"{name} names {file}, which is not a file")
        return self

    @property
    def size_limit(self) -> int | None:
        """The most bytes that a model's files may have; None is no limit."""
        return None if self.enable_large_models else int(self.large_model_gb * 2**30)

    @property
    def model_roots(self) -> tuple[Path, ...]:
        """The folders in which model paths may lie, resolved. They need not exist yet."""
        return tuple(path.expanduser().resolve() for path in self.model_dirs or (self.home / "models",))

    @property
    def media_roots(self) -> tuple[Path, ...]:
        """The folders from which requests may read files, resolved. They need not exist yet."""
        return tuple(path.expanduser().resolve() for path in self.media_dirs or (self.home / "media",))


def load_settings(**overrides: Any) -> Settings:
    """Read the environment again. Overrides that are not None win over it.

    Raises:
        SettingsFault: a value is out of range, or two of them contradict each other.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]).upper().removeprefix(PREFIX)
        subject = f"{PREFIX}{name}: " if name else ""
        raise SettingsFault(
            f"{subject}{first['msg']}", hint="Correct the environment variable and start again."
        ) from error


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()
