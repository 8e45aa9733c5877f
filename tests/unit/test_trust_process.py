"""Code of a model runs only in a process that says itself that it is confined in full, and no load gets around the gate."""

import getpass
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import LoadFailed, NotAllowed, PickleRefused, RemoteCodeRefused
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.engines.isolated import codec, spares
from lfx_local_runtimes.runtimes.engines.isolated.runtime import make_runtime
from lfx_local_runtimes.runtimes.engines.onnx import export, export_worker
from lfx_local_runtimes.runtimes.engines.registry import register_engine
from lfx_local_runtimes.runtimes.processes.child import Child
from lfx_local_runtimes.runtimes.processes.confinement import Confinement, Policy
from lfx_local_runtimes.runtimes.trust.gate import approvals_of
from lfx_local_runtimes.runtimes.trust.report import Clearance
from lfx_local_runtimes.settings import PREFIX, Settings, get_settings
from tests import isolated_engines, knowing_engine
from tests.isolated_engines import Actor, scripted_plan
from tests.trusted_models import code_of, pickle_of, scan_here, write_code, write_pickle

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux confines")

WEAK = "tests.weak_child"
OPEN = {"trust_remote_code": True, "allow_pickle": True}


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    isolated_engines.register()
    scan_here(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model `m` with code of its own. Its load ends the process at once, if it comes that far."""
    made = write_code(tmp_path / "models" / "m")
    (made / "load").write_text("die SIGKILL")
    return made


def settings(folder: Path, **options: Any) -> Settings:
    return Settings(home=folder.parents[1] / "home", model_dirs=(folder.parent,), offline=True, **OPEN, **options)


def config(folder: Path, **options: Any) -> ModelConfig:
    usual = {"runtime_type": "actor", "trust_remote_code": True}
    return ModelConfig.model_validate({"model_id": str(folder), "model_name": "m", **usual, **options})


def approve(folder: Path) -> str:
    report = code_of(folder)
    approvals_of(settings(folder)).approve("m", report, "ada")
    return report.sha256


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.parents[1] / "home" / "audit.jsonl").read_text().splitlines()]


def refusal(folder: Path, **options: Any) -> NotAllowed:
    """Of a load without a manager, in a process."""
    wanted, chosen = config(folder), settings(folder, **options)
    runtime = make_runtime(wanted, scripted_plan(wanted, Actor.engine), chosen)
    with pytest.raises(RemoteCodeRefused) as refused:
        runtime.start(LoadContext(settings=chosen)).result()
    return refused.value


# -- the process is not confined as the forecast said --------------------------------------------------------------------


def test_the_process_itself_refuses(folder: Path) -> None:
    wanted = config(folder)
    frame = codec.load_frame(
        f"{Actor.__module__}:Actor", wanted, scripted_plan(wanted, Actor.engine), settings(folder),
        policy=Policy(read=(folder,)).to_json(), clearance=Clearance("m", "ada", {"remote_code": "0"}, needs_full=True), environment={},
    )  # fmt: skip
    child = Child(WEAK)
    try:
        assert child.ask(frame, 60).header["confinement"]["level"] == "partial"
        fault = codec.read_fault(child.receive().header["fault"])
        report = child.wait(60)
    finally:
        child.close(0)
    assert isinstance(fault, LoadFailed)
    assert "not confined in full" in fault.message
    assert "Landlock" in fault.message
    assert report is not None
    assert report.status == 0  # nothing was loaded


@pytest.mark.parametrize("hears", [True, False])
def test_the_parent_refuses_whatever_the_process_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hears: bool
) -> None:
    made = codec.load_frame
    monkeypatch.setattr(spares, "CHILD", WEAK)
    if not hears:
        free = Clearance("m", "ada")
        monkeypatch.setattr(codec, "load_frame", lambda *given, **named: made(*given, **{**named, "clearance": free}))
    sha256 = approve(folder)
    fault = refusal(folder)
    assert "not fully confined here (partial; the kernel has no Landlock" in fault.message
    assert "ALLOW_UNCONFINED_CODE" in fault.hint
    passed, refused = log(folder)
    assert (passed["event"], passed["confinement"]) == ("loaded", "full")
    assert (refused["event"], refused["confinement"], refused["sha256"]) == ("refused", "partial", sha256)
    assert refused["model"] == "m"
    assert refused["reason"] == fault.message


def test_a_refusal_of_the_engine_itself_is_logged(folder: Path) -> None:
    (folder / "load").write_text("refuse weights")
    wanted, chosen = config(folder, trust_remote_code=False), settings(folder)
    runtime = make_runtime(wanted, scripted_plan(wanted, Actor.engine), chosen)
    with pytest.raises(PickleRefused, match=r"weights are pickle\."):
        runtime.start(LoadContext(settings=chosen)).result()
    (refused,) = log(folder)
    assert (refused["event"], refused["model"], refused["kind"]) == ("refused", "m", "pickle")
    assert refused["reason"] == "weights are pickle."


async def test_a_manager_reports_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "CHILD", WEAK)
    approve(folder)
    manager = RuntimeManager(settings(folder))
    try:
        manager.register_model(config(folder))
        with pytest.raises(RemoteCodeRefused, match="not fully confined here"):
            await manager.load_model("m")
        assert [line["event"] for line in log(folder)] == ["loaded", "refused"]
    finally:
        manager.close()


async def test_what_the_operator_does_not_allow_is_in_the_log(folder: Path) -> None:
    manager = RuntimeManager(Settings(home=folder.parents[1] / "home", model_dirs=(folder.parent,), offline=True))
    try:
        manager.register_model(config(folder))
        with pytest.raises(RemoteCodeRefused) as refused:
            await manager.load_model("m")
        (line,) = log(folder)
        assert (line["event"], line["model"], line["kind"]) == ("refused", "m", "remote_code")
        assert (line["revision"], line["reason"]) == (str(folder), refused.value.message)
    finally:
        manager.close()


@pytest.mark.parametrize("unconfined", [False, True])
async def test_it_runs_where_it_may(folder: Path, monkeypatch: pytest.MonkeyPatch, unconfined: bool) -> None:
    if unconfined:
        monkeypatch.setattr(spares, "CHILD", WEAK)
    (folder / "load").unlink()
    sha256 = approve(folder)
    manager = RuntimeManager(settings(folder, allow_unconfined_code=unconfined))
    try:
        manager.register_model(config(folder))
        async with manager.lease("m") as runtime:
            assert runtime.confinement.level == ("partial" if unconfined else "full")
        (line,) = log(folder)
        assert (line["event"], line["model"], line["sha256"]) == ("loaded", "m", sha256)
        assert line["who"] == f"{getpass.getuser()} (process {os.getpid()})"
        assert line["time"]
    finally:
        manager.close()


def test_without_code_a_process_need_not_be_confined(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "CHILD", WEAK)
    (folder / "load").unlink()
    wanted = config(folder, trust_remote_code=False)
    runtime = make_runtime(wanted, scripted_plan(wanted, Actor.engine), settings(folder))
    runtime.start(LoadContext(settings=settings(folder))).result()
    try:
        assert runtime.confinement.level == "partial"
    finally:
        thread = runtime.stop()
        assert thread is not None
        thread.join()


# -- no way around the gate ----------------------------------------------------------------------------------------------


def test_a_load_without_a_manager_asks_too(folder: Path) -> None:
    assert "nobody has approved it yet" in refusal(folder).message
    approve(folder)
    assert "not fully confined here (none)" in refusal(folder, confine="off").message
    assert "not fully confined here (none)" in refusal(folder, isolation="inline").message
    assert [line["event"] for line in log(folder)] == ["refused"] * 3


async def test_inline_needs_the_operators_word(folder: Path) -> None:
    (folder / "load").unlink()
    approve(folder)
    for unconfined in (False, True):
        manager = RuntimeManager(settings(folder, isolation="inline", allow_unconfined_code=unconfined))
        try:
            manager.register_model(config(folder))
            if unconfined:
                async with manager.lease("m") as runtime:
                    assert runtime.isolation == "inline"
            else:
                with pytest.raises(RemoteCodeRefused, match="not fully confined here"):
                    await manager.load_model("m")
        finally:
            manager.close()
    assert [(line["event"], line["confinement"]) for line in log(folder)] == [("refused", "none"), ("loaded", "none")]


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Set the environment for a runtime that plans for itself."""

    def set_up(**options: Any) -> None:
        for name, value in {"home": tmp_path / "home", **OPEN, **options}.items():
            monkeypatch.setenv(f"{PREFIX}{name.upper()}", str(value))
        get_settings.cache_clear()

    return set_up


class Planner(Actor):
    """Makes its own plan from the files, as the public runtimes do."""

    @classmethod
    def _own_plan(cls, config: ModelConfig) -> Any:
        return None


@pytest.mark.parametrize("kind", ["remote_code", "pickle"])
def test_a_runtime_made_by_hand_asks_at_every_load(tmp_path: Path, by_hand: Any, kind: str) -> None:
    folder = tmp_path / "models" / "m"
    remote = kind == "remote_code"
    (write_code if remote else write_pickle)(folder)
    fault = RemoteCodeRefused if remote else PickleRefused
    runtime = Planner(config(folder, trust_remote_code=remote))
    by_hand()
    with pytest.raises(fault, match="not fully confined here"):
        runtime.start().result()
    by_hand(allow_unconfined_code=True)
    with pytest.raises(fault, match="nobody has approved it yet"):
        runtime.start().result()
    approvals_of(settings(folder)).approve("m", code_of(folder) if remote else pickle_of(folder), "ada")
    for _ in range(2):
        runtime.start().result()
        thread = runtime.stop()
        assert thread is not None
        thread.join()
    approvals_of(settings(folder)).revoke("m")
    with pytest.raises(fault, match="nobody has approved it yet"):
        runtime.start().result()
    assert [line["event"] for line in log(folder)] == ["refused", "refused", "loaded", "loaded", "refused"]


# -- the export of ONNX files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needs_full", [True, False])
def test_an_export_with_code_of_the_model_wants_all_of_it(monkeypatch: pytest.MonkeyPatch, needs_full: bool) -> None:
    held = Confinement("partial", missing=("no Landlock",))
    monkeypatch.setattr(export_worker, "confine", lambda policy: held)
    for policy, why in ((None, "none"), (Policy().to_json(), "partial; no Landlock")):
        failure = export_worker.confined({"policy": policy, "needs_full": needs_full})
        assert (why in failure.get("message", "")) == needs_full


@pytest.mark.parametrize(
    ("code", "clearance", "confine", "needs_full"),
    [
        (True, Clearance("m", "ada", needs_full=True), "auto", True),
        (True, Clearance("m", "ada", needs_full=True), "off", True),
        (True, Clearance("m", "ada", needs_full=False), "auto", False),
        (False, None, "auto", False),
        (False, None, "require", True),
    ],
)
def test_what_an_export_must_give_up(
    folder: Path, code: bool, clearance: Clearance | None, confine: str, needs_full: bool
) -> None:
    wanted = config(folder)
    context = LoadContext(settings=settings(folder, confine=confine), clearance=clearance)
    plan = scripted_plan(wanted, Actor.engine)
    work = folder.parent / "work"
    limits = export._limits({"trust_remote_code": code}, work, plan, context)
    assert limits["needs_full"] is needs_full
    if confine == "off":
        assert limits["policy"] is None
    else:
        policy = Policy.from_json(limits["policy"])  # type: ignore[arg-type]
        assert (policy.read, policy.write) == ((folder,), (work,))
        assert policy.memory


# -- what the scan did not see ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["process", "inline"])
@pytest.mark.parametrize("there", [True, False])
def test_an_engine_runs_what_passed_the_gate_and_not_what_the_configuration_asks_for(
    folder: Path, isolation: str, there: bool
) -> None:
    register_engine(knowing_engine.ROW)
    wanted = config(folder, runtime_type="knowing")
    if there:
        approve(folder)
    else:
        (folder / "config.json").write_text("{}")  # the scan finds no code
    chosen = settings(folder, isolation=isolation, allow_unconfined_code=True)
    runtime = make_runtime(wanted, scripted_plan(wanted, "knowing"), chosen)
    runtime.start(LoadContext(settings=chosen)).result()
    try:
        text = runtime.stream(GenerationConfig(prompt="a", raw=True)).wait().text
        assert text.strip() == ("remote_code" if there else "nothing")
    finally:
        thread = runtime.stop()
        assert thread is not None
        thread.join()
