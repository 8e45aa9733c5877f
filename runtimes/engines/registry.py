"""Engines by name. Each is a row: how it makes offers, how it makes runtimes, and what planning has to know of it.

A new engine touches no other module. These places are looked up in this order:

- rows and factories that a program gave to `register_engine`;
- the folders beside this module: each has a module `row` with `ROWS`;
- the entry points in the group `lfx_local_runtimes.engines` of installed packages: a row, or a factory.

A factory takes the model's configuration and the load plan and returns a `ModelRuntime`. A `ModelRuntime` class is one.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

from lfx_local_runtimes.errors import InvalidInput, LoadFailed
from lfx_local_runtimes.optional import require_installed
from lfx_local_runtimes.runtimes import engines
from lfx_local_runtimes.runtimes.config import DeviceType, ModelConfig, RuntimeType

if TYPE_CHECKING:
    from lfx_local_runtimes.runtimes.base import LoadContext, ModelRuntime
    from lfx_local_runtimes.runtimes.devices import Device
    from lfx_local_runtimes.runtimes.formats.info import ModelInfo
    from lfx_local_runtimes.runtimes.planning import LoadPlan, MakeOffer, Offer, Terms

EngineFactory: TypeAlias = "Callable[[ModelConfig, LoadPlan | None], ModelRuntime]"
Prepare: TypeAlias = "Callable[[LoadPlan, ModelConfig, LoadContext], LoadPlan]"

ENTRY_POINT_GROUP = "lfx_local_runtimes.engines"

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class EngineRow:
    """An engine. References are `"module:attribute"`, which is imported at first use, or the thing itself.

    Neither the module of the row nor that of the offer may import the engine's library.
    """

    name: str
    """What `runtime_type` and the rules call it."""
    factory: "str | EngineFactory"
    """Makes a runtime for a model."""
    offer: "str | MakeOffer" = "lfx_local_runtimes.runtimes.planning.offers:default_offer"
    """Says how the engine would load a model."""
    extra: str | None = None
    """The extra of this package that installs the engine's libraries."""
    modules: tuple[str, ...] = ()
    """The libraries that every load imports, as top-level modules."""
    isolated: bool = True
    """It may run in a process of its own. Another process must be able to import its factory by name."""
    prepare: "str | Prepare | None" = None
    """Work before the load that starts programs itself; it returns the plan for the files it made.

    It runs in the manager's process, and again in the engine's process if that is another one. So it must return a plan
    that needs no work as it is.
    """
    overhead: int = 0
    """Bytes that the engine's libraries take in a process of their own, on top of the model."""
    warm: str | None = None
    """`"module:function"`, which imports what a first load would import. It must start no thread."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the engine's library reads, for a process of its own."""
    accelerators: frozenset[DeviceType] = frozenset({DeviceType.CUDA, DeviceType.MPS})
    """The devices it can use besides the CPU."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == RuntimeType.AUTO:
            raise InvalidInput(
                f"{self.name!r} cannot be the name of an engine.",
                hint="Use lower-case letters, digits and underscores, with a letter first; auto is taken.",
            )
        if self.isolated and self.factory_reference is None:
            object.__setattr__(self, "isolated", False)

    @property
    def factory_reference(self) -> str | None:
        """The factory as `"module:attribute"`; None if another process could not import it by name."""
        return self.factory if isinstance(self.factory, str) else reference_to(self.factory)

    @property
    def installed(self) -> bool:
        """Whether its libraries are installed. Nothing is imported."""
        return all(find_spec(module) is not None for module in self.modules)

    def runs_on(self, device: DeviceType) -> bool:
        """It can use devices of this type."""
        return device is DeviceType.CPU or device in self.accelerators

    def check_installed(self) -> None:
        """Return if the engine's libraries are installed. Imports nothing.

        Raises:
            MissingExtra: one is missing; the hint says how to install it.
        """
        for module in self.modules:
            require_installed(module, extra=self.extra or "all")

    def make_offer(self, config: ModelConfig, info: "ModelInfo", device: "Device", terms: "Terms") -> "Offer":
        """How it would load a model.

        Raises:
            InvalidInput: it does not load this model, or not as the configuration asks.
            LoadFailed: the offer cannot be imported.
        """
        offer: MakeOffer = self._resolved(self.offer)
        return offer(config, info, device, terms)

    def make_runtime(self, config: ModelConfig, plan: "LoadPlan | None") -> "ModelRuntime":
        """A runtime for a model.

        Raises:
            LoadFailed: the factory cannot be imported.
        """
        factory: EngineFactory = self._resolved(self.factory)
        return factory(config, plan)

    def prepared(self, plan: "LoadPlan", config: ModelConfig, context: "LoadContext") -> "LoadPlan":
        """The plan after the work that has to be done before the load; the plan itself if there is none.

        Raises:
            RuntimeFault: the work failed, or was cancelled.
        """
        if self.prepare is None:
            return plan
        prepare: Prepare = self._resolved(self.prepare)
        return prepare(plan, config, context)

    def _resolved(self, reference: Any) -> Any:
        if not isinstance(reference, str):
            return reference
        try:
            return pkgutil.resolve_name(reference)
        except (ImportError, AttributeError, ValueError) as error:
            raise LoadFailed(
                f"{reference} of the engine {self.name} cannot be imported: {error}",
                hint="Install the package of the engine again.",
            ) from error


def reference_to(target: Any) -> str | None:
    """A class or a function as `"module:attribute"`; None if an import by that name would not find it.

    That is so for lambdas, closures, methods of objects, and what is defined in the program itself (`__main__`).
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not module or not name or module == "__main__" or "<" in name:
        return None
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is target else None


# -- the rows there are ----------------------------------------------------------------------------------------------

_registered: dict[str, EngineRow] = {}


def register_engine(engine: str | EngineRow, factory: "EngineFactory | None" = None) -> None:
    """Add an engine, or replace one. Models loaded before keep theirs.

    Args:
        engine: its row; or its name, which then has the default offer.
        factory: goes with a name. If it is a lambda or a closure, the engine always runs in this process.

    Raises:
        InvalidInput: the name cannot be the name of an engine.
    """
    if isinstance(engine, str):
        if factory is None:
            raise TypeError("register_engine takes a row, or a name and a factory")
        engine = EngineRow(engine, factory)
    _registered[engine.name] = engine


@lru_cache(maxsize=1)
def _shipped() -> dict[str, EngineRow]:
    """The rows of the folders beside this module."""
    found: dict[str, EngineRow] = {}
    for folder in pkgutil.iter_modules(engines.__path__, f"{engines.__name__}."):
        module = f"{folder.name}.row"
        if folder.ispkg and find_spec(module) is not None:
            found |= {row.name: row for row in importlib.import_module(module).ROWS}
    return found


@lru_cache(maxsize=1)
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


@lru_cache(maxsize=64)
def _plugin(point: EntryPoint) -> EngineRow:
    """The row that an entry point names, under the entry point's name."""
    row = EngineRow(point.name, f"{point.module}:{point.attr}")
    named = row._resolved(row.factory)
    return replace(named, name=point.name) if isinstance(named, EngineRow) else row


def engine_names() -> list[str]:
    """Every engine that can be asked for by name."""
    return sorted({*_shipped(), *_registered, *_entry_points()})


def find_engine(name: str) -> EngineRow | None:
    """The row of an engine; None if there is no such engine.

    Raises:
        LoadFailed: an installed package has it, and cannot be imported.
    """
    row = _registered.get(name) or _shipped().get(name)
    if row is None and name in _entry_points():
        row = _plugin(_entry_points()[name])
    return row


def engine_row(name: str) -> EngineRow:
    """The row of an engine.

    Raises:
        InvalidInput: there is no such engine.
        LoadFailed: an installed package has it, and cannot be imported.
    """
    row = find_engine(name)
    if row is None:
        raise InvalidInput(f"There is no engine {name}.", hint=f"Use auto or one of: {', '.join(engine_names())}.")
    return row


def prepare_plan(plan: "LoadPlan", config: ModelConfig, context: "LoadContext") -> "LoadPlan":
    """Do the work that an engine needs done before the load. Runtimes of no known engine need none.

    Raises:
        RuntimeFault: as `EngineRow.prepared`.
    """
    row = find_engine(plan.engine)
    return plan if row is None else row.prepared(plan, config, context)
