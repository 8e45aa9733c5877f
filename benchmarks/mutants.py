"""Broken GGUF files, each loaded through one `RuntimeManager`: what becomes of them, and that nobody else is harmed.

Most are loaded as in production. Every fifth is loaded without our check of the header, so that llama.cpp faces files that
it ends its process over. About a third comes as far as a process. 10,000 take about half an hour on two cores, so this topic
runs only if it is named:

    python -m benchmarks.mutants --count 200
"""

import argparse
import asyncio
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.report import conclude, print_table, verdict
from lfx_local_runtimes.errors import EngineDied, InvalidModelFile, RuntimeFault
from lfx_local_runtimes.runtimes import DeviceType, GenerationConfig, ModelConfig, RuntimeManager, RuntimeType
from lfx_local_runtimes.runtimes.chat.template_sandbox import get_sandbox
from lfx_local_runtimes.runtimes.formats import inspect
from lfx_local_runtimes.settings import Settings
from tests.gguf_mutants import base, mutant

COUNT = 10_000
UNCHECKED = 5
"""Every so many-th mutant is loaded without our check."""
SEED = 20
AT_ONCE = 4
TOKENS = 4
STEP_LIMIT_S = 20.0
STUCK_S = 120.0
"""A request that has not ended by then is stuck."""
END_S = 2.0
"""What processes may take to end with their manager."""

DEATHS, STUCK, LEFT = "deaths of the manager's process", "stuck requests", "processes left at the end"
ENDS = (
    "refused by the check",
    "refused by the engine",
    "ended its process",
    "was killed: a step did not end",
    "answered",
)


def main(count: int = COUNT) -> None:
    """Print the table."""
    unchecked = count // UNCHECKED
    found = [outcomes("checked", 0, count - unchecked), outcomes("unchecked", count - unchecked, unchecked)]
    rows = [
        [name, *(f"{ends[name]} {verdict(ends[name], at_most=0)}" for ends in found), "0"]
        for name in (DEATHS, STUCK, LEFT)
    ]
    rows += [[name, *(str(ends[name]) for ends in found), ""] for name in ENDS]
    seconds = sum(ends["ms"] for ends in found) / 1000
    print_table(
        f"{count:,} mutants of a GGUF file", ("what", "with our check", "without it", "target"), rows,
        f"Seed {SEED}, {AT_ONCE} at once, {seconds:.0f} s.",
    )  # fmt: skip


def outcomes(mode: str, first: int, count: int) -> Counter[str]:
    """What became of so many mutants. If the process of the manager dies, the rest gets another one."""
    ends, at = Counter[str](), first
    while at < first + count:
        command = [sys.executable, "-m", "benchmarks.mutants", "--side", mode, str(at), str(first + count - at)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said = json.loads(line)
                ends.update(said["ends"])
                at = max(at, said["next"])
        if process.returncode > 0:  # an error of this benchmark, which is on standard error
            raise subprocess.CalledProcessError(process.returncode, command)
        if process.returncode:
            ends[DEATHS] += 1
            at += 1  # it may be the one that did it
    return ends


# -- the side with the manager ---------------------------------------------------------------------------------------------


async def side(mode: str, first: int, count: int) -> None:
    """Load mutants, and print what became of each as a line of JSON."""
    logging.getLogger("lfx_local_runtimes").setLevel(logging.CRITICAL)  # each mutant is worth a line
    if mode == "unchecked":
        inspect.check_gguf = lambda header, **options: []  # type: ignore[assignment]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            home=Path(folder) / "home", model_dirs=(Path(folder),), offline=True, step_limit_s=STEP_LIMIT_S,
            spare_processes=AT_ONCE,
        )  # fmt: skip
        manager, numbers = RuntimeManager(settings), iter(range(first, first + count))

        async def work() -> None:
            for number in numbers:
                end = await outcome(manager, Path(folder), number)
                print(json.dumps({"next": number + 1, "ends": {end: 1}}), flush=True)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        manager.close()
        get_sandbox().close()
        _, left = psutil.wait_procs(psutil.Process().children(recursive=True), END_S)
        ends = {LEFT: len(left), "ms": int(1000 * (time.monotonic() - begin))}
        print(json.dumps({"next": first + count, "ends": ends}), flush=True)


async def outcome(manager: RuntimeManager, folder: Path, number: int) -> str:
    """Load one mutant and let it answer."""
    name, path = f"mutant-{number}", folder / f"{number}.gguf"
    path.write_bytes(mutant(SEED, number, base()))
    manager.register_model(
        ModelConfig(
            model_id=str(path),
            model_name=name,
            runtime_type=RuntimeType.LLAMA_CPP,
            device_type=DeviceType.CPU,
            threads=1,
        )
    )
    try:
        asked = GenerationConfig(prompt="yes", raw=True, max_tokens=TOKENS)
        await asyncio.wait_for(manager.generate(name, asked), STUCK_S)
        end = "answered"
    except asyncio.TimeoutError:
        end = STUCK
    except InvalidModelFile:
        end = "refused by the check"
    except EngineDied as fault:
        end = "was killed: a step did not end" if "was killed: " in fault.message else "ended its process"
    except RuntimeFault:
        end = "refused by the engine"
    await manager.unload_model(name, force=True)
    manager.unregister_model(name)
    path.unlink()
    return end


def program(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=main.__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help=f"default: {COUNT:,}")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.side:
        asyncio.run(side(chosen.side[0], int(chosen.side[1]), int(chosen.side[2])))
        return 0
    main(chosen.count)
    return conclude()


if __name__ == "__main__":
    sys.exit(program())
