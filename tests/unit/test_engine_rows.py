"""Engines as rows: those of this package, those of other packages, and those a program registers."""

import ast
import functools
import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes import runtimes
from lfx_local_runtimes.errors import InvalidInput, LoadFailed
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, RuntimeManager, RuntimeType, ScriptedRuntime
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.config import DeviceType
from lfx_local_runtimes.runtimes.devices import CPU
from lfx_local_runtimes.runtimes.engines import registry
from lfx_local_runtimes.runtimes.engines.registry import (
    EngineRow,
    engine_names,
    engine_row,
    prepare_plan,
    reference_to,
    register_engine,
)
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.planning import LoadPlan, Rules, plan_loads
from lfx_local_runtimes.settings import Settings
from tests.routes_app import write_model
from tests.unit.test_packaging import PROJECT

SHIPPED = ("gemma_local", "gemma_streaming", "llama_cpp", "onnx", "rapidocr", "transformers")
PLAN = LoadPlan(ModelInfo(Path("m"), ModelFormat.GGUF, (), 1), "toy", CPU, "none", 16)
CONFIG = ModelConfig(model_id="m", model_name="m")


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers or installs is gone after it."""
    monkeypatch.setattr(registry, "_registered", {})
    yield
    registry._entry_points.cache_clear()


def toy(config: ModelConfig, plan: LoadPlan | None) -> ScriptedRuntime:
    return ScriptedRuntime(config, plan)


# -- rows ----------------------------------------------------------------------------------------------------------------


def test_the_folders_bring_the_engines_of_this_package() -> None:
    assert tuple(sorted(registry._shipped())) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_row_leads_to_what_it_names(name: str) -> None:
    row = engine_row(name)
    assert row.name == name
    assert callable(row._resolved(row.factory))
    assert callable(row._resolved(row.offer))
    assert row.prepare is None or callable(row._resolved(row.prepare))
    assert row.extra is None or row.extra in PROJECT["optional-dependencies"]
    assert row.isolated
    assert row.overhead > 2**20


@pytest.mark.parametrize("name", ["", "auto", "Toy", "1st", "a-b", "a.b", "x" * 65])
def test_names_that_no_engine_may_have(name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be the name of an engine"):
        EngineRow(name, toy)


@pytest.mark.parametrize("reference", ["no_such_module:thing", "json:no_such_thing", "not a reference"])
def test_a_reference_that_leads_nowhere_names_the_engine(reference: str) -> None:
    with pytest.raises(LoadFailed, match=f"{reference} of the engine toy cannot be imported"):
        EngineRow("toy", reference).make_runtime(CONFIG, None)


def test_an_engine_that_does_not_exist() -> None:
    with pytest.raises(InvalidInput, match=r"There is no engine steam.*llama_cpp"):
        engine_row("steam")


# -- registered by a program ---------------------------------------------------------------------------------------------


class Toy(ScriptedRuntime):
    def make(self, config: ModelConfig, plan: LoadPlan | None) -> ScriptedRuntime:
        return ScriptedRuntime(config, plan)


def test_only_what_can_be_imported_by_name_runs_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def closure(config: ModelConfig, plan: LoadPlan | None) -> ScriptedRuntime:
        return ScriptedRuntime(config, plan)

    for factory in (toy, Toy):
        register_engine("toy", factory)
        assert engine_row("toy").isolated
        assert engine_row("toy").factory_reference == f"{__name__}:{factory.__name__}"
    made = Toy(CONFIG, PLAN).make
    for factory in (lambda config, plan: ScriptedRuntime(config, plan), closure, functools.partial(toy), made):
        register_engine("toy", factory)
        assert not engine_row("toy").isolated
        assert engine_row("toy").factory_reference is None
    monkeypatch.setattr(toy, "__module__", "__main__")
    assert reference_to(toy) is None


def test_a_factory_behind_another_name_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "__qualname__", "Toy")
    assert reference_to(toy) is None


def test_a_name_comes_with_a_factory_and_a_row_alone() -> None:
    row = EngineRow("toy", toy, overhead=5, isolated=False)
    register_engine(row)
    assert engine_row("toy") is row
    assert "toy" in engine_names()
    assert isinstance(engine_row("toy").make_runtime(CONFIG, PLAN), ScriptedRuntime)
    with pytest.raises(TypeError, match="a name and a factory"):
        register_engine("toy")


# -- work before the load ------------------------------------------------------------------------------------------------


def test_the_work_before_a_load_changes_the_plan() -> None:
    def prepare(plan: LoadPlan, config: ModelConfig, context: LoadContext) -> LoadPlan:
        return replace(plan, dtype="made")

    register_engine(EngineRow("toy", toy, prepare=prepare))
    assert prepare_plan(PLAN, CONFIG, LoadContext()).dtype == "made"
    assert prepare_plan(replace(PLAN, engine="unknown"), CONFIG, LoadContext()).dtype == "none"

    class Noted(ScriptedRuntime):
        def _load(self, plan: LoadPlan, context: LoadContext) -> None:
            super()._load(plan, context)
            loaded.append(plan.dtype)

    loaded: list[str] = []
    runtime = Noted(CONFIG, PLAN)
    runtime.start().result()
    thread = runtime.stop()
    assert thread is not None
    thread.join()
    assert loaded == ["made"]


# -- installed by another package ----------------------------------------------------------------------------------------

TOY = """
from dataclasses import replace

from lfx_local_runtimes.errors import InvalidInput
from lfx_local_runtimes.runtimes import DeviceType, ScriptedRuntime
from lfx_local_runtimes.runtimes.engines.registry import EngineRow
from lfx_local_runtimes.runtimes.planning import Offer


class ToyRuntime(ScriptedRuntime):
    engine = "toy"
    script = ("plugged ", "in")


def offer(config, info, device, terms):
    if info.architecture == "strange":
        raise InvalidInput("The toy does not know strange models.", model_name=config.model_name)
    return Offer(info, "wood", {device.key: 7}, sequences=3, warnings=(f"{terms.task} for {terms.context_length}",))


ROW = EngineRow("named_otherwise", "toy_engine:ToyRuntime", "toy_engine:offer", accelerators=frozenset())
"""
POINTS = """[lfx_local_runtimes.engines]
toy = toy_engine:ROW
bare_toy = toy_engine:ToyRuntime
broken_toy = toy_engine:gone
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with an engine of its own, as pip would install it."""
    site = tmp_path / "site"
    (site / "toy_engine-1.dist-info").mkdir(parents=True)
    (site / "toy_engine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-engine\nVersion: 1\n")
    (site / "toy_engine-1.dist-info" / "entry_points.txt").write_text(POINTS)
    (site / "toy_engine.py").write_text(TOY)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "toy_engine", raising=False)
    registry._entry_points.cache_clear()
    registry._plugin.cache_clear()


def gguf(**facts: Any) -> ModelInfo:
    return ModelInfo(Path("m.gguf"), ModelFormat.GGUF, (Path("m.gguf"),), 1000, quantization="Q4_K_M", **facts)


def plans(model: ModelInfo, rules: Rules | None = None, **config: Any) -> list[tuple[str, str]]:
    wanted = ModelConfig.model_validate({"model_id": "m", "model_name": "m", "device_type": "cpu", **config})
    found = plan_loads(wanted, model, settings=Settings(), rules=rules or Rules.load())
    return [(plan.engine, plan.dtype) for plan in found]


@pytest.mark.usefixtures("installed")
def test_a_package_adds_an_engine_with_its_offer() -> None:
    assert {"toy", "bare_toy", "broken_toy"} < set(engine_names())
    row = engine_row("toy")
    assert (row.name, row.factory_reference, row.isolated) == ("toy", "toy_engine:ToyRuntime", True)
    assert plans(gguf(), runtime_type="toy") == [("toy", "wood")]
    rules = Rules.model_validate({"rules": [{"format": "gguf", "engines": ["toy", "llama_cpp"]}]})
    assert plans(gguf(), rules) == [("toy", "wood"), ("llama_cpp", "Q4_K_M")]
    assert plans(gguf(architecture="strange"), rules) == [("llama_cpp", "Q4_K_M")]
    with pytest.raises(InvalidInput, match="does not know strange models"):
        plans(gguf(architecture="strange"), runtime_type="toy")


@pytest.mark.usefixtures("installed")
def test_a_factory_alone_gets_the_default_offer() -> None:
    row = engine_row("bare_toy")
    assert (row.name, row.factory_reference, row.isolated) == ("bare_toy", "toy_engine:ToyRuntime", True)
    assert plans(gguf(), runtime_type="bare_toy") == [("bare_toy", "Q4_K_M")]


@pytest.mark.usefixtures("installed")
def test_a_broken_package_is_named() -> None:
    with pytest.raises(LoadFailed, match="toy_engine:gone of the engine broken_toy cannot be imported"):
        plans(gguf(), runtime_type="broken_toy")
    rules = Rules.model_validate({"rules": [{"format": "gguf", "engines": ["broken_toy", "not_there", "llama_cpp"]}]})
    assert plans(gguf(), rules) == [("llama_cpp", "Q4_K_M")], "it harms no other engine"


@pytest.mark.usefixtures("installed")
async def test_a_model_is_served_by_the_engine_of_a_package(tmp_path: Path) -> None:
    write_model(tmp_path / "models" / "tiny")
    manager = RuntimeManager(Settings(home=tmp_path / "home", model_dirs=(tmp_path / "models",), offline=True))
    try:
        manager.register_model(
            ModelConfig(model_id=str(tmp_path / "models" / "tiny"), model_name="tiny", runtime_type=RuntimeType("toy"))
        )
        result = await manager.generate("tiny", GenerationConfig(prompt="Hello"))
        status = manager.model_status("tiny")
    finally:
        manager.close()
    assert result.text == "plugged in"
    assert (status.engine, status.quantization) == ("toy", "wood")
    assert any("llm for" in warning for warning in status.warnings)


# -- nobody else knows them ----------------------------------------------------------------------------------------------


def central_modules() -> list[Path]:
    root = Path(inspect.getfile(runtimes)).parent
    return [
        *sorted((root / "planning").glob("*.py")),
        root / "engines" / "registry.py",
        root / "memory" / "residency.py",
    ]


def names_of_engines(source: str) -> list[str]:
    """The engines that code names: as a string, by import, or as `RuntimeType.X`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in SHIPPED:
            found.append(str(node.value))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "RuntimeType" and node.attr != "AUTO":
            found.append(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{runtimes.__name__}.engines."):
            found += [part for part in str(node.module).split(".") if part in (*SHIPPED, "gemma")]
    return found


@pytest.mark.parametrize("module", central_modules(), ids=lambda path: path.stem)
def test_planning_knows_no_engine_by_name(module: Path) -> None:
    assert names_of_engines(module.read_text(encoding="utf-8")) == []


def test_the_check_sees_a_name() -> None:
    assert names_of_engines("if engine == 'onnx': pass")
    assert names_of_engines("if engine == RuntimeType.ONNX: pass")
    assert names_of_engines("from lfx_local_runtimes.runtimes.engines.onnx.offer import offer")


def test_every_device_type_is_a_cpu_or_an_accelerator() -> None:
    row = EngineRow("toy", toy, accelerators=frozenset())
    assert [device for device in DeviceType if row.runs_on(device)] == [DeviceType.CPU]
