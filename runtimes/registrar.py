"""Changes what is registered: adds, replaces and removes models, and deletes their files."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from lfx_local_runtimes.errors import InvalidInput, ModelBusy, ModelConflict, ModelNotFound
from lfx_local_runtimes.runtimes.config import ModelConfig, ModelKey, RuntimeType
from lfx_local_runtimes.runtimes.engines.registry import engine_names
from lfx_local_runtimes.runtimes.memory.residency import Residency
from lfx_local_runtimes.runtimes.memory.slots import IN_MEMORY
from lfx_local_runtimes.runtimes.planning import check_task
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.runtimes.sources.removal import Removal


@dataclass(frozen=True, slots=True)
class Removed:
    """What `Registrar.remove` did."""

    model_name: str
    unregistered: bool
    """It was registered, and is no longer."""
    freed_bytes: int = 0
    """What its files took on the disk; 0 if they stay."""


class Registrar:
    """The changes to a catalogue while its models may be in memory.

    A model leaves memory before its registration is changed or removed. If it is in use, that is refused unless `force`
    is set, which cancels its requests.
    """

    def __init__(self, catalog: Catalog, residency: Residency) -> None:
        self._catalog = catalog
        self._residency = residency

    def register(self, config: ModelConfig, *, restrict_paths: bool = False, replace: bool = False) -> bool:
        """Remember a model. False if exactly this is registered already.

        Raises:
            ModelConflict: the name has another configuration, and `replace` is not set; or that one is in memory.
            PathNotAllowed: `restrict_paths` is set, and a local `model_id` is outside the model folders.
            InvalidInput: an unknown runtime type or model type.
        """
        self._check(config, restrict_paths=restrict_paths)
        with self._residency.slots() as slots:
            slot = slots.get(ModelKey(config.model_name))
            if slot is not None and slot.config not in (None, config) and slot.state in IN_MEMORY:
                raise ModelConflict(
                    f"{config.model_name} is loaded with another configuration.", model_name=config.model_name,
                    hint="Unload it first, or choose another name.",
                )  # fmt: skip
        changed = self._catalog.add(config, replace=replace)  # writes a file: not under the lock
        if changed:
            self._forget([config.model_name])
        return changed

    async def replace(self, config: ModelConfig, *, restrict_paths: bool = False, force: bool = False) -> bool:
        """Register a model, whatever its name stood for before. False if exactly this was registered already.

        Raises:
            ModelBusy: it is in use, and `force` is not set.
            PathNotAllowed, InvalidInput: as `register`.
        """
        await asyncio.to_thread(self._check, config, restrict_paths=restrict_paths)
        name = config.model_name
        if (await asyncio.to_thread(self._catalog.registered)).get(name) == config:
            return False
        await self._take_out([name], force=force)
        return await asyncio.to_thread(self.register, config, replace=True)

    def unregister(self, name: str) -> None:
        """Forget a registered model. Its files stay.

        Raises:
            ModelNotFound: it is not registered.
            ModelBusy: it is in memory.
        """
        with self._residency.slots() as slots:
            for slot in slots.values():
                if slot.key.name == name and slot.state in IN_MEMORY:
                    raise ModelBusy(f"{slot.name} is {slot.state.value}.", model_name=name, hint="Unload it first.")
        if not self._catalog.remove(name):
            raise ModelNotFound(
                f"{name} is not registered.", model_name=name,
                hint="A model that was found in a model folder, the hub's cache or a package has no registration. "
                f"DELETE models/{name}/files and lfx-local-runtimes rm --files {name} delete its files.",
            )  # fmt: skip
        self._forget([name])

    async def remove(self, name: str, *, files: bool = False, force: bool = False) -> Removed:
        """Forget a registered model, and with `files` delete its files too. A model that was only found has just files.

        Raises:
            ModelNotFound: it is not registered; with `files`, it is not on this machine.
            ModelBusy: it is in use, and `force` is not set; or its repository is being downloaded.
            ModelConflict: other models need the same files, or the model is in the models file.
            NotAllowed: the files belong to a package, or lie outside the data folder and the hub's cache.
            RuntimeFault: a file cannot be deleted or written.
        """
        name = await asyncio.to_thread(self._catalog.spelling, name)
        await asyncio.to_thread(self._catalog.check_not_in_file, name)
        registered = await asyncio.to_thread(self._catalog.is_registered, name)
        if not files:
            if registered:
                await self._take_out([name], force=force)
            await asyncio.to_thread(self.unregister, name)
            return Removed(name, unregistered=True)
        removal, names = await asyncio.to_thread(self._files_of, name)
        await self._take_out(names, force=force)
        freed = await asyncio.to_thread(removal.run)
        if registered:  # also if a request has loaded it again meanwhile: its files are gone in any case
            await asyncio.to_thread(self._catalog.remove, name)
        self._forget(names)
        return Removed(name, registered, freed)

    def _files_of(self, name: str) -> tuple[Removal, list[str]]:
        """What to delete, and the names under which it may be in memory."""
        config = self._catalog.resolve(name).config
        removal = self._catalog.removal(config)
        known = self._catalog.models_in(removal.path)
        others = [
            other
            for other, (source, path) in known.items()
            if other != config.model_name and (source == "registered" or path != removal.path)
        ]
        if others:
            raise ModelConflict(
                f"The files of {name} are needed by {', '.join(others[:5])}.", model_name=name,
                hint="Remove those first, or remove only the registration.",
            )  # fmt: skip
        return removal, [name, *known]

    def _check(self, config: ModelConfig, *, restrict_paths: bool) -> None:
        if config.runtime_type != RuntimeType.AUTO and config.runtime_type not in engine_names():
            raise InvalidInput(
                f"runtime_type {config.runtime_type} is not an engine.", model_name=config.model_name,
                hint=f"Use auto or one of: {', '.join(engine_names())}.",
            )  # fmt: skip
        check_task(config)
        self._catalog.check_not_in_file(config.model_name, allowed=config)
        if restrict_paths:
            self._catalog.check_source(config)

    async def _take_out(self, names: Collection[str], *, force: bool) -> None:
        """Unload every copy of the models."""
        with self._residency.slots() as slots:
            keys = [slot.key for slot in slots.values() if slot.key.name in names and slot.state in IN_MEMORY]
        for key in keys:
            await asyncio.wrap_future(self._residency.unload(key, force=force))

    def _forget(self, names: Collection[str]) -> None:
        """Drop what is known of models that are not in memory: it is out of date."""
        with self._residency.slots() as slots:
            for slot in list(slots.values()):
                if slot.key.name in names and slot.state not in IN_MEMORY:
                    del slots[slot.key]
