"""`lfx run` in a process of its own, for many flows: it forks from one that has imported the command, which takes seconds."""

import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from lfx_local_runtimes.flows.build import FOLDER
from lfx_local_runtimes.settings import PREFIX

LFX = str(Path(sys.executable).parent / "lfx")
END_LIMIT_S = 240.0
"""For the process to end. A model's idle time is five minutes, so nothing waits for that."""

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["lfx.__main__", "lfx.cli.run", "lfx_local_runtimes.nodes"])


def lfx_run(flow: str, *arguments: str, **environment: str) -> str:
    """Run a flow to the end of its process. Returns the answer.

    The data folder is the test's, unless the environment names another one.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX) or name == f"{PREFIX}HOME"}
    env |= {f"{PREFIX}OFFLINE": "true", f"{PREFIX}SPARE_PROCESSES": "0", "DO_NOT_TRACK": "true", **environment}
    command = [LFX, "run", str(FOLDER / f"{flow}.json"), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        said, log = Path(folder, "said"), Path(folder, "log")
        process = _PROCESSES.Process(target=_main, args=(command, env, said, log))
        process.start()
        process.join(END_LIMIT_S)
        if process.exitcode is None:
            process.kill()
        assert process.exitcode == 0, f"lfx run: {said.read_text()[-3000:]}\n{log.read_text()[-3000:]}"
        return answer_of(said.read_text())


def answer_of(said: str) -> str:
    """The answer in what `lfx run` has printed: one line of JSON."""
    found: dict[str, Any] = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert found["success"], found
    return str(found["result"])


def _main(command: list[str], env: dict[str, str], said: Path, log: Path) -> None:
    """The command, in the forked process."""
    for number, file in ((1, said), (2, log)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    from lfx.__main__ import main

    main()
