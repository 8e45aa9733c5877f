"""What a process says about its confinement: whole, refused, and on systems that lack a layer."""

import errno
import json
import sys
from pathlib import Path

import pytest

from lfx_local_runtimes.runtimes.processes import linux
from lfx_local_runtimes.runtimes.processes.confinement import Confinement, Policy, available, confine
from tests.confined import run_child

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux confines")

POLICY_BYTES = 400 * 2**20


def test_the_report_of_a_whole_confinement() -> None:
    source = "report['confined'] = json.dumps(enter().to_json())"
    confined = Confinement.from_json(json.loads(run_child(source, Policy(memory=POLICY_BYTES))["confined"]))
    assert confined == available()
    assert confined.level == "full"
    assert confined.layers == ("filesystem", "network", "programs", "processes", "kernel", "limits", "memory")
    assert confined.missing == ()
    unlimited = json.loads(run_child(source)["confined"])
    assert unlimited["level"] == "full"
    assert "memory" not in unlimited["layers"]


def test_a_process_with_threads_is_refused(tmp_path: Path) -> None:
    source = """
import threading
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
attempt("confine", enter)
stop.set()
thread.join()
attempt("read", Path(values["path"]).read_text)
attempt("again", lambda: enter().level)
"""
    (tmp_path / "file").write_text("x")
    report = run_child(source, path=str(tmp_path / "file"))
    assert report["confine"].startswith("RuntimeError: 2 threads run already (")
    assert report["read"] == "done: 'x'"
    assert report["again"] == "done: 'full'"


def test_a_policy_that_cannot_hold_is_refused(tmp_path: Path) -> None:
    missing = run_child("attempt('confine', enter)", Policy(read=(tmp_path / "missing",)))
    assert missing["confine"].startswith("FileNotFoundError")
    assert run_child("attempt('confine', enter)", Policy(devices=("abacus",)))["confine"].startswith("ValueError")


def test_a_policy_and_a_report_travel_as_json() -> None:
    policy = Policy((Path("/a"), Path("/b")), (Path("/c"),), ("cuda",), 5, 6)
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy
    report = Confinement("partial", ("filesystem",), ("no filter",))
    assert Confinement.from_json(json.loads(json.dumps(report.to_json()))) == report


# -- kernels that lack a layer -------------------------------------------------------------------------------------------

WITHOUT_LANDLOCK = """
def no_landlock():
    raise OSError(38, "Function not implemented")
landlock.version = no_landlock
"""
WITHOUT_SECCOMP = """
def no_seccomp():
    raise seccomp.SeccompMissingError("the kernel cannot filter system calls")
seccomp.check_available = no_seccomp
"""
TWO_ATTACKS = """
import socket
report["confined"] = json.dumps(enter().to_json())
attempt("read", Path(values["path"]).read_text)
attempt("socket", lambda: socket.socket().close())
"""


@pytest.mark.parametrize(
    ("without", "level", "read", "made", "missing"),
    [
        ("", "full", "PermissionError", "PermissionError", []),
        (WITHOUT_LANDLOCK, "partial", "done", "PermissionError", ["Landlock"]),
        (WITHOUT_SECCOMP, "partial", "PermissionError", "done", ["system calls"]),
        (WITHOUT_LANDLOCK + WITHOUT_SECCOMP, "none", "done", "done", ["Landlock", "system calls"]),
    ],
)
def test_a_kernel_without_a_layer_uses_the_others(
    tmp_path: Path, without: str, level: str, read: str, made: str, missing: list[str]
) -> None:
    (tmp_path / "file").write_text("x")
    report = run_child(without + TWO_ATTACKS, path=str(tmp_path / "file"))
    confined = json.loads(report["confined"])
    assert confined["level"] == level
    assert len(confined["missing"]) == len(missing)
    assert all(word in reason for word, reason in zip(missing, confined["missing"], strict=True))
    assert report["read"].startswith(read)
    assert report["socket"].startswith(made)


@pytest.mark.parametrize("abi", [1, 2, 3, 4, 5, 6])
def test_old_versions_of_landlock_let_no_file_be_shortened(tmp_path: Path, abi: int) -> None:
    victim, scratch = tmp_path / "file", tmp_path / "scratch"
    victim.write_text("content")
    scratch.mkdir()
    (scratch / "own").write_text("content")
    source = f"""
landlock.version = lambda: {abi}
report["confined"] = enter().level
path, own = values["path"], Path(values["own"])
attempt("truncate", lambda: os.truncate(path, 0))
attempt("open", lambda: os.open(path, os.O_RDONLY | os.O_TRUNC))
attempt("own", lambda: own.write_text("x"))
attempt("read", lambda: own.read_text())
"""
    report = run_child(source, Policy(write=(scratch,)), path=str(victim), own=str(scratch / "own"))
    assert report["confined"] == "full"
    assert report["truncate"].startswith("PermissionError")
    assert report["open"].startswith("PermissionError")
    assert report["own"] == "done: 1"
    assert report["read"] == "done: 'x'"
    assert victim.read_text() == "content"


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSYS, "no Landlock"), (errno.EOPNOTSUPP, "switched off"), (errno.EPERM, "Operation not permitted")],
)
def test_why_landlock_is_missing(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    def refused(what: str, *_: object) -> int:
        if what.startswith("landlock"):
            raise OSError(code, what)
        return 0

    monkeypatch.setattr(linux, "syscall", refused)
    assert available().level == "partial"
    assert words in available().missing[0]
    assert "filesystem" not in available().layers


def test_why_seccomp_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(what: str, *_: object) -> int:
        if what == "seccomp":
            raise OSError(errno.ENOSYS, what)
        return 7

    monkeypatch.setattr(linux, "syscall", refused)
    assert available().level == "partial"
    assert available().missing == (
        "the kernel cannot filter system calls (seccomp: Function not implemented): "
        "network, programs and other processes are not restricted",
    )
    monkeypatch.setattr(linux, "machine", lambda: None)
    assert "for this processor" in available().missing[0]


@pytest.mark.parametrize(("platform", "name"), [("darwin", "macOS"), ("win32", "Windows"), ("freebsd14", "freebsd14")])
def test_other_systems_say_that_they_confine_nothing(monkeypatch: pytest.MonkeyPatch, platform: str, name: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    expected = Confinement("none", missing=(f"{name} has no confinement that this package can use; Linux has",))
    assert available() == confine(Policy(memory=1)) == expected


def test_asking_changes_nothing(tmp_path: Path) -> None:
    source = """
before = Path("/proc/self/status").read_text().split("Seccomp")[1].split()[1], Path("/proc/self/limits").read_text()
attempt("available", confinement.available)
after = Path("/proc/self/status").read_text().split("Seccomp")[1].split()[1], Path("/proc/self/limits").read_text()
report["same"] = str(before == after)
attempt("read", Path("/etc/passwd").read_text)
"""
    report = run_child(source)
    assert report["same"] == "True"
    assert report["read"].startswith("done")
