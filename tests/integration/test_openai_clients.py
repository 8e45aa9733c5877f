"""The standalone server on the real Gemma, asked by the official `openai` client and by LangChain's `ChatOpenAI`."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from tests.langflow_server import LangflowServer

pytestmark = pytest.mark.integration

MODEL = "gemma-3-270m"
KEY = "only for this test"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "London"]},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city", "unit"],
        },
    },
}
PATIENCE_S = 60.0
_START_S = 60.0
LONG: dict[str, Any] = {
    "model": MODEL, "prompt": "1, 2, 3,", "max_tokens": 3000, "stream": True, "extra_body": {"ignore_eos": True},
}  # fmt: skip
"""It does not end by itself: a request that ended as cancelled was ended."""


@dataclass(frozen=True)
class Running:
    """A server in a process of its own."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"


@contextlib.contextmanager
def serving(folder: Path, models: Path) -> Iterator[Running]:
    """`lfx-local-runtimes serve` on a free port, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = {
        "LOCAL_RUNTIMES_HOME": str(folder / "home"),
        "LOCAL_RUNTIMES_OFFLINE": "true",
        "LOCAL_RUNTIMES_API_KEY": KEY,
    }
    command = [sys.executable, "-m", "lfx_local_runtimes.cli", "serve", "--port", str(port), "--model-dir", str(models)]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=os.environ | ours,
        )
    running = Running(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_healthy(running)
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _wait_until_healthy(running: Running) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and running.process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{running.url}/health", timeout=5).is_success:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(0.05)
    raise RuntimeError(f"The server did not start:\n{running.log.read_text(errors='replace')}")


@pytest.fixture(scope="module")
def gemma(gemma_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    models = tmp_path_factory.mktemp("models")
    (models / f"{MODEL}.gguf").hardlink_to(gemma_gguf)
    with serving(tmp_path_factory.mktemp("server"), models) as running:
        yield running


@pytest.fixture
def client(gemma: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=gemma.base_url, api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def asynchronous(gemma: Running) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=gemma.base_url, api_key=KEY, max_retries=0, timeout=120)


def leases(running: Running) -> int:
    answer = httpx.get(f"{running.url}/api/v1/runtime/status", headers={"x-api-key": KEY}).raise_for_status()
    return int(next(row["leases"] for row in answer.json()["models"] if row["model_name"] == MODEL))


def cancelled(running: Running) -> int:
    answer = httpx.get(f"{running.url}/api/v1/runtime/stats", headers={"x-api-key": KEY}).raise_for_status()
    return int(answer.json()["counters"].get("requests_cancelled", 0))


# -- the openai client ---------------------------------------------------------------------------------------------------


def test_models(client: OpenAI) -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError, match="no model called nobody"):
        client.models.retrieve("nobody")


def test_a_chat_whole_and_streamed_is_the_same(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=12)
    assert "Paris" in (whole.choices[0].message.content or "")
    assert whole.usage is not None
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens


async def test_eight_async_streams_at_once(asynchronous: AsyncOpenAI) -> None:
    async def ask(number: int) -> str:
        stream = await asynchronous.completions.create(
            model=MODEL,
            prompt=", ".join(str(count) for count in range(number, number + 6)) + ",",
            temperature=0,
            max_tokens=10,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        return "".join(chunk.choices[0].text for chunk in chunks)

    starts = range(1, 81, 10)
    texts = await asyncio.gather(*map(ask, starts))
    for start, text in zip(starts, texts, strict=True):
        assert text.startswith(f" {start + 6}, {start + 7}"), "each goes on counting where its prompt ends"


def test_a_seed_gives_the_same_answer_again_and_n_different_ones(client: OpenAI) -> None:
    def ask(count: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Invent a name for a cat."}],
            n=count,
            seed=7,
            max_tokens=8,
        )
        return [choice.message.content for choice in answer.choices]

    assert ask(1) == ask(1)
    assert len(set(ask(3))) > 1


def test_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=3, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    rows = answer.choices[0].logprobs.content or []
    assert answer.usage is not None
    assert len(rows) >= answer.usage.completion_tokens
    for row in rows:
        assert row.logprob <= 0
        assert [other.logprob for other in row.top_logprobs] == sorted(
            (o.logprob for o in row.top_logprobs), reverse=True
        )
        assert row.token == row.top_logprobs[0].token  # greedy
    text = "".join(bytes(row.bytes or ()).decode() for row in rows)
    assert text.strip().startswith(answer.choices[0].message.content or "?")

    completion = client.completions.create(model=MODEL, prompt="1 2 3 4", temperature=0, max_tokens=4, logprobs=2)
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or ()) == len(logprobs.token_logprobs or ()) == len(logprobs.text_offset or ()) == 4


def test_stop_and_logit_bias(client: OpenAI, gemma_gguf: Path) -> None:
    from llama_cpp import Llama

    vocabulary = Llama(str(gemma_gguf), vocab_only=True, verbose=False)
    (five,) = vocabulary.tokenize(b"5", add_bos=False)
    vocabulary.close()
    numbers = client.completions.create(model=MODEL, prompt="1, 2, 3, 4,", temperature=0, max_tokens=20, stop=["7"])
    assert (numbers.choices[0].text, numbers.choices[0].finish_reason) == (" 5, 6, ", "stop")
    biased = client.completions.create(
        model=MODEL, prompt="1, 2, 3, 4,", temperature=0, max_tokens=8, logit_bias={str(five): -100}
    )
    assert "5" not in biased.choices[0].text


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_tool_call(client: OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "How is the weather in Paris?"}], tools=[WEATHER],
        tool_choice=choice, temperature=0, max_tokens=100,
    )  # fmt: skip
    (choice_,) = answer.choices
    (call,) = choice_.message.tool_calls or ()
    assert call.type == "function"
    assert (choice_.finish_reason, call.function.name) == ("tool_calls", "get_weather")
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ("Paris", "London")
    assert arguments["unit"] in ("C", "F")

    back = client.chat.completions.create(
        model=MODEL, max_tokens=8, temperature=0, tools=[WEATHER], tool_choice="none",
        messages=[
            {"role": "user", "content": "How is the weather in Paris?"},
            {"role": "assistant", "tool_calls": [call.model_dump()]},  # type: ignore[typeddict-item]
            {"role": "tool", "tool_call_id": call.id, "content": "It rains."},
        ],
    )  # fmt: skip
    assert not back.choices[0].message.tool_calls


def test_a_forced_tool_call_streamed(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "How is the weather in Paris?"}], tools=[WEATHER],
        tool_choice="required", temperature=0, max_tokens=100,
    ) as stream:  # fmt: skip
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city", "unit"}


class City(BaseModel):
    """What is asked for."""

    name: Annotated[str, Field(max_length=12)]  # a base model likes to go on
    inhabitants: Annotated[int, Field(ge=0, le=99_999_999)]


def test_structured_output_is_parsed(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "Describe Paris as JSON."}], response_format=City,
        temperature=0, max_tokens=200,
    )  # fmt: skip
    assert isinstance(answer.choices[0].message.parsed, City)

    response = client.responses.parse(
        model=MODEL, input="Describe Paris as JSON.", text_format=City, temperature=0, max_output_tokens=200
    )
    assert isinstance(response.output_parsed, City)


def test_native_options_go_in_the_extra_body(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=30,
        extra_body={"regex": "[0-9]{4}-[0-9]{2}", "top_k": 5, "min_p": 0.1},
    )
    assert re.fullmatch("[0-9]{4}-[0-9]{2}", answer.choices[0].message.content or "")


def test_responses_whole_and_streamed(client: OpenAI) -> None:
    whole = client.responses.create(
        model=MODEL, input="What is the capital of France?", temperature=0, max_output_tokens=12
    )
    assert "Paris" in whole.output_text
    with client.responses.stream(
        model=MODEL, input="What is the capital of France?", temperature=0, max_output_tokens=12
    ) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(pieces) == final.output_text == whole.output_text
    called = client.responses.create(
        model=MODEL, input="How is the weather in Paris?", max_output_tokens=100, temperature=0, tool_choice="required",
        tools=[{"type": "function", "strict": True, **WEATHER["function"]}],
    )  # fmt: skip
    (call,) = called.output
    assert call.type == "function_call"
    assert set(json.loads(call.arguments)) == {"city", "unit"}


def test_errors_are_the_clients_own(gemma: Running, client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        OpenAI(base_url=gemma.base_url, api_key="guess", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=QUESTION)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as invalid:
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9)
    assert invalid.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 50_000}])
    assert long.value.code == "context_length_exceeded"


async def test_leaving_a_stream_ends_the_computation(gemma: Running, asynchronous: AsyncOpenAI) -> None:
    before = cancelled(gemma)
    stream = await asynchronous.completions.create(**LONG)
    async for _ in stream:
        break
    await stream.close()
    deadline = time.monotonic() + PATIENCE_S
    while leases(gemma):
        assert time.monotonic() < deadline
        await asyncio.sleep(0)
    assert cancelled(gemma) == before + 1


# -- LangChain -----------------------------------------------------------------------------------------------------------


def test_chat_openai(gemma: Running) -> None:
    from langchain_core.messages import AIMessageChunk
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return city

    model = ChatOpenAI(model=MODEL, base_url=gemma.base_url, api_key=KEY, temperature=0, max_tokens=60, max_retries=0)  # type: ignore[call-arg, arg-type]
    answer = model.invoke("What is the capital of France?")
    assert "Paris" in str(answer.content)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0

    whole = AIMessageChunk(content="")
    for chunk in model.stream("What is the capital of France?"):
        whole += chunk  # type: ignore[assignment]
    assert whole.content == answer.content

    called = model.bind_tools([get_weather], tool_choice="get_weather").invoke("How is the weather in Paris?")
    assert [call["name"] for call in called.tool_calls] == ["get_weather"]
    assert isinstance(called.tool_calls[0]["args"]["city"], str)

    city = model.with_structured_output(City, method="json_schema").invoke("Describe Paris as JSON.")
    assert isinstance(city, City)


async def test_chat_openai_asynchronously(gemma: Running) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, base_url=gemma.base_url, api_key=KEY, temperature=0, max_tokens=20, max_retries=0)  # type: ignore[call-arg, arg-type]
    pieces = [str(chunk.content) async for chunk in model.astream("What is the capital of France?")]
    assert "Paris" in "".join(pieces)


# -- inside Langflow -----------------------------------------------------------------------------------------------------


def test_langflows_own_key_serves_the_client(langflow_server: LangflowServer) -> None:
    base_url = f"{langflow_server.runtime_url}/v1"
    with OpenAI(base_url=base_url, api_key=langflow_server.api_key, max_retries=0, timeout=120) as client:
        stream = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, max_tokens=12, stream=True
        )
        assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    with (
        OpenAI(base_url=base_url, api_key="sk-guess", max_retries=0) as stranger,
        pytest.raises(openai.APIStatusError) as no,
    ):
        stranger.models.list()
    assert no.value.status_code in (401, 403)
    assert no.value.code == "invalid_api_key"


# -- the end -------------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_running_requests_and_the_server(gemma_gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / f"{MODEL}.gguf").hardlink_to(gemma_gguf)
    with serving(tmp_path, models) as running, OpenAI(base_url=running.base_url, api_key=KEY, max_retries=0) as client:
        stream = client.completions.create(**LONG)
        next(iter(stream))
        ended: list[BaseException] = []

        def read_on() -> None:
            try:
                for _ in stream:
                    pass
            except openai.APIError as error:
                ended.append(error)

        reader = threading.Thread(target=read_on)
        reader.start()
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(PATIENCE_S) == 0
        reader.join(PATIENCE_S)
        assert [error.code for error in ended if isinstance(error, openai.APIError)] == ["cancelled"]
        assert "Traceback" not in running.log.read_text()
