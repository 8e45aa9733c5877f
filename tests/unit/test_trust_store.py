"""Approvals and the audit log: files that several processes write, and that nothing corrupts."""

import errno
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lfx_local_runtimes.errors import RuntimeFault
from lfx_local_runtimes.runtimes.trust import approvals as approvals_module
from lfx_local_runtimes.runtimes.trust.approvals import MAX_BYTES, Approvals
from lfx_local_runtimes.runtimes.trust.audit import MAX_LINE, AuditFault, AuditLog, Entry, line_of
from lfx_local_runtimes.runtimes.trust.report import CodeReport

REPORT = CodeReport("remote_code", "org/name@abc", ("m.py",), "a" * 64, (), ())


@pytest.fixture
def approvals(tmp_path: Path) -> Approvals:
    return Approvals(tmp_path / "home" / "approvals.json")


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "home" / "audit.jsonl")


def lines(log: AuditLog) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.path.read_bytes().splitlines()]


# -- approvals -----------------------------------------------------------------------------------------------------------


def test_an_approval_is_for_this_name_copy_kind_and_sha256(approvals: Approvals) -> None:
    assert not approvals.approved("m", REPORT)
    made = approvals.approve("m", REPORT, "ada")
    assert approvals.approved("m", REPORT)
    assert (made.who, made.sha256, made.source) == ("ada", REPORT.sha256, REPORT.source)
    assert not approvals.approved("M", REPORT)
    for other in (
        replace(REPORT, sha256="b" * 64), replace(REPORT, source="org/name@def"), replace(REPORT, kind="pickle"),
        replace(REPORT, problems=("it is broken",)), replace(REPORT, sha256=""),
    ):  # fmt: skip
        assert not approvals.approved("m", other)
    assert stat.S_IMODE(approvals.path.stat().st_mode) == 0o600


def test_a_new_approval_replaces_that_of_the_same_copy(approvals: Approvals) -> None:
    changed, elsewhere = replace(REPORT, sha256="b" * 64), replace(REPORT, source="/other")
    for report in (REPORT, elsewhere, changed):
        approvals.approve("m", report, "ada")
    assert [approvals.approved("m", report) for report in (REPORT, elsewhere, changed)] == [False, True, True]


@pytest.mark.parametrize("broken", [replace(REPORT, sha256=""), replace(REPORT, problems=("x",))])
def test_code_with_problems_cannot_be_approved(approvals: Approvals, broken: CodeReport) -> None:
    with pytest.raises(ValueError, match="cannot be checked"):
        approvals.approve("m", broken, "ada")
    assert approvals.all() == []


def test_revoking_takes_every_kind_of_one_model(approvals: Approvals) -> None:
    for name, kind in (("m", "remote_code"), ("m", "pickle"), ("n", "pickle")):
        approvals.approve(name, replace(REPORT, kind=kind), "ada")  # type: ignore[arg-type]
    assert {one.kind for one in approvals.revoke("m")} == {"remote_code", "pickle"}
    assert [one.model_name for one in approvals.all()] == ["n"]
    assert approvals.revoke("m") == []


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"null", b'{"approvals": 1}', b"\xff", b"[" * 200_000, b'{"approvals": [' + b" " * MAX_BYTES + b"]}"],
)
def test_a_corrupt_file_approves_nothing_and_is_moved_aside(approvals: Approvals, content: bytes) -> None:
    approvals.approve("m", REPORT, "ada")
    approvals.path.write_bytes(content)
    assert not approvals.approved("m", REPORT)
    approvals.approve("n", REPORT, "ada")
    assert [one.model_name for one in approvals.all()] == ["n"]
    (aside,) = approvals.path.parent.glob("approvals.json.corrupt-*")
    assert aside.read_bytes() == content


def test_entries_that_are_not_valid_approve_nothing(approvals: Approvals) -> None:
    approvals.approve("m", REPORT, "ada")
    content = json.loads(approvals.path.read_text())
    (good,) = content["approvals"]
    bad = [{**good, "model_name": "n", "sha256": "A" * 64}, {"model_name": "n"}, 3, {**good, "kind": "everything"}]
    approvals.path.write_text(json.dumps({"approvals": [*bad, good]}))
    assert [one.model_name for one in approvals.all()] == ["m"]


def test_a_write_that_fails_changes_nothing(approvals: Approvals, monkeypatch: pytest.MonkeyPatch) -> None:
    approvals.approve("m", REPORT, "ada")
    before = approvals.path.read_bytes()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RuntimeFault, match="No space left"):
        approvals.approve("n", REPORT, "ada")
    with pytest.raises(RuntimeFault, match="No space left"):
        approvals.revoke("m")
    assert approvals.path.read_bytes() == before
    assert list(approvals.path.parent.glob("*.tmp")) == []


def test_there_is_a_limit(approvals: Approvals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approvals_module, "MAX_APPROVALS", 2)
    for name in ("a", "b"):
        approvals.approve(name, REPORT, "ada")
    with pytest.raises(RuntimeFault, match="limit"):
        approvals.approve("c", REPORT, "ada")
    approvals.approve("b", REPORT, "bob")
    assert [one.who for one in approvals.all()] == ["ada", "bob"]


WRITER = """
import sys
from pathlib import Path
from lfx_local_runtimes.runtimes.trust.approvals import Approvals
from lfx_local_runtimes.runtimes.trust.audit import AuditLog, Entry
from lfx_local_runtimes.runtimes.trust.report import CodeReport
home, me = Path(sys.argv[1]), sys.argv[2]
for index in range(10):
    name = f"{me}-{index}"
    AuditLog(home / "audit.jsonl").write(Entry("approved", name, reason="x" * 5000))
    Approvals(home / "approvals.json").approve(name, CodeReport("pickle", "/m", (), "a" * 64, (), ()), me)
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(index)]) for index in range(4)]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    wanted = {f"{me}-{index}" for me in range(4) for index in range(10)}
    assert {one.model_name for one in Approvals(tmp_path / "approvals.json").all()} == wanted
    assert {line["model"] for line in lines(AuditLog(tmp_path / "audit.jsonl"))} == wanted


# -- the audit log -------------------------------------------------------------------------------------------------------


def test_a_line_has_every_field_and_the_file_is_private(log: AuditLog) -> None:
    log.write(Entry("loaded", "m", "pickle", "a" * 64, "org/name@abc", "ada", "full"))
    log.write(Entry("refused", "m", reason="not allowed"))
    first, second = lines(log)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "event": "loaded", "model": "m", "kind": "pickle", "sha256": "a" * 64, "revision": "org/name@abc", "who": "ada",
        "confinement": "full", "reason": None,
    }  # fmt: skip
    assert second["reason"] == "not allowed"
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_lines_are_only_appended(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write(Entry("approved", "first"))
    before = log.path.read_bytes()
    opened: list[int] = []
    real = os.open

    def watched(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if Path(path) == log.path:
            opened.append(flags)
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", watched)
    log.write(Entry("approved", "second"))
    assert log.path.read_bytes().startswith(before)
    assert len(opened) == 1
    assert opened[0] & os.O_APPEND
    assert not opened[0] & os.O_TRUNC


WILD = st.text('\n\r\x00\u2028"\\\U0001f600\ud800', min_size=1, max_size=5)
VALUES = st.none() | st.text() | st.builds(lambda text, times: text * times, WILD, st.integers(1, 2000))


@settings(max_examples=200, deadline=None)
@given(values=st.lists(VALUES, min_size=7, max_size=7))
@example(values=["\U0001f600" * 5000] * 7)
def test_no_value_breaks_a_line(values: list[str | None]) -> None:
    model, *rest = values
    line = line_of(Entry("refused", model or "", *rest))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line.splitlines()) == len(line.decode().splitlines()) == 1
    assert len(line) <= MAX_LINE
    read = json.loads(line)
    told = [read[name] for name in ("model", "kind", "sha256", "revision", "who", "confinement", "reason")]
    for written, value in zip(told, [model or "", *rest], strict=True):
        assert written is None if value is None else value.startswith(written)
        assert value is None or len(value) > 70 or written == value  # twelve bytes a character still fit


def test_the_line_after_one_that_was_cut_off_is_whole(log: AuditLog) -> None:
    log.write(Entry("approved", "first"))
    with log.path.open("ab") as file:
        file.write(b'{"time": "2026')
    log.write(Entry("approved", "second"))
    first, torn, second = log.path.read_bytes().splitlines()
    assert json.loads(first)["model"] == "first"
    assert torn == b'{"time": "2026'
    assert json.loads(second)["model"] == "second"


@pytest.mark.parametrize("failing", ["write", "short write", "fsync"])
def test_a_full_disk_is_told(log: AuditLog, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    real = os.write
    if failing == "short write":
        monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:10]))
    else:
        monkeypatch.setattr(os, failing, full)
    with pytest.raises(AuditFault, match="No space left on device"):
        log.write(Entry("approved", "m"))


def test_a_log_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuditFault):
        AuditLog(tmp_path / "file" / "audit.jsonl").write(Entry("approved", "m"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(AuditFault):
        AuditLog(tmp_path / "folder").write(Entry("approved", "m"))
