"""Attacks from inside a model's process: from its code, from a pickle, by false frames, from broken GGUF files.

Each fails, and harms no one: meanwhile another model answers in its own process, and afterwards no process, no thread and
no file is left. The same attacks succeed in a process that is free.
"""

import contextlib
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lfx_local_runtimes.errors import EngineDied, LoadFailed, RemoteCodeRefused, RuntimeFault
from lfx_local_runtimes.runtimes import GenerationConfig, ModelConfig, RuntimeManager
from lfx_local_runtimes.runtimes.chat import template_sandbox
from lfx_local_runtimes.runtimes.engines.onnx import export
from lfx_local_runtimes.runtimes.formats import inspect as inspection
from lfx_local_runtimes.runtimes.processes.endings import MAX_LINES
from lfx_local_runtimes.runtimes.processes.frames import Frame, encode
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk
from lfx_local_runtimes.runtimes.trust.review import Reviewer
from lfx_local_runtimes.settings import Settings
from tests import attack_code, gguf_mutants, isolated_engines
from tests.attack_code import ATTACKS, Given, given_for
from tests.builders import encode_gguf, write_gguf
from tests.encoder_models import save_encoder
from tests.trusted_models import Calls

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux confines"),
]

SECRET = "the user's secret"
END_S = 20.0
"""For processes and threads to end."""

MODELING = """
import json, os, time
from pathlib import Path
from transformers import LlamaForCausalLM
from .attack_code import attacks

given = json.loads({given!r})
given["scratch"] = os.environ["HOME"]


class Attacker(LlamaForCausalLM):
    def __init__(self, *arguments, **options):
        {attack}
        super().__init__(*arguments, **options)
"""
REPORT = '(Path(os.environ["HOME"]) / "report.json").write_text(json.dumps(attacks(given)))'
FILL_DISK = """for number in range(10):
            with open(Path(os.environ["HOME"]) / str(number), "wb") as file:
                os.posix_fallocate(file.fileno(), 0, 60 * 2**20)
        time.sleep(600)"""
FALSE_FRAME = """for handle in range(3, 20):
            try:
                os.write(handle, b"this is no frame" * 100)
            except OSError:
                pass
        time.sleep(600)"""


class Room:
    """A user's folder with a secret, somebody who listens, a process to attack, and a manager with a model to disturb."""

    def __init__(self, folder: Path) -> None:
        self.others = {one.pid for one in psutil.Process().children(recursive=True)}
        """Of fixtures that other tests share."""
        self.folder, self.user, self.models = folder, folder / "user", folder / "models"
        for made in (self.user, self.models, folder / "tmp"):
            made.mkdir()
        (self.user / "secret").write_text(SECRET)
        (self.user / "deletable").write_text("content")
        self.loopback, self.unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
        self.unix.bind(str(folder / "s"))
        self.unix.listen()
        self.victim = subprocess.Popen(
            [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        )
        settings = Settings(
            home=folder / "home", model_dirs=(self.models,), offline=True, trust_remote_code=True, allow_pickle=True,
            spare_processes=1,
        )  # fmt: skip
        self.manager = RuntimeManager(settings)
        path = write_gguf(self.models / "bystander.gguf", context=4096)
        self.register("bystander", path, "llama_cpp")

    def register(self, name: str, path: Path, engine: str, **options: Any) -> None:
        config = ModelConfig(
            model_id=str(path), model_name=name, runtime_type=engine, device_type="cpu", threads=1, **options
        )
        self.manager.register_model(config)

    def given(self, scratch: Path, model: Path, *, free: bool = False) -> Given:
        port, path = self.loopback.getsockname()[1], str(self.folder / "s")
        return given_for(self.user, scratch, model, self.victim.pid, port, path, free=free)

    def with_code(self, name: str, source: Path, attack: str) -> Path:
        """A Llama whose code attacks when the model is made. It is registered, not approved."""
        folder = shutil.copytree(source, self.models / name)
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModelForCausalLM": "modeling.Attacker"}
        (folder / "config.json").write_text(json.dumps(config))
        given = json.dumps(self.given(self.folder, folder / "model.safetensors"))
        (folder / "modeling.py").write_text(MODELING.format(given=given, attack=attack))
        shutil.copy(attack_code.__file__, folder)
        self.register(name, folder, "transformers", trust_remote_code=True)
        return folder

    def approve(self, name: str) -> str:
        """As `lfx-local-runtimes trust NAME --yes` does. Returns the code's SHA-256."""
        reviewer = Reviewer(self.manager.catalog)
        (report,) = reviewer.look(name).reports
        reviewer.approve(name, report.sha256, "ada")
        return report.sha256

    def unload(self, name: str) -> None:
        self.manager._residency.unload(self.manager._key(name)).result(END_S)

    def log(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / "home" / "audit.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["model"] == name]

    # -- what must not change ------------------------------------------------------------------------------------------

    def processes(self) -> set[int]:
        """Of this program, without those that stay by design: spare ones, and those that render templates."""
        staying = {child.pid for child in self.spares()} | {self.victim.pid} | self.others
        found = psutil.Process().children(recursive=True)
        return {one.pid for one in found if one.pid not in staying and not _is_helper(one)}

    def threads(self) -> Counter[str]:
        """The same."""
        found = Counter(thread.name for thread in threading.enumerate() if "template" not in thread.name.lower())
        for _ in self.spares():
            found -= Counter({"The process of a model prints": 1, "The process of a model watch": 1})
        return found

    def spares(self) -> list[Any]:
        return [child for waiting in self.manager._residency._spares._waiting.values() for child in waiting]

    def ask(self) -> int:
        """Tokens that the bystander answers with."""
        asked = GenerationConfig(prompt="a", raw=True, max_tokens=50, temperature=0, ignore_eos=True)
        return self.manager.start("bystander", asked).wait().tokens_generated

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[None]:
        """Nobody is harmed meanwhile, and nothing is left."""
        assert self.ask() == 50
        self.quiet()
        pid = self.manager.model_status("bystander").pid
        processes, threads = self.processes(), self.threads()
        ended, answers = threading.Event(), list[int]()

        def go_on() -> None:
            answers.append(self.ask())
            while not ended.wait(0.1):
                answers.append(self.ask())

        asking = threading.Thread(target=go_on)
        asking.start()
        try:
            yield
        finally:
            ended.set()
            asking.join()
        assert set(answers) == {50}
        status = self.manager.model_status("bystander")
        assert (status.state, status.pid, status.restarts) == ("ready", pid, 0)
        assert self.victim.poll() is None
        assert (self.user / "secret").read_text() == SECRET
        assert {one.name for one in self.user.iterdir()} == {"secret", "deletable"}
        self.quiet()
        assert _soon(lambda: self.processes() <= processes), f"left: {self.processes() - processes}"
        assert _soon(lambda: self.threads() <= threads), f"left: {self.threads() - threads}"
        assert _soon(lambda: not self.scratch_folders()), f"left: {self.scratch_folders()}"

    def quiet(self) -> None:
        """Wait until no spare process is on its way."""
        assert _soon(lambda: not self.manager._residency._spares._starting)

    def scratch_folders(self) -> list[str]:
        return [one.name for one in (self.folder / "tmp").glob("lfx-local-runtimes-*")]

    def close(self) -> None:
        self.manager.close()
        self.loopback.close()
        self.unix.close()
        self.victim.kill()
        self.victim.communicate()


def _is_helper(process: psutil.Process) -> bool:
    try:
        return any("template_worker" in part for part in process.cmdline())
    except psutil.Error:  # it has just ended
        return True


def _soon(condition: Any) -> bool:
    deadline = time.monotonic() + END_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    before = tempfile.tempdir
    made = Room(tmp_path_factory.mktemp("a"))
    tempfile.tempdir = str(made.folder / "tmp")
    made.ask()  # loaded here, it may stay for all tests
    yield made
    made.close()
    assert _soon(lambda: not made.processes())
    assert not made.scratch_folders()
    tempfile.tempdir = before


# -- code of a model -----------------------------------------------------------------------------------------------------

ENDS = {
    "become a program": "PermissionError",
    "fill the memory": "OSError: [Errno 12]",
    "one large file": "OSError: [Errno 27]",
    "print a million lines": "done: 'printed'",
}
"""How an attack ends that is not simply refused. What is printed is read, and all but the last lines is forgotten."""
MAY_FAIL_ANYWAY = {"trace the parent", "trace a process", "become a program"}
"""A container may forbid to trace, and the parent would be the test. The last is tried at the end, by a free process."""


@pytest.fixture(scope="module")
def reports(room: Room, tiny_llama: Path) -> dict[str, Any]:
    """What the attacks came to in a model's code, and what else there was to see."""
    name, seen = "evil", dict[str, Any]()
    room.with_code(name, tiny_llama, REPORT)
    with pytest.raises(RemoteCodeRefused, match="nobody has approved it yet"):
        room.manager.start(name, GenerationConfig(prompt="a", raw=True)).wait()
    seen["sha256"] = room.approve(name)
    with room.unharmed():
        result = room.manager.start(name, GenerationConfig(prompt="a", raw=True, max_tokens=5, top_k=5)).wait()
        runtime = next(one for one, slot in room.manager._residency._owners.items() if slot.name == name)
        seen["tokens"], seen["confined"] = result.tokens_generated, room.manager.model_status(name).confined
        seen["lines"] = runtime._child.last_lines  # type: ignore[attr-defined]
        seen["outcomes"] = json.loads((runtime._scratch.path / "report.json").read_text())  # type: ignore[attr-defined]
        room.unload(name)
    seen["log"] = room.log(name)
    return seen


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_from_the_code_of_a_model_fails(reports: dict[str, Any], attack: str) -> None:
    outcome = reports["outcomes"][attack]
    assert outcome.startswith(ENDS.get(attack, "PermissionError")), outcome


def test_the_model_with_hostile_code_is_confined_logged_and_answers(reports: dict[str, Any]) -> None:
    assert reports["confined"] == "full"
    assert reports["tokens"] > 0
    assert 0 < len(reports["lines"]) <= MAX_LINES
    assert [(line["event"], line["who"]) for line in reports["log"]][:2] == [
        ("refused", reports["log"][0]["who"]), ("approved", "ada"),
    ]  # fmt: skip
    loaded = reports["log"][2]
    assert (loaded["event"], loaded["confinement"]) == ("loaded", "full")
    assert loaded["sha256"] == reports["sha256"]
    assert f"(process {os.getpid()})" in loaded["who"]


@pytest.fixture(scope="module")
def free_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str]:
    """The same attacks in a process that nothing confines."""
    room = Room(tmp_path_factory.mktemp("f"))
    try:
        model = room.folder / "model"
        model.touch()
        done = subprocess.run(
            [sys.executable, attack_code.__file__], input=json.dumps(room.given(room.folder, model, free=True)),
            stdout=subprocess.PIPE, text=True, check=True, timeout=60,
        )  # fmt: skip
    finally:
        room.close()
    report, last = done.stdout.splitlines()
    return json.loads(report), last


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name not in MAY_FAIL_ANYWAY])
def test_the_attack_succeeds_in_a_free_process(free_run: tuple[dict[str, str], str], attack: str) -> None:
    assert free_run[0][attack].startswith("done"), free_run[0][attack]


def test_a_free_process_becomes_a_program(free_run: tuple[dict[str, str], str]) -> None:
    assert free_run[1] == "executed"


@pytest.mark.parametrize(
    ("name", "attack", "says"),
    [
        ("filler", FILL_DISK, "it wrote more than 256 MiB"),
        ("forger", FALSE_FRAME, "it sent something that is not allowed"),
    ],
)
def test_code_that_misuses_what_it_has_ends_its_process(
    room: Room, tiny_llama: Path, caplog: pytest.LogCaptureFixture, name: str, attack: str, says: str
) -> None:
    room.with_code(name, tiny_llama, attack)
    room.approve(name)
    with room.unharmed(), pytest.raises(EngineDied, match=says):
        room.manager.start(name, GenerationConfig(prompt="a", raw=True)).wait()
    assert says in str(room.manager.model_status(name).last_exit)
    assert [line["event"] for line in room.log(name)] == ["approved", "loaded"]
    assert name in caplog.text


# -- other processes of ours ---------------------------------------------------------------------------------------------


def test_a_template_that_got_out_of_its_sandbox_is_confined(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "_WORKER", "tests.nosy_worker")
    sandbox = template_sandbox.TemplateSandbox(limit_s=60)
    model = room.models / "bystander.gguf"
    with room.unharmed(), contextlib.closing(sandbox):
        outcomes = json.loads(sandbox.render("", room.given(room.folder, model)))
    assert succeeded(outcomes, {"one large file": "PermissionError"}) == {}  # it may not write at all


def test_an_export_that_was_taken_over_is_confined(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_WORKER", "tests.nosy_export")
    folder = save_encoder(room.models / "encoder", "Bert", "Model")
    given = room.given(room.folder, folder / "model.safetensors")
    (folder / "given.json").write_text(json.dumps(given))
    room.register("encoder", folder, "onnx")
    with room.unharmed(), pytest.raises(LoadFailed) as fault:
        room.manager.start("encoder", EmbeddingAsk(texts=("a",))).wait()
    assert succeeded(json.loads(fault.value.message), {"one large file": "done"}) == {}  # ONNX files are large
    (folder / "fill").touch()
    with room.unharmed(), pytest.raises(LoadFailed, match=r"was killed: it wrote more than 25. MiB"):
        room.manager.start("encoder", EmbeddingAsk(texts=("a",))).wait()
    assert [one.name for one in (room.folder / "home" / "onnx").glob("*/*") if one.name != ".lock"] == []


def succeeded(outcomes: dict[str, str], ends: dict[str, str]) -> dict[str, str]:
    """The attacks that did not end as they must."""
    assert set(outcomes) == set(ATTACKS)
    wanted = {**dict.fromkeys(ATTACKS, "PermissionError"), **ENDS, **ends}
    return {name: end for name, end in outcomes.items() if not end.startswith(wanted[name])}


# -- a pickle ------------------------------------------------------------------------------------------------------------


def test_a_pickle_that_calls_a_program_is_not_unpickled(room: Room, tiny_llama: Path) -> None:
    """Even approved: torch reads weights, and nothing else. What code of a model may unpickle is an attack above."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    marker, folder = room.folder / "ran", shutil.copytree(tiny_llama, room.models / "pickled")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "evil": Calls(os.system, f"touch {marker}")}, folder / "pytorch_model.bin")
    room.register("pickled", folder, "transformers")
    sha256 = room.approve("pickled")
    with room.unharmed(), pytest.raises(RuntimeFault, match=r"(?i)weights.only|unsupported|system"):
        room.manager.start("pickled", GenerationConfig(prompt="a", raw=True)).wait()
    assert not marker.exists()
    assert [(line["event"], line["sha256"]) for line in room.log("pickled")] == [
        ("approved", sha256), ("loaded", sha256),
    ]  # fmt: skip
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert marker.exists()  # it would have worked


# -- false frames ----------------------------------------------------------------------------------------------------------


def frame(header: dict[str, Any]) -> bytes:
    return b"".join(encode(Frame(header)))


FALSE = {
    "text": b"Traceback (most recent call last):\n" * 10,
    "half a frame that claims to be long": struct.pack(">2sHI", b"\xf5L", 0, 2**30) + b"{",
    "many attachments": struct.pack(">2sHI", b"\xf5L", 4000, 2) + struct.pack(">Q", 2**62) * 4000,
    "not JSON": struct.pack(">2sHI", b"\xf5L", 0, 5) + b"{]]]]",
    "a deep header": struct.pack(">2sHI", b"\xf5L", 0, 200_000) + b"[" * 200_000,
    "no type": frame({"id": "1"}),
    "another confinement": frame({"t": "confined", "confinement": {"level": "full", "layers": [], "missing": []}}),
    "loaded once more": frame({"t": "loaded", "tasks": ["llm"], "memory": {}, "sequences": 1, "warnings": []}),
    "a result that is none": frame({"t": "finished", "id": "1", "result": {"text": 5}}),
    "a fault that is none": frame({"t": "failed", "id": "1", "fault": ["x"]}),
    "a death that it did not die": frame({"t": "died", "fault": {"code": "x", "message": "m" * 100_000}}),
    "a flood of templates": frame({"t": "render", "call": 1, "source": "{% for a in range(9999999) %}{% endfor %}",
                                   "variables": {}, "max_chars": 10**12}) * 100,
}  # fmt: skip


@pytest.mark.parametrize("kind", FALSE)
def test_a_false_frame_ends_the_process_that_sent_it(room: Room, kind: str) -> None:
    isolated_engines.register()
    path = room.models / "actor"
    if not path.exists():
        path.mkdir()
        write_gguf(path / "model.gguf")
    name = f"actor-{kind.replace(chr(32), chr(45))}"
    room.register(name, path / "model.gguf", "actor")
    asked = GenerationConfig(prompt=f"sends {FALSE[kind].hex()}", raw=True)
    with room.unharmed(), pytest.raises(RuntimeFault) as fault:
        room.manager.start(name, asked).wait()
    assert len(str(fault.value)) < 20_000
    assert room.manager.model_status(name).state == "failed"
    assert room.manager.model_status(name).pid is None


# -- broken GGUF files -------------------------------------------------------------------------------------------------------

SEED, MUTANTS = 20, 16


def test_a_gguf_that_kills_the_process_kills_no_other(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without our check of the header, so that llama.cpp gets files which it ends the process over."""
    healthy = gguf_mutants.base()
    paths = []
    for number in range(10_000):
        path = room.models / f"mutant-{number}.gguf"
        path.write_bytes(gguf_mutants.mutant(SEED, number, healthy))
        if gguf_mutants.passes(path):
            path.unlink()
        else:
            paths.append(path)
        if len(paths) == MUTANTS:
            break
    paths.append(save_twins(room.models / "twins.gguf"))
    monkeypatch.setattr(inspection, "check_gguf", lambda header, **options: [])
    ends: Counter[str] = Counter()
    with room.unharmed():
        runs = []
        for path in paths:
            room.register(path.stem, path, "llama_cpp", context_length=64)
            runs.append(
                (path.stem, room.manager.start(path.stem, GenerationConfig(prompt="a", raw=True, max_tokens=2)))
            )
        for name, run in runs:
            ends[end_of(run)] += 1
            room.unload(name)
    assert ends["EngineDied"] > 0
    assert room.manager.stats()["counters"]["deaths"] >= ends["EngineDied"]
    assert "SIGABRT" in str(room.manager.model_status("twins").last_exit)


def end_of(run: Any) -> str:
    try:
        run.wait()
    except RuntimeFault as fault:
        return type(fault).__name__
    return "answered"


def save_twins(path: Path) -> Path:
    """A file that llama.cpp aborts over: every token of the vocabulary is the same."""
    twins = gguf_mutants.base()
    kind, tokens = twins.metadata["tokenizer.ggml.tokens"]
    twins.metadata["tokenizer.ggml.tokens"] = kind, ["same"] * len(tokens)
    path.write_bytes(encode_gguf(twins))
    return path


def test_our_check_refuses_what_kills(room: Room) -> None:
    twins = save_twins(room.models / "refused twins.gguf")
    with pytest.raises((RuntimeFault, LoadFailed), match="token"):
        room.manager.start(str(twins), GenerationConfig(prompt="a", raw=True)).wait()
