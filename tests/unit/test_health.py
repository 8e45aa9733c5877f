"""When the runtime is healthy, and what it says if it is not."""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from lfx_local_runtimes.errors import SettingsFault
from lfx_local_runtimes.routes import PREFIX, build_router, register
from lfx_local_runtimes.runtimes import health
from lfx_local_runtimes.runtimes.config import DeviceType
from lfx_local_runtimes.runtimes.devices import Device, Memory
from lfx_local_runtimes.runtimes.health import Facts, assess, check_machine, free_disk
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.settings import Settings, get_settings

CARD = Device(DeviceType.CUDA, 0, "card")
HOME = Path("/data")


class Machine:
    def __init__(self, *accelerators: Device) -> None:
        self.there = list(accelerators)

    def accelerators(self) -> list[Device]:
        return self.there

    def memory(self, device: Device) -> Memory:
        return Memory(2**34, 2**34)

    def cpu_has_bf16(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        (Facts(2**40, HOME), "healthy", None),
        (Facts(2**29, HOME), "degraded", "nearly full: 512 MiB are free in /data"),
        (Facts(2**20, HOME), "unhealthy", "The disk is full: 1 MiB"),
        (Facts(2**40, HOME, lost=["cuda:0"]), "degraded", "cuda:0 is lost: models run on other devices"),
        (Facts(2**40, HOME, lost=["cuda:0"], needed="cuda"), "unhealthy", "FORCE_DEVICE names it"),
        (Facts(2**40, HOME, resting=["gemma"]), "degraded", "gemma died repeatedly"),
    ],
)
def test_the_state_has_reasons(facts: Facts, state: str, words: str | None) -> None:
    found, reasons = assess(facts)
    assert found == state
    assert words is None if not reasons else words is not None and words in reasons[0]


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") > 0


@pytest.fixture
def machine() -> Machine:
    return Machine(CARD)


@pytest.fixture
def client(machine: Machine, tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(home=tmp_path, force_device="cuda", offline=True, spare_processes=0)
    manager = RuntimeManager(settings, probe=machine)
    app = FastAPI()
    app.include_router(build_router(lambda: manager, lambda: None, lambda: None))
    with TestClient(app, base_url=f"http://test{PREFIX}") as client:
        yield client
    manager.close()


def test_an_orchestrator_gets_503_when_a_device_is_lost(
    client: TestClient, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "free_disk", lambda folder: 2**40)
    response = client.get("health", params={"ready": True})
    assert (response.status_code, response.json()["status"], response.json()["reasons"]) == (200, "healthy", [])
    assert response.json()["device_info"]["gpu_name"] == "card"
    machine.there.clear()
    for asked, status in ((True, 503), (False, 200)):
        response = client.get("health", params={"ready": asked})
        assert (response.status_code, response.json()["status"]) == (status, "unhealthy")
        assert "cuda:0 is lost" in response.json()["reasons"][0]


# -- settings that cannot be -----------------------------------------------------------------------------------------


def test_a_forced_device_that_is_not_there_is_a_settings_fault() -> None:
    with pytest.raises(SettingsFault, match=r"FORCE_DEVICE asks for cuda.*It has: cpu\. Correct FORCE_DEVICE"):
        check_machine(Settings(force_device="cuda"), Machine())


def test_every_route_says_what_is_wrong_with_the_settings() -> None:
    def getter() -> RuntimeManager:
        raise SettingsFault("FORCE_DEVICE asks for cuda.", hint="Unset it.")

    app = FastAPI()
    app.include_router(build_router(getter, lambda: None, lambda: None))
    with TestClient(app, base_url=f"http://test{PREFIX}") as client:
        for path in ("health", "models", "stats"):
            response = client.get(path)
            assert response.status_code == 500
            assert response.json()["error"]["code"] == "settings_fault"
            assert response.json()["error"]["hint"] == "Unset it."
        assert client.get("v1/models").json()["error"]["message"] == "FORCE_DEVICE asks for cuda. Unset it."
        with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect(f"{PREFIX}/generate/ws"):
            pass
        assert "FORCE_DEVICE" in caught.value.reason


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def info(self, line: str) -> None:
        self.lines.append(("info", line))

    def error(self, line: str) -> None:
        self.lines.append(("error", line))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    log = Log()
    monkeypatch.setattr(import_module("lfx.log.logger"), "logger", log)
    get_settings.cache_clear()
    yield log
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FORCE_DEVICE", "mps", "FORCE_DEVICE asks for mps"),
        ("MEMORY_BUDGET_GB", "-1", "MEMORY_BUDGET_GB"),
        ("RULES_FILE", "rules.json", "rules.json is not valid"),
    ],
)
def test_langflows_log_says_at_the_start_what_is_wrong(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.json").write_text(json.dumps({"rules": [{"format": "gguf"}]}))
    monkeypatch.setenv(f"LOCAL_RUNTIMES_{name}", value)
    app = FastAPI()
    register(app)
    ((level, line),) = log.lines
    assert level == "error"
    assert words in line
    assert len(app.openapi()["paths"]) > 10


def test_langflows_log_names_the_device(log: Log) -> None:
    register(FastAPI())
    ((level, line),) = log.lines
    assert level == "info"
    assert line.startswith("Local models run on cpu (")
