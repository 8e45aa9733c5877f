"""`lfx-local-runtimes trust`: what it shows, what it asks, and what stays in the data folder."""

import getpass
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lfx_local_runtimes import cli
from lfx_local_runtimes.errors import ModelNotFound
from lfx_local_runtimes.runtimes.trust.review import CodeUnchecked
from lfx_local_runtimes.settings import PREFIX, get_settings
from tests.routes_app import write_model
from tests.trusted_models import code_of, scan_here, write_code, write_pickle

Trust = Callable[..., Any]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv(f"{PREFIX}MODEL_DIRS", str(folder))
    monkeypatch.setenv(f"{PREFIX}OFFLINE", "true")
    get_settings.cache_clear()
    scan_here(monkeypatch)
    write_code(folder / "m", "import socket\nsocket.socket()\n")
    return folder


@pytest.fixture
def trust(models: Path) -> Trust:
    return lambda *arguments, **options: CliRunner().invoke(cli.app, ["trust", *arguments], **options)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "local-runtimes-home"


def approved(home: Path) -> list[str]:
    path = home / "approvals.json"
    return [one["sha256"] for one in json.loads(path.read_text())["approvals"]] if path.exists() else []


def test_the_code_is_shown_before_the_question(trust: Trust, models: Path, home: Path) -> None:
    result = trust("m", input="y\n")
    assert result.exit_code == 0
    shown, _, after = result.stdout.partition("May m run this code? [y/N]: ")
    sha256 = code_of(models / "m").sha256
    assert f"SHA-256 {sha256}" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["network", "socket.socket", "modeling.py", "2"] in rows
    assert ["imports:", "socket"] in rows
    assert "Approved." in after
    assert "LOCAL_RUNTIMES_TRUST_REMOTE_CODE=true" in after
    assert "trust_remote_code in the model's configuration" in after
    assert approved(home) == [sha256]
    line = json.loads((home / "audit.jsonl").read_text())
    assert (line["event"], line["who"], line["sha256"]) == ("approved", getpass.getuser(), sha256)


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_anything_but_yes_approves_nothing(trust: Trust, home: Path, answer: str) -> None:
    assert trust("m", input=answer).exit_code == 1
    assert approved(home) == []
    assert not (home / "audit.jsonl").exists()


def test_yes_list_and_revoke(trust: Trust, home: Path, models: Path) -> None:
    assert trust("m", "--yes").exit_code == 0
    assert "Approved already." in trust("m").stdout
    header, row = [line.split() for line in trust("--list").stdout.splitlines()]
    assert header[:4] == ["NAME", "KIND", "COPY", "SHA-256"]
    assert row[:4] == ["m", "remote_code", str(models / "m"), code_of(models / "m").sha256[:12]]
    assert trust("m", "--revoke").stdout == "m: 1 revoked.\n"
    assert trust("m", "--revoke").stdout == "m: nothing was approved.\n"
    assert approved(home) == []


def test_a_change_asks_again(trust: Trust, models: Path, home: Path) -> None:
    trust("m", "--yes")
    (models / "m" / "modeling.py").write_text("import ctypes\n")
    result = trust("m", input="n\n")
    assert result.exit_code == 1
    assert "import ctypes" in result.stdout
    assert approved(home) != [code_of(models / "m").sha256]


def test_pickle_weights_are_asked_about(trust: Trust, models: Path, home: Path) -> None:
    write_pickle(models / "old")
    result = trust("old", "--yes")
    assert "Pickle weights" in result.stdout
    assert "LOCAL_RUNTIMES_ALLOW_PICKLE=true" in result.stdout
    assert len(approved(home)) == 1


def test_a_model_without_code_says_so(trust: Trust, models: Path) -> None:
    write_model(models / "plain")
    assert trust("plain").stdout == "plain brings no code.\n"


def test_what_cannot_be_checked_is_shown_and_refused(trust: Trust, models: Path, home: Path) -> None:
    (models / "m" / "modeling.py").write_text("def (")
    result = trust("m", "--yes")
    assert isinstance(result.exception, CodeUnchecked)
    assert "problem: modeling.py: it is not valid Python" in result.stdout
    assert approved(home) == []


def test_a_model_cannot_write_to_the_terminal(trust: Trust, models: Path) -> None:
    write_code(models / "m", "import os\n", reference="evil\x1b[2J[red].Mine")
    result = trust("m", "--yes")
    assert "\x1b" not in result.stdout
    assert "[red]" in result.stdout


def test_an_unknown_model_is_told(trust: Trust) -> None:
    assert isinstance(trust("nobody").exception, ModelNotFound)


@pytest.mark.parametrize(
    "arguments", [(), ("m", "--list"), ("m", "--yes", "--revoke"), ("--list", "--yes"), ("--revoke",), ("--yes",)]
)
def test_options_that_do_not_go_together(trust: Trust, home: Path, arguments: tuple[str, ...]) -> None:
    assert trust(*arguments).exit_code == 2
    assert approved(home) == []
