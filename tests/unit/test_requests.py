"""The channel and the request: any reader, any thread, one end."""

import asyncio
import threading

import pytest

from lfx_local_runtimes.errors import EngineFailure
from lfx_local_runtimes.runtimes.requests import (
    Failed,
    Finished,
    GenerationStream,
    Progress,
    Request,
    RequestState,
    Run,
)
from lfx_local_runtimes.runtimes.requests.channel import MERGE_AFTER, Channel
from lfx_local_runtimes.runtimes.tasks.base import Delta
from lfx_local_runtimes.runtimes.tasks.generation import (
    GenerationConfig,
    GenerationResult,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)


def result(reason: str = "stop") -> GenerationResult:
    return GenerationResult(
        text="ab", model_name="m", tokens_generated=2, prompt_tokens=1, finish_reason=reason,  # type: ignore[arg-type]
        execution_time=0.1, time_to_first_token=0.05, metadata={},
    )  # fmt: skip


@pytest.fixture
def request_() -> Request:
    return Request("m", GenerationConfig(prompt="x"))


def serve(request: Request) -> None:
    assert request.start()
    request.emit(TextDelta("a", 1))
    request.emit(TextDelta("b", 2))
    request.emit(Finished(result()))


def test_a_thread_reads_what_another_writes(request_: Request) -> None:
    thread = threading.Thread(target=serve, args=(request_,))
    stream = GenerationStream(Run(request_))
    thread.start()
    assert list(stream) == ["a", "b"]
    thread.join()
    assert stream.result is not None
    assert stream.result.text == "ab"
    assert request_.state is RequestState.FINISHED


def test_a_result_says_when_each_stage_was_reached(request_: Request) -> None:
    served = GenerationStream(Run(request_))
    serve(request_)
    stages = served.wait().metadata["timeline_ms"]
    assert list(stages) == ["started", "first", "ended"]  # no runtime took it: it was never loaded
    assert list(stages.values()) == sorted(stages.values())
    assert request_.timeline.loaded is None


def test_a_failure_ends_the_timeline(request_: Request) -> None:
    request_.emit(Failed(EngineFailure("It broke.")))
    assert list(request_.timeline.milliseconds()) == ["ended"]


async def test_a_coroutine_reads_what_a_thread_writes(request_: Request) -> None:
    stream = GenerationStream(Run(request_))
    reader = asyncio.create_task(stream.wait_async())
    await asyncio.to_thread(serve, request_)
    assert (await reader).text == "ab"


async def test_a_cancelled_reader_cancels_the_request(request_: Request) -> None:
    request_.start()
    reader = asyncio.create_task(GenerationStream(Run(request_)).wait_async())
    await asyncio.to_thread(lambda: request_.emit(TextDelta("a", 1)))
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert request_.cancelled


def test_leaving_early_cancels(request_: Request) -> None:
    request_.start()
    request_.emit(TextDelta("a", 1))
    for _ in GenerationStream(Run(request_)):
        break
    assert request_.cancelled


def test_a_waiting_request_ends_at_once(request_: Request) -> None:
    assert request_.cancel() is RequestState.QUEUED
    assert not request_.start()
    assert GenerationStream(Run(request_)).wait().finish_reason == "cancelled"
    assert request_.state is RequestState.CANCELLED


def test_a_running_request_is_ended_by_its_engine(request_: Request) -> None:
    request_.start()
    assert request_.cancel() is RequestState.RUNNING
    assert request_.state is RequestState.RUNNING
    request_.emit(Finished(result("cancelled")))
    assert request_.state is RequestState.CANCELLED


def test_failure_is_raised_to_the_reader(request_: Request) -> None:
    request_.start()
    request_.emit(Failed(EngineFailure("it broke")))
    with pytest.raises(EngineFailure, match="it broke"):
        GenerationStream(Run(request_)).wait()


def test_nothing_follows_the_end(request_: Request) -> None:
    serve(request_)
    request_.emit(Failed(EngineFailure("too late")))
    assert GenerationStream(Run(request_)).wait().text == "ab"


def test_the_end_is_told_once_and_before_the_reader_hears(request_: Request) -> None:
    calls: list[str] = []
    request_.on_end(lambda: calls.append("early"))
    serve(request_)
    request_.on_end(lambda: calls.append("late"))
    assert calls == ["early", "late"]


def test_progress_goes_to_the_callback(request_: Request) -> None:
    seen: list[Progress] = []
    request_.emit(Progress("load", 1, 2))
    serve(request_)
    GenerationStream(Run(request_, seen.append)).wait()
    assert seen == [Progress("load", 1, 2)]


def test_a_reader_whose_loop_is_gone_does_not_hurt_the_writer(request_: Request) -> None:
    async def begin() -> None:
        task = asyncio.ensure_future(request_.channel.aget())
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(begin())
    serve(request_)
    assert request_.state is RequestState.FINISHED


# -- a reader who falls behind -----------------------------------------------------------------------------------------


def test_a_reader_in_time_gets_every_delta() -> None:
    channel = Channel()
    for number in range(MERGE_AFTER * 3):
        channel.put(TextDelta(str(number), number))
        assert channel.get() == TextDelta(str(number), number)


def test_what_nobody_reads_is_joined_and_complete(request_: Request) -> None:
    count = MERGE_AFTER * 100
    request_.start()
    for number in range(count):
        request_.emit(TextDelta(f"{number} ", number + 1))
    request_.emit(Finished(result()))
    *deltas, last = request_.channel.drain()
    assert len(deltas) == MERGE_AFTER
    assert [delta.text for delta in deltas[:2]] == ["0 ", "1 "]
    assert "".join(delta.text for delta in deltas) == "".join(f"{number} " for number in range(count))
    assert deltas[-1].tokens == count
    assert isinstance(last, Finished)


def test_a_reader_who_comes_back_gets_single_deltas_again() -> None:
    channel = Channel()
    for number in range(MERGE_AFTER + 10):
        channel.put(TextDelta("x", number))
    assert len(channel.drain()) == MERGE_AFTER
    channel.put(TextDelta("a", 1))
    channel.put(TextDelta("b", 2))
    assert channel.drain() == [TextDelta("a", 1), TextDelta("b", 2)]


def test_all_that_a_delta_has_is_joined() -> None:
    score = TokenLogprob(token="a", logprob=-1.0, bytes=(97,))
    calls = ToolCallDelta(0, "call_1", "weather"), ToolCallDelta(0, arguments="{}")
    first = TextDelta("a", 1, "hm", calls[:1], (score,))
    assert first.merged(TextDelta("b", 2, "!", calls[1:], (score,))) == TextDelta("ab", 2, "hm!", calls, (score, score))


def test_the_last_progress_counts() -> None:
    channel = Channel()
    for done in range(MERGE_AFTER + 10):
        channel.put(Progress("load", done))
    events = channel.drain()
    assert len(events) == MERGE_AFTER
    assert events[-1] == Progress("load", MERGE_AFTER + 9)


def test_what_cannot_be_joined_stays_apart() -> None:
    class Sound(Delta):
        pass

    channel = Channel()
    events = [Sound(), TextDelta("a", 1), Progress("load"), TextDelta("b", 2), Sound(), Sound()] * MERGE_AFTER
    for event in events:
        channel.put(event)
    assert channel.drain() == events
