"""The process for chat templates, in which a template has got out of its sandbox: it attacks, for tests."""

import json
from typing import Any

from lfx_local_runtimes.runtimes.chat import template_worker
from lfx_local_runtimes.runtimes.processes.inside import Link
from tests.attack_code import attacks


def main(link: Link) -> None:
    """As the process for chat templates."""
    template_worker.make_renderer = lambda: _attack
    template_worker.main(link)


def _attack(request: dict[str, Any]) -> dict[str, Any]:
    return {"text": json.dumps(attacks(request["variables"]))}
