"""Finds the configuration of a model by its name, and the files of a configuration.

A name is looked up in this order: registered models, discovered models, paths in an allowed model folder, repositories
on the hub. The `model_id` of a configuration is looked up in the same way, but not among the registered models.
"""

import difflib
import os
import re
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants

from lfx_local_runtimes.errors import (
    InvalidInput,
    ModelConflict,
    ModelNotFound,
    NotAllowed,
    Offline,
    PathNotAllowed,
)
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.devices import MACHINE, DeviceProbe
from lfx_local_runtimes.runtimes.formats.info import ModelFormat
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.requests import Progress
from lfx_local_runtimes.runtimes.sources.discovery import Discovered, discover
from lfx_local_runtimes.runtimes.sources.hub import HubRef, Wish, cached_model, hub_cache
from lfx_local_runtimes.runtimes.sources.models_file import ModelsFile
from lfx_local_runtimes.runtimes.sources.packages import Carrier, carriers, extra_with
from lfx_local_runtimes.runtimes.sources.registrations import Registrations
from lfx_local_runtimes.runtimes.sources.removal import Removal, plan_removal
from lfx_local_runtimes.settings import Settings

if TYPE_CHECKING:
    from lfx_local_runtimes.runtimes.sources.download import Transfer

_MAX_PATH_CHARS = 1024
_MAX_NAME_BYTES = 255
_SCAN_LIFETIME_S = 1.0
_FILE_SUFFIXES = (".gguf", ".safetensors", ".onnx", ".bin", ".pt")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model's configuration and its source: registered, models file, folder, hub cache, package or request."""

    config: ModelConfig
    source: str
    problem: str = ""
    """Why the registration is not valid. The configuration then has nothing but the name."""
    format: ModelFormat | None = None
    size_bytes: int | None = None
    """Format and size as they were found, for a model whose files are not ready to be read yet."""


class Catalog:
    """Every model that a name can stand for. Safe to use from any thread.

    Args:
        settings: model folders, data folder, downloads, permissions.
        registrations: by default `models.json` in the data folder.
        cache: the hub's cache folder; by default the one the environment names.
        endpoint: the hub's address; by default the one the environment names.
        probe: what is asked of the machine: on a CPU a large model is fetched in another form.
    """

    def __init__(
        self, settings: Settings, registrations: Registrations | None = None, *, cache: Path | None = None,
        endpoint: str | None = None, probe: DeviceProbe = MACHINE,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.registrations = registrations or Registrations(settings.home / "models.json")
        self.models_file = ModelsFile(settings.models_file or settings.home / "models.yaml")
        self._cache = cache or hub_cache(settings)
        self._endpoint = endpoint
        self._probe = probe
        self._seen: tuple[float, dict[str, Discovered]] = (float("-inf"), {})

    # -- registrations -----------------------------------------------------------------------------------------------

    def add(self, config: ModelConfig, *, replace: bool = False) -> bool:
        """Register a model. False if exactly this is registered already, or in the models file.

        Raises:
            ModelConflict: the models file has the name with another configuration.
            RuntimeFault: as `Registrations.add`, which says what `replace` does.
        """
        self.check_not_in_file(config.model_name, allowed=config)
        if config.model_name in self.models_file.all():
            return False
        return self.registrations.add(config, replace=replace)

    def remove(self, name: str) -> bool:
        """Forget a registered model. False if there was none.

        Raises:
            ModelConflict: it is in the models file.
        """
        self.check_not_in_file(name)
        return self.registrations.remove(name)

    def check_not_in_file(self, name: str, *, allowed: ModelConfig | None = None) -> None:
        """Raises ModelConflict if the models file has the name, but for the configuration that is `allowed`."""
        own = self.models_file.all().get(name)
        if own is not None and own != allowed:
            raise ModelConflict(
                f"{name} is in the models file {self.models_file.path}.", model_name=name, hint="Change it there."
            )

    def registered(self) -> dict[str, ModelConfig]:
        """The registered models by name, those of the models file included. The file goes before registrations."""
        return {**self.registrations.all(), **self.models_file.all()}

    def _source(self, name: str) -> str:
        return "models file" if name in self.models_file.all() else "registered"

    def is_registered(self, name: str) -> bool:
        """Whether there is a registration, valid or not, of exactly this name."""
        return name in self.registrations.all() or name in self.registrations.problems

    def spelling(self, name: str) -> str:
        """The name as it is registered or was found, if only upper and lower case differ; otherwise the name itself."""
        known = {*self.registered(), *self.registrations.problems, *(model.name for model in self._discovered())}
        folded = [one for one in known if one.casefold() == name.casefold()]
        return folded[0] if name not in known and len(folded) == 1 else name

    # -- names -------------------------------------------------------------------------------------------------------

    def resolve(self, name: str) -> Resolved:
        """The configuration for a name. Its `model_name` is the known spelling, which may differ in upper and lower case.

        Raises:
            ModelNotFound: there is no such model; the hint suggests similar names.
            PathNotAllowed: a path outside the model folders.
            InvalidInput: its registration is not valid.
        """
        registered = self.registered()
        if name in registered:
            return self._of_registered(registered[name])
        if (problem := self.registrations.problems.get(name)) is not None:
            raise InvalidInput(
                f"The registration of {name} is not valid: {problem}.", model_name=name,
                hint=f"Replace it: PUT models/{name}. Or remove it: lfx-local-runtimes rm {name}",
            )  # fmt: skip
        models = {model.name: model for model in self._discovered()}
        if name in models:
            return _row(models[name])
        folded = [known for known in (*registered, *models) if known.casefold() == name.casefold()]
        if len(folded) == 1:
            return self.resolve(folded[0])
        if _is_path(name):
            path = self.check_path(name)
            return Resolved(_config(str(path), name), "request")
        if HubRef.parse(name) is not None:
            return Resolved(_config(name, name), "request")
        raise ModelNotFound(
            f"There is no model called {_short(name)}.", model_name=name, hint=_remedy(name, [*registered, *models])
        )

    def list(self) -> tuple[Resolved, ...]:
        """Registered models, then those found on this machine. Reads no weights; fast if nothing changed."""
        rows = [self._of_registered(config) for config in self.registered().values()]
        rows += [invalid(name, problem) for name, problem in self.registrations.problems.items()]
        names = {row.config.model_name for row in rows}
        return (*rows, *(_row(model) for model in self._discovered() if model.name not in names))

    def check_path(self, text: str) -> Path:
        """The file or folder at a path inside an allowed model folder, with links resolved.

        A relative path is looked for in each model folder, then in the working directory.

        Raises:
            PathNotAllowed: it is outside the model folders, leaves them by `..` or a link, is too long, or has
                unprintable characters.
            ModelNotFound: the path is allowed, but nothing is there.
        """
        roots = self.settings.model_roots
        parts = re.split(r"[/\\]" if os.name == "nt" else "/", text)
        if (
            not text.isprintable()
            or len(text) > _MAX_PATH_CHARS
            or any(len(os.fsencode(p)) > _MAX_NAME_BYTES for p in parts)
        ):
            raise PathNotAllowed(
                f"{_short(text)} is not a valid path.", hint="It is too long, or has unprintable characters."
            )
        outside = PathNotAllowed(
            f"{_short(text)} is not inside an allowed model folder.",
            hint=f"Put the model under {os.pathsep.join(map(str, roots))}, or name its folder in LOCAL_RUNTIMES_MODEL_DIRS.",
        )
        if ".." in parts:
            raise outside
        raw = _expanded(text)
        for candidate in [raw] if raw.is_absolute() else [*(root / raw for root in roots), Path.cwd() / raw]:
            try:
                path = candidate.resolve()
                inside = any(path.is_relative_to(root) for root in roots)
                if inside and path.exists():
                    return path
                leaves = any(candidate.is_relative_to(root) for root in roots) and os.path.lexists(candidate)
            except (OSError, RuntimeError, ValueError) as error:  # a loop of links is a RuntimeError before Python 3.13
                raise outside from error
            if not inside and (raw.is_absolute() or leaves):
                raise outside
        raise ModelNotFound(f"There is no {_short(text)} in the model folders.", hint=outside.hint)

    def check_source(self, config: ModelConfig) -> None:
        """Refuse a configuration from a request if its `model_id` is a path outside the model folders.

        Raises:
            PathNotAllowed: see `check_path`.
            ModelNotFound: there is nothing at the path.
            InvalidInput: `model_id` is not a known model, a path or a hub repository.
        """
        text = config.model_id
        if any(text in (model.model_id, model.name) for model in self._discovered()):
            return
        if _is_path(text):
            self.check_path(text)
        elif HubRef.parse(text) is None:
            raise InvalidInput(
                f"model_id {_short(text)} is neither a path nor a hub repository.",
                model_name=config.model_name, hint="Write org/name, or a path such as ./model.gguf.",
            )  # fmt: skip

    # -- files -------------------------------------------------------------------------------------------------------

    def removal(self, config: ModelConfig) -> Removal:
        """The files to delete for a model.

        Raises:
            ModelNotFound: they are not on this machine.
            NotAllowed: they belong to a package, are outside the data folder and the hub's cache, or are no model.
        """
        name = config.model_name
        if (carrier := self._carrier(config)) is not None:
            raise NotAllowed(
                f"{name} is a part of the package {carrier.package}.", model_name=name,
                hint=f"To free the disk: pip uninstall {carrier.package}",
            )  # fmt: skip
        if (path := self.locate(config)) is None:
            raise ModelNotFound(f"The files of {name} are not on this machine.", model_name=name)
        found = {model.path for model in self._discovered()}
        if path not in found and read_model(path).format is ModelFormat.UNKNOWN:  # any path can be registered
            raise NotAllowed(f"{path} is not deleted: it holds no model.", model_name=name)
        return plan_removal(path, self.settings, self._cache)

    def models_in(self, place: Path) -> dict[str, tuple[str, Path]]:
        """Source and path of the known models at or under a path, by name. Folders' links are resolved in both."""
        found = {}
        for row in self.list():
            path = None if row.problem else self.locate(row.config)
            if path is not None and (real := path.parent.resolve() / path.name).is_relative_to(place):
                found[row.config.model_name] = row.source, real
        return found

    def locate(self, config: ModelConfig) -> Path | None:
        """The file or folder of a model if all of it is on this machine; None if it must be fetched first.

        A path may be anywhere on the machine: it is not checked here. `check_source` has to check it before.
        """
        found = self._found(config)
        if found is not None and found.path is not None and found.path.exists():
            return found.path
        if (carrier := self._carrier(config)) is not None:
            return carrier.ready_path(self.settings.home)
        if _is_path(config.model_id):
            return self._local(config.model_id)
        ref = HubRef.parse(config.model_id)
        return cached_model(self._cache, ref, config.revision, self._wish(config, ref)) if ref else None

    def download_key(self, config: ModelConfig) -> Hashable:
        """What would be fetched: equal for configurations that need the same files."""
        ref = None if self._carrier(config) is not None or _is_path(config.model_id) else HubRef.parse(config.model_id)
        return config.model_id if ref is None else (ref.repo, config.revision, self._wish(config, ref))

    def fetch(
        self, config: ModelConfig, report: Callable[[Progress], None], cancelled: Callable[[], bool],
        check: "Callable[[Transfer], None]" = lambda transfer: None,
    ) -> Path:  # fmt: skip
        """The file or folder of a model. Downloads or unpacks it if it is not on this machine. Blocks.

        Args:
            config: the model.
            report: called with the progress, on this thread.
            cancelled: called at every step; True stops. What was downloaded is kept for the next time.
            check: called before the first byte of a download. It may refuse by raising.

        Raises:
            ModelNotFound: no such file, package or repository.
            Offline: it is not on this machine, and downloads are switched off.
            DiskFull: there is not enough room for it.
            DownloadFailed: the download failed, was cancelled, or does not match its checksum.
            PickleRefused: the repository holds only pickle weights.
        """
        path = self.locate(config)
        if path is not None:
            return path
        if (carrier := self._carrier(config)) is not None:
            return carrier.provide(self.settings.home, report, cancelled)
        ref = None if _is_path(config.model_id) else HubRef.parse(config.model_id)
        if ref is None:
            raise ModelNotFound(
                f"There is no {_short(config.model_id)} on this machine.", model_name=config.model_name,
                hint="Write a local file or folder with its full path or ./ in front, a hub repository as org/name.",
            )  # fmt: skip
        if self.settings.downloads == "off" or constants.HF_HUB_OFFLINE:
            by = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "LOCAL_RUNTIMES_DOWNLOADS is off"
            raise Offline(
                f"{config.model_id} is not on this machine, and {by}.", model_name=config.model_name,
                hint="Set LOCAL_RUNTIMES_DOWNLOADS to on or ask, and unset LOCAL_RUNTIMES_OFFLINE and HF_HUB_OFFLINE. Or copy "
                "the model into a model folder.",
            )  # fmt: skip
        token = self.settings.hf_token.get_secret_value() if self.settings.hf_token else None
        from lfx_local_runtimes.runtimes.sources.download import download_model  # httpx is slow to import

        return download_model(
            ref, config.revision, self._wish(config, ref), cache=self._cache, token=token,
            endpoint=self._endpoint, report=report, cancelled=cancelled, check=check,
        )  # fmt: skip

    def _wish(self, config: ModelConfig, ref: HubRef) -> Wish:
        return Wish.of(config, ref, self.settings, self._probe)

    def _discovered(self) -> Sequence[Discovered]:
        found = discover(self.settings, self._cache)
        self._seen = time.monotonic(), {key: model for model in found for key in (model.model_id, model.name)}
        return found

    def _found(self, config: ModelConfig) -> Discovered | None:
        """The model in a model folder with this `model_id`. A list asks for every row, so a scan is reused for a second."""
        if time.monotonic() - self._seen[0] > _SCAN_LIFETIME_S:
            self._discovered()
        model = self._seen[1].get(config.model_id)
        return model if model is not None and model.source == "folder" else None

    def _of_registered(self, config: ModelConfig) -> Resolved:
        source, carrier = self._source(config.model_name), self._carrier(config)
        if carrier is None:
            return Resolved(config, source)
        return Resolved(config, source, "", carrier.format, carrier.size_bytes)

    def _carrier(self, config: ModelConfig) -> Carrier | None:
        return next(iter(carriers(config.model_id)), None)

    def _local(self, text: str) -> Path | None:
        raw = _expanded(text)
        try:
            for folder in self.settings.model_roots:
                if (folder / raw).exists():
                    return (folder / raw).resolve()
            return raw.resolve() if raw.exists() else None
        except (OSError, ValueError, RuntimeError):  # too long, or a loop of links
            return None


@lru_cache(maxsize=4096)
def _row(model: Discovered) -> Resolved:
    return Resolved(
        ModelConfig.model_validate({
            "model_id": model.model_id, "model_name": model.name, "model_type": model.model_type,
            "pooling": model.pooling,
        }), model.source, "", model.format, model.size_bytes,
    )  # fmt: skip


def invalid(name: str, problem: str) -> Resolved:
    """A registration that is not valid, so that lists can show it."""
    return Resolved(ModelConfig.model_construct(model_id="", model_name=name), "registered", problem)


def _config(model_id: str, name: str) -> ModelConfig:
    if len(name) > 200 or "\\" in name:
        raise InvalidInput(
            f"{_short(name)} is not a valid model name.", hint="Register the model under a shorter name."
        )
    return ModelConfig(model_id=model_id, model_name=name)


def _expanded(text: str) -> Path:
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises if there is no such user


def _is_path(text: str) -> bool:
    """Whether it is written as a path, not as a name or as `org/name`."""
    return (
        text.startswith(("/", "./", "../", "~", "\\", ".\\")) or text.endswith(_FILE_SUFFIXES) or text.count("/") > 1
        or "\\" in text or ".." in text.split("/") or "\0" in text or Path(text).is_absolute()
    )  # fmt: skip


def _remedy(name: str, known: Sequence[str]) -> str:
    """What to do about a name that no model has."""
    if (extra := extra_with(name)) is not None:
        return f"It comes in a package. Run: pip install 'lfx-local-runtimes[{extra}]'"
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return "Give a registered name, a path in a model folder, or org/name."


def _short(text: str) -> str:
    return ascii(text)[1:-1] if not text.isprintable() else text if len(text) <= 120 else f"{text[:100]}…"
