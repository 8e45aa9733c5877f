"""Each example flow runs headless with `lfx run`, answers, and ends by itself."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lfx_local_runtimes.flows import text
from lfx_local_runtimes.flows.build import FOLDER
from lfx_local_runtimes.runtimes.sources.packages import SMOLLM
from lfx_local_runtimes.settings import PREFIX
from tests.lfx_process import LFX, answer_of, lfx_run

pytestmark = pytest.mark.integration

SAVED = Path(__file__).parents[1] / "saved_flows"

Runs = Callable[[str], str]
"""The answer of a flow's run."""

NEEDS_SMOLLM = pytest.mark.skipif(not SMOLLM.installed, reason="the demo's SmolLM2 is not installed")


@pytest.fixture(scope="module")
def runs(packaged_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The runs of this file's flows, two at a time."""
    wanted: dict[str, tuple[str, ...]] = {
        "model_status": (),
        "code_pipeline": (text.TASK,),
        "tools_agent": (text.SUM,),
        "parallel_branches": (text.COUNTRY,),
        **{str(folder / "local_chat"): (text.CHAT_QUESTION,) for folder in SAVED.iterdir()},
    }
    with ThreadPoolExecutor(2) as pool:
        found = {}
        for flow, arguments in wanted.items():
            home = tmp_path_factory.mktemp("home")
            (home / "packages").symlink_to(packaged_models, target_is_directory=True)
            found[flow] = pool.submit(lfx_run, flow, *arguments, **{f"{PREFIX}HOME": str(home)})
        yield lambda flow: found[flow].result()
        for run in found.values():
            run.cancel()


def test_local_chat_answers() -> None:
    """By the command itself; the others fork from a process that has imported it."""
    command = [LFX, "run", str(FOLDER / "local_chat.json"), text.CHAT_QUESTION]
    env = {**os.environ, f"{PREFIX}OFFLINE": "true", f"{PREFIX}SPARE_PROCESSES": "0", "DO_NOT_TRACK": "true"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "Paris" in answer_of(ran.stdout)


@pytest.mark.parametrize("version", sorted(folder.name for folder in SAVED.iterdir()))
def test_local_chat_of_an_earlier_version_answers(version: str, runs: Runs) -> None:
    """Its embedded source is what runs; `tests/unit/test_saved_flows.py` has the other flows, on scripted models."""
    assert "Paris" in runs(str(SAVED / version / "local_chat"))


def test_model_status_lists_the_models(runs: Runs) -> None:
    table = runs("model_status")
    assert "gemma-3-270m" in table
    assert "on disk" in table


@NEEDS_SMOLLM
def test_code_pipeline_writes_a_program_that_runs(runs: Runs) -> None:
    program = runs("code_pipeline")
    assert program.startswith("# add two numbers: takes a and b")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout == "7\n"


def test_tools_agent_calculates_with_its_tool(runs: Runs) -> None:
    """Langflow's Agent, which loads no extension here, on our node's model."""
    assert runs("tools_agent") == "The result is 391."


def test_parallel_branches_answer_in_one(runs: Runs) -> None:
    answer = runs("parallel_branches")
    assert answer.splitlines() == ["- Capital: Rome", "- Language: Italian", "- Currency: euro", "- Continent: Europe"]


def test_a_missing_model_is_one_clear_error() -> None:
    flow = json.loads((FOLDER / "local_chat.json").read_text(encoding="utf-8"))
    for node in flow["data"]["nodes"]:
        if "model_name" in node["data"]["node"]["template"]:
            node["data"]["node"]["template"]["model_name"]["value"] = "no-such-model"
    env = {**os.environ, f"{PREFIX}OFFLINE": "true", "DO_NOT_TRACK": "true"}
    ran = subprocess.run(
        [LFX, "run", "--stdin", "--input-value", "Hello"], input=json.dumps(flow), capture_output=True, text=True, timeout=120, env=env,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    said = json.loads(ran.stdout.strip().splitlines()[-1])
    assert "no-such-model" in said["exception_message"]
    assert "Traceback" not in ran.stdout + ran.stderr


def test_a_packaged_model_that_is_missing_names_its_extra() -> None:
    """As `code_pipeline.json` does without its second model."""
    flow = (FOLDER / "code_pipeline.json").read_text(encoding="utf-8")
    env = {**os.environ, f"{PREFIX}OFFLINE": "true", "DO_NOT_TRACK": "true"}
    code = (
        "import importlib.util as util, sys; found = util.find_spec; "
        f"util.find_spec = lambda name, *rest: None if name == {SMOLLM.module!r} else found(name, *rest); "
        "from lfx.__main__ import main; main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "run", "--stdin", "--input-value", text.TASK], input=flow, capture_output=True,
        text=True, timeout=240, env=env, check=False,
    )  # fmt: skip
    said = json.loads(ran.stdout.strip().splitlines()[-1])
    assert f"There is no model called {SMOLLM.name}." in said["exception_message"]
    assert "pip install 'lfx-local-runtimes[demo]'" in said["exception_message"]


def test_the_nodes_import_on_their_own() -> None:
    """In a fresh interpreter, as Langflow's validator tries them; lfx itself imports in few orders only."""
    command = [LFX, "extension", "validate", str(FOLDER.parent / "components"), "--execute-imports"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
