"""The manager's door: names, variants, status, requests, and a process that ends by itself."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lfx_local_runtimes.errors import (
    EngineFailure,
    InvalidInput,
    ModelBusy,
    ModelConflict,
    ModelNotFound,
    PathNotAllowed,
    RequestNotFound,
    RuntimeFault,
    SettingsFault,
)
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, RuntimeManager, ScriptedRuntime
from lfx_local_runtimes.runtimes import manager as manager_module
from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.config import LoadOptions, ModelKey
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.requests import Progress, RequestState
from lfx_local_runtimes.settings import Settings, get_settings
from tests.routes_app import write_model
from tests.scripted_manager import Theatre, theatre

PATIENCE = 20.0


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    with theatre(tmp_path, monkeypatch) as stage:
        yield stage


def ask(**options: object) -> GenerationConfig:
    return GenerationConfig.model_validate({"prompt": "hello", **options})


async def test_the_documented_life(stage: Theatre) -> None:
    manager = stage.manager
    assert await manager.load_model("parrot") is True
    assert await manager.load_model("parrot") is True, "it is ready already"
    result = await manager.generate("parrot", ask())
    assert (result.text, result.tokens_generated, result.metadata["device"]) == ("Hello", 2, "cpu")
    assert [text async for text in manager.generate_streaming("parrot", ask())] == ["Hel", "lo"]
    assert await manager.unload_model("parrot") is True
    assert await manager.unload_model("parrot") is False


async def test_registering_loads_nothing_and_the_first_request_does(stage: Theatre) -> None:
    assert stage.manager.model_status("parrot").state == "registered"
    assert not stage.runtimes
    await stage.manager.generate("parrot", ask())
    assert stage.manager.model_status("parrot").state == "ready"


async def test_an_engine_loads_by_the_managers_own_settings(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by those of the environment, which are another manager's."""
    seen: list[Settings] = []
    load = ScriptedRuntime._load

    def note(runtime: ScriptedRuntime, plan: LoadPlan, context: LoadContext) -> None:
        seen.append(context.settings)
        load(runtime, plan, context)

    monkeypatch.setattr(ScriptedRuntime, "_load", note)
    await stage.manager.load_model("parrot")
    assert seen == [stage.manager.settings]
    assert seen[0].home != get_settings().home


async def test_many_event_loops_and_threads_at_once(stage: Theatre) -> None:
    def in_a_loop_of_its_own() -> str:
        return asyncio.run(stage.manager.generate("parrot", ask())).text

    def in_a_thread() -> str:
        return stage.manager.stream("parrot", ask()).wait().text

    texts = await asyncio.gather(
        *(asyncio.to_thread(in_a_loop_of_its_own) for _ in range(5)),
        *(asyncio.to_thread(in_a_thread) for _ in range(5)),
        *(stage.manager.stream("parrot", ask()).wait_async() for _ in range(5)),
    )
    assert [getattr(text, "text", text) for text in texts] == ["Hello"] * 15


def test_a_name_is_registered_once(stage: Theatre, tmp_path: Path) -> None:
    write_model(tmp_path / "models" / "third")
    config = ModelConfig(model_id=str(tmp_path / "models" / "third"), model_name="third")
    assert stage.manager.register_model(config) is True
    assert stage.manager.register_model(config) is False
    with pytest.raises(ModelConflict, match="third"):
        stage.manager.register_model(config.model_copy(update={"context_length": 64}))
    stage.manager.unregister_model("third")
    with pytest.raises(ModelNotFound):
        stage.manager.unregister_model("third")


def test_registrations_survive_a_restart(stage: Theatre) -> None:
    again = RuntimeManager(stage.manager.settings)
    assert {"parrot", "owl"} <= {row.model_name for row in again.list_models()}
    assert again.model_status("parrot").source == "registered"
    again.close()


def test_outsiders_reach_the_model_folders_only(stage: Theatre, tmp_path: Path) -> None:
    write_model(tmp_path / "elsewhere")
    outside = ModelConfig(model_id=str(tmp_path / "elsewhere"), model_name="outside")
    with pytest.raises(PathNotAllowed):
        stage.manager.register_model(outside, restrict_paths=True)
    assert stage.manager.register_model(outside) is True, "the program itself may"


async def test_a_loaded_model_keeps_its_registration(stage: Theatre) -> None:
    await stage.manager.load_model("parrot")
    with pytest.raises(ModelBusy):
        stage.manager.unregister_model("parrot")


def test_a_key_asks_for_another_copy(stage: Theatre) -> None:
    manager = stage.manager

    def answer(**options: Any) -> str:
        result = manager.stream(ModelKey("parrot", LoadOptions(**options)), ask()).wait()
        return result.model_name

    assert answer() == "parrot"
    answer(runtime_type="scripted")
    assert manager.loaded_models() == ["parrot"], "options that change nothing make no copy"
    assert answer(context_length=32) == "parrot (context 32)"
    assert answer(context_length=32) == "parrot (context 32)"
    assert manager.loaded_models() == ["parrot", "parrot (context 32)"]
    assert manager.model_status("parrot (context 32)").source == "variant"
    manager.unregister_model("owl")
    manager.register_model(stage.config("owl", context_length=64))
    manager.stream(ModelKey("owl", LoadOptions(context_length=32)), ask()).wait()
    assert "owl" in manager.loaded_models(), "no second copy for a shorter context"
    with pytest.raises(ModelNotFound):
        manager.stream(ModelKey("dodo", LoadOptions(context_length=32)), ask()).wait()
    with pytest.raises(ValidationError, match="context_length"):
        LoadOptions(context_length=-1)
    with pytest.raises(ValidationError, match="no engine"):
        manager.stream(ModelKey("owl", LoadOptions(runtime_type="steam")), ask()).wait()


async def test_a_copy_is_unloaded_by_the_name_that_lists_show(stage: Theatre) -> None:
    key = ModelKey("parrot", LoadOptions(context_length=32))
    assert await stage.manager.load_model(key) is True
    assert await stage.manager.unload_model("parrot (context 32)") is True
    assert await stage.manager.unload_model(key) is False


async def test_an_unknown_model_is_named(stage: Theatre) -> None:
    for call in (
        stage.manager.generate("parot", ask()),
        stage.manager.load_model("parot"),
        stage.manager.unload_model("parot"),
    ):
        with pytest.raises(ModelNotFound, match="parot"):
            await call


async def test_cancel_by_id(stage: Theatre) -> None:
    begun = stage.endless()
    stream = stage.manager.stream("parrot", ask(), request_id="mine")
    with pytest.raises(InvalidInput, match="mine is running already"):
        stage.manager.stream("parrot", ask(), request_id="mine")
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    assert stage.manager.cancel("mine") is RequestState.RUNNING
    assert (await stream.wait_async()).finish_reason == "cancelled"
    with pytest.raises(RequestNotFound):
        stage.manager.cancel("mine")


async def test_a_cancelled_task_and_a_stream_left_early_end_the_computation(stage: Theatre) -> None:
    begun = stage.endless()
    task = asyncio.create_task(stage.manager.generate("parrot", ask()))
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(stage.wait_until_idle)
    stage.endless()
    async for _ in stage.manager.generate_streaming("parrot", ask()):
        break
    await asyncio.to_thread(stage.wait_until_idle)


async def test_a_lease_holds_the_model_and_comes_back(stage: Theatre) -> None:
    async with stage.manager.lease("parrot") as runtime:
        assert isinstance(runtime, ScriptedRuntime)
        assert stage.manager.model_status("parrot").leases == 1
        with pytest.raises(ModelBusy):
            await stage.manager.unload_model("parrot")
    assert stage.manager.model_status("parrot").leases == 0


async def test_an_engine_that_breaks_mid_stream_hurts_one_request(stage: Theatre) -> None:
    stage.script = lambda config: ("Hel", EngineFailure("out of ink"))
    answer = stage.manager.generate_streaming("parrot", ask())
    assert await anext(answer) == "Hel"
    with pytest.raises(EngineFailure, match="out of ink"):
        await anext(answer)
    stage.script = lambda config: ("fine",)
    assert (await stage.manager.generate("parrot", ask())).text == "fine"


async def test_progress_is_told(stage: Theatre) -> None:
    seen: list[Progress] = []
    await stage.manager.stream("parrot", ask(), progress=seen.append).wait_async()
    assert any(progress.phase == "load" for progress in seen)


async def test_progress_of_a_load_is_told_on_the_callers_loop(stage: Theatre) -> None:
    seen: list[tuple[str, threading.Thread]] = []
    await stage.manager.load_model("parrot", lambda progress: seen.append((progress.phase, threading.current_thread())))
    assert ("load", threading.current_thread()) in seen


async def test_pinned_models_stay(stage: Theatre) -> None:
    stage.manager.pin("parrot")
    await stage.manager.generate("parrot", ask(keep_alive=0))
    await stage.manager.generate("owl", ask())
    assert stage.manager.model_status("parrot").state == "ready"
    stage.manager.pin("parrot", False)
    gone = stage.manager._residency.wait_for(
        lambda slots: slots[ModelKey("parrot")].state.value == "registered", PATIENCE
    )
    assert gone, "its idle time had passed"


async def test_unload_all_spares_what_is_in_use(stage: Theatre) -> None:
    await stage.manager.load_model("owl")
    async with stage.manager.lease("parrot"):
        assert await stage.manager.unload_all() == ["owl"]
    assert await stage.manager.unload_all() == ["parrot"]


async def test_a_list_says_before_a_load_what_it_says_after_it(stage: Theatre) -> None:
    def facts() -> dict[str, Any]:
        names = {"engine", "quantization", "context_length", "memory_estimate_mb"}
        return stage.manager.model_status("parrot").model_dump(include=names)

    before = facts()
    assert stage.manager.model_status("parrot").device is None
    await stage.manager.load_model("parrot")
    assert facts() == before


async def test_a_result_says_how_its_model_was_loaded(stage: Theatre) -> None:
    told = (await stage.manager.generate("parrot", ask())).metadata["acceleration"]
    assert (told["engine"], told["device"]) == ("scripted", "cpu")
    assert told["why"].startswith("scripted is the configured engine; cpu: this machine has no accelerator; ")
    profile = stage.manager.model_status("parrot").acceleration
    assert profile is not None
    assert profile.model_dump(include={"engine", "device", "dtype", "why"}) == told


async def test_what_health_and_stats_tell(stage: Theatre) -> None:
    await stage.manager.generate("parrot", ask())
    health, stats = stage.manager.health(), stage.manager.stats()
    assert (health["status"], health["loaded_models"], health["device"]) == ("healthy", 1, "cpu")
    assert health["models"]["parrot"]["status"] == "ready"
    assert stats["counters"] == {"loads": 1, "requests_finished": 1, "deaths": 0}
    assert stats["running_requests"] == 0


def test_a_hub_id_is_known_once_it_is_here(stage: Theatre) -> None:
    with pytest.raises(ModelNotFound, match="fetch it from the hub"):
        stage.manager.model_status("org/never-fetched")


def test_validate_tells_what_is_wrong(stage: Theatre) -> None:
    assert stage.manager.validate_model("parrot").valid
    weights = next(stage.models.joinpath("parrot").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-10])
    assert not stage.manager.validate_model("parrot").valid


async def test_one_thread_checks_the_files_of_all_loads(stage: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library keeps what a check took for the thread that took it."""
    threads: list[threading.Thread] = []
    check = manager_module.read_model

    def note(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return check(*arguments, **options)

    monkeypatch.setattr(manager_module, "read_model", note)
    for _ in range(3):
        await stage.manager.load_model("parrot")
        await stage.manager.unload_model("parrot")
    assert len(threads) == 3
    assert len(set(threads)) == 1
    stage.manager.close()
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()


def test_a_forced_device_that_is_not_there_fails_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsFault, match="FORCE_DEVICE"):
        RuntimeManager(Settings(home=tmp_path, force_device="mps"))


async def test_closed_is_closed(stage: Theatre) -> None:
    begun = stage.endless()
    stream = stage.manager.stream("parrot", ask())
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    stage.manager.close()
    assert (await stream.wait_async()).finish_reason == "cancelled"
    with pytest.raises(RuntimeFault, match="closed"):
        await stage.manager.generate("parrot", ask())
    assert "model parrot" not in [thread.name for thread in threading.enumerate()]


def test_a_process_that_computes_ends_when_its_main_thread_does(tmp_path: Path) -> None:
    program = f"""
import threading
from pathlib import Path
from lfx_local_runtimes.runtimes import *
from lfx_local_runtimes.settings import Settings
from tests.routes_app import write_model
write_model(Path({str(tmp_path)!r}) / "models" / "m")
begun, never = threading.Event(), threading.Event()
def script(config):
    yield "one"
    begun.set()
    yield never
register_engine("scripted", lambda config, plan: ScriptedRuntime(config, plan, script=script))
manager = RuntimeManager(Settings(home={str(tmp_path)!r}, offline=True))
manager.register_model(ModelConfig(model_id={str(tmp_path / "models" / "m")!r}, model_name="m", runtime_type="scripted"))
stream = manager.stream("m", GenerationConfig(prompt="x"))
assert begun.wait(20)
print("leaving", flush=True)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, timeout=60, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")
