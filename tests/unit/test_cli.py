"""The command line and the server's application, over a scripted engine."""

import builtins
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from huggingface_hub import constants
from starlette.websockets import WebSocketDisconnect
from typer.testing import CliRunner

from lfx_local_runtimes import cli, server
from lfx_local_runtimes.client import NoServer, ServerFault
from lfx_local_runtimes.errors import ModelNotFound, NotAllowed, NotDownloaded, SettingsFault
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.engines.registry import register_engine
from lfx_local_runtimes.runtimes.manager import RuntimeManager
from lfx_local_runtimes.runtimes.sources import packages
from lfx_local_runtimes.runtimes.sources.packages import AssembledModel
from lfx_local_runtimes.runtimes.tasks.generation import GenerationConfig, TextDelta
from lfx_local_runtimes.runtimes.testing import ScriptedRuntime, Step
from lfx_local_runtimes.settings import PREFIX, get_settings, load_settings
from tests.fake_hub import FakeHub, serve
from tests.hub_models import LLAMA, REPO, gguf, put_tensors
from tests.routes_app import write_model

MODEL = "parrot"
KEY = "let me in"
NATIVE = "/api/v1/runtime"
NOBODY: Any = None
"""A manager that is not asked."""

Invoke = Callable[..., Any]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model folder of the settings."""
    folder = tmp_path / "models"
    write_model(folder / MODEL)
    monkeypatch.setenv(f"{PREFIX}MODEL_DIRS", str(folder))
    monkeypatch.setenv(f"{PREFIX}OFFLINE", "true")
    monkeypatch.setenv(f"{PREFIX}ISOLATION", "inline")  # what the parrot is asked is seen here
    get_settings.cache_clear()
    return folder


class Parrot(ScriptedRuntime):
    """Repeats the last message, word for word; `asked` is everything it was asked."""

    engine = "parrot"
    asked: list[GenerationConfig] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, config: ModelConfig, plan: Any) -> None:
        super().__init__(config, plan, script=self._say)

    def _say(self, config: GenerationConfig) -> Iterator[Step]:
        self.asked.append(config)
        for word in config.turns[-1].content.split():
            if word == "wait":
                yield threading.Event()  # until it is cancelled
            if word == "break":
                yield RuntimeError("it broke")
            yield f"{word} "


@pytest.fixture
def registered(models: Path) -> str:
    Parrot.asked.clear()
    register_engine("parrot", lambda config, plan: Parrot(config, plan))  # inline: the tests look into it
    config = ModelConfig.model_validate(
        {"model_id": str(models / MODEL), "model_name": "polly", "runtime_type": "parrot"}
    )
    manager = RuntimeManager(load_settings())
    manager.register_model(config)
    manager.close()
    return "polly"


@pytest.fixture
def invoke() -> Invoke:
    def call(*arguments: str, **options: Any) -> Any:
        return CliRunner().invoke(cli.app, list(arguments), **options)

    return call


@pytest.fixture
def running(registered: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeManager]:
    """A server with a key, where the command line looks for one."""
    manager = RuntimeManager(load_settings())
    with TestClient(server.create_app(manager, KEY)) as client:

        def request(method: str, url: str, **options: Any) -> httpx.Response:
            assert url.startswith("http://127.0.0.1:11540/")
            options.pop("timeout")
            return client.request(method, url, **options)

        monkeypatch.setattr(httpx, "request", request)
        monkeypatch.setenv(f"{PREFIX}API_KEY", KEY)
        yield manager
    manager.close()


@pytest.fixture
def nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise httpx.ConnectError("Connection refused")

    monkeypatch.setattr(httpx, "request", refuse)


# -- models on this machine ----------------------------------------------------------------------------------------------


def test_models_without_a_server_are_those_of_this_machine(invoke: Invoke, registered: str, nobody_there: None) -> None:
    result = invoke("models")
    assert result.exit_code == 0
    header, *rows = [line.split() for line in result.stdout.splitlines()]
    assert header == ["NAME", "FORMAT", "SIZE", "STATE"]
    assert ["polly", "safetensors", "0", "MiB", "on", "disk"] in rows


def test_a_packages_model_shows_format_and_size_in_a_fresh_home(
    invoke: Invoke, models: Path, nobody_there: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    packaged = AssembledModel("packaged", "some_package", "p.gguf", 253_113_024, "demo")
    monkeypatch.setattr(packages, "KNOWN", (packaged,))
    with cli._manager(None) as manager:
        manager.register_model(ModelConfig(model_id="packaged", model_name="mine"))
        manager.register_model(ModelConfig(model_id="org/absent", model_name="absent"))
        assert (manager.model_status("mine").format, manager.model_status("mine").on_disk) == ("gguf", True)
    rows = [line.split() for line in invoke("models").stdout.splitlines()]
    assert ["packaged", "gguf", "241", "MiB", "on", "disk"] in rows
    assert ["mine", "gguf", "241", "MiB", "on", "disk"] in rows
    assert ["absent", "-", "-", "to", "fetch"] in rows


def test_a_broken_model_is_listed_and_explained(invoke: Invoke, models: Path, nobody_there: None) -> None:
    (models / "broken.gguf").write_bytes(b"GGUF")
    result = invoke("models")
    (row,) = [line.split() for line in result.stdout.splitlines() if line.startswith("broken")]
    assert row[-3:] == ["cannot", "be", "loaded"]
    assert result.stderr.startswith("broken: broken.gguf")


def test_models_of_a_folder(invoke: Invoke, tmp_path: Path) -> None:
    write_model(tmp_path / "others" / "stranger")
    result = invoke("models", "--model-dir", str(tmp_path / "others"))
    assert "stranger" in result.stdout


def test_pull_says_where_a_model_is_that_is_here(invoke: Invoke, registered: str, models: Path) -> None:
    result = invoke("pull", registered)
    assert (result.exit_code, result.stdout) == (0, f"polly is on this machine already: {models / MODEL}\n")


@pytest.fixture
def hub(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one model, where the settings look for one. A first use may not download, and nothing large."""
    monkeypatch.delenv(f"{PREFIX}OFFLINE")
    monkeypatch.setenv(f"{PREFIX}DOWNLOADS", "ask")
    monkeypatch.setenv(f"{PREFIX}MAX_DOWNLOAD_GB", "0.000001")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve(FakeHub({REPO: {"tiny-Q8_0.gguf": gguf()}})) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        yield running


def test_pull_says_what_it_takes_and_fetches(invoke: Invoke, hub: FakeHub, tmp_path: Path) -> None:
    result = invoke("pull", REPO)
    (path,) = tmp_path.rglob("snapshots/*/*.gguf")
    assert (result.exit_code, result.stdout) == (0, f"{REPO}: {path}\n")
    assert "To download: 0.00 GB. Free on the disk: " in result.stderr
    assert "In memory: about " in result.stderr
    assert "on cpu, in llama_cpp." in result.stderr
    assert "is on this machine already" in invoke("pull", REPO).stdout


def test_a_pull_that_fails_says_why(invoke: Invoke, hub: FakeHub) -> None:
    put_tensors(hub, LLAMA | {"model_type": "martian"})
    assert "martian" in str(invoke("pull", REPO).exception)
    assert isinstance(invoke("pull", "acme/nobody").exception, ModelNotFound)


def test_run_does_not_download_where_a_first_use_may_not(invoke: Invoke, hub: FakeHub) -> None:
    fault = invoke("run", REPO, "hello").exception
    assert isinstance(fault, NotDownloaded)
    assert f"lfx-local-runtimes pull {REPO}" in fault.hint


def test_ctrl_c_stops_a_pull_and_the_same_command_goes_on(
    sigint: None, invoke: Invoke, hub: FakeHub, tmp_path: Path
) -> None:
    hub.hold = threading.Event()

    def press() -> None:
        hub.half_sent.wait(30)
        waited = threading.Event()
        while not any(part.stat().st_size for part in tmp_path.rglob("*.incomplete")):
            waited.wait(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=press)
    helper.start()
    result = invoke("pull", REPO)
    helper.join()
    assert result.exit_code == cli.INTERRUPTED
    assert "same command again" in result.stderr
    hub.hold.set()
    hub.hold = None
    (part,) = tmp_path.rglob("*.incomplete")
    assert part.stat().st_size > 0
    assert invoke("pull", REPO).exit_code == 0
    assert hub.downloads("tiny-Q8_0.gguf")[-1] != "bytes=0-"


def test_rm_without_a_server_changes_this_machine(
    invoke: Invoke, registered: str, nobody_there: None, models: Path
) -> None:
    assert invoke("rm", registered).stdout == "polly is removed. Its files stay.\n"
    assert (models / MODEL).is_dir()
    assert isinstance(invoke("rm", registered).exception, ModelNotFound)
    kept = invoke("rm", "--files", MODEL).exception  # the folder is the user's own, not the data folder's
    assert isinstance(kept, NotAllowed)


def test_rm_leaves_to_the_server_what_the_server_has_begun(
    invoke: Invoke, registered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_in_vain(*arguments: Any, **options: Any) -> None:
        raise httpx.ReadTimeout("timed out")

    monkeypatch.setattr(httpx, "request", wait_in_vain)
    fault = invoke("rm", registered).exception
    assert isinstance(fault, ServerFault)
    assert not isinstance(fault, NoServer)
    with cli._manager(None) as manager:
        assert registered in manager.catalog.registered()


def test_rm_frees_the_disk(invoke: Invoke, models: Path, nobody_there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}HOME", str(models.parent))
    assert invoke("rm", "--files", MODEL).stdout == f"{MODEL} is removed. 0 MiB are free again.\n"
    assert list(models.iterdir()) == []


def test_rm_asks_the_server(invoke: Invoke, running: RuntimeManager) -> None:
    deltas = running.stream("polly", GenerationConfig(prompt="one wait two")).deltas()
    assert next(deltas).text == "one "
    busy = invoke("rm", "polly").exception
    assert isinstance(busy, ServerFault)
    assert "force" in str(busy)
    assert invoke("rm", "polly", "--force").stdout == "polly is removed. Its files stay.\n"
    assert list(deltas) == []
    assert running.loaded_models() == []
    assert "polly" not in running.catalog.registered()


# -- talking -------------------------------------------------------------------------------------------------------------


def test_run_prints_the_answer(invoke: Invoke, registered: str) -> None:
    result = invoke(
        "run", registered, "one two", "--system", "be brief", "--temperature", "0", "--max-tokens", "9", "--seed", "3"
    )
    assert (result.exit_code, result.stdout) == (0, "one two \n")
    (asked,) = Parrot.asked
    assert [turn.role for turn in asked.turns] == ["system", "user"]
    assert (asked.temperature, asked.max_tokens, asked.seed) == (0, 9, 3)


def test_run_takes_what_is_piped_in(invoke: Invoke, registered: str) -> None:
    assert invoke("run", registered, input="from a pipe").stdout == "from a pipe \n"


@pytest.fixture
def sigint() -> Iterator[None]:
    """Python reacts to Ctrl-C. It does not if a shell has started it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def ctrl_c(sigint: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who presses Ctrl-C when they read "one"."""
    show = cli.Chat._show

    def show_and_press(self: cli.Chat, delta: TextDelta) -> None:
        show(self, delta)
        if delta.text == "one ":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli.Chat, "_show", show_and_press)


def test_ctrl_c_stops_the_answer(invoke: Invoke, registered: str, ctrl_c: None) -> None:
    result = invoke("run", registered, "one wait two")
    assert (result.exit_code, result.stdout) == (cli.INTERRUPTED, "one \n")


def test_a_chat_goes_on_after_ctrl_c_and_after_a_failure(
    registered: str, ctrl_c: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["hello there", "", "one wait two", "do break it", KeyboardInterrupt, "goodbye", EOFError])

    def read(prompt: str = "") -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", read)
    with cli._manager(None) as manager:
        cli._converse(cli.Chat(manager, registered, None, {}))
    out, err = capsys.readouterr()
    assert out.splitlines()[:3] == ["hello there ", "one ", "do goodbye "]
    assert "it broke" in err
    history = [turn.content for turn in Parrot.asked[-1].turns]
    assert history == ["hello there", "hello there ", "one wait two", "one ", "goodbye"]


def test_an_unknown_model_is_one_line_and_status_1(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lfx-local-runtimes", "run", "nobody", "hi"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: There is no model called nobody.")
    assert error.count("\n") == 1


# -- a running server ----------------------------------------------------------------------------------------------------


def test_ps_and_stop(invoke: Invoke, running: RuntimeManager) -> None:
    assert running.stream("polly", GenerationConfig(prompt="hi")).wait().text == "hi "
    header, row = [line.split() for line in invoke("ps").stdout.splitlines()]
    assert header == ["NAME", "ENGINE", "DEVICE", "MEMORY", "STATE", "USE", "PID", "UPTIME", "RESTARTS", "CONFINED"]
    assert row[:7] == ["polly", "parrot", "cpu", "1", "MiB", "ready", "idle"]
    assert row[8] == "inline"
    assert row[10:] == ["0", "none"]
    assert ["polly", "safetensors", "0", "MiB", "ready"] in [
        line.split() for line in invoke("models").stdout.splitlines()
    ]

    assert invoke("stop", "polly").stdout == "polly is out of memory.\n"
    assert running.loaded_models() == []
    assert invoke("stop", "--all").stdout == "Unloading: nothing is loaded\n"


def test_stop_spares_what_is_in_use_unless_forced(invoke: Invoke, running: RuntimeManager) -> None:
    stream = running.stream("polly", GenerationConfig(prompt="one wait two"))
    deltas = stream.deltas()
    assert next(deltas).text == "one "

    busy = invoke("stop", "polly").exception
    assert isinstance(busy, ServerFault)
    spared = invoke("stop", "--all")
    assert spared.exit_code == 1
    assert "polly" in spared.stderr

    assert invoke("stop", "polly", "--force").stdout == "polly is out of memory.\n"
    assert [delta.text for delta in deltas] == []
    assert stream.result is not None
    assert stream.result.finish_reason == "cancelled"


@pytest.mark.parametrize("arguments", [(), ("polly", "--all")])
def test_stop_wants_one_of_name_and_all(invoke: Invoke, arguments: tuple[str, ...]) -> None:
    result = invoke("stop", *arguments)
    assert result.exit_code == 2
    assert "--all" in result.stderr


def test_a_servers_refusal_is_told(invoke: Invoke, running: RuntimeManager) -> None:
    unknown = invoke("stop", "nobody").exception
    assert isinstance(unknown, ServerFault)
    assert "There is no model called nobody." in str(unknown)
    wrong_key = invoke("ps", "--api-key", "guess").exception
    assert isinstance(wrong_key, ServerFault)
    assert "401" in str(wrong_key)


def test_ps_without_a_server_is_no_error(invoke: Invoke, nobody_there: None) -> None:
    result = invoke("ps")
    assert result.exit_code == 0
    assert result.stdout.startswith("No server runs here, so no model is in memory.")
    assert "lfx-local-runtimes serve" in result.stdout
    assert "--url" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [("ps", "--url", "http://elsewhere:1"), ("stop", "--all"), ("models", "--url", "http://elsewhere:1")],
)
def test_without_a_server_that_is_said(invoke: Invoke, nobody_there: None, arguments: tuple[str, ...]) -> None:
    fault = invoke(*arguments).exception
    assert isinstance(fault, NoServer)
    assert str(fault).startswith("No server answers at http://")
    assert "lfx-local-runtimes serve" in str(fault)


# -- the application -----------------------------------------------------------------------------------------------------


def get(client: TestClient, path: str, **headers: str) -> int:
    return client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()}).status_code


def test_a_key_is_asked_for_in_either_form(running: RuntimeManager) -> None:
    client = TestClient(server.create_app(running, KEY))
    for path in (f"{NATIVE}/models", "/v1/models", f"{NATIVE}/v1/models"):
        assert get(client, path) == 401
        assert get(client, path, x_api_key="guess") == 401
        assert get(client, path, authorization=f"Basic {KEY}") == 401
        assert get(client, path, x_api_key=KEY) == 200
        assert get(client, path, authorization=f"Bearer {KEY}") == 200
    assert client.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/docs").status_code == 200


def test_a_socket_asks_for_the_key_too(running: RuntimeManager) -> None:
    client = TestClient(server.create_app(running, KEY))
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect(f"{NATIVE}/generate/ws") as socket:
        socket.receive_json()
    assert refused.value.code == 1008
    with client.websocket_connect(f"{NATIVE}/generate/ws", headers={"authorization": f"Bearer {KEY}"}) as socket:
        socket.send_text(json.dumps({"model_name": "polly", "prompt": "hi"}))
        while (message := socket.receive_json())["event"] != "done":
            pass
        assert message["text"] == "hi "


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:11540", None, 200), ("localhost", "http://localhost:3000", 200), ("[::1]:11540", None, 200),
        ("evil.example", None, 403),  # a name that its owner points at this machine
        ("localhost", "https://evil.example", 403), ("localhost", "null", 403), ("192.168.1.2", None, 403),
    ],
)  # fmt: skip
def test_without_a_key_only_this_machine_is_served(
    running: RuntimeManager, host: str, origin: str | None, status: int
) -> None:
    client = TestClient(server.create_app(running))
    headers = {"host": host} | ({"origin": origin} if origin else {})
    assert get(client, f"{NATIVE}/models", **headers) == status
    assert get(client, "/v1/models", **headers) == status


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "example.org", "::"])
def test_a_server_that_others_can_reach_needs_a_key(host: str) -> None:
    assert not server.is_loopback(host)
    with pytest.raises(SettingsFault, match="LOCAL_RUNTIMES_API_KEY"):
        server.make_server(NOBODY, host, 1, None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_none(host: str) -> None:
    assert server.is_loopback(host)


@pytest.mark.parametrize(("host", "key"), [("127.0.0.1", None), ("0.0.0.0", KEY)])
def test_a_server_listens_where_it_is_told(host: str, key: str | None) -> None:
    config = server.make_server(NOBODY, host, 1, key).config
    assert (config.host, config.port) == (host, 1)


class Stopped(Exception):
    """Instead of serving."""


@pytest.mark.parametrize(
    ("arguments", "variables", "where"),
    [
        ((), {}, ("127.0.0.1", 11540, None)),
        ((), {"UNIVERSAL_RUNTIME_HOST": "::1", "UNIVERSAL_RUNTIME_PORT": "9000"}, ("::1", 9000, None)),
        ((), {"LOCAL_RUNTIMES_PORT": "8000", "UNIVERSAL_RUNTIME_PORT": "9000"}, ("127.0.0.1", 8000, None)),
        (("--port", "7000", "--device", "cpu"), {"UNIVERSAL_RUNTIME_PORT": "9000"}, ("127.0.0.1", 7000, "cpu")),
    ],
)
def test_where_and_on_what_serve_runs(
    invoke: Invoke, models: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...],
    variables: dict[str, str], where: tuple[str, int, str | None],
) -> None:  # fmt: skip
    seen: list[tuple[str, int, str | None]] = []

    def make(manager: RuntimeManager, host: str, port: int, key: str | None, **options: object) -> None:
        seen.append((host, port, manager.settings.force_device))
        raise Stopped

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(server, "make_server", make)
    assert isinstance(invoke("serve", *arguments).exception, Stopped)
    assert seen == [where]


def test_a_device_that_does_not_exist_is_refused(invoke: Invoke, models: Path) -> None:
    fault = invoke("serve", "--device", "tpu").exception
    assert isinstance(fault, SettingsFault)
    assert "FORCE_DEVICE" in str(fault)


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:9000/"), ("0.0.0.0", "http://127.0.0.1:9000/"), ("::", "http://[::1]:9000/")]
)  # fmt: skip
def test_other_commands_ask_the_server_that_serve_starts(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, host: str, url: str
) -> None:
    asked: list[str] = []

    def request(method: str, url: str, **options: Any) -> httpx.Response:
        asked.append(url)
        raise httpx.ConnectError("Connection refused")

    monkeypatch.setattr(httpx, "request", request)
    monkeypatch.setenv("UNIVERSAL_RUNTIME_HOST", host)
    monkeypatch.setenv("UNIVERSAL_RUNTIME_PORT", "9000")
    assert isinstance(invoke("stop", "polly").exception, NoServer)
    assert asked[0].startswith(url)


def test_serve_refuses_before_it_listens(invoke: Invoke, models: Path) -> None:
    assert isinstance(invoke("serve", "--host", "0.0.0.0").exception, SettingsFault)


def test_an_unknown_name_is_not_fetched_where_the_network_is_off(invoke: Invoke, models: Path) -> None:
    assert isinstance(invoke("pull", "nobody").exception, ModelNotFound)
