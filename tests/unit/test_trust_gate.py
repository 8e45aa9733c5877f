"""The gate: who passes, what those who do not are told, and that all of it is in the audit log."""

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import NotAllowed, PickleRefused, RemoteCodeRefused
from lfx_local_runtimes.runtimes.config import ModelConfig
from lfx_local_runtimes.runtimes.formats.info import ModelInfo
from lfx_local_runtimes.runtimes.formats.inspect import read_model
from lfx_local_runtimes.runtimes.processes.confinement import Confinement
from lfx_local_runtimes.runtimes.sources.catalog import Catalog
from lfx_local_runtimes.runtimes.trust import gate, scan
from lfx_local_runtimes.runtimes.trust.review import CodeChanged, CodeUnchecked, Reviewer
from lfx_local_runtimes.settings import Settings, load_settings
from tests.routes_app import write_model
from tests.trusted_models import Calls, code_of, pickle_of, scan_here, torch_zip, write_code, write_pickle

LEVELS = ("full", "partial", "none")
FAULTS = {"remote_code": RemoteCodeRefused, "pickle": PickleRefused}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    scan_here(monkeypatch)


class Case:
    """One model, `m`, that brings code of one kind."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = (
            write_code(folder / "models" / "m") if kind == "remote_code" else write_pickle(folder / "models" / "m")
        )
        self.home = folder / "home"
        self.config = ModelConfig(model_id=str(self.folder), model_name="m", trust_remote_code=kind == "remote_code")

    def settings(self, *, allow: bool = True, unconfined: bool = False) -> Settings:
        return Settings(
            home=self.home, model_dirs=(self.folder.parent,), offline=True, allow_unconfined_code=unconfined,
            trust_remote_code=allow, allow_pickle=allow,
        )  # fmt: skip

    @property
    def info(self) -> ModelInfo:
        return read_model(self.folder)

    def approve(self) -> str:
        report = code_of(self.folder) if self.kind == "remote_code" else pickle_of(self.folder)
        gate.approvals_of(self.settings()).approve("m", report, "ada")
        return report.sha256

    def check(self, level: Any = "full", *, allow: bool = True, unconfined: bool = False, **options: Any) -> None:
        gate.check(self.config, self.info, self.settings(allow=allow, unconfined=unconfined), level, **options)

    def refusal(self, *arguments: Any, **options: Any) -> NotAllowed:
        with pytest.raises(FAULTS[self.kind]) as refused:
            self.check(*arguments, **options)
        assert refused.value.model_name == "m"
        return refused.value

    def change(self) -> None:
        name = "modeling.py" if self.kind == "remote_code" else "pytorch_model.bin"
        with (self.folder / name).open("ab") as file:
            file.write(b"\n")

    def log(self) -> list[dict[str, Any]]:
        path = self.home / "audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(params=["remote_code", "pickle"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(request.param, tmp_path)


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("unconfined", [False, True])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("approved", ["no", "yes", "before a change"])
def test_the_decision(case: Case, allow: bool, unconfined: bool, level: str, approved: str) -> None:
    if approved != "no":
        sha256 = case.approve()
    if approved == "before a change":
        case.change()
    passes = allow and (level == "full" or unconfined) and approved == "yes"
    if passes:
        case.check(level, allow=allow, unconfined=unconfined, who="ada")
    else:
        fault = case.refusal(level, allow=allow, unconfined=unconfined, who="ada")
        if not allow:  # the most fundamental reason is told first
            says, step = "does not allow", "LOCAL_RUNTIMES_"
        elif level != "full" and not unconfined:
            says, step = level, "LOCAL_RUNTIMES_ALLOW_UNCONFINED_CODE=true"
        else:
            says, step = "has changed" if approved != "no" else "nobody has approved", "lfx-local-runtimes trust m"
        assert says in fault.message
        assert step in fault.hint
    (line,) = case.log()
    assert (line["event"], line["model"], line["kind"]) == ("loaded" if passes else "refused", "m", case.kind)
    assert (line["who"], line["confinement"], line["revision"]) == ("ada", level, str(case.folder))
    assert (line["reason"] is None) == passes
    if passes:
        assert line["sha256"] == sha256


def test_a_refusal_for_want_of_permission_names_all_steps(case: Case) -> None:
    hint = case.refusal(allow=False).hint
    setting = {"remote_code": "LOCAL_RUNTIMES_TRUST_REMOTE_CODE=true", "pickle": "LOCAL_RUNTIMES_ALLOW_PICKLE=true"}
    assert setting[case.kind] in hint
    assert hint.endswith("lfx-local-runtimes trust m")


@pytest.mark.parametrize("word", ["auto", "always", "never"])
def test_the_words_of_other_runtimes_skip_no_approval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("TRUST_REMOTE_CODE", word)
    case = Case("remote_code", tmp_path)
    settings = load_settings(home=case.home, model_dirs=(case.folder.parent,), offline=True)
    monkeypatch.setattr(case, "settings", lambda **options: settings)
    why = case.refusal().message
    assert ("does not allow" if word == "never" else "nobody has approved") in why
    case.approve()
    assert "full" in case.refusal("none").message or word == "never"
    if word == "never":
        case.refusal()
    else:
        case.check()


def test_revoking_closes_the_gate(case: Case) -> None:
    case.approve()
    case.check()
    Reviewer(Catalog(case.settings())).revoke("m", "ada")
    case.refusal()
    assert [line["event"] for line in case.log()] == ["loaded", "revoked", "refused"]


def test_an_approval_is_not_for_a_copy_elsewhere(case: Case, tmp_path: Path) -> None:
    case.approve()
    case.folder.rename(case.folder.with_name("copy"))
    case.folder = case.folder.with_name("copy")
    assert "changed" in case.refusal().message


def test_a_variant_goes_by_the_name_of_its_model(case: Case) -> None:
    case.approve()
    case.config = case.config.model_copy(update={"model_name": "m (device cpu)"})
    case.check(name="m")
    with pytest.raises(FAULTS[case.kind]) as refused:
        case.check()
    assert "lfx-local-runtimes trust 'm (device cpu)'" in refused.value.hint


@pytest.mark.parametrize("settings", [{"allow": False}, {"allow": True}])
def test_a_model_without_code_passes_and_leaves_no_line(tmp_path: Path, settings: Any) -> None:
    write_model(tmp_path / "m")
    config = ModelConfig(model_id=str(tmp_path / "m"), model_name="m")
    gate.check(config, read_model(tmp_path / "m"), Settings(home=tmp_path / "home"), "none")
    assert not (tmp_path / "home").exists()


def test_code_that_is_not_asked_for_needs_no_approval(tmp_path: Path) -> None:
    folder = write_code(tmp_path / "m")
    gate.check(ModelConfig(model_id="m", model_name="m"), read_model(folder), Settings(home=tmp_path / "home"), "none")


def test_code_that_is_asked_for_and_not_there_passes(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    config = ModelConfig(model_id="m", model_name="m", trust_remote_code=True)
    settings = Settings(home=tmp_path / "home", trust_remote_code=True)
    gate.check(config, read_model(tmp_path / "m"), settings, "none")


def test_code_that_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    case = Case("remote_code", tmp_path)
    (case.folder / "modeling.py").write_text("def (")
    assert "the scan cannot check it: modeling.py: it is not valid Python" in case.refusal().message


def test_a_scan_that_fails_is_a_refusal(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.approve()
    monkeypatch.setattr(scan, "_ask", lambda request: scan._Found({}, [], [], ["the scan did not run"]))
    assert "the scan did not run" in case.refusal().message


def test_both_kinds_need_their_approval(tmp_path: Path) -> None:
    case = Case("remote_code", tmp_path)
    (case.folder / "model.safetensors").unlink()
    (case.folder / "pytorch_model.bin").write_bytes(torch_zip(pickle.dumps({}, 2)))
    case.approve()
    with pytest.raises(PickleRefused):
        case.check()
    assert [line["event"] for line in case.log()] == ["refused"]  # nothing counts as loaded


# -- a log that cannot be written ----------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)


def test_what_cannot_be_logged_is_not_loaded(case: Case, full_disk: None) -> None:
    case.approve()
    fault = case.refusal()
    assert "No space left on device" in fault.message
    assert "Make room" in fault.hint


def test_a_refusal_that_cannot_be_logged_stays_a_refusal(
    case: Case, full_disk: None, caplog: pytest.LogCaptureFixture
) -> None:
    fault = case.refusal()
    assert "nobody has approved" in fault.message
    assert "No space left on device" in fault.hint
    assert "nobody has approved" in caplog.text


def test_nothing_is_approved_that_cannot_be_logged(case: Case, full_disk: None) -> None:
    reviewer = Reviewer(Catalog(case.settings()))
    (report,) = reviewer.look("m").reports
    with pytest.raises(Exception, match="No space left"):
        reviewer.approve("m", report.sha256, "ada")
    assert reviewer.approvals() == []


# -- what people decide --------------------------------------------------------------------------------------------------


def test_only_the_code_that_was_seen_is_approved(case: Case) -> None:
    reviewer = Reviewer(Catalog(case.settings()))
    (seen,) = reviewer.look("m").reports
    case.change()
    with pytest.raises(CodeChanged):
        reviewer.approve("m", seen.sha256, "ada")
    for nothing in ("", "0" * 64):
        with pytest.raises(CodeChanged):
            reviewer.approve("m", nothing, "ada")
    assert reviewer.approvals() == []
    (now,) = reviewer.look("m").reports
    assert reviewer.approve("m", now.sha256, "ada").approved == {now.sha256} == reviewer.look("m").approved
    case.check()
    assert [(line["event"], line["who"]) for line in case.log()] == [
        ("approved", "ada"),
        ("loaded", gate.this_program()),
    ]


def test_what_cannot_be_checked_cannot_be_approved(case: Case) -> None:
    name = "modeling.py" if case.kind == "remote_code" else "pytorch_model.bin"
    (case.folder / name).write_bytes(b"def (" if case.kind == "remote_code" else b"\x80\x02}")
    reviewer = Reviewer(Catalog(case.settings()))
    with pytest.raises(CodeUnchecked):
        reviewer.approve("m", "", "ada")
    assert case.log() == []


def test_a_name_is_known_in_another_spelling(case: Case) -> None:
    reviewer = Reviewer(Catalog(case.settings()))
    (report,) = reviewer.look("M").reports
    reviewer.approve("M", report.sha256, "ada")
    assert [one.model_name for one in reviewer.approvals()] == ["m"]
    assert len(reviewer.revoke("M", "ada")) == 1
    assert reviewer.revoke("gone", "ada") == []


def test_nothing_of_a_hostile_pickle_is_called(tmp_path: Path) -> None:
    case = Case("pickle", tmp_path)
    marker = tmp_path / "ran"
    content = torch_zip(pickle.dumps(Calls(os.system, f"touch {marker}"), 2))
    (case.folder / "pytorch_model.bin").write_bytes(content)
    case.approve()
    case.check()
    assert not marker.exists()


@pytest.mark.parametrize(
    ("isolation", "confine", "level"),
    [
        ("process", "auto", "partial"),
        ("process", "require", "partial"),
        ("process", "off", "none"),
        ("inline", "auto", "none"),
    ],
)
def test_the_confinement_is_that_of_the_process_to_come(
    monkeypatch: pytest.MonkeyPatch, isolation: str, confine: Any, level: str
) -> None:
    monkeypatch.setattr(gate, "available", lambda: Confinement("partial"))
    assert gate.level_of(isolation, Settings(confine=confine)) == level
