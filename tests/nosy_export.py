"""The process of the ONNX export, with a model that has taken it over: it attacks, for tests."""

import json
import os
import time
from pathlib import Path
from typing import Any

from lfx_local_runtimes.runtimes.engines.onnx import export_worker
from lfx_local_runtimes.runtimes.processes.inside import Link
from tests.attack_code import attacks


def main(link: Link) -> int:
    """As the process of the export."""
    export_worker.make = _attack
    return export_worker.main(link)


def _attack(request: dict[str, Any]) -> dict[str, Any]:
    if Path(request["model"], "fill").exists():
        for number in range(10):
            with Path(request["target"]).with_name(str(number)).open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 60 * 2**20)
        time.sleep(600)
    given = json.loads(Path(request["model"], "given.json").read_text())
    return {"message": json.dumps(attacks({**given, "scratch": str(Path(request["target"]).parent)})), "hint": ""}
