"""Files that pass our check never take the process down: mutants, loaded for real in child processes."""

import json
import os
import random
import struct
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lfx_local_runtimes.errors import InvalidModelFile
from lfx_local_runtimes.runtimes.formats.safetensors import read_safetensors
from tests.builders import encode_safetensors, safetensors_header

ROOT = Path(__file__).parents[2]
SEEDS = (20, 21)
"""One child per seed; LOCAL_FUZZ_SEEDS (comma-separated) runs others."""
MUTANTS = 2000
CHILD_LIMIT_S = 240


def seeds() -> list[int]:
    named = os.environ.get("LOCAL_FUZZ_SEEDS")
    return [int(seed) for seed in named.split(",")] if named else list(SEEDS)


def load_mutants(seed: int, wanted: int) -> tuple[Counter[str], str]:
    """What became of the mutants, and which one killed the child ("" when none did)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gguf_mutants", str(seed), "0", str(wanted)],
        cwd=ROOT, env={**os.environ, "GGML_NO_BACKTRACE": "1"}, capture_output=True, text=True, errors="replace",
        timeout=CHILD_LIMIT_S, check=False,
    )  # fmt: skip
    last = (done.stdout.splitlines() or ["no mutant"])[-1]
    if done.returncode:
        return Counter(), f"seed {seed}, {last}: exit {done.returncode}: {done.stderr[-500:]}"
    return Counter(json.loads(last)), ""


@pytest.mark.integration
def test_no_gguf_that_passes_the_check_ends_the_process() -> None:
    pytest.importorskip("llama_cpp")
    chosen = seeds()
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        outcomes = list(pool.map(lambda seed: load_mutants(seed, MUTANTS // len(SEEDS)), chosen))
    assert [killer for _, killer in outcomes if killer] == []
    counts = sum((counts for counts, _ in outcomes), Counter[str]())
    assert counts["loaded"] + counts["failed"] == MUTANTS // len(SEEDS) * len(chosen)
    # The mutants are neither all harmless nor all hopeless: each of the three ends is well visited.
    assert min(counts["loaded"], counts["failed"], counts["refused"]) > 0.1 * MUTANTS


def broken_safetensors(rng: random.Random) -> bytes:
    """A small file with changes to its header or bytes."""
    tensors = {"a": ("F32", (2, 3)), "b": ("BF16", (4,)), "c": ("I8", (0,)), "d": ("BOOL", (2, 2, 2))}
    header, size = safetensors_header(tensors)
    numbers = (-1, 0, 1, 2, 8, 2**31, 2**53, 2**63, 2**64, 1.5, True, None, "8", [])
    for _ in range(rng.randrange(3)):
        entry: dict[str, Any] = header[rng.choice("abcd")]
        change = rng.randrange(4)
        if change == 0:
            entry["dtype"] = rng.choice(("F64", "F16", "F8_E4M3", "F4", "X", "", 3, None))
        elif change == 1:
            entry["shape"] = [rng.choice(numbers) for _ in range(rng.randrange(4))]
        elif change == 2:
            entry["data_offsets"] = [rng.choice(numbers) for _ in range(rng.choice((1, 2, 2, 2, 3)))]
        else:
            entry[rng.choice(("dtype", "extra", "__metadata__"))] = rng.choice(numbers)
    raw = bytearray(encode_safetensors(header, bytes(size)))
    for _ in range(rng.randrange(3)):
        place = rng.randrange(min(len(raw), 300))
        if rng.random() < 0.7:
            raw[place] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.5:
            raw[place : place + 8] = struct.pack("<Q", rng.choice((0, 1, 7, 2**31, 2**63)))
        else:
            del raw[place : place + rng.choice((1, 8))]
    return bytes(raw)


def test_safetensors_that_passes_the_check_opens(tmp_path: Path) -> None:
    safe_open = pytest.importorskip("safetensors").safe_open
    pytest.importorskip("numpy")
    path, rng = tmp_path / "mutant.safetensors", random.Random(7)
    passed = refused = 0
    for number in range(2000):
        path.write_bytes(broken_safetensors(rng))
        try:
            header = read_safetensors(path)
        except InvalidModelFile:
            refused += 1
            continue
        passed += 1
        with safe_open(str(path), "numpy") as opened:
            assert set(opened.keys()) == {tensor.name for tensor in header.tensors}, f"mutant {number}"
    assert passed > 200
    assert refused > 200
