"""What every runtime does, whatever its engine."""

import asyncio
import os
import threading

import pytest

from lfx_local_runtimes.errors import ContextOverflow, EngineFailure
from lfx_local_runtimes.runtimes import ChatMessage, GenerationConfig
from lfx_local_runtimes.runtimes.requests import Finished, Request, RequestState
from lfx_local_runtimes.runtimes.tasks.generation import TextDelta

CONTEXT = 256
TOKENS = 6
WAIT_S = 60.0


def asks(start=1, **options):
    """A greedy request that goes on and on: it counts."""
    prompt = " ".join(f"{number}," for number in range(start, start + 8))
    return GenerationConfig(**{"prompt": prompt, "raw": True, "temperature": 0, "max_tokens": TOKENS} | options)


def endless():
    """Goes on until the context is full, which takes a model seconds: to be cancelled."""
    return asks(max_tokens=10_000)


class Ended:
    """Waits for the end of a request."""

    def __init__(self, request):
        self._event = threading.Event()
        request.on_end(self._event.set)

    def wait(self):
        assert self._event.wait(WAIT_S)


async def occupied(runtime):
    """Streams that keep every sequence of the model busy, and their pieces."""
    streams = [runtime.stream(endless()) for _ in range(runtime.plan.sequences)]
    pieces = [aiter(stream) for stream in streams]
    for one in pieces:
        assert await anext(one)
    return streams, pieces


async def still_works(runtime):
    result = await runtime.generate(asks())
    assert (result.finish_reason, result.tokens_generated) == ("length", TOKENS)


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_a_result_says_what_happened(runtime, case):
    result = await runtime.generate(asks(seed=7))
    assert result.text
    assert result.model_name == "a model"
    assert result.finish_reason == "length"
    assert result.tokens_generated == TOKENS
    assert 8 <= result.prompt_tokens < CONTEXT
    assert result.time_to_first_token is not None
    assert 0 < result.time_to_first_token <= result.execution_time < WAIT_S
    metadata = result.metadata
    assert metadata["engine"] == case.engine
    assert metadata["device"] == runtime.plan.device.key
    assert metadata["quantization"]
    assert metadata["context_length"] == CONTEXT
    assert metadata["seed"] == 7
    assert metadata["template"] == "raw"
    assert metadata["request_id"]
    assert metadata["warnings"] == []
    stages = metadata["timeline_ms"]
    assert list(stages) == ["loaded", "started", "first", "ended"]
    assert list(stages.values()) == sorted(stages.values())


async def test_a_prompt_goes_through_the_template_as_one_user_turn(runtime):
    options = {"raw": False, "max_tokens": 4}
    prompted = await runtime.generate(asks(**options))
    messages = (ChatMessage(role="user", content=asks().prompt),)
    chatted = await runtime.generate(asks(prompt=None, messages=messages, **options))
    assert prompted.metadata["template"] == "dialogue"
    assert (prompted.text, prompted.prompt_tokens) == (chatted.text, chatted.prompt_tokens)
    assert prompted.prompt_tokens > (await runtime.generate(asks(max_tokens=1))).prompt_tokens


async def test_streamed_pieces_are_the_whole_text(runtime):
    whole = await runtime.generate(asks())
    stream = runtime.stream(asks())
    pieces = [text async for text in stream]
    assert len(pieces) > 1
    assert "".join(pieces) == whole.text == stream.result.text
    assert "".join([text async for text in runtime.generate_streaming(asks())]) == whole.text
    assert "".join(runtime.stream(asks())) == whole.text


async def test_a_stop_string_across_tokens_ends_the_answer_and_is_not_in_it(runtime):
    pieces = [text async for text in runtime.generate_streaming(asks())]
    whole, stop = "".join(pieces), "".join(pieces[1:4])
    assert len(pieces) >= 4  # a token may be a part of a character
    stream = runtime.stream(asks(stop=("never this", stop)))
    text = "".join([text async for text in stream])
    assert text == stream.result.text == whole[: whole.index(stop)]
    assert text
    assert stream.result.finish_reason == "stop"
    assert stream.result.tokens_generated <= TOKENS


async def test_the_beginning_of_a_stop_string_is_text_after_all(runtime):
    pieces = [text async for text in runtime.generate_streaming(asks())]
    result = await runtime.generate(asks(stop=("".join(pieces[-2:]) + " and never this",)))
    assert result.text == "".join(pieces)
    assert result.finish_reason == "length"


@pytest.mark.parametrize("count", [1, 7])
async def test_max_tokens_is_exact(runtime, count):
    result = await runtime.generate(asks(max_tokens=count))
    assert (result.tokens_generated, result.finish_reason) == (count, "length")


async def test_a_seed_replays_the_answer(runtime):
    def sampled(seed):
        return runtime.generate(asks(prompt="Once upon a time", temperature=1, top_k=0, top_p=1, min_p=0, seed=seed))

    first, other, unset = await sampled(0), await sampled(1), await sampled(None)
    assert first.metadata["seed"] == 0
    assert (await sampled(0)).text == first.text != other.text
    assert (await sampled(unset.metadata["seed"])).text == unset.text


async def test_the_context_ends_the_answer_and_nothing_is_cut_silently(runtime):
    result = await runtime.generate(asks(prompt="1, 2, 3, " * 26, max_tokens=CONTEXT))
    assert result.prompt_tokens + result.tokens_generated == CONTEXT
    assert result.finish_reason == "length"


@pytest.mark.parametrize("raw", [True, False])
async def test_a_prompt_longer_than_the_context_is_refused(runtime, raw):
    config = asks(prompt="word " * (CONTEXT + 1), raw=raw)
    with pytest.raises(ContextOverflow, match=f"{CONTEXT}") as caught:
        await runtime.generate(config)
    assert caught.value.model_name == "a model"
    with pytest.raises(ContextOverflow):
        runtime.stream(config).wait()
    await still_works(runtime)


# -- cancelling ------------------------------------------------------------------------------------------------------


class Watched(Request):
    """Counts the tokens that arrive after a cancel, as the engine emits them."""

    late = 0

    def emit(self, event):
        if isinstance(event, TextDelta) and self.cancelled:
            self.late += 1
        super().emit(event)


async def test_a_cancel_from_another_thread_ends_it_within_a_step(runtime, case):
    request = Watched("a model", endless())
    runtime.submit(request)
    event = request.channel.get()
    assert isinstance(event, TextDelta)
    states = []
    canceller = threading.Thread(target=lambda: states.append(request.cancel()))
    canceller.start()
    canceller.join()
    texts = [event.text]
    while not isinstance(event, Finished):
        event = request.channel.get()
        texts += [event.text] if isinstance(event, TextDelta) else []
    assert states == [RequestState.RUNNING]
    assert request.state is RequestState.CANCELLED
    assert request.late <= 1 or case.isolation == "process"  # there, some are on their way already
    assert event.result.finish_reason == "cancelled"
    assert event.result.text == "".join(texts)
    assert 0 < event.result.tokens_generated < CONTEXT / 2
    await still_works(runtime)


async def test_a_cancelled_request_in_the_queue_never_runs(runtime):
    running, _pieces = await occupied(runtime)
    waiting = runtime.stream(asks())
    assert waiting.cancel() is RequestState.QUEUED
    result = await waiting.wait_async()
    assert (result.finish_reason, result.tokens_generated, result.text) == ("cancelled", 0, "")
    for one in running:
        one.cancel()
    await still_works(runtime)


async def test_leaving_an_async_stream_cancels(runtime):
    stream = runtime.stream(endless())
    ended = Ended(stream.request)
    pieces = aiter(stream)
    assert await anext(pieces)
    await pieces.aclose()
    await asyncio.to_thread(ended.wait)
    assert stream.request.state is RequestState.CANCELLED
    await still_works(runtime)


async def test_leaving_a_stream_in_a_thread_cancels(runtime):
    stream = runtime.stream(endless())
    ended = Ended(stream.request)
    for text in stream:
        assert text
        break
    await asyncio.to_thread(ended.wait)
    assert stream.request.state is RequestState.CANCELLED


async def test_cancelling_the_task_cancels_the_computation(runtime):
    streaming = runtime.stream(endless())
    ended = Ended(streaming.request)
    started = asyncio.Event()

    async def read():
        async for _ in streaming:
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(ended.wait)
    assert streaming.request.state is RequestState.CANCELLED
    await still_works(runtime)


# -- many callers ----------------------------------------------------------------------------------------------------


async def test_callers_on_two_loops_and_in_threads_all_get_their_answers(runtime):
    def short(start):
        return asks(start, max_tokens=3)

    starts = [1, 11, 21, 31, 41, 51]
    alone = {start: (await runtime.generate(short(start))).text for start in starts}
    answers = {}

    async def gather(some):
        results = await asyncio.gather(*(runtime.generate(short(start)) for start in some))
        answers.update(zip(some, results, strict=True))

    def plain(start):
        answers[start] = runtime.stream(short(start)).wait()

    threads = [
        threading.Thread(target=lambda some=some: asyncio.run(gather(some))) for some in (starts[:2], starts[2:4])
    ]
    threads += [threading.Thread(target=plain, args=(start,)) for start in starts[4:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, WAIT_S)
    assert {start: result.text for start, result in answers.items()} == alone
    assert {result.tokens_generated for result in answers.values()} == {3}


# -- life ------------------------------------------------------------------------------------------------------------


async def test_load_use_unload_and_again(small):
    assert small.get_memory_usage() == {"devices": {}, "total_mb": 0}
    assert (await small.health_check())["status"] == "unloaded"
    before = set(threading.enumerate())
    assert await small.load() is True
    assert await small.load() is False
    (thread,) = [thread for thread in threading.enumerate() if thread not in before and thread.name == "model a model"]
    await still_works(small)
    assert small.get_memory_usage()["total_mb"] > 0
    await small.unload()
    assert not thread.is_alive()
    assert small.get_memory_usage() == {"devices": {}, "total_mb": 0}
    assert (await small.health_check())["status"] == "unloaded"
    with pytest.raises(EngineFailure, match="not loaded"):
        await small.generate(asks())
    await small.unload()
    assert await small.load() is True
    await still_works(small)


async def test_unloading_cancels_what_runs_and_waits(fresh):
    await fresh.load()
    running, _pieces = await occupied(fresh)
    waiting = fresh.stream(asks())
    await fresh.unload()
    assert not fresh.loaded
    assert {(await one.wait_async()).finish_reason for one in running} == {"cancelled"}
    result = await waiting.wait_async()
    assert (result.finish_reason, result.tokens_generated) == ("cancelled", 0)


async def test_health_and_memory(runtime, case):
    health = await runtime.health_check()
    assert health == {
        "status": "ready",
        "model_name": "a model",
        "engine": runtime.engine,
        "device": runtime.plan.device.key,
        "requests": 0,
        "warnings": [],
        "pid": runtime.pid,
    }
    assert (runtime.pid == os.getpid()) == (case.isolation == "inline")
    assert runtime.isolation == case.isolation
    memory = runtime.get_memory_usage()
    assert memory["devices"]
    assert all(size > 0 for size in memory["devices"].values())
    assert memory["total_mb"] == pytest.approx(sum(memory["devices"].values()) / 2**20, abs=0.1)
