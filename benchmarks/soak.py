"""Mixed requests to a live server, many of which are cancelled or left; every finished answer is compared with a lone one.

`EXACT` and `FAST` are the packaged Gemma. `EXACT` is loaded with `deterministic`, so each of its answers must be the same bit
for bit, also a drawn one. `FAST` is loaded as usual, and its greedy answers may differ after a near tie.

    python -m benchmarks soak
"""

import asyncio
import contextlib
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import psutil
from websockets.asyncio.client import connect

from benchmarks import models
from benchmarks.report import print_table, verdict
from benchmarks.servers import Server, our_process
from lfx_local_runtimes.runtimes import GenerationResult
from tests.encoder_models import cosines
from tests.gguf_encoders import save_bert_gguf
from tests.near_ties import same_but_for_a_near_tie

ROUNDS = 5
CALLS = 48
TIMES = 3
"""How often each call of a round is sent."""
AT_ONCE = 40
"""Clients. The server computes at most eight texts of a model at once, so others wait."""
EXACT, FAST, MINILM = "exact", "fast", "minilm"
NATIVE = "/api/v1/runtime"
WORDS = ("fox", "river", "lantern", "seven", "blue", "and", "then", "quietly", "because", "🦊", "ö", "42")
CLOSE = 1e-5
"""The largest cosine distance of two vectors of one text: other texts in the batch change how they are rounded."""
PATIENCE_S = 180.0

Leaving = Literal["stays", "cancels", "leaves"]


@dataclass(frozen=True)
class Call:
    """A request: where it goes, and its body without an id."""

    path: str
    body: dict[str, Any]


@dataclass
class Answer:
    """What a client has read."""

    texts: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    vectors: Any = None
    result: GenerationResult | None = None
    """Of a native route."""

    @property
    def cancelled(self) -> bool:
        return "cancelled" in self.ends


@dataclass
class Findings:
    """What became of the requests."""

    ends: Counter[str] = field(default_factory=Counter)
    """`finished`, `cancelled` and `left`: how many."""
    wrong: list[str] = field(default_factory=list)
    """Answers that differ from the lone one, and requests that failed."""
    left_over: list[str] = field(default_factory=list)
    """What the server still has after all of them."""


def main(rounds: int = ROUNDS) -> None:
    """Print the table."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), save_bert_gguf(models.minilm(), Path(folder) / "minilm.gguf"), rounds, CALLS)
    for line in (*found.wrong, *found.left_over):
        print(line)
    print_table(
        "Mixed requests with cancels and disconnects",
        ["", "", "target"],
        [
            ["requests", found.ends.total(), ""],
            *([name, count, ""] for name, count in found.ends.items()),
            ["failed, or different from a lone one", f"{len(found.wrong)} {verdict(len(found.wrong), at_most=0)}", "0"],
            ["left at the end", f"{len(found.left_over)} {verdict(len(found.left_over), at_most=0)}", "0"],
        ],
        f"{AT_ONCE} clients on one server, seed of each round its number, {time.perf_counter() - begin:.0f} s.",
    )


def run(folder: Path, minilm: Path, rounds: int, calls: int) -> Findings:
    """Send so many rounds of so many different calls to a server of their own, whose data is in `folder`."""
    gemma = {"model_id": str(models.gguf()), "context_length": 512, "parallel": 7, "threads": 1}  # two compute at once
    registered = [
        {"model_name": EXACT, "deterministic": True, **gemma},
        {"model_name": FAST, **gemma},
        {"model_name": MINILM, "model_id": str(minilm), "model_type": "embedding", "threads": 1},
    ]
    environment = {
        "LOCAL_RUNTIMES_HOME": str(folder / "home"),
        "LOCAL_RUNTIMES_MODEL_DIRS": os.pathsep.join({str(models.CACHE), str(minilm.parent)}),
        "LOCAL_RUNTIMES_SPARE_PROCESSES": "0",
    }
    with our_process(**environment) as server:
        with httpx.Client(base_url=server.url + NATIVE, timeout=PATIENCE_S) as client:
            for config in registered:
                client.post("/models/register", json=config).raise_for_status()
        return asyncio.run(_rounds(server, rounds, calls))


async def _rounds(server: Server, rounds: int, calls: int) -> Findings:
    found = Findings()
    process, files = psutil.Process(server.process.pid), 0
    for number in range(rounds):
        limits = httpx.Limits(max_connections=None, keepalive_expiry=1)  # before the server closes an idle one
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, limits=limits) as client:
            await _round(client, number, calls, found)
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
            found.left_over += await _still_running(client)
            await _unload(client)
            found.left_over += await _still_there(client, process)
            more = process.num_fds() - files
            if number and more > 0:
                found.left_over.append(f"{more} open files")
            files += more  # what the first round opened may stay open
    if "Traceback" in (log := server.log()):
        found.left_over.append(f"a traceback in the log: {log[log.index('Traceback') :][:2000]}")
    return found


async def _round(client: httpx.AsyncClient, number: int, count: int, found: Findings) -> None:
    """Send every call of a round several times in any order, then each alone, and compare."""
    chance = random.Random(number)
    calls = [_call(chance) for _ in range(count)]
    order = [place for place in range(count) for _ in range(TIMES)]
    chance.shuffle(order)
    room = asyncio.Semaphore(AT_ONCE)

    async def one(index: int, place: int, leaving: Leaving, pause: int) -> Answer | Exception | None:
        async with room:
            try:
                return await _ask(client, calls[place], f"soak-{number}-{index}", leaving, pause)
            except Exception as error:  # noqa: BLE001 - whatever it was, it is found wrong
                return error

    ways: tuple[Leaving, ...] = ("stays", "stays", "stays", "cancels", "leaves")
    plan = [(place, chance.choice(ways), chance.randrange(12)) for place in order]
    answers = await asyncio.gather(*(one(index, *about) for index, about in enumerate(plan)))
    alone = [await _answer(client, call, f"alone-{number}-{place}") for place, call in enumerate(calls)]
    for (place, leaving, _), answer in zip(plan, answers, strict=True):
        if answer is None:
            found.ends["left"] += 1
        elif isinstance(answer, Exception):
            found.wrong.append(f"{calls[place]}: {answer!r}")
        else:
            found.ends["cancelled" if answer.cancelled else "finished"] += 1
            unasked = answer.cancelled and leaving == "stays"
            if unasked or not agree(calls[place], answer, alone[place]):
                found.wrong.append(f"{calls[place]}: {str(answer)[:500]} instead of {str(alone[place])[:500]}")


# -- what is asked -------------------------------------------------------------------------------------------------------


def _call(chance: random.Random) -> Call:
    return chance.choices(_FORMS, weights=[3, 2, 1, 2])[0](chance)


def _native(chance: random.Random) -> Call:
    """To one of three routes and one of two models, with what a near tie is recognized by."""
    model = chance.choice((EXACT, FAST))
    body = {"model_name": model, "raw": True, "logprobs": True, "top_logprobs": 5, **_text(chance)}
    path = chance.choice(("generate", "generate/stream", "generate/ws"))
    return Call(f"{NATIVE}/{path}", body if model == EXACT else body | {"temperature": 0})


def _completion(chance: random.Random) -> Call:
    """Two answers in one."""
    body = {"model": EXACT, "stream": chance.random() < 0.5, **_text(chance)}
    return Call("/v1/completions", body | {"prompt": [_prompt(chance), _prompt(chance)]})


def _chat(chance: random.Random) -> Call:
    body = {"model": EXACT, "stream": chance.random() < 0.5, **_text(chance)}
    form = {"regex": "[a-z]{2,9}( [a-z]{2,9}){0,4}"} if chance.random() < 0.5 else {}
    return Call("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": body.pop("prompt")}], **form})


def _embedding(chance: random.Random) -> Call:
    texts = [_prompt(chance) for _ in range(chance.randint(1, 12))]
    if chance.random() < 0.5:
        return Call(f"{NATIVE}/embed", {"model_name": MINILM, "texts": texts})
    return Call("/v1/embeddings", {"model": MINILM, "input": texts, "encoding_format": "float"})


_FORMS: tuple[Callable[[random.Random], Call], ...] = (_native, _completion, _chat, _embedding)


def _text(chance: random.Random) -> dict[str, Any]:
    return {
        "prompt": _prompt(chance), "max_tokens": chance.randint(1, 16), "temperature": chance.choice((0, 0, 1)),
        "seed": chance.randrange(1000), "stop": [chance.choice((" the", "\n", "."))] if chance.random() < 0.3 else [],
    }  # fmt: skip


def _prompt(chance: random.Random) -> str:
    """Many begin alike, so that what the cache holds of them is used, copied and dropped."""
    opening = "The story so far: " + "the fox went down to the river and " * 5 if chance.random() < 0.4 else ""
    return opening + " ".join(chance.choices(WORDS, k=chance.randint(1, 16)))


# -- how it is answered --------------------------------------------------------------------------------------------------


async def _ask(client: httpx.AsyncClient, call: Call, name: str, leaving: Leaving, pause: int) -> Answer | None:
    """The answer; None if the client has left.

    `pause` is how many times the server answers something else before the client cancels or leaves.
    """
    asking = asyncio.create_task(_answer(client, call, name))
    if leaving != "stays":
        for _ in range(pause):
            await client.get("/health")
    if leaving == "leaves":
        asking.cancel()
        await asyncio.wait([asking])
        return None if asking.cancelled() else asking.result()
    while leaving == "cancels" and not asking.done():
        if (await client.post(f"{NATIVE}/requests/{name}/cancel")).is_success:
            break  # else it has not arrived yet, or just ended
    return await asking


async def _answer(client: httpx.AsyncClient, call: Call, name: str) -> Answer:
    """Send a call and read its answer to the end."""
    if call.path.endswith("/ws"):
        messages = _over_socket(str(client.base_url), call, name)
    elif call.body.get("stream") or call.path.endswith("/stream"):
        messages = _streamed(client, call, name)
    else:
        return read([await _complete(client, call, name)])
    async with contextlib.aclosing(messages):
        return read([message async for message in messages])


async def _complete(client: httpx.AsyncClient, call: Call, name: str) -> dict[str, Any]:
    response = await client.post(call.path, json=_named(call, name), headers={"x-request-id": name})
    if response.status_code == 499:  # the form for a cancelled answer
        return {"error": {"code": "cancelled"}}
    return dict(response.raise_for_status().json())


async def _streamed(client: httpx.AsyncClient, call: Call, name: str) -> AsyncIterator[dict[str, Any]]:
    async with client.stream("POST", call.path, json=_named(call, name), headers={"x-request-id": name}) as response:
        if response.status_code == 499:
            yield {"error": {"code": "cancelled"}}
            return
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


async def _over_socket(url: str, call: Call, name: str) -> AsyncIterator[dict[str, Any]]:
    async with connect(url.replace("http", "ws", 1).rstrip("/") + call.path) as socket:
        await socket.send(json.dumps(_named(call, name)))
        event = ""
        while event not in ("done", "error"):
            message = json.loads(await socket.recv())
            event = message.pop("event")
            yield message


def _named(call: Call, name: str) -> dict[str, Any]:
    return {**call.body, "request_id": name} if call.path.startswith(NATIVE) else call.body


def read(messages: list[dict[str, Any]]) -> Answer:
    """The answer from its only message, or from those of a stream."""
    last = messages[-1]
    if "error" in last:
        if last["error"]["code"] != "cancelled":
            raise RuntimeError(last["error"])
        return Answer(ends=["cancelled"])
    if "vectors" in last or "data" in last:
        return Answer(vectors=last.get("vectors") or [row["embedding"] for row in last["data"]])
    if "choices" in last:
        return _read_choices(messages)
    if len(messages) > 1 and "".join(one.get("text", "") for one in messages[:-1]) != last["text"]:
        raise RuntimeError(f"the pieces {messages[:-1]} are not the whole {last['text']!r}")
    result = GenerationResult.model_validate({name: last[name] for name in GenerationResult.model_fields})
    return Answer([result.text], [result.finish_reason], result=result)


def _read_choices(messages: list[dict[str, Any]]) -> Answer:
    pieces: dict[int, str] = {}
    ends: dict[int, str] = {}
    for choice in (choice for message in messages for choice in message["choices"]):
        said = choice.get("message") or choice.get("delta") or choice
        pieces[choice["index"]] = pieces.get(choice["index"], "") + (said.get("content") or said.get("text") or "")
        ends[choice["index"]] = choice.get("finish_reason") or ""
    return Answer([pieces[index] for index in sorted(pieces)], [ends[index] for index in sorted(ends)])


def agree(call: Call, answer: Answer, alone: Answer) -> bool:
    """Whether an answer in company is the lone one, or its beginning if it was cancelled."""
    if answer.cancelled:
        exact = EXACT in call.body.values()
        return not exact or all(whole.startswith(part) for part, whole in zip(answer.texts, alone.texts, strict=False))
    if answer.vectors is not None:
        found, expected = np.array(answer.vectors), np.array(alone.vectors)
        return found.shape == expected.shape and bool((1 - cosines(found, expected) < CLOSE).all())
    if EXACT in call.body.values():
        return (answer.texts, answer.ends) == (alone.texts, alone.ends)
    assert answer.result is not None
    assert alone.result is not None
    return same_but_for_a_near_tie(alone.result, answer.result)


# -- what is left --------------------------------------------------------------------------------------------------------


async def _still_running(client: httpx.AsyncClient) -> list[str]:
    """Requests and leases. A request whose client has left ends at its next token, so they get some time."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        running = (await client.get(f"{NATIVE}/stats")).raise_for_status().json()["running_requests"]
        rows = (await client.get(f"{NATIVE}/status")).raise_for_status().json()["models"]
        left = [f"{row['leases']} leases of {row['model_name']}" for row in rows if row["leases"]]
        left += [f"{running} requests"] if running else []
        if not left or time.monotonic() > deadline:
            return left


async def _unload(client: httpx.AsyncClient) -> None:
    for name in (EXACT, FAST, MINILM):
        (await client.post(f"{NATIVE}/models/unload", params={"model_name": name})).raise_for_status()


async def _still_there(client: httpx.AsyncClient, process: psutil.Process) -> list[str]:
    """Memory in the account, and processes of models, after everything was unloaded. Also requests that failed unseen."""
    stats = (await client.get(f"{NATIVE}/stats")).raise_for_status().json()
    left = [f"{used} on {device}" for device, of in stats["memory"].items() for used in of["models"]]
    left += [
        f"{count} {name}"
        for name, count in stats["counters"].items()
        if name in ("deaths", "requests_failed") and count
    ]
    children = [" ".join(child.cmdline()) for child in process.children()]
    return left + [command for command in children if "template" not in command]
